"""Sparse data: batches, data sets, the threaded loader and the readers."""

from __future__ import annotations

from . import pytree as _registers_csr_batch  # noqa: F401
from .batch import CSRBatch
from .dataset import CSRDataset
from .errors import DataFileError
from .folder import verify_folder, write_folder
from .index import TransposedIndex
from .loader import CSRLoader
from .readers import read
from .spam import load_spam

__all__ = [
    "CSRBatch",
    "CSRDataset",
    "CSRLoader",
    "DataFileError",
    "TransposedIndex",
    "load_spam",
    "read",
    "verify_folder",
    "write_folder",
]
