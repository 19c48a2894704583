"""The rows of gradients between backward and step: where they wait, and how they become one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.row_source import RowTap

__all__ = ["add_to_dense_grad", "merged", "new_leaf", "stand_in"]


def new_leaf(weight: Tensor, n_rows: int) -> Tensor:
    """A leaf of shape (n_rows, out) that takes no memory: all of its numbers are one, whatever it is."""
    return torch.empty_strided(
        (n_rows, weight.shape[0]),
        (0, 0),
        dtype=weight.dtype,
        device=weight.device,
        requires_grad=True,
    )


def stand_in(weight: Tensor) -> Tensor:
    """A gradient without entries, of the weight's shape.

    It is the weight's ``grad`` while rows wait: not None, so that whoever asks sees that there is a
    gradient, and sparse, so that what cannot count the rows fails instead of passing over them.
    ``model.zero_grad()`` removes it, which tells that the rows are no longer wanted.
    """
    index = torch.empty(2, 0, dtype=torch.int64, device=weight.device)
    values = torch.empty(0, dtype=weight.dtype, device=weight.device)
    return torch.sparse_coo_tensor(index, values, weight.shape, check_invariants=False)


def merged(taps: list[RowTap]) -> RowTap:
    """One tap with the sum of the gradients; the order of summation is that of the list."""
    if len(taps) == 1:
        return taps[0]
    first = taps[0]
    same = all(t.features is first.features for t in taps[1:]) or all(
        torch.equal(t.features, first.features) for t in taps[1:]
    )
    grads = []
    for tap in taps:
        assert tap.leaf.grad is not None
        grads.append(tap.leaf.grad)
    if same:
        features, total = first.features, grads[0].clone()
        for grad in grads[1:]:
            total += grad
    else:
        features, at = torch.unique(torch.cat([t.features for t in taps]), return_inverse=True)
        total = grads[0].new_zeros(features.shape[0], grads[0].shape[1])
        for grad, slots in zip(grads, at.split([len(g) for g in grads]), strict=True):
            # The rows of one tap are distinct, so this adds one number to each element.
            total.index_add_(0, slots, grad)
    leaf = first.leaf.detach().new_zeros(()).expand_as(total).requires_grad_()
    leaf.grad = total
    return RowTap(leaf, features)


def add_to_dense_grad(weight: Tensor, tap: RowTap) -> None:
    """Add the rows to the weight's dense gradient, which is made if there is none."""
    if tap.leaf.grad is None:
        return
    if weight.grad is None or weight.grad.is_sparse:
        weight.grad = torch.zeros_like(weight, memory_format=torch.preserve_format)
    weight.grad.t().index_add_(0, tap.features.long(), tap.leaf.grad)
