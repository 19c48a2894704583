"""Ranking with an output layer over many items, a chunk of columns at a time.

The scores of B rows for all N items would be a dense (B, N) matrix. Here they exist for one chunk
of columns at a time: the best k are kept as a running list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..data.batch import CSRBatch

__all__ = ["ScoreChunk", "linear_scores", "stable_topk", "top_items"]

#: Gives the scores (B, stop - start) of the items in [start, stop), in memory of their own.
ScoreChunk = Callable[[int, int], Tensor]

_CHUNK_ELEMENTS = 1 << 22
_MIN_CHUNK = 256


def linear_scores(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> ScoreChunk:
    """Scores of a linear output layer, ``hidden @ weight[items].T + bias[items]``.

    Args:
        hidden: (B, H).
        weight: (N, H).
        bias: (N,) or None.
    """

    def chunk(start: int, stop: int) -> Tensor:
        part = None if bias is None else bias[start:stop]
        return torch.nn.functional.linear(hidden, weight[start:stop], part)

    return chunk


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row, equal scores in the order of their positions.

    ``torch.topk`` leaves open which of several equal scores it takes.

    Args:
        scores: (B, C), C >= k.
        k: how many.

    Returns:
        Scores, descending, and positions, both (B, k).

    Raises:
        RuntimeError: if a score is nan.

    Example:
        >>> stable_topk(torch.tensor([[1.0, 2.0, 2.0, 2.0]]), 2)
        (tensor([[2., 2.]]), tensor([[1, 2]]))
    """
    # One more than asked for: a tie across the border shows as two equal values.
    probe, positions = torch.topk(scores, min(k + 1, scores.shape[1]), dim=1)
    if bool(probe[:, :1].isnan().any()):
        raise RuntimeError("stable_topk(): expected scores that are numbers, but got nan")
    positions = positions[:, :k]
    if probe.shape[1] > k and bool((probe[:, k - 1] == probe[:, k]).any()):
        border = probe[:, k - 1 : k]
        above, tied = scores > border, scores == border
        room = k - above.sum(dim=1, keepdim=True)
        taken = above | (tied & (tied.cumsum(dim=1) <= room))
        positions = taken.nonzero()[:, 1].view(scores.shape[0], k)
    positions = positions.sort(dim=1).values
    values, order = scores.gather(1, positions).sort(dim=1, descending=True, stable=True)
    return values, positions.gather(1, order)


def top_items(
    score_chunk: ScoreChunk,
    shape: tuple[int, int],
    k: int,
    *,
    seen: CSRBatch | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items of every row, best first; equal scores go to the lower item.

    Args:
        score_chunk: scores of a range of items.
        shape: (B, N), rows and items.
        k: how many items, at most N.
        seen: (B, N) batch whose non-zero entries are left out, or None.
        chunk_size: items scored at a time; None takes about 4 million scores
            and at most a quarter of the items.

    Returns:
        Scores and items (int64), both (B, k). A row with fewer than k items left ends in items
        -1 with score -inf.

    Raises:
        TypeError: if k is not an int.
        ValueError: if k is not in [1, N], or ``chunk_size`` is not positive.
        RuntimeError: if a score is nan.
    """
    n_rows, n_items = shape
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"recommend(): expected k to be an int, but got {type(k).__name__}")
    if not 1 <= k <= n_items:
        raise ValueError(
            f"recommend(): expected k between 1 and {n_items}, the number of items, but got {k}"
        )
    entries = None if seen is None else _ColumnSorted(seen)
    best = items = None
    for start, stop in _ranges(n_rows, n_items, chunk_size):
        scores = score_chunk(start, stop)
        if entries is not None:
            here = entries.between(start, stop)
            scores[entries.rows[here], entries.cols[here] - start] = -math.inf
        if best is None or items is None:
            best, items = stable_topk(scores, min(k, stop - start))
            continue
        # What was kept comes first and its items are lower: lower position is lower item.
        kept = items.shape[1]
        joined = torch.cat([best, scores], dim=1)
        best, positions = stable_topk(joined, min(k, joined.shape[1]))
        old = items.gather(1, positions.clamp(max=kept - 1))
        items = torch.where(positions < kept, old, positions - kept + start)
    assert best is not None and items is not None
    return best, torch.where(best == -math.inf, -1, items)


class _ColumnSorted:
    """Where a batch is not zero, in the order of the columns."""

    def __init__(self, batch: CSRBatch) -> None:
        keep = batch.values.detach() != 0
        self.cols, order = batch.col.long()[keep].sort(stable=True)
        self.rows = batch.row_ids().long()[keep][order]

    def between(self, start: int, stop: int) -> slice:
        bounds = torch.tensor([start, stop], device=self.cols.device)
        low, high = torch.searchsorted(self.cols, bounds).tolist()
        return slice(low, high)


def _ranges(n_rows: int, n_items: int, chunk_size: int | None) -> Iterator[tuple[int, int]]:
    if chunk_size is None:
        chunk_size = max(_MIN_CHUNK, _CHUNK_ELEMENTS // max(1, n_rows))
        # However small the problem, the scores of all items never stand side by side.
        chunk_size = min(chunk_size, max(1, -(-n_items // 4)))
    elif chunk_size < 1:
        raise ValueError(f"recommend(): expected chunk_size >= 1, but got {chunk_size}")
    for start in range(0, n_items, chunk_size):
        yield start, min(start + chunk_size, n_items)
