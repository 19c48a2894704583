"""The transposed index of a CSR matrix: which features a batch touches, and where.

The compiled helper does the work when it is there; the numpy functions in this file are its twin,
with the same results and the same error texts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _load

__all__ = ["TransposedIndex", "transpose_arrays"]

INT32_LIMIT = 2**31

IndexArray = NDArray[Any]


class TransposedIndex(NamedTuple):
    r"""The entries of a CSR batch in feature-major order (its CSC structure over touched features).

    Slot `u` stands for the feature `features[u]`; its entries are `ptr[u] .. ptr[u + 1]` of `row`
    and `perm`, in ascending position. So \((X^T G)_{f} = \sum_e \mathrm{values}_{perm_e} G_{row_e}\)
    for each touched feature needs no pass over the others.

    An index made without a count on the host has `nnz` slots; the unused ones are empty
    (`ptr[u] == ptr[u + 1] == nnz`, `features[u] == 0`).

    Attributes:
        features: (U,) touched features, ascending, int32 or int64.
        ptr: (U + 1,) bounds of each feature's entries.
        row: (nnz,) row of each entry.
        perm: (nnz,) position of each entry in the batch's `col` and `values`.

    Example:
        >>> from sparsevae_ext.data import CSRBatch
        >>> b = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])).prepare()
        >>> b.index.features.tolist(), b.index.ptr.tolist(), b.index.perm.tolist()
        ([0, 2], [0, 2, 3], [0, 2, 1])
    """

    features: torch.Tensor
    ptr: torch.Tensor
    row: torch.Tensor
    perm: torch.Tensor


def check_structure(op: str, crow: IndexArray, nnz: int) -> None:
    """Check that row pointers start at 0, never decrease and end at `nnz`; RuntimeError if not."""
    if len(crow) < 1:
        raise RuntimeError(
            f"{op}(): crow_indices.shape[-1] must be equal to the number of rows + 1, but got 0"
        )
    if crow[0] != 0:
        raise RuntimeError(f"{op}(): `crow_indices[..., 0] == 0` is not satisfied, got {crow[0]}")
    if crow[-1] != nnz:
        raise RuntimeError(
            f"{op}(): `crow_indices[..., -1] == nnz` is not satisfied, got {crow[-1]} and nnz={nnz}"
        )
    falls = crow[1:] < crow[:-1]
    if falls.any():
        row = int(falls.argmax())
        raise RuntimeError(
            f"{op}(): expected crow_indices to be non-decreasing, but row {row} has "
            f"{crow[row + 1]} after {crow[row]}"
        )


def check_columns(op: str, col: IndexArray, n_cols: int) -> None:
    """Check that every column is in [0, n_cols); IndexError naming the first that is not."""
    if len(col) == 0 or (col.min() >= 0 and col.max() < n_cols):
        return
    position = int(((col < 0) | (col >= n_cols)).argmax())
    raise IndexError(
        f"{op}(): column index {col[position]} at position {position} is out of bounds "
        f"for in_features={n_cols}"
    )


def row_ids(crow: IndexArray) -> IndexArray:
    """The row of every entry; `crow` must have been checked."""
    return np.repeat(np.arange(len(crow) - 1, dtype=crow.dtype), np.diff(crow))


def transpose_arrays(
    op: str, crow: IndexArray, col: IndexArray, n_cols: int
) -> tuple[IndexArray, IndexArray, IndexArray, IndexArray]:
    """Build the transposed index of a CSR structure in host memory.

    Args:
        op: name put before the text of an error.
        crow: (B + 1,) row pointers, int32 or int64.
        col: (nnz,) columns of the same dtype, in any order, duplicates allowed.
        n_cols: number of columns N.

    Returns:
        `(features, ptr, row, perm)` as in `TransposedIndex`, in the dtype of `crow`.

    Raises:
        RuntimeError: `crow` is no valid row pointer array for `col`.
        IndexError: a column is outside [0, N).

    Example:
        >>> f, p, r, e = transpose_arrays("doc", np.array([0, 2, 3]), np.array([2, 0, 2]), 3)
        >>> f.tolist(), p.tolist(), r.tolist(), e.tolist()
        ([0, 2], [0, 1, 3], [0, 0, 1], [1, 0, 2])
    """
    if _load.C is not None:
        compiled: tuple[IndexArray, IndexArray, IndexArray, IndexArray] = _load.C.transpose_index(
            np.ascontiguousarray(crow), np.ascontiguousarray(col), n_cols, op
        )
        return compiled
    check_structure(op, crow, len(col))
    check_columns(op, col, n_cols)
    perm = np.argsort(col, kind="stable").astype(crow.dtype, copy=False)
    ordered = col[perm]
    first = np.ones(len(col), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    ptr = np.append(starts, len(col)).astype(crow.dtype, copy=False)
    return ordered[starts], ptr, row_ids(crow)[perm], perm


# From this many entries on, the op that shares the work among threads is faster than the helper.
_SHARED_ENTRIES = 1 << 14


def transpose_on_cpu(
    op: str, crow: torch.Tensor, col: torch.Tensor, n_cols: int
) -> TransposedIndex:
    """The index of CPU tensors, on as many threads as torch is set to."""
    if _load.C is None or col.shape[0] < _SHARED_ENTRIES:
        parts = transpose_arrays(op, crow.numpy(), col.numpy(), n_cols)
        return TransposedIndex(*(torch.from_numpy(part) for part in parts))
    features, ptr, row, perm, count = torch.ops.sparsevae_ext.csr_transpose.default(
        crow, col, n_cols
    )
    used = int(count)  # the arrays have room for nnz features
    return TransposedIndex(features[:used].clone(), ptr[: used + 1].clone(), row, perm)


def transpose_on_device(
    op: str, crow: torch.Tensor, col: torch.Tensor, n_cols: int
) -> TransposedIndex:
    """The same index from plain torch ops on any device; counting the features synchronises."""
    nnz = col.shape[0]
    bad = (crow[0] != 0) | (crow[-1] != nnz) | (crow[1:] < crow[:-1]).any()
    bad = bad | ((col < 0) | (col >= n_cols)).any()
    if bool(bad):
        # Costly, but only on the way to an exception: the host versions name the offender.
        check_structure(op, crow.cpu().numpy(), nnz)
        check_columns(op, col.cpu().numpy(), n_cols)
    ordered, order = torch.sort(col, stable=True)
    features, counts = torch.unique_consecutive(ordered, return_counts=True)
    ptr = torch.zeros(features.shape[0] + 1, dtype=crow.dtype, device=crow.device)
    ptr[1:] = counts.cumsum(0)
    rows = torch.repeat_interleave(crow.diff(), output_size=nnz)
    return TransposedIndex(features, ptr, rows[order], order.to(crow.dtype))
