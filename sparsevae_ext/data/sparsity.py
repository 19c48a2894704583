"""How sparse data is, and whether generated data is sparse in the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import csr_blocks

__all__ = ["SparsityReport", "SparsityStats", "sparsity_report", "sparsity_stats"]

Array = NDArray[Any]

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class SparsityStats:
    """Where the non-zeros of a matrix are and how large they are.

    Attributes:
        shape: (rows, N).
        row_lengths: (rows,) int64, non-zeros per row.
        row_totals: (rows,) float64, sum of each row.
        column_counts: (N,) int64, rows with the column.
        value_mean: mean of the non-zeros; nan without any.
        value_std: their standard deviation.
        value_max: the largest of them.

    Example:
        >>> import scipy.sparse as sp
        >>> sparsity_stats(sp.csr_matrix([[0.0, 2.0], [0.0, 0.0]])).density
        0.25
    """

    shape: tuple[int, int]
    row_lengths: Array = field(repr=False)
    row_totals: Array = field(repr=False)
    column_counts: Array = field(repr=False)
    value_mean: float
    value_std: float
    value_max: float

    @property
    def nnz(self) -> int:
        """Number of non-zeros."""
        return int(self.row_lengths.sum())

    @property
    def density(self) -> float:
        """Share of the cells that are not zero; nan without cells."""
        cells = self.shape[0] * self.shape[1]
        return self.nnz / cells if cells else math.nan

    @property
    def zero_fractions(self) -> Array:
        """(N,) float64, share of the rows without the column; nan without rows."""
        if not self.shape[0]:
            return np.full(self.shape[1], np.nan)
        return 1.0 - self.column_counts / self.shape[0]

    def length_quantiles(self) -> list[float]:
        """Non-zeros per row at the quantiles 0, 5, 25, 50, 75, 95 and 100 %; nan without rows."""
        if not self.shape[0]:
            return [math.nan] * len(_QUANTILES)
        return [float(q) for q in np.quantile(self.row_lengths, _QUANTILES)]


@dataclass(frozen=True)
class SparsityReport:
    """How generated rows differ from the data in where their non-zeros are.

    Attributes:
        generated: statistics of the generated rows.
        data: statistics of the data.
        row_length_ks: Kolmogorov-Smirnov distance between the distributions of non-zeros per row,
            the largest difference of their cumulative distributions; 0 is equal, 1 is disjoint.
        row_total_ks: the same for the sums of the rows.
        column_correlation: Pearson correlation of the columns' shares of rows; nan where a side
            has the same share everywhere.
        column_total_variation: half the sum of the differences between the columns' shares of all
            non-zeros; 0 is equal, 1 is disjoint.
        zero_fraction_mean_error: mean over columns of the difference in the share of rows without
            the column.
        zero_fraction_max_error: the largest such difference.

    Example:
        >>> import scipy.sparse as sp
        >>> rows = sp.csr_matrix([[0.0, 2.0], [0.0, 0.0]])
        >>> sparsity_report(rows, rows).to_dict()["row_length_ks"]
        0.0
    """

    generated: SparsityStats
    data: SparsityStats
    row_length_ks: float
    row_total_ks: float
    column_correlation: float
    column_total_variation: float
    zero_fraction_mean_error: float
    zero_fraction_max_error: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain numbers, without the arrays."""
        sides = {
            name: {
                "rows": side.shape[0],
                "columns": side.shape[1],
                "nnz": side.nnz,
                "density": side.density,
                "row_length_quantiles": side.length_quantiles(),
                "row_total_mean": _mean(side.row_totals),
                "value_mean": side.value_mean,
                "value_std": side.value_std,
                "value_max": side.value_max,
            }
            for name, side in (("generated", self.generated), ("data", self.data))
        }
        distances = {
            part.name: getattr(self, part.name)
            for part in fields(self)
            if part.name not in ("generated", "data")
        }
        return {**sides, **distances}

    def __str__(self) -> str:
        sides = (self.generated, self.data)
        low, _, first, median, third, _, high = zip(
            *(side.length_quantiles() for side in sides), strict=True
        )
        rows: list[tuple[str, str, str]] = [
            ("", "generated", "data"),
            _line("rows", [side.shape[0] for side in sides], ",d"),
            _line("density", [side.density for side in sides], ".4%"),
            _line("non-zeros per row: lowest", low, ",.0f"),
            _line("  25 %", first, ",.0f"),
            _line("  median", median, ",.0f"),
            _line("  75 %", third, ",.0f"),
            _line("  highest", high, ",.0f"),
            _line("row total, mean", [_mean(side.row_totals) for side in sides], ",.2f"),
            _line("non-zero value, mean", [side.value_mean for side in sides], ",.3f"),
            _line("  standard deviation", [side.value_std for side in sides], ",.3f"),
            _line("  largest", [side.value_max for side in sides], ",.6g"),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            f"{name.ljust(widths[0])}  {left.rjust(widths[1])}  {right.rjust(widths[2])}"
            for name, left, right in rows
        ]
        lines.insert(1, "-" * (sum(widths) + 4))
        return "\n".join(
            [
                *lines,
                "",
                f"row lengths   KS {self.row_length_ks:.4f} (totals {self.row_total_ks:.4f})",
                f"columns       correlation {self.column_correlation:.4f}, "
                f"total variation {self.column_total_variation:.4f}",
                f"zero fraction off by {self.zero_fraction_mean_error:.4f} on average, "
                f"{self.zero_fraction_max_error:.4f} at most",
            ]
        )


def sparsity_stats(data: Any) -> SparsityStats:
    """Goes through the rows once, a block at a time; stored zeros do not count.

    Args:
        data: CSRDataset, CSRBatch or scipy CSR matrix.

    Returns:
        The statistics; memory O(rows + N).

    Raises:
        TypeError: if ``data`` is none of the above.

    Example:
        >>> import scipy.sparse as sp
        >>> stats = sparsity_stats(sp.csr_matrix([[0.0, 2.0, 4.0], [0.0, 0.0, 0.0]]))
        >>> stats.row_lengths.tolist(), stats.column_counts.tolist(), stats.value_mean
        ([2, 0], [0, 1, 1], 3.0)
    """
    lengths, totals = [np.zeros(0, np.int64)], [np.zeros(0)]
    total = squares = 0.0
    largest = -math.inf
    counts: Array = np.zeros(0, np.int64)
    for block in csr_blocks(data, "sparsity_stats"):
        if block.nnz and not np.all(block.data):
            block = block.copy()
            block.eliminate_zeros()
        if not len(counts):
            counts = np.zeros(block.shape[1], np.int64)
        counts += np.bincount(block.indices, minlength=block.shape[1])
        values = block.data.astype(np.float64)
        lengths.append(np.diff(block.indptr).astype(np.int64))
        totals.append(np.asarray(block.sum(axis=1, dtype=np.float64)).ravel())
        total += float(values.sum())
        squares += float(np.square(values).sum())
        largest = max(largest, float(values.max(initial=-math.inf)))
    shape = (int(data.shape[0]), int(data.shape[1]))
    nnz = int(counts.sum())
    mean = total / nnz if nnz else math.nan
    return SparsityStats(
        shape=shape,
        row_lengths=np.concatenate(lengths),
        row_totals=np.concatenate(totals),
        column_counts=counts if len(counts) else np.zeros(shape[1], np.int64),
        value_mean=mean,
        value_std=math.sqrt(max(0.0, squares / nnz - mean * mean)) if nnz else math.nan,
        value_max=largest if nnz else math.nan,
    )


def sparsity_report(generated: Any, data: Any) -> SparsityReport:
    """Compares where generated rows have their non-zeros with where the data has them.

    Args:
        generated: CSRBatch (what ``model.sample`` gives), CSRDataset or scipy CSR matrix.
        data: one of the same, with as many columns; the numbers of rows may differ.

    Returns:
        The report; printing it shows a table.

    Raises:
        TypeError: if one of them is something else.
        RuntimeError: if they do not have the same columns.

    Example:
        >>> import scipy.sparse as sp
        >>> data = sp.csr_matrix([[1.0, 0.0], [3.0, 0.0]])
        >>> report = sparsity_report(sp.csr_matrix([[0.0, 2.0], [0.0, 2.0]]), data)
        >>> report.row_length_ks, report.column_total_variation, report.zero_fraction_max_error
        (0.0, 1.0, 1.0)
    """
    ours, theirs = sparsity_stats(generated), sparsity_stats(data)
    if ours.shape[1] != theirs.shape[1]:
        raise RuntimeError(
            f"sparsity_report(): expected generated rows with {theirs.shape[1]} columns, but got "
            f"{ours.shape[1]}"
        )
    shares = [side.column_counts / max(1, side.nnz) for side in (ours, theirs)]
    gap = np.abs(ours.zero_fractions - theirs.zero_fractions)
    return SparsityReport(
        generated=ours,
        data=theirs,
        row_length_ks=_ks_distance(ours.row_lengths, theirs.row_lengths),
        row_total_ks=_ks_distance(ours.row_totals, theirs.row_totals),
        column_correlation=_correlation(ours.column_counts, theirs.column_counts),
        column_total_variation=float(np.abs(shares[0] - shares[1]).sum() / 2)
        if ours.nnz and theirs.nnz
        else math.nan,
        zero_fraction_mean_error=_mean(gap),
        zero_fraction_max_error=float(gap.max()) if len(gap) else math.nan,
    )


def _ks_distance(left: Array, right: Array) -> float:
    if not len(left) or not len(right):
        return math.nan
    places = np.union1d(left, right)
    cdfs = [
        np.searchsorted(np.sort(side), places, side="right") / len(side) for side in (left, right)
    ]
    return float(np.abs(cdfs[0] - cdfs[1]).max())


def _correlation(left: Array, right: Array) -> float:
    if len(left) < 2 or left.min() == left.max() or right.min() == right.max():
        return math.nan
    return float(np.corrcoef(left, right)[0, 1])


def _mean(values: Array) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _line(name: str, values: Any, form: str) -> tuple[str, str, str]:
    left, right = (format(value, form) for value in values)
    return name, left, right
