"""Inputs for the kl_sparsity ops and a fp64 oracle in plain torch, for any ops namespace and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def code(
    rows: int, width: int, dtype: torch.dtype, seed: int = 0, misaligned: bool = False
) -> Tensor:
    """Activities in (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(rows, width, generator=generator, dtype=torch.float64).sigmoid().to(dtype)
    if not misaligned:
        return data
    return torch.empty(data.numel() + 1, dtype=dtype)[1:].view(rows, width).copy_(data)


def oracle(mean: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    """The divergence and its slope for each mean, in float64."""
    m = mean.double()
    kl = rho * torch.log(rho / m) + (1 - rho) * torch.log((1 - rho) / (1 - m))
    return kl.sum(), -rho / m + (1 - rho) / (1 - m)


def check(ops: Any, h: Tensor, rho: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Runs both ops and compares them with float64."""
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    tolerance = 1e-13 if h.dtype == torch.float64 else 2e-6
    kl, mean = ops.kl_sparsity(h, rho)
    exact = h.double().mean(0)
    assert kl.dtype == mean.dtype == wide and kl.shape == ()
    torch.testing.assert_close(mean.double(), exact, rtol=tolerance, atol=0, equal_nan=True)
    divergence, slope = oracle(exact, rho)
    torch.testing.assert_close(
        kl.double(), divergence, rtol=20 * tolerance, atol=20 * tolerance, equal_nan=True
    )
    grad = torch.tensor(-1.7, dtype=wide)
    got = ops.kl_sparsity_backward(grad, mean, rho, h.shape[0])
    _, slope = oracle(mean, rho)
    expected = grad.double() / h.shape[0] * slope if h.shape[0] else slope * torch.nan
    scale = (1 / exact + 1 / (1 - exact)) / max(h.shape[0], 1)
    assert got.dtype == wide and got.shape == exact.shape
    error = (got.double() - expected).abs()
    assert ((error <= 4 * tolerance * scale) | (got.isnan() & expected.isnan())).all()
    return kl, mean, got


def small_cases(ops: Any) -> None:
    """Every path of the kernels, at sizes that take seconds under a sanitizer."""
    for dtype in DTYPES:
        check(ops, code(5, 33, dtype))
        check(ops, code(70, 72, dtype))
    check(ops, code(131, 300, torch.float32))
    check(ops, code(67, 64, torch.float32, misaligned=True))
    check(ops, code(1, 1, torch.float32))
    for shape in ((0, 4), (3, 0), (0, 0)):
        check(ops, code(*shape, torch.float32))


def tiny_cases(ops: Any) -> None:
    """Every kernel with a block or two, for the thread sanitizer."""
    check(ops, code(66, 130, torch.float32))
