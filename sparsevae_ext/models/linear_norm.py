"""Batch normalisation of a linear layer's output, without the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LinearNorm"]


class LinearNorm(nn.Module):
    r"""Batch normalisation of ``x @ weight.T``, folded into the weight.

    The batch mean and variance of every output j of a linear map are those of its K inputs seen
    through row j of the weight,

    .. math::
        \operatorname{mean}_j = w_j \cdot \bar x, \qquad
        \operatorname{var}_j = w_j^\top \operatorname{Cov}(x)\, w_j ,

    exactly, so the (B, N) outputs are never needed: this costs N K^2 operations and gives a weight and
    a bias for a loss with the linear layer inside. For a fixed weight it equals
    :class:`torch.nn.BatchNorm1d` without a learned scale, in value, gradient and running
    statistics. Those are kept of the inputs, K + K^2 numbers in place of 2 N, and so never lag
    behind the weight.

    Args:
        features: K, the width of the input.
        eps: added to the variance.
        momentum: share of a new batch in the running statistics.

    Attributes:
        running_mean: (K,) of the inputs.
        running_cov: (K, K) unbiased, of the inputs.

    Shape:
        - Input: x (B, K), weight (N, K), bias (N,).
        - Output: weight (N, K) and bias (N,).

    Example:
        >>> norm, x, weight = LinearNorm(3), torch.randn(8, 3), torch.randn(5, 3)
        >>> folded, bias = norm(x, weight, torch.zeros(5))
        >>> expected = torch.nn.functional.batch_norm(x @ weight.T, None, None, training=True)
        >>> torch.allclose(x @ folded.T + bias, expected, atol=1e-4)
        True
    """

    running_mean: Tensor
    running_cov: Tensor

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_cov", torch.eye(features))

    def forward(self, x: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the folded weight and bias, by this batch in training mode.

        None, and a batch of fewer than two rows, which has no variance, take the running
        statistics.
        """
        # Differences of nearly equal numbers: in full precision, whatever autocast says.
        with torch.autocast(weight.device.type, enabled=False):
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            if x is not None and self.training and x.shape[0] > 1:
                mean, cov = self._measure(x.to(wide))
            else:
                mean, cov = self.running_mean.to(wide), self.running_cov.to(wide)
            rows = weight.to(wide)
            variance = ((rows @ cov) * rows).sum(dim=1).clamp(min=0.0)
            folded = rows * torch.rsqrt(variance + self.eps)[:, None]
            shift = bias.to(wide) - folded @ mean
            return folded.to(weight.dtype), shift.to(bias.dtype)

    def _measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(dim=0)
        centred = x - mean
        cov = centred.T @ centred / x.shape[0]
        with torch.no_grad():
            unbiased = cov * (x.shape[0] / (x.shape[0] - 1))
            dtype = self.running_mean.dtype
            self.running_mean.lerp_(mean.to(dtype), self.momentum)
            self.running_cov.lerp_(unbiased.to(dtype), self.momentum)
        return mean, cov

    def extra_repr(self) -> str:
        """The options."""
        return f"{len(self.running_mean)}, eps={self.eps}, momentum={self.momentum}"
