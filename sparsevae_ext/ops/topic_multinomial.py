"""The multinomial likelihood of a mixture of topics: the cost of the stored entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ..data.parts import torch_name
from ._checks import check_floating, check_tensor
from ._linear_nll import autocast_dtype, widened
from ._nll import REDUCTIONS, check_support, entry_rows, reduce_rows
from .csr_rows import segment_sum
from .entry_dots import entry_dots, row_sums

__all__ = ["topic_multinomial_nll", "topic_multinomial_nll_reference"]

_OP = "topic_multinomial_nll"
# How far from 1 the sum of a row may be, rounding of a softmax over a million words included.
_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 1e-2}
_WIDE_TOLERANCE = 1e-4


def topic_multinomial_nll(
    theta: Tensor,
    beta: Tensor,
    target: CSRBatch,
    reduction: str = "mean",
    validate_args: bool | None = None,
) -> Tensor:
    r"""Multinomial negative log-likelihood of sparse counts under a mixture of topics.

    .. math::
        p_{ij} = \sum_k \theta_{ik} \beta_{kj}, \qquad
        \mathrm{nll}_i = -\sum_{j \in nz(i)} x_{ij} \log p_{ij}

    without the multinomial coefficient: LDA's likelihood given the topic proportions (Blei et al.
    2003), and that of neural topic models that mix probabilities (NVLDA in Srivastava and Sutton
    2017, ETM in Dieng et al. 2020). Rows of ``theta`` and ``beta`` sum to 1, so every row of p
    does, and no cell without a count costs anything: the (B, N) mixture is never made. Row sums
    are taken in float64. The gradient of ``beta`` is dense, zero in columns without a count.

    ``beta`` is read as it lies when every word's K numbers are contiguous, i.e. when ``beta.t()``
    is, and it is of 32 or 64 bits: hold the parameter as (N, K) and pass
    ``torch.softmax(parameter, dim=0).t()``. Of any other ``beta`` the touched columns are
    gathered at each call.

    A probability of 0 gives inf where a positive count is stored. A stored zero multiplies, as
    everywhere in this package (0 times inf is nan). A row without stored entries has nll 0.

    Args:
        theta: (B, K) proportions, float16, bfloat16, float32 or float64; rows sum to 1.
        beta: (K, N) topics of the dtype of ``theta``; rows sum to 1.
        target: (B, N) batch of non-negative counts (any non-negative weights).
        reduction: "none" gives (B,), "sum" their sum, "mean" their mean over rows.
        validate_args: check that no count is negative, and that ``theta`` and ``beta`` have no
            negative number and rows that sum to 1 within 1e-4 (within 1e-2 for 16-bit numbers).
            None means yes on the CPU and no elsewhere, where it would wait for the device.
            Inside ``torch.compile`` values are never checked.

    Returns:
        Nats, of shape (B,) for "none" and () otherwise; float32 for 16-bit inputs.

    Raises:
        TypeError: if an argument is of the wrong Python type.
        ValueError: if ``reduction`` is unknown, a count is negative, or a row of ``theta`` or
            ``beta`` is not on the simplex.
        RuntimeError: if shapes, dtypes or devices do not fit, or the target is damaged.
        IndexError: if a column index is out of range.
        NotImplementedError: for other dtypes, a second derivative, or forward-mode derivatives.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[2.0, 0.0, 1.0]]))
        >>> theta, beta = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
        >>> topic_multinomial_nll(theta, beta, target)
        tensor(2.7726)
    """
    _check(theta, beta, target, reduction)
    check_support(_OP, "non-negative counts", target, lambda values: ~(values >= 0), validate_args)
    _check_simplex("theta", theta, validate_args)
    _check_simplex("beta", beta, validate_args)
    # (N, K) without a copy: a view, whose rows are contiguous if `beta` was laid out for it.
    p, _ = entry_dots(_OP, theta.to(beta.dtype), beta.t(), target)
    terms = target.values.to(p.dtype) * torch.log(p)
    nll = -row_sums(terms, target.crow)
    return reduce_rows(nll.to(p.dtype), reduction)


def topic_multinomial_nll_reference(
    theta: Tensor, beta: Tensor, target: CSRBatch, reduction: str = "mean"
) -> Tensor:
    """The plain-torch form, over (B, N) probabilities: unchecked, differentiable by autograd."""
    mixture, topics = widened(theta, beta), widened(beta, beta)
    assert mixture is not None and topics is not None
    p = mixture @ topics
    picked = p[entry_rows(target.crow, target.nnz), target.col.long()]
    terms = target.values.to(p.dtype) * torch.log(picked)
    return reduce_rows(-segment_sum(terms, target.crow), reduction)


def _check(theta: Tensor, beta: Tensor, target: Any, reduction: str) -> None:
    check_tensor(_OP, "theta", theta)
    check_tensor(_OP, "beta", beta)
    if not isinstance(target, CSRBatch):
        raise TypeError(
            f"{_OP}(): expected target to be a CSRBatch, but got {type(target).__name__}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    check_floating(_OP, theta)
    check_floating(_OP, beta)
    n_rows, n_cols = target.shape
    if theta.dim() != 2 or theta.shape[0] != n_rows:
        raise RuntimeError(
            f"{_OP}(): expected theta of shape ({n_rows}, K) for this target, but got "
            f"{tuple(theta.shape)}"
        )
    if beta.shape != torch.Size([theta.shape[1], n_cols]):
        raise RuntimeError(
            f"{_OP}(): expected beta of shape ({theta.shape[1]}, {n_cols}), but got "
            f"{tuple(beta.shape)}"
        )
    for name, other in (("beta", beta), ("target", target)):
        if other.device != theta.device:
            raise RuntimeError(
                f"{_OP}(): expected theta and {name} on one device, but got {theta.device} and "
                f"{other.device}"
            )
    mixed = autocast_dtype(theta) is not None and beta.dtype != torch.float64
    if beta.dtype != theta.dtype and not mixed:
        raise RuntimeError(
            f"{_OP}(): theta and beta must have the same dtype, but got "
            f"{torch_name(theta.dtype)} and {torch_name(beta.dtype)}"
        )


def _check_simplex(name: str, rows: Tensor, wanted: bool | None) -> None:
    """ValueError for a row that has a negative number or does not sum to 1."""
    if torch.compiler.is_compiling() or rows.numel() == 0:
        return
    if not (wanted or (wanted is None and rows.device.type == "cpu")):
        return
    rows = rows.detach()
    if rows.min().item() < 0:  # nan passes: it shows in the result
        low = rows.amin(dim=1)
        row = int((low < 0).to(torch.uint8).argmax())
        raise ValueError(
            f"{_OP}(): expected {name} without negative numbers, but got {low[row].item():g} in "
            f"row {row}"
        )
    sums = rows.sum(dim=1)
    bad = (sums - 1).abs() > _TOLERANCE.get(rows.dtype, _WIDE_TOLERANCE)
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        raise ValueError(
            f"{_OP}(): expected rows of {name} to sum to 1, but got {sums[row].item():g} in row "
            f"{row}"
        )
