"""Rows of independent Poisson counts."""

from __future__ import annotations

import torch

from ...data.batch import CSRBatch
from . import blocks
from .blocks import RowScores, assemble, check_scores, row_blocks
from .multinomial import draw_positions

__all__ = ["sample_poisson_rows"]


def sample_poisson_rows(
    log_rate: RowScores,
    n: int,
    n_items: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> CSRBatch:
    r"""Draws cell (i, j) from ``Poisson(exp(log_rate[i, j]))``.

    Independent Poisson counts are a Poisson total, shared out by a multinomial in proportion to
    the rates. So a row costs one Poisson draw and as many uniform numbers as its total, not one
    per cell. Where the totals of a block exceed its cells, every cell is drawn on its own: the
    distribution is the same and the memory stays that of a block, at most 4 million elements or
    one row.

    Args:
        log_rate: gives the log rates (stop - start, n_items) of the rows in [start, stop).
        n: number of rows.
        n_items: number of items N.
        generator: source of the random numbers, on the device of the rates.
        device: of the batch; that of the rates.

    Returns:
        (n, N) batch of float32 counts with sorted columns.

    Raises:
        ValueError: if a rate is nan, or a row's rates sum to infinity.
        RuntimeError: if the rates do not have ``n_items`` columns.

    Example:
        >>> log_rate = torch.full((2, 3), -torch.inf)
        >>> sample_poisson_rows(lambda start, stop: log_rate[start:stop], 2, 3).nnz
        0
    """
    device = torch.device(device)
    keys, counts = [], []
    for start, stop in row_blocks(n, n_items):
        rate = check_scores(log_rate(start, stop), n_items).exp()
        total_rate = rate.sum(dim=1)
        if not bool(total_rate.isfinite().all()):
            raise ValueError("sample(): expected rates with a finite sum, but got inf or nan")
        if float(total_rate.sum()) <= blocks.BLOCK_ELEMENTS:
            totals = torch.poisson(total_rate, generator=generator).long()
            key, count = draw_positions(rate, totals, generator)
        else:
            flat = torch.poisson(rate, generator=generator).reshape(-1)
            key = flat.nonzero()[:, 0]
            count = flat[key]
        keys.append(key + start * n_items)
        counts.append(count)
    return assemble(keys, counts, (n, n_items), device)
