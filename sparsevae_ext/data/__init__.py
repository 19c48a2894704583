"""Sparse data: batches, data sets, the threaded loader and the readers."""

from __future__ import annotations

from . import pytree as _registers_csr_batch  # noqa: F401
from .batch import CSRBatch
from .dataset import CSRDataset
from .errors import DataFileError
from .folder import verify_folder, write_folder
from .h5ad import open_h5ad
from .index import TransposedIndex
from .loader import CSRLoader
from .readers import read
from .spam import load_spam
from .sparsity import SparsityReport, SparsityStats, sparsity_report, sparsity_stats

__all__ = [
    "CSRBatch",
    "CSRDataset",
    "CSRLoader",
    "DataFileError",
    "SparsityReport",
    "SparsityStats",
    "TransposedIndex",
    "load_spam",
    "open_h5ad",
    "read",
    "sparsity_report",
    "sparsity_stats",
    "verify_folder",
    "write_folder",
]
