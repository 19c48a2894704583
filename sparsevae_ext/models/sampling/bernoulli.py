"""Rows of zeros and ones, every cell drawn on its own."""

from __future__ import annotations

import torch

from ...data.batch import CSRBatch
from .blocks import RowScores, assemble, check_scores, check_temperature, row_blocks

__all__ = ["sample_bernoulli_rows"]


def sample_bernoulli_rows(
    logits: RowScores,
    n: int,
    n_items: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> CSRBatch:
    r"""Draws cell (i, j) as 1 with probability ``sigmoid(logits[i, j] / temperature)``, else 0.

    A uniform float64 number is compared with every cell's probability, so a cell with a
    probability far below the resolution of float32 still comes up as often as it should. One
    block of rows exists densely at a time, at most 4 million elements or one row.

    Args:
        logits: gives the logits (stop - start, n_items) of the rows in [start, stop).
        n: number of rows.
        n_items: number of items N.
        temperature: > 0; below 1 makes likely cells likelier and unlikely ones rarer.
        generator: source of the uniform numbers, on the device of the logits.
        device: of the batch; that of the logits.

    Returns:
        (n, N) batch of float32 ones with sorted columns.

    Raises:
        ValueError: if ``temperature`` is not positive and finite, or a logit is nan.
        RuntimeError: if the logits do not have ``n_items`` columns.

    Example:
        >>> logits = torch.tensor([[torch.inf, -torch.inf, torch.inf]])
        >>> sample_bernoulli_rows(lambda start, stop: logits[start:stop], 1, 3).col
        tensor([0, 2])
    """
    check_temperature(temperature)
    device = torch.device(device)
    keys, ones = [], []
    for start, stop in row_blocks(n, n_items):
        p = torch.sigmoid(check_scores(logits(start, stop), n_items) / temperature)
        if bool(p.isnan().any()):
            raise ValueError("sample(): expected probabilities that are numbers, but got nan")
        # uniform < 1 always: a probability of 1 is certain, and one of 0 never comes up.
        uniform = torch.rand(p.shape, dtype=torch.float64, device=p.device, generator=generator)
        key = (uniform < p).reshape(-1).nonzero()[:, 0]
        keys.append(key + start * n_items)
        ones.append(torch.ones(len(key), device=device))
    return assemble(keys, ones, (n, n_items), device)
