"""Hidden layers that know which experimental batch a row comes from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["HiddenLayers", "ShiftedNorm"]


class ShiftedNorm(nn.Module):
    r"""What follows a linear layer: the batch's shift, LayerNorm, relu, dropout.

    .. math:: y_i = \operatorname{relu}(\operatorname{LayerNorm}(x_i + s_{b_i}))

    A one-hot batch concatenated to the input of the linear layer is the same as a vector added to
    its output: the weights of the one-hot columns are the vectors :math:`s`. They start at 0.

    LayerNorm and not BatchNorm, which is scVI's default: a row's result then depends on no other
    row, is the same in training and evaluation, exists for a batch of one, and needs no running
    averages, which a small data set does not have the steps to fill.
    """

    def __init__(self, width: int, n_batch: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(n_batch, width)) if n_batch else None
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, batch_index: Tensor | None, dropout: float) -> Tensor:
        """Applies it to (B, width); ``dropout`` is 0 where there shall be none."""
        if self.shift is not None and batch_index is not None:
            x = x + F.embedding(batch_index, self.shift)
        return F.dropout(torch.relu(self.norm(x)), dropout, training=dropout > 0)


class HiddenLayers(nn.Module):
    """``n_layers`` times a linear layer and a :class:`ShiftedNorm`."""

    def __init__(self, n_inputs: int, width: int, n_layers: int, n_batch: int) -> None:
        super().__init__()
        inputs = [n_inputs] + [width] * (n_layers - 1)
        self.linears = nn.ModuleList(nn.Linear(n, width) for n in inputs[:n_layers])
        self.norms = nn.ModuleList(ShiftedNorm(width, n_batch) for _ in range(n_layers))

    def forward(self, x: Tensor, batch_index: Tensor | None, dropout: float = 0.0) -> Tensor:
        """Applies them to (B, n_inputs)."""
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = norm(linear(x), batch_index, dropout)
        return x
