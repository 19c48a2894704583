"""Inputs for the likelihood ops and float64 oracles in plain torch, for any ops namespace and device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NAMES = ("multinomial", "bernoulli", "poisson", "gaussian", "gaussian-shared", "gaussian-rows")
# Relative, of a row's number beside the largest sum that enters it; of a gradient beside its parts.
VALUE = {torch.float64: 1e-13, torch.float32: 2e-6}
GRADIENT = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


@dataclass
class Inputs:
    """Predictions and a target in which rows are empty, long, unsorted or hold a column twice."""

    x: Tensor
    logvar: Tensor | None
    crow: Tensor
    col: Tensor
    values: Tensor
    grad: Tensor

    @property
    def target(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.crow, self.col, self.values

    def rows(self) -> Tensor:
        return torch.repeat_interleave(self.crow.diff()).long()


def inputs(
    name: str,
    rows: int,
    cols: int,
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int64,
    seed: int = 0,
    unsorted: bool = False,
    duplicates: bool = True,
    misaligned: bool = False,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(0, min(cols, 40) + 1, (rows,), generator=generator)
    lengths[1::3] = 0
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    runs = []
    for n in lengths.tolist():
        col = torch.randperm(cols, generator=generator)[:n]
        if duplicates and n > 1:
            col[-1] = col[0]
        runs.append(col if unsorted else col.sort().values)
    col = torch.cat(runs) if runs else torch.zeros(0, dtype=torch.int64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    counts = torch.randint(0, 6, (int(crow[-1]),), generator=generator).double()
    if name == "bernoulli":
        counts = counts / 5
    x = (2 * draw(rows, cols)).to(dtype)
    if misaligned:
        x = torch.empty(x.numel() + 1, dtype=dtype)[1:].view(rows, cols).copy_(x)
    logvar = {"gaussian-shared": draw(cols), "gaussian-rows": draw(rows, cols)}.get(name)
    return Inputs(
        x,
        None if logvar is None else logvar.to(dtype),
        crow.to(index),
        col.to(index),
        counts.to(wide),
        draw(rows).to(wide),
    )


def oracle(name: str, i: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The nll of every row, the sum of what enters it, and the gradients, in float64."""
    x = i.x.double().requires_grad_()
    v = None if i.logvar is None else i.logvar.double().requires_grad_()
    rows, values = i.rows(), i.values.double()
    at = x[rows, i.col.long()]
    if name == "multinomial":
        dense = torch.zeros_like(x)
        entries = values * (torch.logsumexp(x, 1)[rows] - at)
    elif name == "bernoulli":
        dense = torch.logaddexp(x, torch.zeros_like(x))
        entries = -values * at
    elif name == "poisson":
        dense = torch.exp(x)
        entries = torch.lgamma(values + 1) - values * at
    else:
        wide = torch.zeros_like(x) if v is None else v.expand_as(x)
        here = wide[rows, i.col.long()]
        dense = 0.5 * (wide + x.square() * torch.exp(-wide))
        entries = 0.5 * torch.exp(-here) * ((values - at).square() - at.square())
    nll = dense.sum(1).index_add(0, rows, entries)
    size = dense.abs().sum(1).index_add(0, rows, entries.abs())
    free = [x] if v is None else [x, v]
    grads = torch.autograd.grad(nll, free, i.grad.double())
    return nll.detach(), size.detach(), grads[0], grads[1] if v is not None else None


def near(actual: Tensor, expected: Tensor, size: Tensor, tolerance: float) -> None:
    """Equal up to `tolerance` of `size`."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    wide = actual.double()
    error = torch.where(wide == expected, 0.0, (wide - expected).abs())  # inf is equal to inf
    floor = 2.0**-24 if actual.dtype == torch.float16 else 1e-30
    assert (error <= tolerance * size + floor).all(), (error / size).max()


def run(ops: Any, name: str, i: Inputs) -> dict[str, Tensor]:
    """Everything that the ops of a likelihood give."""
    if name == "multinomial":
        nll, lse, total = ops.multinomial_nll(i.x, *i.target)
        grad = ops.multinomial_nll_backward(i.grad, i.x, lse, total, *i.target)
        return {"nll": nll, "lse": lse, "total": total, "grad": grad}
    if not name.startswith("gaussian"):
        forward, backward = getattr(ops, f"{name}_nll"), getattr(ops, f"{name}_nll_backward")
        return {"nll": forward(i.x, *i.target), "grad": backward(i.grad, i.x, *i.target)}
    nll = ops.gaussian_nll(i.x, i.logvar, *i.target)
    wants = (True, i.logvar is not None)
    grad, grad2 = ops.gaussian_nll_backward(i.grad, i.x, i.logvar, *i.target, *wants)
    if i.logvar is None:
        assert grad2.shape == (0,)
        return {"nll": nll, "grad": grad}
    alone, none = ops.gaussian_nll_backward(i.grad, i.x, i.logvar, *i.target, True, False)
    assert torch.equal(alone, grad) and none.shape == (0,)
    none, alone = ops.gaussian_nll_backward(i.grad, i.x, i.logvar, *i.target, False, True)
    assert torch.equal(alone, grad2) and none.shape == (0,)
    return {"nll": nll, "grad": grad, "grad2": grad2}


def check(ops: Any, name: str, i: Inputs) -> dict[str, Tensor]:
    """Value and gradients against the oracle; returns them."""
    got = run(ops, name, i)
    nll, size, grad, grad2 = oracle(name, i)
    wide = i.values.dtype
    assert got["nll"].dtype == wide and got["grad"].dtype == i.x.dtype
    near(got["nll"], nll, size, VALUE[wide])
    if name == "multinomial":
        lse = torch.logsumexp(i.x.double(), 1)
        near(got["lse"], lse, lse.abs() + 1, VALUE[wide])
        total = torch.zeros(len(nll), dtype=torch.float64).index_add(0, i.rows(), i.values.double())
        near(got["total"], total, total, VALUE[wide])
    # Beside the parts of the gradient: what the cell has without an entry, and what the entries add.
    scale = i.grad.double().abs()[:, None] * (i.x.double().abs() + 6) + grad.abs()
    if name == "poisson":
        scale = scale + i.grad.double().abs()[:, None] * i.x.double().exp()
    if i.logvar is not None:
        weight = torch.exp(-i.logvar.double()).expand_as(i.x)
        scale = scale * (1 + weight)
    tolerance = GRADIENT[i.x.dtype]
    loose = GRADIENT[wide]
    near(got["grad"], grad, grad.abs() + scale * loose / tolerance, tolerance)
    if grad2 is not None:
        size2 = i.grad.double().abs()[:, None] * (1 + (i.x.double().abs() + 6).square() * weight)
        if grad2.dim() == 1:
            assert got["grad2"].dtype == wide
            # The CUDA form adds numbers that have been rounded to the predictions' type.
            near(got["grad2"], grad2, size2.sum(0), max(tolerance, loose))
        else:
            assert got["grad2"].dtype == i.x.dtype
            near(got["grad2"], grad2, grad2.abs() + size2 * loose / tolerance, tolerance)
    return got


def check_extremes(ops: Any) -> None:
    """Infinite and large predictions, counts of a million, a fit without residual."""
    inf = math.inf
    x = torch.tensor([[1.0, -inf, 2.0], [-inf, -inf, -inf], [80.0, -80.0, -inf], [0.0, inf, 0.0]])
    crow = torch.tensor([0, 2, 2, 4, 5])
    col, values = torch.tensor([0, 2, 0, 1, 0]), torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0])
    nll, lse, total = ops.multinomial_nll(x, crow, col, values)
    exact = torch.logsumexp(x[:3].double(), 1)
    torch.testing.assert_close(lse[:3].double(), exact)
    assert lse[3] == inf and total.tolist() == [3, 0, 2, 1]
    torch.testing.assert_close(nll[0].double(), 3 * exact[0] - 5)
    assert nll[1] == 0 and nll[2] == 160 and nll[3] == inf
    grad = ops.multinomial_nll_backward(torch.ones(4), x, lse, total, crow, col, values)
    assert grad[1].tolist() == [0, 0, 0] and not grad[3].isfinite().all()
    torch.testing.assert_close(grad[2], torch.tensor([1.0, -1.0, 0.0]))

    # A million counted where a million was expected: what is left of sums of 1e7 is about 8.
    count = torch.tensor([1e6])
    rate = torch.tensor([[math.log(1e6), -80.0]])
    wide = rate[0, 0].double()
    exact = wide.exp() - 1e6 * wide + math.lgamma(1e6 + 1)
    got = ops.poisson_nll(rate, torch.tensor([0, 1]), torch.tensor([0]), count).double()
    assert abs(float(got - exact)) < 1e-5 * float(exact), (got, exact)
    over = ops.poisson_nll(torch.tensor([[100.0]]), torch.tensor([0, 0]), col[:0], count[:0])
    assert over[0] == inf

    certain = torch.tensor([[25.0, -30.0, 90.0, -1000.0]])
    at = torch.tensor([0, 2]), torch.tensor([0, 2]), torch.ones(2)
    got = ops.bernoulli_nll(certain, *at)
    expected = math.exp(-25.0) + math.exp(-30.0)
    assert abs(got.item() - expected) < 1e-2 * expected

    large = 1000.0 + 0.37 * torch.arange(300.0)[None]
    at = torch.tensor([0, 300]), torch.arange(300), large[0]
    assert ops.gaussian_nll(large, None, *at).item() == 0
    grad, _ = ops.gaussian_nll_backward(torch.ones(1), large, None, *at, True, False)
    assert grad.abs().max() == 0


def small_cases(ops: Any) -> None:
    """Every path of the kernels, at sizes that take seconds under a sanitizer."""
    for name in NAMES:
        for dtype in DTYPES:
            check(ops, name, inputs(name, 5, 33, dtype))
        check(ops, name, inputs(name, 3, 40, index=torch.int32, unsorted=True))
        check(ops, name, inputs(name, 2, 64, misaligned=True))
        check(ops, name, inputs(name, 9, 1, duplicates=False))
        for shape in ((0, 4), (3, 0), (0, 0)):
            check(ops, name, inputs(name, *shape))
    check(ops, "multinomial", inputs("multinomial", 1, 8300))  # runs of several tiles
    check(ops, "gaussian-shared", inputs("gaussian-shared", 70, 3))  # blocks of rows
    check_extremes(ops)


def tiny_cases(ops: Any) -> None:
    """Every kernel with a row or two, for the thread sanitizer.

    Its build has one copy of static shared memory for all blocks, so a launch gets one block.
    """
    for position, name in enumerate(NAMES):
        check(ops, name, inputs(name, 1, 70, seed=1, unsorted=position % 2 == 1))
    check(ops, "multinomial", inputs("multinomial", 1, 70, seed=1, unsorted=True))
