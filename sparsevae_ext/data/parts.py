"""The tensors that a CSRBatch is made of: checks that cost no pass over them, and row arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .index import INT32_LIMIT

__all__ = ["check_batch_index", "check_parts", "pointers", "row_numbers", "torch_name"]

_INDEX_DTYPES = (torch.int32, torch.int64)


def torch_name(dtype: torch.dtype) -> str:
    """The name torch's own error texts use, e.g. Int for torch.int32."""
    return torch.empty(0, dtype=dtype).type().split(".")[-1].removesuffix("Tensor")


def check_parts(
    crow: torch.Tensor, col: torch.Tensor, values: torch.Tensor, shape: Sequence[int]
) -> None:
    """RuntimeError or TypeError unless the tensors can be the parts of one CSR matrix."""
    op = "CSRBatch"
    for name, t in (("crow", crow), ("col", col), ("values", values)):
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"{op}(): expected {name} to be a tensor, but got {type(t).__name__}")
        if t.layout != torch.strided or t.dim() != 1:
            raise RuntimeError(
                f"{op}(): expected {name} to be a dense 1-D tensor, "
                f"but got shape {tuple(t.shape)} and layout {t.layout}"
            )
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 0:
        raise RuntimeError(f"{op}(): expected shape (B, N), but got {tuple(shape)}")
    for t in (crow, col):
        if t.dtype not in _INDEX_DTYPES:
            raise RuntimeError(
                f"{op}(): crow_indices and col_indices must be Int or Long, "
                f"but got {torch_name(t.dtype)}"
            )
    if crow.dtype != col.dtype:
        raise RuntimeError(
            f"{op}(): crow_indices and col_indices must have the same dtype, "
            f"but got {torch_name(crow.dtype)} and {torch_name(col.dtype)}"
        )
    if crow.shape[0] != shape[0] + 1:
        raise RuntimeError(
            f"{op}(): crow_indices.shape[-1] must be equal to the number of rows + 1 "
            f"(={shape[0] + 1}), but got {crow.shape[0]}"
        )
    if values.shape[0] != col.shape[0]:
        raise RuntimeError(
            f"{op}(): expected col_indices and values to have the same length, "
            f"but got {col.shape[0]} and {values.shape[0]}"
        )
    if crow.dtype == torch.int32 and (col.shape[0] >= INT32_LIMIT or shape[1] >= INT32_LIMIT):
        raise RuntimeError(
            f"{op}(): 32-bit integer overflow in nnz: {col.shape[0]} entries over {shape[1]} "
            f"columns need int64 indices"
        )
    for name, t in (("col", col), ("values", values)):
        if t.device != crow.device:
            raise RuntimeError(
                f"{op}(): expected all tensors to be on the same device, "
                f"but got crow on {crow.device} and {name} on {t.device}"
            )


def check_batch_index(
    op: str, batch_index: torch.Tensor, n_rows: int, device: torch.device
) -> torch.Tensor:
    """Gives the number of each row's batch as int64 on ``device``; looks at no value.

    Raises:
        TypeError: it is no tensor.
        RuntimeError: it is no (n_rows,) integer tensor.
    """
    if not isinstance(batch_index, torch.Tensor):
        raise TypeError(
            f"{op}(): expected batch_index to be a tensor, but got {type(batch_index).__name__}"
        )
    integer = not (
        batch_index.is_floating_point()
        or batch_index.is_complex()
        or batch_index.dtype == torch.bool
    )
    if not integer:
        raise RuntimeError(
            f"{op}(): expected batch_index of an integer dtype, but got {batch_index.dtype}"
        )
    if batch_index.shape != (n_rows,):
        raise RuntimeError(
            f"{op}(): expected batch_index of shape ({n_rows},), but got {tuple(batch_index.shape)}"
        )
    return batch_index.to(device, torch.int64)


def pointers(row: torch.Tensor, n_rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Row pointers (B + 1,) from the ascending row numbers of all entries."""
    edges = torch.arange(n_rows + 1, dtype=row.dtype, device=row.device)
    return torch.searchsorted(row.contiguous(), edges).to(dtype)


def row_numbers(rows: Any, n_rows: int, device: torch.device) -> torch.Tensor:
    """Row numbers in [0, n_rows) from whatever a batch is indexed with, (n,) int64."""
    if isinstance(rows, slice):
        return torch.from_numpy(np.arange(*rows.indices(n_rows), dtype=np.int64)).to(device)
    if isinstance(rows, (int, np.integer)):
        rows = [rows]
    # Elsewhere x[1, 2] is a cell; here it would silently be two rows.
    if rows is None or rows is ... or isinstance(rows, tuple):
        raise TypeError(
            "CSRBatch.__getitem__(): expected an int, a slice, a list of ints, a tensor of them or a "
            f"mask, but got {rows!r}; only rows can be picked"
        )
    picked = torch.as_tensor(rows, device=device)
    if picked.dtype == torch.bool:
        if picked.shape != (n_rows,):
            raise IndexError(
                f"CSRBatch.__getitem__(): expected a mask of shape ({n_rows},), "
                f"but got {tuple(picked.shape)}"
            )
        return picked.nonzero().flatten()
    if picked.dim() != 1 or picked.is_floating_point() or picked.is_complex():
        if picked.numel() or picked.dim() != 1:
            raise TypeError(
                f"CSRBatch.__getitem__(): expected row numbers in one dimension, but got "
                f"shape {tuple(picked.shape)} of {picked.dtype}"
            )
    picked = picked.long()
    outside = (picked < -n_rows) | (picked >= n_rows)
    if bool(outside.any()):
        bad = int(picked[outside][0])
        raise IndexError(
            f"CSRBatch.__getitem__(): row {bad} is out of range for a batch of {n_rows} rows"
        )
    return torch.where(picked < 0, picked + n_rows, picked)
