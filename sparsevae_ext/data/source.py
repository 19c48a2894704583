"""What a folder of arrays is filled from, a piece at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .canonical import is_canonical
from .covariate import RowCovariate
from .errors import DataFileError

__all__ = ["RowSource", "check_entries", "row_chunks"]


class RowSource(Protocol):
    """A CSR matrix whose row pointers are known and whose entries are read when asked for.

    Attributes:
        shape: (B, N).
        value_dtype: numpy dtype of the values.
        crow: (B + 1,) int64 row pointers.
        vocab: names of the columns, or None.
        labels: (B,) one per row, or None.
        covariate: the experimental batch of every row, or None.
    """

    shape: tuple[int, int]
    value_dtype: np.dtype[Any]
    crow: NDArray[np.int64]
    vocab: list[str] | None
    labels: NDArray[Any] | None
    covariate: RowCovariate | None

    def entries(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Columns, ascending in each row, and values of the rows in [start, stop)."""
        ...


def row_chunks(crow: NDArray[Any], entries: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about ``entries`` entries each, at least one row."""
    start, n_rows = 0, len(crow) - 1
    while start < n_rows:
        limit = int(crow[start]) + entries
        stop = int(np.searchsorted(crow, limit, side="right")) - 1
        stop = min(max(stop, start + 1), n_rows, start + entries)
        yield start, stop
        start = stop


def check_entries(
    path: str | os.PathLike[str],
    first_row: int,
    crow: NDArray[Any],
    col: NDArray[Any],
    values: NDArray[Any],
    n_cols: int,
    nonnegative: bool,
) -> None:
    """Check that columns are in range and ascend, and that values are finite (and >= 0).

    Args:
        path: named in errors.
        first_row: number of the first of these rows.
        crow: their row pointers, from 0 on.
        col: their columns.
        values: their values.
        n_cols: N.
        nonnegative: whether a value below 0 is an error.

    Raises:
        DataFileError: naming the row of the first offender.
    """

    def fail(bad: NDArray[Any], text: str) -> None:
        if bad.any():
            row = first_row + int(np.searchsorted(crow, int(bad.argmax()), side="right")) - 1
            raise DataFileError(path, f"row {row} {text}")

    fail((col < 0) | (col >= n_cols), f"has a column outside [0, {n_cols})")
    fail(~np.isfinite(values), "has a value that is NaN or infinite")
    if nonnegative:
        fail(values < 0, "has a negative value, but counts are expected")
    if not is_canonical(crow, col):
        last = first_row + len(crow) - 2
        raise DataFileError(path, f"rows {first_row} to {last} hold unsorted columns")
