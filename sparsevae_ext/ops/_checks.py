"""Argument checks in Python: what the dispatcher would answer with a dump of its schema, or not at all."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

#: Names as torch's own error texts have them.
_DTYPE_NAMES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.bool: "Bool",
    torch.complex64: "ComplexFloat",
    torch.complex128: "ComplexDouble",
    torch.complex32: "ComplexHalf",
}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in torch's error texts."""
    return _DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


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
        raise NotImplementedError(f"\"{op}\" not implemented for '{dtype_name(tensor.dtype)}'")


def no_double_backward(op: str) -> NoReturn:
    """What the backward of a backward op does: zeros or None in its place would be silently wrong."""
    raise NotImplementedError(
        f"{op}(): double backward is not implemented; call backward without create_graph=True"
    )


def no_forward_mode(op: str) -> NoReturn:
    """What the jvp of an op does."""
    raise NotImplementedError(f"{op}(): forward-mode AD is not implemented; use reverse mode")
