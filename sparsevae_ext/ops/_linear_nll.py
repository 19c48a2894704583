"""What the likelihoods with the decoder's last linear layer inside share.

``Decoder`` holds what such a loss is called with, beside the target. The public functions check
it and, where there is a kernel, hand it to ``fused`` of ``_linear_nll_op``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ..data.parts import torch_name
from ._checks import check_floating, check_tensor
from ._nll import REDUCTIONS, accumulate_dtype
from ._registry import use_kernel


class Decoder(NamedTuple):
    """The dense tensors of a loss; what a likelihood does not have is None."""

    h: Tensor  # (B, H)
    weight: Tensor  # (N, H)
    bias: Tensor | None  # (N,)
    zero_weight: Tensor | None = None  # (N, H)
    zero_bias: Tensor | None = None  # (N,)
    log_scale: Tensor | None = None  # (N,) or (B, N): log-dispersion or log-variance
    library: Tensor | None = None  # (B,)

    def logits(self) -> Tensor:
        """The (B, N) tensor that the kernels never make."""
        return torch.nn.functional.linear(self.h, self.weight, self.bias)

    def zero_logits(self) -> Tensor:
        """The second (B, N) tensor that the kernels never make."""
        assert self.zero_weight is not None
        return torch.nn.functional.linear(self.h, self.zero_weight, self.zero_bias)


def autocast_dtype(h: Tensor) -> torch.dtype | None:
    """The dtype that ``nn.Linear`` would multiply in here, where that is not its inputs' own."""
    kind = h.device.type
    if h.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def check_decoder(
    op: str, decoder: Decoder, target: CSRBatch, reduction: str, max_memory: int | None
) -> None:
    """Types, dtypes, shapes and devices; the kernels check the target's structure."""
    h, weight, bias, zero_weight, zero_bias, _, library = decoder
    check_tensor(op, "h", h)
    if not isinstance(target, CSRBatch):
        raise TypeError(
            f"{op}(): expected target to be a CSRBatch, but got {type(target).__name__}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    _check_max_memory(op, max_memory)
    check_floating(op, h)
    if h.dim() != 2 or h.shape[0] != target.shape[0]:
        raise RuntimeError(
            f"{op}(): expected h of shape ({target.shape[0]}, H) for this target, but got "
            f"{tuple(h.shape)}"
        )
    n_features = target.shape[1]
    _check_layer(op, "weight", weight, "bias", bias, h, n_features)
    if zero_weight is not None:
        _check_layer(op, "zero_weight", zero_weight, "zero_bias", zero_bias, h, n_features)
    if library is not None:
        check_vector(op, "library", library, h.shape[0], h)
    if target.device != h.device:
        raise RuntimeError(
            f"{op}(): expected h and target on one device, but got {h.device} and {target.device}"
        )
    if target.values.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(
            f"{op}(): no gradient for the target's values; the losses on given logits have one"
        )


def check_log_scale(op: str, name: str, scale: Tensor, h: Tensor, n_features: int) -> None:
    """Of shape (N,) or (B, N), of any floating dtype."""
    check_tensor(op, name, scale)
    check_floating(op, scale)
    if scale.shape not in (torch.Size([n_features]), torch.Size([h.shape[0], n_features])):
        raise RuntimeError(
            f"{op}(): expected {name} of shape ({n_features},) or ({h.shape[0]}, {n_features}), "
            f"but got {tuple(scale.shape)}"
        )
    _check_device(op, name, scale, h)


def check_vector(op: str, name: str, vector: Tensor, length: int, h: Tensor) -> None:
    """Of shape (length,), of any floating dtype."""
    check_tensor(op, name, vector)
    check_floating(op, vector)
    if vector.shape != torch.Size([length]):
        raise RuntimeError(
            f"{op}(): expected {name} of shape ({length},), but got {tuple(vector.shape)}"
        )
    _check_device(op, name, vector, h)


def widened(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """In the dtype that ``like`` is computed in, differentiably."""
    return None if tensor is None else tensor.to(accumulate_dtype(like.dtype))


def has_kernel(h: Tensor) -> bool:
    """Whether :func:`fused` runs for h's device."""
    return use_kernel("linear_nll", h)


def _check_layer(
    op: str,
    weight_name: str,
    weight: Tensor,
    bias_name: str,
    bias: Tensor | None,
    h: Tensor,
    n_features: int,
) -> None:
    check_tensor(op, weight_name, weight)
    check_floating(op, weight)
    if weight.shape != torch.Size([n_features, h.shape[1]]):
        raise RuntimeError(
            f"{op}(): expected {weight_name} of shape ({n_features}, {h.shape[1]}), but got "
            f"{tuple(weight.shape)}"
        )
    _check_device(op, weight_name, weight, h)
    _check_dtype(op, weight_name, weight, h)
    if bias is not None:
        check_vector(op, bias_name, bias, n_features, h)
        _check_dtype(op, bias_name, bias, h)


def _check_device(op: str, name: str, tensor: Tensor, h: Tensor) -> None:
    if tensor.device != h.device:
        raise RuntimeError(
            f"{op}(): expected h and {name} on one device, but got {h.device} and {tensor.device}"
        )


def _check_dtype(op: str, name: str, tensor: Tensor, h: Tensor) -> None:
    if tensor.dtype != h.dtype and (autocast_dtype(h) is None or tensor.dtype == torch.float64):
        raise RuntimeError(
            f"{op}(): h and {name} must have the same dtype, but got {torch_name(h.dtype)} and "
            f"{torch_name(tensor.dtype)}"
        )


def _check_max_memory(op: str, max_memory: Any) -> None:
    if max_memory is None:
        return
    if not isinstance(max_memory, int) or isinstance(max_memory, bool):
        raise TypeError(
            f"{op}(): expected max_memory to be an int or None, but got {type(max_memory).__name__}"
        )
    if max_memory <= 0:
        raise ValueError(f"{op}(): expected max_memory > 0, but got {max_memory}")
