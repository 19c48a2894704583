"""Products of a (B, K) and an (N, K) matrix with or at the stored entries of a sparse batch.

What the likelihoods share whose cost is that of the stored entries. Everything here is arithmetic
on real tensors, run inside dispatcher ops: sizes that depend on the data, and loops over pieces,
which ``torch.compile`` would unroll, are no trouble there. The work is done by the kernels of
``csr_linear``, or by their twins in plain torch.

The kernels read the (N, K) matrix as it lies when its rows are contiguous and have the dtype of
the sum. Otherwise the rows that entries touch are gathered and cast, a bounded number at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ._nll import entry_rows
from ._registry import use_kernel
from .csr_linear import csr_linear_weight_grad_rows_reference
from .csr_rows import check_structure
from .csr_transpose import csr_transpose

__all__ = [
    "Touched",
    "at_entries",
    "check_entries",
    "column_sums",
    "gradient_rows",
    "piece",
    "times_entries",
    "touched_features",
]

#: Numbers of a piece of the weight: on the CPU 2 MiB of float32, which stays in the caches between
#: the steps, on a GPU enough for one launch to fill it.
_PIECE = {"cpu": 1 << 19, "cuda": 1 << 24}


def piece(device: torch.device, width: int) -> int:
    """Rows of ``width`` numbers that are worked on at once.

    Fewer than torch would share among threads when it adds them up: no sum over a piece depends on
    the number of threads.
    """
    rows = max(1, _PIECE.get(device.type, _PIECE["cuda"]) // max(1, width))
    return min(rows, 1 << 14) if device.type == "cpu" else rows


def check_entries(op: str, crow: Tensor, col: Tensor, n_cols: int) -> None:
    """Refuses damaged row pointers and columns on the CPU; in compiled code too."""
    check_structure(op, CSRBatch._make(crow, col, col, n_cols))


# ---- the transposed index -----------------------------------------------------------------------


class Touched(NamedTuple):
    """The entries in order of their features."""

    features: Tensor  # (U,) ascending
    ptr: Tensor  # (U + 1,) segment of each feature
    row: Tensor  # (nnz,)
    perm: Tensor  # (nnz,) position in the batch


def touched_features(
    crow: Tensor, col: Tensor, n_cols: int, index: tuple[Tensor | None, ...] = (None,)
) -> Touched:
    """The batch's own transposed index if it has one, else one made here."""
    if index[0] is not None:
        return Touched(*(part for part in index if part is not None))
    features, ptr, row, perm, count = csr_transpose(crow, col, n_cols)
    used = int(count)  # the arrays have room for nnz features
    return Touched(features[:used], ptr[: used + 1], row, perm)


# ---- products -----------------------------------------------------------------------------------


def at_entries(crow: Tensor, col: Tensor, h: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``h_i . w_j`` at the stored entries (i, j), as (nnz,) in ``dtype``."""
    h = h.to(dtype)
    if weight.dtype == dtype and weight.is_contiguous():
        return _dots(crow, col, h, weight)
    out = torch.empty(col.shape[0], dtype=dtype, device=h.device)
    for part in _pieces(crow, col, weight, dtype):
        out[part.entries] = _dots(part.crow, part.slot, h[part.rows], part.weight)
    return out


def times_entries(
    crow: Tensor, col: Tensor, values: Tensor, weight: Tensor, dtype: torch.dtype
) -> Tensor:
    """``sum_j values_ij w_j`` over the stored entries of row i, as (B, K) in ``dtype``."""
    values = values.to(dtype)
    if weight.dtype == dtype and weight.is_contiguous():
        return _sums(crow, col, values, weight)
    out = torch.zeros(crow.shape[0] - 1, weight.shape[1], dtype=dtype, device=weight.device)
    for part in _pieces(crow, col, weight, dtype):
        out[part.rows] += _sums(part.crow, part.slot, values[part.entries], part.weight)
    return out


def gradient_rows(
    touched: Touched, first: int, last: int, entry_values: Tensor, h: Tensor
) -> Tensor:
    """``sum_i values_ij h_i`` for the touched features [first, last), as (last - first, K).

    ``entry_values`` are in the order of the features, i.e. permuted by ``touched.perm``, and of
    the dtype of ``h``.
    """
    begin, end = (int(touched.ptr[s]) for s in (first, last))
    ptr = touched.ptr[first : last + 1] - touched.ptr[first]
    row, values = touched.row[begin:end], entry_values[begin:end]
    perm = torch.arange(end - begin, dtype=row.dtype, device=row.device)
    if use_kernel("csr_linear_weight_grad_rows", h):
        op = torch.ops.sparsevae_ext.csr_linear_weight_grad_rows.default
        return op(ptr, row, perm, values, h.contiguous())
    return csr_linear_weight_grad_rows_reference((touched.features, ptr, row, perm), values, h)


def column_sums(weight: Tensor) -> Tensor:
    """``sum_j w_j`` as (K,) in float64; ``sum(dtype=...)`` would cast the whole weight first."""
    total = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    for part in weight.split(piece(weight.device, weight.shape[1])):
        total += part.double().sum(dim=0)
    return total


def _dots(crow: Tensor, col: Tensor, h: Tensor, weight: Tensor) -> Tensor:
    if use_kernel("csr_linear_values_grad", h):
        return torch.ops.sparsevae_ext.csr_linear_values_grad.default(crow, col, weight.t(), h)
    rows = entry_rows(crow, col.shape[0])
    step = piece(h.device, h.shape[1])
    parts = [
        (h[i] * weight[j]).sum(dim=1)
        for i, j in zip(rows.split(step), col.long().split(step), strict=True)
    ]
    return torch.cat(parts)


def _sums(crow: Tensor, col: Tensor, values: Tensor, weight: Tensor) -> Tensor:
    if use_kernel("csr_linear", weight):
        op = torch.ops.sparsevae_ext.csr_linear.default
        return op(crow, col, values, weight.t(), None)
    out = torch.zeros(crow.shape[0] - 1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    rows = entry_rows(crow, col.shape[0])
    step = piece(weight.device, weight.shape[1])
    parts = (t.split(step) for t in (rows, col.long(), values))
    for i, j, x in zip(*parts, strict=True):
        out.index_add_(0, i, weight[j] * x[:, None])
    return out


class _Piece(NamedTuple):
    rows: slice
    entries: slice
    crow: Tensor  # of the rows, within the entries
    slot: Tensor  # (entries,) row of `weight` that stands for the column
    weight: Tensor  # (U, K) touched rows


def _pieces(crow: Tensor, col: Tensor, weight: Tensor, dtype: torch.dtype) -> Iterator[_Piece]:
    """Runs of entries with the touched rows of ``weight``; a row may go on in the next run."""
    nnz, step = col.shape[0], piece(weight.device, weight.shape[1])
    starts = list(range(0, nnz, step))
    bounds = torch.tensor([*starts, nnz], dtype=crow.dtype, device=crow.device)
    # The row of a run's first entry, and the one after that of its last.
    firsts = (torch.searchsorted(crow, bounds[:-1], right=True) - 1).tolist()
    lasts = torch.searchsorted(crow, bounds[1:]).tolist()
    for start, first, last in zip(starts, firsts, lasts, strict=True):
        end = min(start + step, nnz)
        part = crow[first : last + 1].clamp(start, end) - start
        touched = touched_features(part, col[start:end], weight.shape[0])
        slot = torch.empty_like(touched.perm)
        numbers = torch.arange(len(touched.features), dtype=slot.dtype, device=slot.device)
        counts = touched.ptr.diff()
        slot[touched.perm.long()] = torch.repeat_interleave(
            numbers, counts.long(), output_size=end - start
        )
        rows = weight.index_select(0, touched.features).to(dtype)
        yield _Piece(slice(first, last), slice(start, end), part, slot, rows)
