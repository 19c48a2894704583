"""How long generated rows are: fixed, given, or as in a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.blocks import csr_blocks
from .blocks import make_generator

__all__ = ["LengthDistribution", "row_lengths", "row_totals_like"]


class LengthDistribution:
    """The distribution of row totals (or of numbers of entries) of a data set.

    It is the empirical one: a draw is the length of a row picked at random, with replacement. No
    shape is assumed, so long tails and empty rows come out as they are in the data.

    Args:
        lengths: (rows,) non-negative lengths to draw from; rounded to whole numbers.

    Attributes:
        lengths: (U,) int64, the different lengths, ascending.
        counts: (U,) int64, how many rows have each.

    Raises:
        ValueError: if there are no lengths, or one is negative or not finite.

    Example:
        >>> d = LengthDistribution([3, 3, 7])
        >>> sorted(set(d.draw(100, seed=0).tolist()))
        [3, 7]
    """

    def __init__(self, lengths: Any) -> None:
        given = torch.as_tensor(np.asarray(lengths)).flatten()
        if len(given) == 0:
            raise ValueError("LengthDistribution(): expected at least one length, but got none")
        if not bool((given.isfinite() & (given >= 0)).all()):
            raise ValueError("LengthDistribution(): expected finite, non-negative lengths")
        whole = given.round().long() if given.is_floating_point() else given.long()
        self.lengths, self.counts = whole.unique(return_counts=True)

    @classmethod
    def of(cls, data: Any, kind: str = "totals") -> LengthDistribution:
        """The lengths of the rows of a data set, which is read a block of rows at a time.

        Args:
            data: CSRDataset, CSRBatch or scipy CSR matrix.
            kind: "totals", sums of the rows, for multinomial draws; "entries", numbers of
                non-zeros, for the samplers that keep so many entries of a row.

        Raises:
            ValueError: if ``kind`` is neither, or the data has no rows.
            TypeError: if ``data`` is none of the above.

        Example:
            >>> rows = CSRBatch.from_dense(torch.tensor([[2.0, 3.0], [0.0, 1.0]]))
            >>> LengthDistribution.of(rows).lengths.tolist()
            [1, 5]
        """
        if kind not in ("totals", "entries"):
            raise ValueError(
                f"LengthDistribution.of(): expected kind to be 'totals' or 'entries', but got "
                f"{kind!r}"
            )
        parts = [
            np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
            if kind == "totals"
            else np.bincount(
                np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[block.data != 0],
                minlength=block.shape[0],
            )
            for block in csr_blocks(data, "LengthDistribution.of")
        ]
        return cls(np.concatenate(parts) if parts else [])

    def draw(
        self,
        n: int,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws n lengths.

        Args:
            n: how many.
            generator: source of the random numbers, on ``device``.
            seed: in place of a generator; equal seeds give equal lengths.
            device: of the result.

        Returns:
            (n,) int64.

        Raises:
            ValueError: if n is negative, or both ``generator`` and ``seed`` are given.
        """
        if n < 0:
            raise ValueError(f"LengthDistribution.draw(): expected n >= 0, but got {n}")
        device = torch.device(device)
        source = make_generator(device, generator, seed)
        ends = self.counts.cumsum(0).to(device)
        # One of the rows, each as likely as the other.
        row = torch.randint(int(self.counts.sum()), (n,), generator=source, device=device)
        return self.lengths.to(device)[torch.searchsorted(ends, row, right=True)]

    def __repr__(self) -> str:
        total = int(self.counts.sum())
        mean = float((self.lengths * self.counts).sum()) / total
        return (
            f"LengthDistribution(rows={total}, min={int(self.lengths[0])}, mean={mean:.4g}, "
            f"max={int(self.lengths[-1])})"
        )


def row_totals_like(data: Any, n: int, *, kind: str = "totals", seed: int | None = None) -> Tensor:
    """Draws n row totals from those of a data set.

    Args:
        data: CSRDataset, CSRBatch or scipy CSR matrix.
        n: how many.
        kind: "totals" or "entries"; see :meth:`LengthDistribution.of`.
        seed: equal seeds give equal totals; None takes torch's generator.

    Returns:
        (n,) int64, to pass as ``length``.

    Example:
        >>> rows = CSRBatch.from_dense(torch.tensor([[2.0, 3.0], [4.0, 1.0]]))
        >>> row_totals_like(rows, 3)
        tensor([5, 5, 5])
    """
    return LengthDistribution.of(data, kind).draw(n, seed=seed)


def row_lengths(
    length: int | Tensor | LengthDistribution,
    n: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Checks the wanted row totals and returns them as (n,) int64, rounded to whole draws.

    Args:
        length: one for all rows, (n,) of them, or a distribution to draw them from.
        n: rows.
        device: of the result.
        generator: what a distribution draws with.

    Raises:
        RuntimeError: if ``length`` is a tensor of another shape.
        ValueError: if a length is negative or not finite.
    """
    if isinstance(length, LengthDistribution):
        return length.draw(n, generator=generator, device=device)
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
