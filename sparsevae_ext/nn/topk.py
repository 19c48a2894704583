"""Layers that make a code sparse by selection: TopK, BatchTopK and JumpReLU.

Each has ``code_and_penalty(x) -> (code, penalty)``, which is what a sparse autoencoder calls.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..data import CSRBatch
from ..ops.batch_topk import batch_topk_with_threshold
from ..ops.topk import select_topk

__all__ = ["BatchTopK", "JumpReLU", "TopK"]

_ACTIVATIONS = ("relu", "identity")


def check_activation(layer: str, name: str) -> None:
    """ValueError unless it is an activation that :func:`activate` knows."""
    if name not in _ACTIVATIONS:
        known = " or ".join(repr(known) for known in _ACTIVATIONS)
        raise ValueError(f"{layer}(): expected activation {known}, but got {name!r}")


def activate(name: str, x: Tensor) -> Tensor:
    """Apply an activation by its name, which unlike a function can be pickled with the layer."""
    return torch.relu(x) if name == "relu" else x


def check_positive_int(layer: str, name: str, value: Any) -> None:
    """TypeError unless an int, ValueError unless it is positive."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{layer}(): expected {name} to be an int, but got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{layer}(): expected {name} >= 1, but got {value}")


def sparse_rows(values: Tensor, columns: Tensor, width: int) -> CSRBatch:
    """A batch of (B, k) values in (B, k) int64 columns, ascending in each row, known to be in range."""
    n_rows, k = columns.shape
    crow = torch.arange(0, (n_rows + 1) * k, k, device=columns.device)
    return CSRBatch._make(crow, columns.reshape(-1), values.reshape(-1), width)


class TopK(nn.Module):
    r"""Keeps the k largest pre-activations of every row, then applies relu.

    .. math:: \mathrm{code}_i = \operatorname{relu}(\operatorname{TopK}_k(x_i))

    (Gao et al. 2024, arXiv 2406.04093.) Ties go to the lower column. Relu comes after the selection, so a
    row with fewer than k positive entries has fewer than k active units.

    ``forward`` gives the code as a dense tensor; :meth:`sparse` gives it as a
    :class:`~sparsevae_ext.CSRBatch`, which a sparse decoder takes without ever making it dense.

    Args:
        k: how many units a row may use.
        activation: of the kept entries, "relu" or "identity".

    Shape:
        - Input: (B, H) with H >= k.
        - Output: (B, H), zero but at k entries a row.

    Raises:
        TypeError: ``k`` is not an int.
        ValueError: ``k`` is not positive, at a call: larger than H; or the activation is unknown.

    Example:
        >>> layer = TopK(2)
        >>> layer(torch.tensor([[3.0, -1.0, 2.0, 1.0]]))
        tensor([[3., 0., 2., 0.]])

        The sparse code through a decoder of weight (N, H):

        >>> weight = torch.arange(12.0).view(3, 4)
        >>> code = layer.sparse(torch.tensor([[3.0, -1.0, 2.0, 1.0]]))
        >>> functional.csr_linear(code, weight).tolist()
        [[4.0, 24.0, 44.0]]
    """

    def __init__(self, k: int, activation: str = "relu") -> None:
        super().__init__()
        check_positive_int("TopK", "k", k)
        self.k = k
        check_activation("TopK", activation)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """The code (B, H)."""
        values, columns = select_topk(x, self.k, by_index=True)
        return torch.zeros_like(x).scatter(1, columns, activate(self.activation, values))

    def sparse(self, x: Tensor) -> CSRBatch:
        """The code as a batch with exactly k stored entries a row, columns ascending, int64 indices.

        Gradients flow through its values. An entry that relu made zero stays stored, as a zero.
        """
        values, columns = select_topk(x, self.k, by_index=True)
        return sparse_rows(activate(self.activation, values), columns, x.shape[1])

    def code_and_penalty(self, x: Tensor) -> tuple[CSRBatch, Tensor]:
        """The sparse code and a penalty of 0."""
        return self.sparse(x), x.new_zeros(())

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"{self.k}, activation={self.activation!r}"


class BatchTopK(nn.Module):
    r"""Keeps the B·k largest activations of the whole batch: k a row on average.

    In training mode relu(x) is cut to its B·k largest entries over the batch (Bussmann et al. 2024,
    arXiv 2412.06410), and ``threshold`` follows the smallest kept value. In evaluation mode, where a
    row's code must not depend on the other rows, relu(x) is kept where it is above ``threshold``.

    The running mean is a plain average over the first 1/momentum batches, then an exponential one; a
    batch whose smallest kept value is not finite leaves it alone. It lives on the device and is never
    waited for.

    Args:
        k: how many units a row uses on average.
        momentum: weight of the newest batch in the running mean, in (0, 1].

    Attributes:
        threshold: () float32, the running mean; 0 before the first batch.
        batches: () int64, how many batches it has seen.

    Shape:
        - Input: (B, H) with H >= k.
        - Output: (B, H).

    Raises:
        TypeError: ``k`` is not an int.
        ValueError: ``k`` is not positive, at a call: larger than H; or momentum is outside (0, 1].

    Example:
        >>> layer = BatchTopK(1)
        >>> layer(torch.tensor([[5.0, 4.0, 1.0], [0.0, 3.0, 2.0]])).tolist()
        [[5.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
        >>> layer.eval()(torch.tensor([[3.0, 4.5, 6.0]])).tolist()
        [[0.0, 4.5, 6.0]]
    """

    threshold: Tensor
    batches: Tensor

    def __init__(self, k: int, momentum: float = 0.01) -> None:
        super().__init__()
        check_positive_int("BatchTopK", "k", k)
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"BatchTopK(): expected 0 < momentum <= 1, but got {momentum}")
        self.k = k
        self.momentum = momentum
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """The code (B, H)."""
        x = torch.relu(x)
        if not self.training:
            return torch.where(x > self.threshold, x, 0.0)
        code, smallest = batch_topk_with_threshold(x, self.k)
        self._follow(smallest)
        return code

    @torch.no_grad()
    def _follow(self, smallest: Tensor) -> None:
        smallest = smallest.to(self.threshold.dtype)
        usable = torch.isfinite(smallest)
        share = (1.0 / (self.batches + 1)).clamp(min=self.momentum)
        moved = torch.lerp(self.threshold, smallest, share.to(smallest.dtype))
        self.threshold.copy_(torch.where(usable, moved, self.threshold))
        self.batches.add_(usable.long())

    def code_and_penalty(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The dense code and a penalty of 0."""
        return self(x), x.new_zeros(())

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"{self.k}, momentum={self.momentum}"


class JumpReLU(nn.Module):
    r"""JumpReLU with one learned threshold per unit: passes what lies above it.

    The parameter is the logarithm of the threshold, as in the pseudo-code of Rajamanoharan et al. 2024
    (arXiv 2407.14435, appendix J): thresholds then stay positive under any optimizer without clamping, and
    a step changes them by a ratio. See :func:`sparsevae_ext.functional.jumprelu` for the formula and the
    straight-through gradients.

    Args:
        n: number of units, H.
        weight: of the L0 penalty, the number of active units of each row.
        threshold: at the start, positive.
        bandwidth: width of the straight-through kernel, positive.
        device: where the parameter lives.
        dtype: of the parameter.

    Attributes:
        log_threshold: (n,) parameter.

    Shape:
        - Input: (B, n).
        - Output: (B, n).

    Raises:
        TypeError: ``n`` is not an int.
        ValueError: ``n``, threshold or bandwidth is not positive, or the weight not finite.

    Example:
        >>> layer = JumpReLU(3, weight=0.5, threshold=1.0)
        >>> code, penalty = layer.code_and_penalty(torch.tensor([[0.5, 1.5, 3.0]]))
        >>> code.tolist(), penalty.tolist()
        ([[0.0, 1.5, 3.0]], [1.0])
    """

    def __init__(
        self,
        n: int,
        weight: float = 0.0,
        threshold: float = 0.001,
        bandwidth: float = 0.001,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive_int("JumpReLU", "n", n)
        for name, value in (("threshold", threshold), ("bandwidth", bandwidth)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"JumpReLU(): expected a positive, finite {name}, but got {value}")
        if not math.isfinite(weight):
            raise ValueError(f"JumpReLU(): expected a finite weight, but got {weight}")
        self.n, self.weight, self.bandwidth = n, weight, bandwidth
        self.initial_threshold = threshold
        self.log_threshold = nn.Parameter(torch.empty(n, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every threshold to the initial one."""
        nn.init.constant_(self.log_threshold, math.log(self.initial_threshold))

    @property
    def threshold(self) -> Tensor:
        """The thresholds (n,), differentiable."""
        return self.log_threshold.exp()

    def forward(self, x: Tensor) -> Tensor:
        """The code (B, n)."""
        return functional.jumprelu(x, self._threshold_for(x), self.bandwidth)

    def code_and_penalty(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The dense code and weight times the number of active units of each row, (B,)."""
        if self.weight == 0.0:
            return self(x), x.new_zeros(())
        code, count = functional.l0_activity(x, self._threshold_for(x), self.bandwidth)
        return code, self.weight * count

    def _threshold_for(self, x: Tensor) -> Tensor:
        # Under autocast x may be narrower than the parameter, which the function takes as float32.
        half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
        return self.log_threshold.float().exp() if half else self.threshold

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"{self.n}, weight={self.weight}, bandwidth={self.bandwidth}"
