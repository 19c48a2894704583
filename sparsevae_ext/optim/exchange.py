"""Row-sparse gradients of several processes become one: rows travel, not tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..ops.row_source import RowTap
from .taps import merged, new_leaf

__all__ = ["broadcast", "exchange_gradients", "hide_from_ddp"]


class _Kind:
    """What a process has for a weight."""

    NOTHING, ROWS, DENSE = range(3)


def hide_from_ddp(module: nn.Module, weights: set[Tensor]) -> None:
    """Have DistributedDataParallel leave these weights alone: their gradient is exchanged as rows."""
    names = [n for n, p in module.named_parameters(remove_duplicate=False) if p in weights]
    names += getattr(module, "_ddp_params_and_buffers_to_ignore", [])
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, sorted(set(names)))


def broadcast(weight: Tensor, group: Any) -> None:
    """Give every process the weight of the group's first."""
    dist.broadcast(weight.data.t(), src=dist.get_global_rank(group, 0), group=group)


def exchange_gradients(
    rows: dict[Tensor, RowTap | None], go_dense: Callable[[Tensor], None], group: Any
) -> dict[Tensor, RowTap]:
    """Average the gradients of weights over the processes; every process must take part.

    Args:
        rows: this process's rows for each weight, or None.
        go_dense: called with a weight that has a dense gradient in some process, before it is averaged in
            place; rows of this process must then be part of it.
        group: the process group.

    Returns:
        The averaged rows of the weights for which processes have rows only.
    """
    mine = []
    for weight, tap in rows.items():
        if weight.grad is not None and not weight.grad.is_sparse:
            mine.append((_Kind.DENSE, 0))
        else:
            mine.append((_Kind.NOTHING, 0) if tap is None else (_Kind.ROWS, len(tap.features)))
    everybody = _gather_kinds(mine, next(iter(rows)).device, group)
    averaged = {}
    for i, (weight, tap) in enumerate(rows.items()):
        kinds, counts = everybody[:, i].T.tolist()
        if _Kind.DENSE in kinds:
            go_dense(weight)
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight, memory_format=torch.preserve_format)
            _mean_of_dense(weight.grad, group)
        elif _Kind.ROWS in kinds:
            averaged[weight] = _mean_of_rows(weight, tap, counts, group)
    return averaged


def _gather_kinds(mine: list[tuple[int, int]], device: torch.device, group: Any) -> Tensor:
    """(kind, number of rows) of every weight, from every process: (world, weights, 2) on the host."""
    local = torch.tensor(mine, dtype=torch.int64, device=device).reshape(-1, 2)
    everybody = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everybody, local, group=group)
    return torch.stack(everybody).cpu()


def _mean_of_dense(grad: Tensor, group: Any) -> None:
    """Average a weight's dense gradient over the processes, in place."""
    dist.all_reduce(grad.t(), group=group)
    grad /= dist.get_world_size(group)


def _mean_of_rows(weight: Tensor, tap: RowTap | None, counts: list[int], group: Any) -> RowTap:
    """The mean over the processes of what each of them has; the same bits everywhere.

    Args:
        weight: (out, N).
        tap: this process's rows, or None.
        counts: the number of rows of every process.
        group: the process group.
    """
    # Collectives want equal shapes: what is missing at the end is cut off again.
    most, device = max(counts), weight.device
    features = torch.zeros(most, dtype=torch.int64, device=device)
    grad = weight.new_zeros(most, weight.shape[0])
    if tap is not None and tap.leaf.grad is not None:
        features[: len(tap.features)] = tap.features
        grad[: len(tap.features)] = tap.leaf.grad
    all_features = [torch.empty_like(features) for _ in counts]
    all_grads = [torch.empty_like(grad) for _ in counts]
    dist.all_gather(all_features, features, group=group)
    dist.all_gather(all_grads, grad, group=group)
    taps = []
    for features, grad, count in zip(all_features, all_grads, counts, strict=True):
        leaf = new_leaf(weight, count)
        leaf.grad = grad[:count] / len(counts)
        taps.append(RowTap(leaf, features[:count]))
    return merged(taps)
