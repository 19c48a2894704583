"""An exact oracle of the batch_topk ops in plain torch, for any ops namespace and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .cases_topk import DTYPES, bits, values


def check(ops: Any, h: Tensor, k: int) -> None:
    """Output, threshold, kept positions and gradient against a stable sort of the whole batch."""
    flat = h.flatten()
    count = len(h) * k
    order = torch.sort(flat.double(), descending=True, stable=True).indices[:count]
    kept = torch.sort(order).values
    out, threshold, got = ops.batch_topk(h, k)
    assert got.dtype == torch.int64 and torch.equal(got, kept), (h.shape, k)
    pattern = bits(flat)
    expected = torch.zeros_like(pattern).scatter(0, kept, pattern[kept])
    assert out.dtype == h.dtype and torch.equal(bits(out), expected.view(h.shape))
    last = flat[order[-1]] if count else torch.tensor(torch.inf, dtype=h.dtype)
    assert threshold.dtype == h.dtype and threshold.shape == ()
    assert threshold == last or (threshold.isnan() and last.isnan())
    grad = torch.randn(h.shape, dtype=torch.float64).to(h.dtype)
    wanted = torch.zeros_like(flat).scatter(0, kept, grad.flatten()[kept])
    assert torch.equal(ops.batch_topk_backward(grad, got), wanted.view(h.shape))


def small_cases(ops: Any) -> None:
    """Every path of the kernels, at sizes that take seconds under a sanitizer."""
    for dtype in DTYPES:
        for kind in ("normal", "ties", "special"):
            check(ops, values(kind, 9, 70, dtype), 7)
    check(ops, values("ties", 30, 1100, torch.float32), 400)  # more chunks than blocks
    check(ops, values("normal", 1, 1, torch.float32), 1)
    check(ops, values("normal", 0, 5, torch.float32), 2)


def tiny_cases(ops: Any) -> None:
    """Every kernel once or twice, for the thread sanitizer.

    Its build has one copy of static shared memory for all blocks, so kernels that use it get one block.
    """
    check(ops, values("ties", 3, 30, torch.float32), 12)
    check(ops, values("normal", 4, 1000, torch.float32), 3)
