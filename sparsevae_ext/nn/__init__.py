"""Layers, each a few lines over :mod:`sparsevae_ext.functional`, with the signatures of ``torch.nn``."""

from .activity import KLSparsity, L1Activity, L2Activity
from .csr_linear import CSRLinear
from .dead_units import AuxTopK, FiringCounter
from .reparameterize_kl import ReparameterizeKL
from .topk import BatchTopK, JumpReLU, TopK

__all__ = [
    "AuxTopK",
    "BatchTopK",
    "CSRLinear",
    "FiringCounter",
    "JumpReLU",
    "KLSparsity",
    "L1Activity",
    "L2Activity",
    "ReparameterizeKL",
    "TopK",
]
