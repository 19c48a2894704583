"""What the samplers share: blocks of rows, the generator, and the assembly of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...data.batch import CSRBatch

__all__ = [
    "RowScores",
    "assemble",
    "check_scores",
    "check_temperature",
    "make_generator",
    "row_blocks",
]

#: Gives the decoder's output (stop - start, N) for the rows in [start, stop).
RowScores = Callable[[int, int], Tensor]

# Rows x items of one block: 32 MiB of float64 probabilities. Also the draws of one block.
BLOCK_ELEMENTS = 1 << 22
# The multinomial sampler adds a uniform draw to its row's number; below this many rows the sum
# keeps 41 bits of it.
MAX_BLOCK_ROWS = 1 << 11


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


def row_blocks(n: int, n_items: int, draws: Tensor | None = None) -> Iterator[tuple[int, int]]:
    """Cuts n rows into blocks of at most 4 million cells, or one row.

    Args:
        n: rows.
        n_items: cells of a row.
        draws: (n,) int64, draws that each row needs: a block has no more than 4 million of them
            either, unless a single row has.
    """
    step = min(MAX_BLOCK_ROWS, max(1, BLOCK_ELEMENTS // max(1, n_items)))
    ends = None if draws is None else draws.cumsum(0)
    start = 0
    while start < n:
        stop = min(start + step, n)
        if ends is not None:
            spent = int(ends[start - 1]) if start else 0
            fits = int(torch.searchsorted(ends, spent + BLOCK_ELEMENTS, right=True))
            stop = min(stop, max(fits, start + 1))
        yield start, stop
        start = stop


def check_temperature(temperature: float) -> None:
    """Raises ValueError unless ``temperature`` is positive and finite."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"sample(): expected temperature > 0, but got {temperature}")


def check_scores(scores: Tensor, n_items: int) -> Tensor:
    """Returns the block's scores in float64.

    Raises:
        RuntimeError: if the rows do not have ``n_items`` columns.
    """
    if scores.dim() != 2 or scores.shape[1] != n_items:
        raise RuntimeError(
            f"sample(): expected scores of shape (rows, {n_items}), but got {tuple(scores.shape)}"
        )
    return scores.double()


def assemble(
    keys: list[Tensor], values: list[Tensor], shape: tuple[int, int], device: torch.device
) -> CSRBatch:
    """Makes the batch of entries given by their flat positions ``row * N + column``.

    Args:
        keys: int64 positions, ascending over the whole list.
        values: as many values.
        shape: (n, N).
        device: of the batch, where there are no blocks to tell.
    """
    n, n_items = shape
    key = torch.cat(keys) if keys else torch.empty(0, dtype=torch.int64, device=device)
    value = torch.cat(values) if values else torch.empty(0, device=device)
    bounds = torch.arange(n + 1, device=device) * n_items
    crow = torch.searchsorted(key, bounds)
    return CSRBatch(crow, key % max(1, n_items), value.float(), (n, n_items))
