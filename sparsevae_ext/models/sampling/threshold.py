"""Rows made of the largest scores: no draw, only a choice of what to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.batch import CSRBatch
from ..ranking import stable_topk
from .blocks import RowScores, assemble, check_scores, row_blocks

__all__ = ["matched_density_rows", "top_entries_rows"]


def top_entries_rows(
    scores: RowScores, k: Tensor, n_items: int, *, keep_scores: bool = False
) -> CSRBatch:
    """Keeps the ``k[i]`` largest scores of row i; equal scores go to the lower item.

    One block of rows exists densely at a time, at most 4 million elements or one row.

    Args:
        scores: gives the scores (stop - start, n_items) of the rows in [start, stop).
        k: (n,) int64, entries per row; at most N are kept. `row_totals_like(data, n,
            kind="entries")` draws them as a data set has them.
        n_items: number of items N.
        keep_scores: store the scores; otherwise ones.

    Returns:
        (n, N) float32 batch with sorted columns and ``min(k[i], N)`` entries in row i.

    Raises:
        ValueError: if a k is negative.
        RuntimeError: if a score is nan, or the scores do not have ``n_items`` columns.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0, 2.0], [0.5, 0.5, 0.1]])
        >>> k = torch.tensor([2, 1])
        >>> top_entries_rows(lambda start, stop: scores[start:stop], k, 3).to_dense()
        tensor([[1., 0., 1.],
                [1., 0., 0.]])
    """
    if bool((k < 0).any()):
        raise ValueError(f"top_entries_rows(): expected k >= 0, but got {int(k.min())}")
    n, device = k.shape[0], k.device
    keys, values = [], []
    for start, stop in row_blocks(n, n_items):
        block = check_scores(scores(start, stop), n_items)
        _refuse_nan("top_entries_rows", block)
        here = k[start:stop].clamp(max=n_items)
        most = int(here.max())
        if most == 0:
            continue
        top, position = stable_topk(block, most)
        taken = torch.arange(most, device=device) < here[:, None]
        row = torch.arange(stop - start, device=device)[:, None].expand_as(position)
        key, order = (row * n_items + position)[taken].sort()
        keys.append(key + start * n_items)
        values.append(top[taken][order] if keep_scores else torch.ones(len(key), device=device))
    return assemble(keys, values, (n, n_items), device)


def matched_density_rows(
    scores: RowScores,
    density: float | Tensor,
    n: int,
    n_items: int,
    *,
    keep_scores: bool = False,
    device: torch.device | str = "cpu",
) -> CSRBatch:
    """Keeps as many of the largest scores as give the wanted density.

    With a number, one threshold serves all rows: the ``round(density * n * N)`` largest of all
    n * N scores are kept, equal scores in the order of row and item, so rows may differ in
    length. With (n,) row lengths, every row has a threshold of its own (:func:`top_entries_rows`).
    Memory is one block of rows and about twice what is kept.

    Args:
        scores: gives the scores (stop - start, n_items) of the rows in [start, stop).
        density: share of the cells to keep, in [0, 1], or (n,) int64 entries per row.
        n: number of rows.
        n_items: number of items N.
        keep_scores: store the scores; otherwise ones.
        device: of the batch; that of the scores.

    Returns:
        (n, N) float32 batch with sorted columns.

    Raises:
        ValueError: if the density is not in [0, 1], or a length is negative.
        RuntimeError: if a score is nan, or shapes do not fit.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0, 2.0], [0.5, 9.0, 0.1]])
        >>> matched_density_rows(lambda a, b: scores[a:b], 0.5, 2, 3).to_dense()
        tensor([[1., 0., 1.],
                [0., 1., 0.]])
    """
    if isinstance(density, Tensor) and density.dim() > 0:
        if density.shape != (n,):
            raise RuntimeError(
                f"matched_density_rows(): expected row lengths of shape ({n},), but got "
                f"{tuple(density.shape)}"
            )
        return top_entries_rows(scores, density.long(), n_items, keep_scores=keep_scores)
    if not 0.0 <= density <= 1.0:
        raise ValueError(
            f"matched_density_rows(): expected density in [0, 1], but got {float(density)}"
        )
    device = torch.device(device)
    wanted = round(float(density) * n * n_items)
    key = torch.empty(0, dtype=torch.int64, device=device)
    kept = torch.empty(0, dtype=torch.float64, device=device)
    border = -torch.inf
    for start, stop in row_blocks(n, n_items) if wanted else ():
        block = check_scores(scores(start, stop), n_items)
        _refuse_nan("matched_density_rows", block)
        flat = block.reshape(-1)
        # Once enough are kept, an equal score that comes later has lost already.
        new = (flat > border if len(kept) >= wanted else flat >= -torch.inf).nonzero()[:, 0]
        key, kept = torch.cat([key, new + start * n_items]), torch.cat([kept, flat[new]])
        # Sorting at every block would cost (blocks x kept); at every doubling it does not.
        if len(kept) > 2 * wanted or stop == n:
            key, kept, border = _largest(key, kept, wanted)
    values = kept if keep_scores else torch.ones(len(key), device=device)
    return assemble([key], [values], (n, n_items), device)


def _largest(key: Tensor, value: Tensor, wanted: int) -> tuple[Tensor, Tensor, float]:
    """The ``wanted`` largest of the entries, in the order they came, and the smallest of them."""
    if len(value) <= wanted:
        return key, value, float(value.min()) if len(value) else -torch.inf
    border = value.kthvalue(len(value) - wanted + 1).values
    above, tied = value > border, value == border
    room = wanted - above.sum()
    taken = above | (tied & (tied.cumsum(0) <= room))
    return key[taken], value[taken], float(border)


def _refuse_nan(op: str, block: Tensor) -> None:
    if bool(block.isnan().any()):
        raise RuntimeError(f"{op}(): expected scores that are numbers, but got nan")
