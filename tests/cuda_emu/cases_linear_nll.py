"""Inputs for linear_nll, against the losses on stored logits, for any ops namespace."""

from __future__ import annotations

from typing import Any

import torch
from linear_nll_cases import NAMES, Case, op_arguments

# Relative, of the norm: beside the products' own roundings, of the predictions and their gradients.
CLOSE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
}


def check(
    ops: Any,
    name: str,
    sizes: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    index: torch.dtype = torch.int64,
    max_elements: int | None = None,
    bias: bool = True,
    alone: bool = True,
) -> None:
    """All gradients at once, and, unless told otherwise, the value alone."""
    case = Case(name, *sizes, dtype, bias=bias, index=index)
    exact = case.unfused("none", cast=lambda t: t.double())
    arguments = op_arguments(case, max_elements=max_elements)
    expected = case.gradients(exact, arguments[11].double())
    with torch.no_grad():
        nll, *grads = ops.linear_nll(*arguments)
    close(nll, exact.detach(), CLOSE[dtype], (name, sizes, dtype, "nll"))
    if alone:
        with torch.no_grad():
            value, *nothing = ops.linear_nll(*op_arguments(case, False, max_elements=max_elements))
        assert all(g.numel() == 0 for g in nothing)
        close(value, exact.detach(), CLOSE[dtype], (name, sizes, dtype, "nll alone"))
    slots = dict(zip(DECODER, grads, strict=True))
    for key, wanted in zip(case.free, expected, strict=True):
        assert slots[key].dtype == case.free[key].dtype
        close(slots[key], wanted, CLOSE[dtype], (name, sizes, dtype, key))


DECODER = ("h", "weight", "bias", "zero_weight", "zero_bias", "log_scale", "library")


def close(got: torch.Tensor, exact: torch.Tensor, relative: float, what: object) -> None:
    assert got.shape == exact.shape, what
    error = (got.double() - exact.double()).norm()
    assert error <= relative * exact.double().norm(), (what, error, exact.norm())


def small_cases(ops: Any) -> None:
    """Every likelihood and dtype, panels that wait in the gradient's memory or are made again."""
    for name in NAMES:
        for dtype in CLOSE:
            check(ops, name, (5, 70, 6), dtype)
        check(ops, name, (9, 70, 2), index=torch.int32, max_elements=9 * 16)
        check(ops, name, (9, 70, 2), max_elements=9 * 64, bias=False)


def tiny_cases(ops: Any) -> None:
    """A row and two panels, for the thread sanitizer.

    The likelihoods' kernels go through it in cases of their own, on a panel as wide as the row.
    """
    for name in ("multinomial", "poisson", "gaussian_logvar", "nb_rows", "zinb_library"):
        check(ops, name, (1, 30, 2), max_elements=16, alone=False)
