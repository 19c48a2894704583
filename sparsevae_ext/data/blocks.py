"""Reading whatever holds sparse rows a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from .batch import CSRBatch
from .dataset import CSRDataset

__all__ = ["csr_batches", "csr_blocks"]

# So that a data set larger than memory can be gone through.
ROWS_AT_A_TIME = 65536


def csr_blocks(data: Any, op: str) -> Iterator[sp.csr_matrix]:
    """Gives the rows of ``data`` as scipy CSR matrices of at most 65,536 rows, in order.

    Args:
        data: CSRDataset, CSRBatch or scipy CSR matrix.
        op: who asks, for the error.

    Raises:
        TypeError: if ``data`` is none of the above.
    """
    if isinstance(data, CSRBatch):
        data = (data if data.dtype == torch.float64 else data.to(torch.float32)).to_scipy()
    is_matrix = sp.issparse(data) and data.format == "csr"
    if not (is_matrix or isinstance(data, CSRDataset)):
        kind = f"format {data.format}" if sp.issparse(data) else type(data).__name__
        raise TypeError(
            f"{op}(): expected a CSRDataset, a CSRBatch or a scipy CSR matrix, but got {kind}"
        )
    for start in range(0, data.shape[0], ROWS_AT_A_TIME):
        stop = min(start + ROWS_AT_A_TIME, data.shape[0])
        yield data[start:stop] if is_matrix else data.rows(np.arange(start, stop)).to_scipy()


def csr_batches(data: Any, batch_size: int, op: str) -> Iterator[CSRBatch]:
    """Gives the rows of ``data`` in order, ``batch_size`` at a time, with their batch index.

    Args:
        data: CSRDataset, CSRBatch, scipy CSR matrix, or a torch matrix, sparse_csr or dense.
        batch_size: rows per batch.
        op: who asks, for the error.

    Raises:
        TypeError: if ``data`` is none of the above.
        ValueError: if ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"{op}(): expected batch_size >= 1, but got {batch_size}")
    if isinstance(data, torch.Tensor):
        strided = data.layout == torch.strided
        data = CSRBatch.from_dense(data) if strided else CSRBatch.from_torch(data)
    if sp.issparse(data):
        for block in csr_blocks(data, op):
            for start in range(0, block.shape[0], batch_size):
                yield CSRBatch.from_scipy(block[start : start + batch_size])
        return
    if not isinstance(data, CSRBatch | CSRDataset):
        raise TypeError(
            f"{op}(): expected a CSRDataset, a CSRBatch, a scipy CSR matrix or a tensor, but got "
            f"{type(data).__name__}"
        )
    if isinstance(data, CSRBatch) and len(data) <= batch_size:
        if len(data):
            yield data
        return
    for start in range(0, len(data), batch_size):
        here = slice(start, min(start + batch_size, len(data)))
        yield data[here] if isinstance(data, CSRBatch) else data.rows(here)
