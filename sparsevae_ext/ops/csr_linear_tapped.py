"""csr_linear whose weight gradient goes, as rows, to a tap (see row_source.py) instead of the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ..data.index import TransposedIndex
from ._eager import OpFunction, below_autograd
from ._registry import use_kernel
from .csr_linear import (
    _Backward,
    _ValuesGrad,
    csr_linear_reference,
    csr_linear_weight_grad_rows_reference,
    product,
    resolve_arguments,
)
from .csr_linear_dense import DenseValuesGrad, Plan, plan_for
from .row_source import RowTap

__all__ = ["csr_linear_tapped"]


def csr_linear_tapped(
    x: CSRBatch, weight: Tensor, bias: Tensor | None, tap: RowTap, method: str = "auto"
) -> Tensor:
    """:func:`csr_linear`, differentiated with respect to the rows of the weight that the batch touches.

    Args:
        x: (B, N) prepared batch.
        weight: (out, N); it gets no gradient.
        bias: (out,) or None.
        tap: for the rows ``x.index.features`` of the transposed weight: its (U, out) leaf, whose values
            are not looked at, gets their gradient, or its ``step`` is called in the backward.
        method: as of csr_linear.

    Returns:
        (B, out), as csr_linear.
    """
    values, bias, out_dtype = resolve_arguments(x, weight, bias)
    assert x.index is not None
    plan = plan_for(x, weight, method)
    inputs = (x.crow, x.col, values, weight.detach(), bias)
    # What a step changes cannot be traced, and a dense product makes the rows anyway; there the leaf
    # gets its gradient, and the step follows.
    if tap.step is None or plan.weight_grad or torch.compiler.is_compiling():
        out = _CSRLinearTapped.apply(*inputs, tap.leaf, *x.index, plan)
    else:
        carrier = _StepInBackward.apply(tap.leaf, *x.index, values.detach(), len(x), tap.step)
        out = _CSRLinearTapped.apply(*inputs, carrier, None, None, None, None, plan)
    return out if out_dtype is None else out.to(out_dtype)


class _CSRLinearTapped(OpFunction):
    """csr_linear for which the tap, not the weight, gets a gradient.

    That is the weight's rows, or without an index the output's gradient as it is. The weight is saved
    only for the values' gradient: the optimizer changes it in place.
    """

    @staticmethod
    def forward(
        crow: Tensor,
        col: Tensor,
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tap: Tensor,
        features: Tensor | None,
        ptr: Tensor | None,
        row: Tensor | None,
        perm: Tensor | None,
        plan: Plan,
    ) -> Tensor:
        if use_kernel("csr_linear", weight):
            return product(plan, crow, col, values, weight, bias)
        batch = CSRBatch._make(crow, col, values, weight.shape[1])
        return csr_linear_reference(batch, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        crow, col, values, weight, _, _, features, ptr, row, perm, plan = inputs
        ctx.in_features, ctx.plan = weight.shape[1], plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *(crow, col, values),
            weight if ctx.needs_input_grad[2] else None,
            *(features, ptr, row, perm),
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        crow, col, values, weight, features, ptr, row, perm = ctx.saved_tensors
        grad_values = grad_bias = grad_tap = None
        if grad is not None:
            if ctx.needs_input_grad[2]:
                grad_values = _values_grad(ctx.plan, crow, col, weight, grad)
            if ctx.needs_input_grad[4]:
                grad_bias = grad.sum(0)
            if ctx.needs_input_grad[5] and ptr is None:
                grad_tap = grad
            elif ctx.needs_input_grad[5] and ctx.plan.weight_grad:
                n = ctx.in_features
                grad_tap = _DenseWeightGradRows.in_backward(crow, col, values, grad, features, n)
            elif ctx.needs_input_grad[5]:
                grad_tap = _WeightGradRows.in_backward(ptr, row, perm, values, grad)
        return None, None, grad_values, None, grad_bias, grad_tap, None, None, None, None, None


class _StepInBackward(OpFunction):
    """Between a tap's leaf and the layer: its backward has the step taken instead of making rows.

    A node of its own, so that autograd runs it only where the leaf's gradient is wanted: a gradient of
    other inputs must not train the weight. What passes through it has the shape of the layer's output, and
    numbers that nobody looks at.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, *args: Any) -> Tensor:
        *index_and_values, n_rows, ctx.step = args
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*index_and_values)
        return leaf.new_empty_strided((n_rows, leaf.shape[1]), (0, 0))

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        *index, values = ctx.saved_tensors
        rows = None
        if grad is not None and not ctx.step(TransposedIndex(*index), values, grad.detach()):
            rows = _WeightGradRows.in_backward(*index[1:], values, grad)
        return rows, *(None,) * 7


class _WeightGradRows(_Backward):
    """csr_linear_weight_grad_rows -> (U, out)."""

    @staticmethod
    def forward(ptr: Tensor, row: Tensor, perm: Tensor, values: Tensor, grad: Tensor) -> Tensor:
        if use_kernel("csr_linear_weight_grad_rows", grad):
            op = torch.ops.sparsevae_ext.csr_linear_weight_grad_rows.default
            return below_autograd(op, ptr, row, perm, values, grad)
        return csr_linear_weight_grad_rows_reference((ptr, ptr, row, perm), values, grad)


class _DenseWeightGradRows(_Backward):
    """csr_linear_dense_weight_grad -> (U, out); so dense a batch touches most features."""

    @staticmethod
    def forward(
        crow: Tensor, col: Tensor, values: Tensor, grad: Tensor, features: Tensor, in_features: int
    ) -> Tensor:
        op = torch.ops.sparsevae_ext.csr_linear_dense_weight_grad.default
        rows = below_autograd(op, crow, col, values, grad, in_features)
        return rows if features.shape[0] == in_features else rows.index_select(0, features)


class _PlainValuesGrad(_Backward):
    """csr_linear_values_grad in plain torch -> (nnz,)."""

    @staticmethod
    def forward(crow: Tensor, col: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        row = torch.repeat_interleave(crow.diff(), output_size=col.shape[0])
        wide = torch.promote_types(grad.dtype, torch.float32)
        products = weight.t().index_select(0, col).to(wide) * grad.index_select(0, row).to(wide)
        return products.sum(1).to(grad.dtype)


def _values_grad(plan: Plan, crow: Tensor, col: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    if plan.values_grad:
        return DenseValuesGrad.in_backward(crow, col, weight, grad)
    function = _ValuesGrad if use_kernel("csr_linear_values_grad", grad) else _PlainValuesGrad
    return function.in_backward(crow, col, weight, grad)
