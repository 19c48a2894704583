"""The Poisson likelihood of a rate that is linear in the code: the cost of the stored entries.

The public way here is ``linear_poisson_nll(..., link="identity")``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ._linear_nll import widened
from ._nll import check_support, entry_rows, reduce_rows
from .csr_rows import segment_sum
from .entry_dots import entry_dots, row_sums

__all__ = ["linear_poisson_identity_nll", "linear_poisson_identity_nll_reference"]

_OP = "linear_poisson_nll"


def linear_poisson_identity_nll(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: CSRBatch,
    reduction: str = "mean",
    validate_args: bool | None = None,
) -> Tensor:
    r"""``linear_poisson_nll`` with ``link="identity"``; types and shapes have been checked there.

    .. math::
        \lambda_i = W h_i + b, \qquad
        \mathrm{nll}_i = h_i \cdot \sum_j w_j + \sum_j b_j + \sum_{j \in nz(i)}
                         \left( \log \Gamma(x_{ij} + 1) - x_{ij} \log \lambda_{ij} \right)

    the likelihood of Poisson factorisation (Gopalan et al. 2015). W is read once for the sum of
    its rows; beside that only the stored entries cost anything, and the gradient of ``weight`` is
    the one (N, H) tensor that is made. ``weight`` is read as it lies when its rows are contiguous
    and of 32 or 64 bits; else the rows of touched features are gathered at each call.

    Where the rate of a stored entry is 0 the result is inf, where it is negative, nan; a stored
    zero multiplies, as everywhere in this package (0 times inf is nan). Where nothing is stored a
    negative rate would go unnoticed: that is why all of ``h``, ``weight`` and ``bias`` must be
    non-negative, which is checked as ``validate_args`` says.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, 2.0]]))
        >>> linear_poisson_identity_nll(torch.ones(1, 2), torch.ones(3, 2), None, target)
        tensor(4.6137)
    """
    check_support(_OP, "non-negative counts", target, lambda values: ~(values >= 0), validate_args)
    for name, tensor in (("h", h), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            _check_non_negative(name, tensor, validate_args)
    dots, totals = entry_dots(_OP, h.to(weight.dtype), weight, target, with_totals=True)
    assert totals is not None
    x = target.values.to(dots.dtype)
    rate = dots if bias is None else dots + bias.to(dots.dtype)[target.col.long()]
    entries = torch.lgamma(x + 1) - x * torch.log(rate)
    # In float64, because at large counts the two sums cancel.
    nll = totals + row_sums(entries, target.crow)
    if bias is not None:
        nll = nll + bias.double().sum()
    return reduce_rows(nll.to(dots.dtype), reduction)


def linear_poisson_identity_nll_reference(
    h: Tensor, weight: Tensor, bias: Tensor | None, target: CSRBatch, reduction: str = "mean"
) -> Tensor:
    """The plain-torch form, over (B, N) rates: unchecked, differentiable by autograd."""
    wide = widened(weight, weight)
    assert wide is not None
    offset = None if bias is None else bias.to(wide.dtype)
    rate = torch.nn.functional.linear(h.to(wide.dtype), wide, offset)
    picked = rate[entry_rows(target.crow, target.nnz), target.col.long()]
    x = target.values.to(wide.dtype)
    entries = torch.lgamma(x + 1) - x * torch.log(picked)
    return reduce_rows(rate.sum(dim=1) + segment_sum(entries, target.crow), reduction)


def _check_non_negative(name: str, tensor: Tensor, wanted: bool | None) -> None:
    """ValueError for a negative number: a rate could be negative where nothing is stored."""
    if torch.compiler.is_compiling() or tensor.numel() == 0:
        return
    if not (wanted or (wanted is None and tensor.device.type == "cpu")):
        return
    least = tensor.detach().min().item()  # of nan it is nan, which shows in the result
    if least < 0:
        raise ValueError(
            f'{_OP}(): expected non-negative {name} with link="identity", but got {least:g}'
        )
