"""The multinomial negative log-likelihood of sparse counts.

The file has three layers. ``_forward`` and ``_backward_logits`` are the arithmetic: functions of
plain tensors without autograd. The two ``autograd.Function`` classes give them derivatives and
say no to those that do not exist. ``multinomial_nll`` checks, unpacks the target and reduces. A
kernel takes the place of the arithmetic alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ._checks import check_floating, check_tensor, no_double_backward
from .csr_rows import check_structure, segment_sum

__all__ = ["multinomial_nll", "multinomial_nll_reference"]

_OP = "multinomial_nll"
_REDUCTIONS = ("none", "sum", "mean")
# Elements of one block of rows: 1 MiB of float32 stays in a core's cache between the passes.
_BLOCK_ELEMENTS = 1 << 18


def multinomial_nll(
    logits: Tensor,
    target: CSRBatch,
    reduction: str = "mean",
    validate_args: bool | None = None,
) -> Tensor:
    r"""Multinomial negative log-likelihood of sparse counts, without the coefficient.

    .. math::
        \mathrm{nll}_i = -\sum_j x_{ij} \log \operatorname{softmax}(l_i)_j
                       = N_i \operatorname{logsumexp}(l_i) - \sum_{j \in nz(i)} x_{ij} l_{ij},
        \qquad N_i = \sum_j x_{ij}

    (Liang et al. 2018, eq. 2). It is evaluated as
    :math:`\sum_{j \in nz(i)} x_{ij} (\operatorname{logsumexp}(l_i) - l_{ij})`, the same number
    with fewer cancelled digits. Neither the target nor the product with it is ever made dense;
    the backward pass makes one (B, N) tensor, the gradient of ``logits``.

    A logit of -inf is an item that cannot occur: it costs nothing where nothing is stored, and
    gives inf where a positive count is. A stored zero multiplies, as everywhere in this package
    (0 times inf is nan). A row without stored entries has nll 0 and gradient 0, whatever its
    logits.

    Args:
        logits: (B, N) float16, bfloat16, float32 or float64; 16-bit logits are computed in
            float32, and the result stays float32.
        target: (B, N) batch of non-negative counts (any non-negative weights).
        reduction: "none" gives (B,), "sum" their sum, "mean" their mean over rows.
        validate_args: check that no count is negative. None means yes on the CPU, where it costs
            little, and no elsewhere, where it would wait for the device. Inside
            ``torch.compile`` values are never checked.

    Returns:
        Nats, of shape (B,) for "none" and () otherwise. The mean over no rows is nan, as in torch.

    Raises:
        TypeError: if ``logits`` is not a tensor or ``target`` not a CSRBatch.
        ValueError: if ``reduction`` is unknown or a count is negative.
        RuntimeError: if shapes or devices differ, or the target's row pointers are damaged.
        IndexError: if a column index is out of range.
        NotImplementedError: for other dtypes, a second derivative, or forward-mode derivatives.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, 1.0]]))
        >>> multinomial_nll(torch.zeros(1, 3), target)
        tensor(2.1972)
    """
    _check(logits, target, reduction, validate_args)
    nll, _ = _MultinomialNLL.apply(logits, target.crow, target.col, target.values)
    return _reduce(nll, reduction)


def multinomial_nll_reference(logits: Tensor, target: CSRBatch, reduction: str = "mean") -> Tensor:
    """The plain-torch form of :func:`multinomial_nll`: unchecked, differentiable by autograd."""
    wide = logits.to(_accumulate_dtype(logits.dtype))
    rows = _row_ids(target.crow, target.nnz)
    lse = torch.logsumexp(wide, dim=1)
    surprise = lse[rows] - wide[rows, target.col.long()]
    nll = segment_sum(target.values.to(wide.dtype) * surprise, target.crow)
    return _reduce(nll, reduction)


# ---- arithmetic ---------------------------------------------------------------------------------


def _forward(logits: Tensor, crow: Tensor, col: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Gives the nll (B,) and the logsumexp (B,) of every row."""
    lse = _logsumexp(logits)
    nll = segment_sum(values.to(lse.dtype) * _surprise(logits, lse, crow, col), crow)
    return nll, lse


def _backward_logits(
    grad: Tensor, logits: Tensor, lse: Tensor, crow: Tensor, col: Tensor, values: Tensor
) -> Tensor:
    """``grad_i * (N_i softmax(l_i) - x_i)`` as (B, N) in the dtype of ``logits``."""
    weights = values.to(lse.dtype)
    scale = grad * segment_sum(weights, crow)
    # exp(l - inf) is 0: an empty row gets no gradient even when its logits are all -inf.
    shift = torch.where(crow[1:] == crow[:-1], torch.inf, lse)
    rows = _row_ids(crow, col.shape[0])
    at_entries = -grad[rows] * weights
    if _in_one_piece(logits):
        dense = torch.exp(logits.to(lse.dtype) - shift[:, None]) * scale[:, None]
        dense = dense.index_put((rows, col.long()), at_entries, accumulate=True)
        return dense.to(logits.dtype)
    out = torch.empty(logits.shape, dtype=logits.dtype)
    step = _block_rows(logits)
    bounds = crow[::step].tolist() + [col.shape[0]]
    for block, start in enumerate(range(0, logits.shape[0], step)):
        here = slice(start, start + step)
        entries = slice(bounds[block], bounds[block + 1])
        # The two parts cancel when the model fits: 16-bit logits are rounded after the sum.
        part = out[here] if out.dtype == lse.dtype else torch.empty_like(out[here], dtype=lse.dtype)
        torch.sub(logits[here], shift[here, None], out=part)
        part.exp_().mul_(scale[here, None])
        part.index_put_(
            (rows[entries] - start, col[entries].long()), at_entries[entries], accumulate=True
        )
        if part.dtype != out.dtype:
            out[here] = part
    return out


def _backward_values(
    grad: Tensor, logits: Tensor, lse: Tensor, crow: Tensor, col: Tensor
) -> Tensor:
    """``grad_i * (logsumexp(l_i) - l_ij)`` at the stored entries, as (nnz,)."""
    return grad[_row_ids(crow, col.shape[0])] * _surprise(logits, lse, crow, col)


def _surprise(logits: Tensor, lse: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    rows = _row_ids(crow, col.shape[0])
    return lse[rows] - logits[rows, col.long()].to(lse.dtype)


def _logsumexp(logits: Tensor) -> Tensor:
    dtype = _accumulate_dtype(logits.dtype)
    if _in_one_piece(logits):
        return torch.logsumexp(logits.to(dtype), dim=1)
    # torch.logsumexp makes a temporary as large as its input; by blocks it stays in the cache.
    out = torch.empty(logits.shape[0], dtype=dtype)
    for start in range(0, logits.shape[0], step := _block_rows(logits)):
        here = slice(start, start + step)
        out[here] = torch.logsumexp(logits[here].to(dtype), dim=1)
    return out


def _in_one_piece(logits: Tensor) -> bool:
    return torch.compiler.is_compiling() or logits.device.type != "cpu"


def _block_rows(logits: Tensor) -> int:
    return max(1, _BLOCK_ELEMENTS // max(1, logits.shape[1]))


def _row_ids(crow: Tensor, nnz: int) -> Tensor:
    # As int64: row * N need not fit in 32 bits.
    return torch.repeat_interleave(crow.diff(), output_size=nnz).long()


def _accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _reduce(nll: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return nll
    return nll.sum() if reduction == "sum" else nll.mean()


# ---- derivatives --------------------------------------------------------------------------------


class _MultinomialNLL(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, crow: Tensor, col: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return _forward(logits, crow, col, values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logits, crow, col, values = inputs
        _, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(logits, lse, crow, col, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, lse, crow, col, values = ctx.saved_tensors
        grad_logits = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_logits = _GradLogits.apply(grad, logits, lse, crow, col, values)
        if ctx.needs_input_grad[3]:
            grad_values = _GradValues.apply(grad, logits, lse, crow, col).to(values.dtype)
        return grad_logits, None, None, grad_values

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return _vmap_by_loop(_MultinomialNLL, info.batch_size, in_dims, args)


class _FirstOrderOnly(torch.autograd.Function):
    """A step of the backward pass that refuses to be differentiated again.

    Without a class of its own it would be differentiated silently, as a constant or not at all.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        no_double_backward(_OP)


class _GradLogits(_FirstOrderOnly):
    @staticmethod
    def forward(
        grad: Tensor, logits: Tensor, lse: Tensor, crow: Tensor, col: Tensor, values: Tensor
    ) -> Tensor:
        return _backward_logits(grad, logits, lse, crow, col, values)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return _vmap_by_loop(_GradLogits, info.batch_size, in_dims, args)


class _GradValues(_FirstOrderOnly):
    @staticmethod
    def forward(grad: Tensor, logits: Tensor, lse: Tensor, crow: Tensor, col: Tensor) -> Tensor:
        return _backward_values(grad, logits, lse, crow, col)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        return _vmap_by_loop(_GradValues, info.batch_size, in_dims, args)


def _vmap_by_loop(
    function: type[torch.autograd.Function],
    size: int,
    in_dims: tuple[int | None, ...],
    args: tuple[Any, ...],
) -> tuple[Any, Any]:
    """Maps over one slice at a time: the passes above write in place, which vmap cannot batch."""
    results = [
        function.apply(
            *(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))
        )
        for i in range(size)
    ]
    if isinstance(results[0], tuple):
        stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)
    return torch.stack(results), 0


# ---- checks -------------------------------------------------------------------------------------


def _check(logits: Tensor, target: CSRBatch, reduction: str, validate: bool | None) -> None:
    check_tensor(_OP, "logits", logits)
    if not isinstance(target, CSRBatch):
        raise TypeError(
            f"{_OP}(): expected target to be a CSRBatch, but got {type(target).__name__}"
        )
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    check_floating(_OP, logits)
    if logits.shape != torch.Size(target.shape):
        raise RuntimeError(
            f"Target size ({torch.Size(target.shape)}) must be the same as input size "
            f"({logits.shape})"
        )
    if target.device != logits.device:
        raise RuntimeError(
            f"{_OP}(): expected logits and target on one device, but got {logits.device} and "
            f"{target.device}"
        )
    check_structure(_OP, target)
    if torch.compiler.is_compiling():
        return
    if validate or (validate is None and logits.device.type == "cpu"):
        _check_counts(target.values)


def _check_counts(values: Tensor) -> None:
    negative = values < 0
    if bool(negative.any()):
        position = int(negative.to(torch.uint8).argmax())
        raise ValueError(
            f"{_OP}(): expected non-negative counts, but got {values[position].item()} at "
            f"position {position}"
        )
