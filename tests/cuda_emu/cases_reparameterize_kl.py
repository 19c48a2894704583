"""Inputs for the reparameterize_kl ops and an fp64 oracle in numpy, noise included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SEED = (0x0123456789ABCDEF, -2)
TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1e-3}


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox 4x32-10 of (n, 4) counter words, in Python's unbounded integers."""
    words = counter.astype(object)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = words[:, 0] * 0xD2511F53, words[:, 2] * 0xCD9E8D57
        words = np.stack(
            [
                (p1 >> 32) ^ words[:, 1] ^ k0,
                p1 & 0xFFFFFFFF,
                (p0 >> 32) ^ words[:, 3] ^ k1,
                p0 & 0xFFFFFFFF,
            ],
            axis=1,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return words


def normals(seed: tuple[int, int], n: int) -> np.ndarray:
    """The first n normal numbers of a seed, as csrc/common/philox.h defines them, in float64."""
    block = np.arange((n + 3) // 4, dtype=object)
    stream = seed[1] % 2**64
    low, high = block & 0xFFFFFFFF, block >> 32
    fixed = [np.full_like(block, stream & 0xFFFFFFFF), np.full_like(block, stream >> 32)]
    key = seed[0] % 2**64
    words = philox(np.stack([low, high, *fixed], axis=1), (key & 0xFFFFFFFF, key >> 32))
    u = (words.astype(np.float64).astype(np.float32) + np.float32(0.5)).astype(np.float64) / 2**32
    radius, turn = np.sqrt(-2 * np.log(u[:, ::2])), 2 * np.pi * u[:, 1::2]
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=2).reshape(-1)[:n]


@dataclass
class Problem:
    """Everything that the ops take."""

    mu: Tensor
    logvar: Tensor
    grad_z: Tensor | None
    grad_kl: Tensor | None
    seed: Tensor | None
    eps: Tensor | None = None
    prior_mean: Tensor | None = None
    prior_logvar: Tensor | None = None
    counted: Tensor | None = None
    free_bits: float = 0.0
    logvar_max: float | None = None
    n_samples: int | None = None
    draw_rows: int = 1


def problem(
    rows: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    n_samples: int | None = None,
    options: bool = False,
    eps: bool = False,
    misaligned: bool = False,
    draw_rows: int | None = None,
) -> Problem:
    """Random inputs; with `options` a prior, a mask and a bound on the log-variance."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        data = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        if not misaligned:
            return data
        room = torch.empty(data.numel() + 1, dtype=dtype)
        return room[1:].view(shape).copy_(data)

    draws = (rows, width) if n_samples is None else (n_samples, rows, width)
    p = Problem(
        mu=tensor(rows, width),
        logvar=tensor(rows, width),
        grad_z=tensor(*draws),
        grad_kl=tensor(rows, dtype=wide),
        seed=None if eps else torch.tensor([SEED[0], SEED[1]]),
        eps=tensor(*draws, dtype=wide) if eps else None,
        n_samples=n_samples,
        draw_rows=max(rows, 1) if draw_rows is None else draw_rows,
    )
    if options:
        p.prior_mean, p.prior_logvar = tensor(width, dtype=wide), tensor(width, dtype=wide)
        p.counted = torch.arange(width) % 3 != 1
        p.free_bits, p.logvar_max = 0.25, 0.5
    return p


def noise(p: Problem) -> Tensor:
    """Eps of a problem, (K, B, Z) in float64."""
    rows, width = p.mu.shape
    samples = p.n_samples or 1
    if p.eps is not None:
        return p.eps.double().reshape(samples, rows, width)
    drawn = torch.from_numpy(normals(SEED, samples * p.draw_rows * width))
    drawn = drawn.reshape(samples, p.draw_rows, width)
    return drawn[:, torch.arange(rows) % p.draw_rows]


def divergence(p: Problem) -> Tensor:
    """Of each element, (B, Z) in float64; differentiable."""
    v = p.logvar.double() if p.logvar_max is None else p.logvar.double().clamp(max=p.logvar_max)
    distance, precision, ratio = p.mu.double(), 1.0, v
    if p.prior_mean is not None:
        distance = distance - p.prior_mean.double()
    if p.prior_logvar is not None:
        precision, ratio = (-p.prior_logvar.double()).exp(), v - p.prior_logvar.double()
    return 0.5 * (distance.square() * precision + torch.expm1(ratio) - ratio)


def expected(p: Problem) -> dict[str, Tensor]:
    """Everything in float64, gradients by autograd."""
    p = replace(p, mu=p.mu.double().requires_grad_(), logvar=p.logvar.double().requires_grad_())
    v = p.logvar if p.logvar_max is None else p.logvar.clamp(max=p.logvar_max)
    z = p.mu + noise(p) * (v / 2).exp()
    z = z[0] if p.n_samples is None else z
    terms = divergence(p)
    if p.counted is not None:
        terms = torch.where(p.counted, terms, p.free_bits)
    kl = terms.sum(1)
    total = p.mu.sum() * 0.0
    if p.grad_z is not None:
        total = total + (z * p.grad_z.double()).sum()
    if p.grad_kl is not None:
        total = total + (kl * p.grad_kl.double()).sum()
    grads = torch.autograd.grad(total, (p.mu, p.logvar), allow_unused=True)
    zeros = torch.zeros_like(p.mu)
    grad_mu, grad_logvar = (zeros if g is None else g for g in grads)
    return {"z": z.detach(), "kl": kl.detach(), "grad_mu": grad_mu, "grad_logvar": grad_logvar}


def run(ops: Any, p: Problem, need_mu: bool = True, need_logvar: bool = True) -> dict[str, Tensor]:
    """Forward and backward."""
    source = (p.mu, p.logvar, p.seed, p.eps, p.prior_mean, p.prior_logvar, p.counted)
    sizes = (p.logvar_max, p.n_samples, p.draw_rows)
    z, kl = ops.reparameterize_kl(*source, p.free_bits, *sizes)
    grads = ops.reparameterize_kl_backward(
        p.grad_z, p.grad_kl, *source, *sizes, need_mu, need_logvar
    )
    return {"z": z, "kl": kl, "grad_mu": grads[0], "grad_logvar": grads[1]}


def check(ops: Any, p: Problem) -> dict[str, Tensor]:
    """Runs the ops and compares with the oracle."""
    results = run(ops, p)
    wide = torch.float64 if p.mu.dtype == torch.float64 else torch.float32
    for name, wanted in expected(p).items():
        got = results[name]
        assert got.dtype == (wide if name == "kl" else p.mu.dtype), name
        # The noise is float32 whatever the inputs are.
        error = 3e-6 if name == "kl" else TOLERANCE.get(p.mu.dtype, 3e-6)
        torch.testing.assert_close(got.double(), wanted, rtol=error, atol=4 * error, msg=name)
    return results


def check_counted(ops: Any, p: Problem) -> Tensor:
    """The mask of the dimensions above free bits that lie between the means."""
    means = divergence(p).mean(0)
    middle = means.sort().values
    at = len(middle) // 2
    bits = (middle[at - 1 : at + 1].mean() if at else middle[0] * 0.5).item()
    got = ops.reparameterize_kl_counted(
        p.mu, p.logvar, p.prior_mean, p.prior_logvar, bits, p.logvar_max
    )
    assert torch.equal(got, means > bits)
    return got


def small_cases(ops: Any) -> None:
    """Every path of the kernels, at sizes that take seconds under a sanitizer."""
    for dtype in DTYPES:
        check(ops, problem(5, 36, dtype=dtype))
        check(ops, problem(5, 131, dtype=dtype, options=True, n_samples=2))
        check_counted(ops, problem(130, 33, dtype=dtype, options=True))
    check(ops, problem(3, 36, misaligned=True, eps=True, n_samples=2))
    check(ops, problem(40, 4, draw_rows=10))
    check(ops, problem(0, 4))
    check(ops, problem(3, 0))


def tiny_cases(ops: Any) -> None:
    """Every kernel with a block or two, for the thread sanitizer."""
    check(ops, problem(6, 8))
    check(ops, problem(2, 5, options=True, n_samples=2))
    check_counted(ops, problem(130, 3))
