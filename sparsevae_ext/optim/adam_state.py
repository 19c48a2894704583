"""Options and state of RowAdam as those of torch.optim: checks, defaults, and the way into the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["FIXED", "adopt", "check_loadable", "check_options", "new_state"]

#: What torch.optim.AdamW keeps in a group and RowAdam does not offer, with the value that it has here.
FIXED = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": True,
    "decoupled_weight_decay": True,
}
#: Bytes of a cache line, and from which on memory is asked for in this way.
_LINE, _LARGE = 64, 1 << 22


def check_options(group: dict[str, Any]) -> None:
    """ValueError, in the words of torch.optim.Adam, for an option outside its range."""
    lr, betas, eps = group["lr"], group["betas"], group["eps"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    for i, beta in enumerate(betas):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if not group["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")


def new_state(p: Tensor) -> dict[str, Any]:
    """The state of a parameter that has taken no step."""
    state: dict[str, Any] = {"step": torch.zeros((), dtype=torch.float32, device=p.device)}
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = _zeros_like(p)
    return state


def _zeros_like(p: Tensor) -> Tensor:
    """Zeros laid out as the parameter; on the CPU their memory comes when it is first written to.

    torch.zeros writes all of it at once. NumPy asks the system for zeroed memory instead, so that the
    moments of rows that no batch touches cost nothing, and for huge pages, which spares a step over rows
    that lie all over a large table most of its address translations.
    """
    if p.device.type != "cpu" or p.numel() * p.element_size() < _LARGE:
        return torch.zeros_like(p, memory_format=torch.preserve_format)
    memory = np.zeros(p.numel() * p.element_size() + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    flat = torch.from_numpy(memory)[start : start + memory.size - _LINE].view(p.dtype)
    zeros = torch.empty_like(p, memory_format=torch.preserve_format, device="meta")
    return flat.as_strided(zeros.shape, zeros.stride(), flat.storage_offset())


def check_loadable(state_dict: dict[str, Any], params: list[Tensor]) -> None:
    """ValueError if a state was made with options that RowAdam does not have, or for other shapes."""
    for group in state_dict["param_groups"]:
        for name in ("amsgrad", "maximize"):
            if group.get(name):
                raise ValueError(f"RowAdam does not support a state made with {name}=True")
        if group.get("weight_decay") and not group.get("decoupled_weight_decay", False):
            raise ValueError(
                "RowAdam does not support a state made with a weight_decay that is not decoupled "
                "(torch.optim.Adam's): no row could be left alone in a step; use AdamW's"
            )
    numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
    if len(params) != len(numbers):
        return  # torch says what is wrong
    for p, i in zip(params, numbers, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            saved = state_dict["state"].get(i, {}).get(name)
            if saved is not None and saved.shape != p.shape:
                raise ValueError(
                    f"loaded state dict has {name} of shape {tuple(saved.shape)} for a parameter "
                    f"of shape {tuple(p.shape)}"
                )


def adopt(p: Tensor, state: dict[str, Any]) -> None:
    """Bring the loaded state of a parameter into the form that the step wants: copies, laid out as it."""
    step = torch.as_tensor(state["step"], dtype=torch.float32, device=p.device)
    state["step"] = step.clone()
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.empty_like(p, memory_format=torch.preserve_format).copy_(state[name])
