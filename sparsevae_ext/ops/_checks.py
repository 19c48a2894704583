"""Argument checks in Python: what the dispatcher would answer with a dump of its schema, or not at all."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from ..data.parts import torch_name

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_tensor(op: str, name: str, value: Any) -> None:
    """TypeError unless `value` is a strided tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{op}(): expected {name} to be a torch.Tensor, but got {type(value).__name__}"
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"{op}(): expected {name} to be a strided tensor, but got layout {value.layout}"
        )


def check_floating(op: str, tensor: Tensor) -> None:
    """NotImplementedError unless the op computes in the tensor's dtype."""
    if tensor.dtype not in FLOATING:
        raise NotImplementedError(f"\"{op}\" not implemented for '{torch_name(tensor.dtype)}'")


def no_derivative_wanted(*tensors: Tensor | None) -> bool:
    """True when an op may be called bare: nothing records, transforms or traces it.

    An ``autograd.Function`` with ``setup_context`` costs some 40 microseconds per call in Python, as much
    as a small batch's arithmetic.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch.autograd.forward_ad._current_level >= 0:  # dual tensors do not say requires_grad
        return False
    return not torch.is_grad_enabled() or not any(
        t is not None and t.requires_grad for t in tensors
    )


def no_double_backward(op: str) -> NoReturn:
    """What the backward of a backward op does: zeros or None in its place would be silently wrong."""
    raise NotImplementedError(
        f"{op}(): double backward is not implemented; call backward without create_graph=True"
    )
