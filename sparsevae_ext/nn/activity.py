"""L1Activity, L2Activity, KLSparsity: penalties that make a code sparse, each with its activation."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from .. import functional
from ..ops.activity import activate, check_activation
from ..ops.kl_sparsity import check_rho

__all__ = ["KLSparsity", "L1Activity", "L2Activity"]


def _check_weight(name: str, weight: Any) -> None:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"{name}(): expected weight to be a float, but got {type(weight).__name__}")
    if not (weight >= 0 and math.isfinite(weight)):
        raise ValueError(f"{name}(): expected weight to be finite and >= 0, but got {weight}")


class _Activity(nn.Module):
    """An activation and a weighted penalty of each row."""

    def __init__(self, weight: float, activation: str = "relu") -> None:
        super().__init__()
        name = type(self).__name__
        _check_weight(name, weight)
        check_activation(name, activation)
        self.weight = weight
        self.activation = activation

    def code_and_penalty(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code and what its sparsity costs: the same as a call of the layer."""
        return self(x)

    def extra_repr(self) -> str:
        """What ``repr`` shows in the parentheses."""
        return f"weight={self.weight}, activation={self.activation!r}"


class L1Activity(_Activity):
    r"""Activation with an L1 penalty on its values, :math:`\lambda \sum_j |f(x_{ij})|` for each row.

    See :func:`sparsevae_ext.functional.l1_activity`. ``weight`` is a plain attribute: a schedule may change
    it between steps.

    Args:
        weight: :math:`\lambda \ge 0`.
        activation: "identity", "relu", "sigmoid", "tanh" or "softplus".

    Shape:
        - Input: (B, H), before the activation.
        - Output: the code (B, H), and the weighted penalty (B,).

    Raises:
        ValueError: the weight is negative or not finite, or the activation unknown.

    Example:
        >>> layer = L1Activity(0.5)
        >>> layer(torch.tensor([[-1.0, 2.0, 3.0]]))
        (tensor([[0., 2., 3.]]), tensor([2.5000]))
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code and its weighted penalty."""
        code, penalty = functional.l1_activity(x, self.activation)
        return code, self.weight * penalty


class L2Activity(_Activity):
    r"""Activation with an L2 penalty on its values, :math:`\lambda \sum_j f(x_{ij})^2` for each row.

    See :func:`sparsevae_ext.functional.l2_activity`. ``weight`` is a plain attribute: a schedule may change
    it between steps.

    Args:
        weight: :math:`\lambda \ge 0`.
        activation: "identity", "relu", "sigmoid", "tanh" or "softplus".

    Shape:
        - Input: (B, H), before the activation.
        - Output: the code (B, H), and the weighted penalty (B,).

    Raises:
        ValueError: the weight is negative or not finite, or the activation unknown.

    Example:
        >>> layer = L2Activity(0.5)
        >>> layer(torch.tensor([[-1.0, 2.0, 3.0]]))
        (tensor([[0., 2., 3.]]), tensor([6.5000]))
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code and its weighted penalty."""
        code, penalty = functional.l2_activity(x, self.activation)
        return code, self.weight * penalty


class KLSparsity(nn.Module):
    r"""Sigmoid code with the penalty :math:`\lambda \sum_j \mathrm{KL}(\rho \| \bar a_j)` of the batch.

    :math:`\bar a_j` is unit j's mean over the batch (Ng, CS294A); see
    :func:`sparsevae_ext.functional.kl_sparsity`. ``weight`` is a plain attribute: a schedule may change it
    between steps.

    Args:
        weight: :math:`\lambda \ge 0`.
        rho: the wished mean activity of a unit, in (0, 1).
        activation: "sigmoid", or another whose values lie in [0, 1] for the data at hand; "identity" for
            codes that are in (0, 1) already.

    Shape:
        - Input: (B, H), before the activation.
        - Output: the code (B, H), and the weighted penalty, a scalar.

    Raises:
        ValueError: the weight is negative or not finite, rho outside (0, 1), the activation unknown, or, on
            the CPU, a unit's mean outside [0, 1].

    Example:
        >>> layer = KLSparsity(2.0, rho=0.1)
        >>> code, penalty = layer(torch.zeros(4, 3))
        >>> code.shape, penalty
        (torch.Size([4, 3]), tensor(2.2084))
    """

    def __init__(self, weight: float, rho: float, activation: str = "sigmoid") -> None:
        super().__init__()
        _check_weight("KLSparsity", weight)
        check_rho("KLSparsity", rho)
        check_activation("KLSparsity", activation)
        self.weight = weight
        self.rho = rho
        self.activation = activation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code and its weighted penalty."""
        code = activate(x, self.activation)
        return code, self.weight * functional.kl_sparsity(code, self.rho)

    def code_and_penalty(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code and what its sparsity costs: the same as a call of the layer."""
        return self(x)

    def extra_repr(self) -> str:
        """What ``repr`` shows in the parentheses."""
        return f"weight={self.weight}, rho={self.rho}, activation={self.activation!r}"
