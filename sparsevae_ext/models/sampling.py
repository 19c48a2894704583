"""Drawing rows of counts straight into CSR."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..data.batch import CSRBatch

__all__ = ["make_generator", "row_lengths", "sample_multinomial_rows"]

# Rows x items of one block: 32 MiB of float64 probabilities.
_BLOCK_ELEMENTS = 1 << 22
# A uniform draw is added to its row's number; below this many rows the sum keeps 41 bits of it.
_MAX_BLOCK_ROWS = 1 << 11
_BELOW_ONE = 1.0 - 2.0**-41


def make_generator(
    device: torch.device, generator: torch.Generator | None, seed: int | None
) -> torch.Generator | None:
    """Returns the generator to draw from: the one given, a new one of ``seed``, or torch's own.

    Raises:
        ValueError: if both are given.
    """
    if generator is not None and seed is not None:
        raise ValueError("sample(): expected either generator or seed, but got both")
    if seed is None:
        return generator
    return torch.Generator(device=device).manual_seed(seed)


def row_lengths(length: int | Tensor, n: int, device: torch.device) -> Tensor:
    """Checks the wanted row totals and returns them as (n,) int64, rounded to whole draws.

    Raises:
        RuntimeError: if ``length`` is a tensor of another shape.
        ValueError: if a length is negative or not finite.
    """
    lengths = torch.as_tensor(length, device=device)
    if lengths.dim() == 0:
        lengths = lengths.expand(n)
    if lengths.shape != (n,):
        raise RuntimeError(
            f"sample(): expected length to be a number or of shape ({n},), but got "
            f"{tuple(lengths.shape)}"
        )
    if not bool((lengths.isfinite() & (lengths >= 0)).all()):
        raise ValueError("sample(): expected finite, non-negative lengths")
    return lengths.round().long() if lengths.is_floating_point() else lengths.long()


def sample_multinomial_rows(
    logits: Callable[[int, int], Tensor],
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
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"sample(): expected temperature > 0, but got {temperature}")
    n, device = lengths.shape[0], lengths.device
    step = min(_MAX_BLOCK_ROWS, max(1, _BLOCK_ELEMENTS // n_items))
    keys, counts = [], []
    for start in range(0, n, step):
        stop = min(start + step, n)
        here = lengths[start:stop]
        cdf = torch.softmax(logits(start, stop).double() / temperature, dim=1).cumsum(dim=1)
        cdf /= cdf[:, -1:].clone()
        if bool((cdf.isnan().any(dim=1) & (here > 0)).any()):
            raise ValueError("sample(): expected probabilities that are numbers, but got nan")
        # Row r occupies (r, r + 1] of one long ascending array: a single search serves all rows.
        rows = torch.arange(stop - start, device=device)
        flat = (cdf.nan_to_num(1.0) + rows[:, None]).reshape(-1)
        rows = torch.repeat_interleave(rows, here)
        uniform = torch.rand(
            rows.shape[0], dtype=torch.float64, device=device, generator=generator
        ).clamp_(max=_BELOW_ONE)
        # right=True steps over items of probability zero.
        cell = torch.searchsorted(flat, rows + uniform, right=True)
        key, count = cell.unique(return_counts=True)
        keys.append(key + start * n_items)
        counts.append(count)
    key = torch.cat(keys) if keys else lengths.new_empty(0)
    values = (torch.cat(counts) if counts else lengths.new_empty(0)).float()
    bounds = torch.arange(n + 1, device=device) * n_items
    return CSRBatch(torch.searchsorted(key, bounds), key % n_items, values, (n, n_items))
