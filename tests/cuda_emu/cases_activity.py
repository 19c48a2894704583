"""Inputs for the activity ops and fp64 oracles in plain torch, for any ops namespace and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = ("identity", "relu", "sigmoid", "tanh", "softplus")
# Relative to the values (or to the sum of their magnitudes): a few roundings of the dtype.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 4e-6,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
SUMS = {torch.float64: 1e-13}


def activate(x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """f(x) and f'(x) in float64."""
    if activation == "relu":
        return torch.relu(x), (x > 0).double()
    if activation == "sigmoid":
        y = torch.sigmoid(x)
        return y, y * (1 - y)
    if activation == "tanh":
        y = torch.tanh(x)
        return y, 1 - y * y
    if activation == "softplus":
        return torch.logaddexp(x, torch.zeros_like(x)), torch.sigmoid(x)
    return x, torch.ones_like(x)


def slope_of(activated: Tensor, activation: str) -> Tensor:
    """f'(x) from f(x), in float64."""
    if activation == "relu":
        return (activated > 0).double()
    if activation == "sigmoid":
        return activated * (1 - activated)
    if activation == "tanh":
        return 1 - activated * activated
    if activation == "softplus":
        return -torch.expm1(-activated)
    return torch.ones_like(activated)


def matrix(
    rows: int, width: int, dtype: torch.dtype, seed: int = 0, misaligned: bool = False
) -> Tensor:
    """Normal numbers, a few of them zero."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    data[::3, ::7] = 0
    data = data.to(dtype)
    if not misaligned:
        return data
    return torch.empty(data.numel() + 1, dtype=dtype)[1:].view(rows, width).copy_(data)


def assert_near(actual: Tensor, expected: Tensor, magnitude: Tensor, tolerance: float) -> None:
    """Compares with the exact result, up to `tolerance` of `magnitude`."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    error = (actual.double() - expected).abs()
    # What a 16-bit number may lose below its normal range.
    floor = 2.0**-24 if actual.dtype == torch.float16 else 1e-30
    assert (error <= tolerance * magnitude + floor).all(), (error / magnitude).max()


def check(ops: Any, order: int, h: Tensor, activation: str) -> dict[str, Tensor]:
    """Runs forward and backward, with each gradient alone and both, and compares with float64."""
    forward = ops.l1_activity if order == 1 else ops.l2_activity
    backward = ops.l1_activity_backward if order == 1 else ops.l2_activity_backward
    activated, penalty = forward(h, activation)
    expected, _ = activate(h.double(), activation)
    tolerance = TOLERANCE[h.dtype]
    assert activated.dtype == h.dtype
    assert_near(activated, expected, expected.abs(), tolerance)
    wide = torch.float64 if h.dtype == torch.float64 else torch.float32
    assert penalty.dtype == wide
    exact = (expected.abs() if order == 1 else expected.square()).sum(1)
    assert_near(penalty, exact, exact, SUMS.get(h.dtype, 4e-6))

    rows, width = h.shape
    grad_activated = matrix(rows, width, h.dtype, seed=1)
    grad_penalty = matrix(rows, 1, wide, seed=2)[:, 0]
    results = {"activated": activated, "penalty": penalty}
    value = activated.double()
    slope = slope_of(value, activation)
    at_penalty = value.sign() if order == 1 else 2 * value
    for name, ga, gp in (
        ("both", grad_activated, grad_penalty),
        ("activated only", grad_activated, None),
        ("penalty only", None, grad_penalty),
    ):
        got = backward(ga, gp, activated, activation)
        first = torch.zeros_like(value) if ga is None else ga.double()
        second = torch.zeros_like(value) if gp is None else gp.double()[:, None] * at_penalty
        assert got.dtype == h.dtype
        # 1 - y and 1 - y^2 cancel where the activation is flat, in float64 they do not.
        magnitude = (first.abs() + second.abs()) * (slope.abs() + 0.1)
        assert_near(got, (first + second) * slope, magnitude, tolerance)
        results[name] = got
    return results


def small_cases(ops: Any) -> None:
    """Every path of the kernels, at sizes that take seconds under a sanitizer."""
    for dtype in DTYPES:
        check(ops, 1, matrix(5, 33, dtype), "relu")
        check(ops, 2, matrix(5, 72, dtype), "softplus")
        check(ops, 1, matrix(2, 2049, dtype), "relu")
    for activation in ACTIVATIONS:
        check(ops, 1, matrix(3, 40, torch.float32), activation)
        check(ops, 2, matrix(3, 40, torch.float32), activation)
    check(ops, 1, matrix(9, 2048, torch.float32), "relu")
    check(ops, 1, matrix(3, 64, torch.float32, misaligned=True), "relu")
    check(ops, 1, matrix(40, 4, torch.float32), "relu")
    for shape in ((0, 4), (3, 0), (0, 0)):
        check(ops, 1, matrix(*shape, torch.float32), "relu")


def tiny_cases(ops: Any) -> None:
    """Every kernel with a block or two, for the thread sanitizer.

    The kernel of long rows uses static shared memory, of which all blocks there share one copy: one row.
    """
    check(ops, 1, matrix(3, 36, torch.float32), "relu")
    check(ops, 2, matrix(1, 2050, torch.float32), "sigmoid")
