"""Sparse and variational autoencoders on data that is mostly zeros, without ever making it dense."""

from importlib.metadata import PackageNotFoundError, version

from . import data, functional, models, nn, optim
from ._info import info
from .data import CSRBatch, sparsity_report

try:
    __version__ = version("sparsevae-ext")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "CSRBatch",
    "__version__",
    "data",
    "functional",
    "info",
    "models",
    "nn",
    "optim",
    "sparsity_report",
]

del PackageNotFoundError, version
