"""Layers, each a few lines over :mod:`sparsevae_ext.functional`, with the signatures of ``torch.nn``."""

from .csr_linear import CSRLinear

__all__ = ["CSRLinear"]
