"""Torch's fused Adam on parameters that are not row-major, as the weights of CSRLinear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

__all__ = ["fused_adamw_step", "laid_out_as", "lay_out_before_steps"]


def laid_out_as(p: Tensor, tensor: Tensor) -> Tensor:
    """The tensor with the parameter's strides: torch's fused kernel walks memory, not indices."""
    if tensor.stride() == p.stride():
        return tensor
    return torch.empty_like(p, memory_format=torch.preserve_format).copy_(tensor)


def lay_out_before_steps(optimizer: torch.optim.Optimizer) -> None:
    """Make a fused Adam safe against gradients and moments that lie otherwise than their parameter.

    Torch's fused CPU kernel would step every element by another element's gradient and say nothing. It
    happens to a gradient that somebody has assigned, and to the moments of a ``nn.Linear`` loaded for a
    ``CSRLinear``.
    """

    def lay_out(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None or p.grad.layout != torch.strided:
                    continue
                if p.grad.stride() != p.stride():
                    p.grad = laid_out_as(p, p.grad)
                state = optimizer.state.get(p, {})
                for name in ("exp_avg", "exp_avg_sq"):
                    if name in state and state[name].stride() != p.stride():
                        state[name] = laid_out_as(p, state[name])

    optimizer.register_step_pre_hook(lay_out)


def fused_adamw_step(
    group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]
) -> None:
    """One step of AdamW on parameters that have a dense gradient.

    Args:
        group: the options, as in ``torch.optim.AdamW``.
        params: some of the group.
        states: "step", "exp_avg" and "exp_avg_sq" of each, laid out as it.
    """
    beta1, beta2 = group["betas"]
    grads = []
    for p in params:
        assert p.grad is not None
        grads.append(laid_out_as(p, p.grad))
    adam(
        params,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
        decoupled_weight_decay=True,
    )
