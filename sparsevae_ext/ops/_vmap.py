"""vmap rules: flattening the batch dimension into rows, or running one slice after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["in_front", "map_by_slices"]


def in_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension in front; made, without a copy, where there is none."""
    if dim is None:
        return tensor.unsqueeze(0).expand(size, *tensor.shape)
    return tensor.movedim(dim, 0)


def map_by_slices(
    function: type[torch.autograd.Function],
    size: int,
    in_dims: tuple[int | None, ...],
    args: tuple[Any, ...],
) -> tuple[Any, Any]:
    """Apply a Function to one slice at a time: for ops whose rows are not independent.

    Args:
        function: with any number of tensor outputs, or None among them.
        size: of the mapped dimension.
        in_dims: of each argument, None for those that are shared.
        args: of the Function.

    Returns:
        The stacked outputs and their mapped dimensions, as a ``vmap`` staticmethod returns them.
    """
    results = [
        function.apply(
            *(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))
        )
        for i in range(size)
    ]
    if not isinstance(results[0], tuple):
        return torch.stack(results), 0
    columns = list(zip(*results, strict=True))
    stacked = tuple(None if c[0] is None else torch.stack(c) for c in columns)
    return stacked, tuple(None if s is None else 0 for s in stacked)
