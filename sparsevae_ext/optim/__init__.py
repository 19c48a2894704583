"""Optimizers that cost what a batch touches; :class:`RowAdam` is Adam for weights of sparse layers."""

from .clip import clip_grad_norm_
from .row_adam import RowAdam

__all__ = ["RowAdam", "clip_grad_norm_"]
