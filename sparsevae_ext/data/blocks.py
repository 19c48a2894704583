"""Reading whatever holds sparse rows a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from .batch import CSRBatch
from .dataset import CSRDataset

__all__ = ["csr_blocks"]

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
