"""Rows of negative binomial counts, with or without extra zeros."""

from __future__ import annotations

import torch

from ...data.batch import CSRBatch
from .blocks import RowScores, assemble, check_scores, row_blocks

__all__ = ["sample_negative_binomial_rows"]


def sample_negative_binomial_rows(
    log_mean: RowScores,
    log_theta: RowScores,
    n: int,
    n_items: int,
    *,
    zero_logits: RowScores | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> CSRBatch:
    r"""Draws cell (i, j) from a negative binomial of given mean and inverse dispersion.

    It is a Poisson whose rate is itself drawn, from a Gamma of shape :math:`\theta` and mean
    :math:`\mu`; its variance is :math:`\mu + \mu^2 / \theta`. With ``zero_logits`` a cell is 0
    with probability ``sigmoid(zero_logits)``, whatever was drawn. One block of rows exists
    densely at a time, at most 4 million elements or one row.

    Args:
        log_mean: gives the log means (stop - start, n_items) of the rows in [start, stop).
        log_theta: gives their log inverse dispersions, of the same shape.
        n: number of rows.
        n_items: number of items N.
        zero_logits: gives the logits of an extra zero, of the same shape.
        generator: source of the random numbers, on the device of the means.
        device: of the batch; that of the means.

    Returns:
        (n, N) batch of float32 counts with sorted columns.

    Raises:
        ValueError: if a mean or a dispersion is nan or infinite.
        RuntimeError: if the means do not have ``n_items`` columns.

    Example:
        >>> log_mean = torch.full((2, 3), -torch.inf)
        >>> sample_negative_binomial_rows(
        ...     lambda a, b: log_mean[a:b], lambda a, b: torch.zeros(b - a, 3), 2, 3
        ... ).nnz
        0
    """
    device = torch.device(device)
    keys, counts = [], []
    for start, stop in row_blocks(n, n_items):
        theta = check_scores(log_theta(start, stop), n_items).exp()
        scale = check_scores(log_mean(start, stop), n_items).exp() / theta
        # The public Gamma distribution takes no generator.
        rate = torch._standard_gamma(theta, generator=generator) * scale
        if not bool(rate.isfinite().all()):
            raise ValueError("sample(): expected finite means and dispersions, but got inf or nan")
        drawn = torch.poisson(rate, generator=generator)
        if zero_logits is not None:
            p = torch.sigmoid(check_scores(zero_logits(start, stop), n_items))
            if bool(p.isnan().any()):
                raise ValueError("sample(): expected probabilities that are numbers, but got nan")
            uniform = torch.rand(p.shape, dtype=p.dtype, device=p.device, generator=generator)
            drawn = torch.where(uniform >= p, drawn, 0.0)
        flat = drawn.reshape(-1)
        key = flat.nonzero()[:, 0]
        keys.append(key + start * n_items)
        counts.append(flat[key])
    return assemble(keys, counts, (n, n_items), device)
