"""Inputs for the jumprelu ops and a float64 oracle in plain torch, for any ops namespace and device."""

from __future__ import annotations

from typing import Any

import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BANDWIDTH = 0.75
# Of a sum over rows, relative to the sum of the magnitudes.
ERROR = {torch.float64: 2.0**-48, torch.float32: 2.0**-20}


def check(ops: Any, rows: int, width: int, dtype: torch.dtype = torch.float32) -> None:
    """Forward, and the backward op with every set of gradients given and wanted."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    # Multiples of 1/64 are exact in every dtype, so that all agree on what is near a threshold.
    h = (torch.randint(-200, 200, (rows, width)) / 64.0).to(dtype)
    t = (torch.randint(1, 100, (width,)) / 64.0).to(wide)
    if rows and width:
        h[0, 0] = torch.nan
    grad_out, grad_count = torch.randn(rows, width).to(dtype), torch.randn(rows).to(wide)
    x = h.double()
    active, near = ~(x <= t.double()), (x - t.double()).abs() < BANDWIDTH / 2

    out, count = ops.jumprelu(h, t, BANDWIDTH)
    assert out.dtype == dtype and count.dtype == wide
    expected = torch.where(active, h, torch.zeros((), dtype=dtype))
    assert torch.equal(out.nan_to_num(nan=77.0), expected.nan_to_num(nan=77.0))
    assert torch.equal(count.double(), active.sum(1).double())

    for has_out, has_count in ((True, True), (True, False), (False, True), (False, False)):
        g = grad_out.double() if has_out else torch.zeros(rows, width, dtype=torch.float64)
        c = grad_count.double() if has_count else torch.zeros(rows, dtype=torch.float64)
        parts = torch.where(near, t.double() * g, 0.0), torch.where(near, c[:, None], 0.0)
        grad_t = -(parts[0] + parts[1]).sum(0) / BANDWIDTH
        magnitude = (parts[0].abs() + parts[1].abs()).sum(0) / BANDWIDTH
        for wants in ((True, True), (True, False), (False, True)):
            got_h, got_t = ops.jumprelu_backward(
                grad_out if has_out else None,
                grad_count if has_count else None,
                *(h, t, BANDWIDTH, *wants),
            )
            if wants[0]:
                assert torch.equal(got_h.double(), torch.where(active, g, 0.0))
            else:
                assert got_h.shape == (0,)
            if wants[1]:
                assert got_t.dtype == wide and got_t.shape == (width,)
                assert ((got_t.double() - grad_t).abs() <= ERROR[wide] * (magnitude + 1e-6)).all()
            else:
                assert got_t.shape == (0,)


def small_cases(ops: Any) -> None:
    """Every path of the kernels, at sizes that take seconds under a sanitizer."""
    for dtype in DTYPES:
        check(ops, 5, 33, dtype)
    check(ops, 200, 3)  # several blocks of rows
    check(ops, 2, 1100)  # more tiles of columns than blocks
    check(ops, 600, 1)  # more blocks of rows than blocks
    check(ops, 0, 5)
    check(ops, 5, 0)


def tiny_cases(ops: Any) -> None:
    """Every kernel once or twice, for the thread sanitizer.

    Its build has one copy of static shared memory for all blocks, so kernels that use it get one block.
    """
    check(ops, 1, 140)
    h, grad, t = torch.randn(70, 3), torch.randn(70, 3), torch.rand(3)
    grad_h, grad_t = ops.jumprelu_backward(grad, None, h, t, BANDWIDTH, True, True)
    near = ((h - t).abs() < BANDWIDTH / 2).double()
    torch.testing.assert_close(grad_h, torch.where(h > t, grad, 0.0))
    expected = (near * grad.double() * t.double()).sum(0) / -BANDWIDTH
    torch.testing.assert_close(grad_t, expected.float())
