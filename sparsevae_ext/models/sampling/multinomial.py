"""Rows with a given number of independent draws."""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.batch import CSRBatch
from .blocks import RowScores, assemble, check_scores, check_temperature, row_blocks

__all__ = ["draw_positions", "sample_multinomial_rows"]

_BELOW_ONE = 1.0 - 2.0**-41


def sample_multinomial_rows(
    logits: RowScores,
    lengths: Tensor,
    n_items: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> CSRBatch:
    r"""Draws row i from ``Multinomial(lengths[i], softmax(logits[i] / temperature))``.

    Every single draw inverts the row's cumulative distribution, in float64, at a uniform number;
    equal draws of a row are then counted. One block of rows exists densely at a time, at most
    4 million elements or one row.

    Args:
        logits: gives the logits (stop - start, n_items) of the rows in [start, stop).
        lengths: (n,) int64, draws per row.
        n_items: number of items N.
        temperature: > 0; below 1 sharpens.
        generator: source of the uniform numbers.

    Returns:
        (n, N) batch of float32 counts with sorted columns, whose rows sum to ``lengths``.

    Raises:
        ValueError: if ``temperature`` is not positive and finite, or the probabilities of a row
            with a positive length are not numbers.

    Example:
        >>> logits = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
        >>> lengths = torch.tensor([2, 3])
        >>> sample_multinomial_rows(lambda a, b: logits[a:b], lengths, 2).to_dense()
        tensor([[2., 0.],
                [0., 3.]])
    """
    check_temperature(temperature)
    n, device = lengths.shape[0], lengths.device
    keys, counts = [], []
    for start, stop in row_blocks(n, n_items, lengths):
        weights = torch.softmax(check_scores(logits(start, stop), n_items) / temperature, dim=1)
        key, count = draw_positions(weights, lengths[start:stop], generator)
        keys.append(key + start * n_items)
        counts.append(count)
    return assemble(keys, counts, (n, n_items), device)


def draw_positions(
    weights: Tensor, lengths: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draws ``lengths[r]`` items for every row r of a block, in proportion to its weights.

    Args:
        weights: (R, N) float64, not negative.
        lengths: (R,) int64.
        generator: source of the uniform numbers.

    Returns:
        Flat positions r * N + item, ascending and distinct, and how often each was drawn.

    Raises:
        ValueError: if the weights of a row with a positive length are not numbers or sum to 0.
    """
    cdf = weights.cumsum(dim=1)
    cdf /= cdf[:, -1:].clone()
    if bool((cdf.isnan().any(dim=1) & (lengths > 0)).any()):
        raise ValueError("sample(): expected probabilities that are numbers, but got nan")
    # Row r occupies (r, r + 1] of one long ascending array: a single search serves all rows.
    rows = torch.arange(len(weights), device=weights.device)
    flat = (cdf.nan_to_num(1.0) + rows[:, None]).reshape(-1)
    rows = torch.repeat_interleave(rows, lengths)
    uniform = torch.rand(
        rows.shape[0], dtype=torch.float64, device=weights.device, generator=generator
    ).clamp_(max=_BELOW_ONE)
    # right=True steps over items of probability zero.
    cell = torch.searchsorted(flat, rows + uniform, right=True)
    key, count = cell.unique(return_counts=True)
    return key, count
