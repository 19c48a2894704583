"""Bring a scipy CSR matrix into the form the package works with, or say why it cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .index import check_columns, check_structure, row_ids

__all__ = ["canonical_csr", "float_values"]


def float_values(op: str, values: NDArray[Any]) -> NDArray[Any]:
    """Values in native float32 or float64: these are kept, small floats, ints and bool cast.

    Raises:
        NotImplementedError: complex, object or string values.
    """
    kind = values.dtype.kind
    if kind not in "biuf":
        raise NotImplementedError(f"{op}(): not implemented for values of dtype '{values.dtype}'")
    wide = kind == "f" and values.dtype.itemsize >= 8
    return values.astype(np.float64 if wide else np.float32, copy=False)


def native_index(op: str, name: str, index: NDArray[Any]) -> NDArray[Any]:
    """An index array in native int32 or int64, whatever integer width or byte order came in.

    Raises:
        RuntimeError: not an integer array, or a uint64 beyond int64.
    """
    if index.dtype.kind not in "iu":
        raise RuntimeError(f"{op}(): {name} must be Int or Long, but got {index.dtype}")
    if index.dtype.kind == "u" and index.dtype.itemsize == 8 and index.size:
        if int(index.max()) >= 2**63:
            raise RuntimeError(f"{op}(): {name} holds {index.max()}, beyond 64-bit integers")
    narrow = index.dtype.itemsize < 4 or index.dtype in (np.dtype(">i4"), np.dtype("<i4"))
    return index.astype(np.int32 if narrow else np.int64, copy=False)


def is_canonical(crow: NDArray[Any], col: NDArray[Any]) -> bool:
    """Whether every row's columns ascend strictly; looks at the arrays, not at scipy's flags."""
    if len(col) < 2:
        return True
    rises = col[1:] > col[:-1]
    # Where a row begins, any column may follow the previous row's last one.
    starts = crow[1:-1]
    rises[starts[(starts > 0) & (starts < len(col))] - 1] = True
    return bool(rises.all())


def canonical_csr(op: str, matrix: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The checked `(crow, col, values)` of a scipy CSR matrix: sorted, no duplicates, floats.

    Arrays that are in order already are returned as they are, not copied; the matrix is never
    changed. scipy's cached `has_sorted_indices` is not trusted, for it can be stale.

    Args:
        op: name put before the text of an error.
        matrix: (B, N) `csr_matrix` or `csr_array`.

    Raises:
        TypeError: not a scipy CSR matrix.
        NotImplementedError: complex or object values.
        RuntimeError: a broken row pointer array, or indices that are no integers.
        IndexError: a column outside [0, N).
    """
    if not sp.issparse(matrix):
        raise TypeError(f"{op}(): expected a scipy CSR matrix, but got {type(matrix).__name__}")
    if matrix.format != "csr":
        raise TypeError(
            f"{op}(): expected a scipy CSR matrix, but got format {matrix.format}; "
            f"convert it with .tocsr()"
        )
    if len(matrix.shape) != 2:
        raise RuntimeError(f"{op}(): expected a 2-D matrix, but got shape {matrix.shape}")
    n_rows, n_cols = (int(n) for n in matrix.shape)
    crow = native_index(op, "crow_indices", matrix.indptr)
    col = native_index(op, "col_indices", matrix.indices)
    values = float_values(op, matrix.data)
    if len(crow) != n_rows + 1:
        raise RuntimeError(
            f"{op}(): crow_indices.shape[-1] must be equal to the number of rows + 1 "
            f"(={n_rows + 1}), but got {len(crow)}"
        )
    # scipy allows spare room behind the last entry.
    nnz = int(crow[-1])
    if 0 <= nnz <= len(col) and nnz <= len(values):
        col, values = col[:nnz], values[:nnz]
    check_structure(op, crow, len(col))
    if len(values) != len(col):
        raise RuntimeError(
            f"{op}(): expected col_indices and values to have the same length, "
            f"but got {len(col)} and {len(values)}"
        )
    check_columns(op, col, n_cols)
    if not is_canonical(crow, col):
        crow, col, values = sort_and_sum(crow, col, values)
    return crow, col, values


def sort_and_sum(
    crow: NDArray[Any], col: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """New arrays with each row's columns ascending and duplicates added up, in float64 sums."""
    row = row_ids(crow)
    order = np.lexsort((col, row))
    row, col = row[order], col[order]
    first = np.ones(len(col), dtype=bool)
    first[1:] = (row[1:] != row[:-1]) | (col[1:] != col[:-1])
    starts = np.flatnonzero(first)
    sums = np.add.reduceat(values[order], starts, dtype=np.float64) if len(starts) else values[:0]
    counts = np.bincount(row[starts], minlength=len(crow) - 1)
    summed_crow = np.zeros(len(crow), dtype=crow.dtype)
    np.cumsum(counts, out=summed_crow[1:])
    return summed_crow, col[starts], sums.astype(values.dtype)
