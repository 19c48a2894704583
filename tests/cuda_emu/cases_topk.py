"""Inputs for the topk ops and an exact oracle in plain torch, for any ops namespace and device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(t: Tensor) -> Tensor:
    """The bit patterns, in which nan equals itself."""
    return t.contiguous().view(BITS[t.element_size()])


def values(kind: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows of one kind: normal, ties (few values), special (nan, infinities, zeros) or ascending."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    if kind == "normal":
        return torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)
    if kind == "ascending":
        return torch.linspace(-2, 2, width, dtype=torch.float64).expand(rows, -1).to(dtype)
    few = [0.0, 1.0, 2.0] if kind == "ties" else [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1.0]
    picked = torch.randint(len(few), (rows, width), generator=generator)
    return torch.tensor(few, dtype=torch.float64)[picked].to(dtype)


def check(ops: Any, h: Tensor, k: int) -> None:
    """Both orders and the gradient against a stable sort; nothing is rounded, so all is equal."""
    expected = torch.sort(h.double(), dim=1, descending=True, stable=True).indices[:, :k]
    grad = torch.randn(expected.shape, dtype=torch.float64).to(h.dtype).to(h.device)
    for by_index in (False, True):
        wanted = torch.sort(expected, dim=1).values if by_index else expected
        got, indices = ops.topk(h, k, by_index)
        assert indices.dtype == torch.int64 and torch.equal(indices, wanted), (h.shape, k, by_index)
        assert got.dtype == h.dtype and torch.equal(bits(got), bits(h).gather(1, wanted))
    grad_h = ops.topk_backward(grad, expected, h.shape[1])
    zeros = torch.zeros(h.shape, dtype=h.dtype, device=h.device)
    assert torch.equal(grad_h, zeros.scatter(1, expected, grad))


def small_cases(ops: Any) -> None:
    """Every path of the kernels, at sizes that take seconds under a sanitizer."""
    for dtype in DTYPES:
        for kind in ("normal", "ties", "special"):
            check(ops, values(kind, 3, 300, dtype), 7)
        check(ops, values("normal", 2, 33, dtype), 33)
    check(ops, values("normal", 9, 20, torch.float32), 1)  # more rows than blocks
    check(ops, values("ties", 2, 600, torch.float32), 300)  # more than a block's tile
    check(ops, values("normal", 0, 5, torch.float32), 2)


def tiny_cases(ops: Any) -> None:
    """Every kernel once or twice, for the thread sanitizer.

    Its build has one copy of static shared memory for all blocks, so kernels that use it get one block.
    """
    check(ops, values("normal", 1, 40, torch.float32), 5)
    check(ops, values("ties", 1, 300, torch.float32), 260)
