"""The zero-inflated negative binomial negative log-likelihood of sparse rows of counts."""

from __future__ import annotations

from torch import Tensor

from ..data.batch import CSRBatch
from ._negative_binomial import ZERO_INFLATED_OP, apply, reference

__all__ = [
    "zero_inflated_negative_binomial_nll",
    "zero_inflated_negative_binomial_nll_reference",
]


def zero_inflated_negative_binomial_nll(
    log_mu: Tensor,
    target: CSRBatch,
    log_theta: Tensor,
    zero_logits: Tensor,
    library: Tensor | None = None,
    reduction: str = "mean",
    validate_args: bool | None = None,
) -> Tensor:
    r"""Zero-inflated negative binomial negative log-likelihood of sparse rows of counts.

    A cell is zero with probability :math:`\pi = \sigma(z)` and else a negative binomial count:

    .. math::
        \mathrm{nll}_i = \sum_{j \notin nz(i)} -\log\left(\pi_{ij} + (1 - \pi_{ij}) e^{-D_{ij}}\right)
            + \sum_{j \in nz(i)} \operatorname{softplus}(z_{ij}) + \mathrm{nll}^{NB}_{ij}

    with :math:`D = \theta \operatorname{softplus}(l - \log \theta)` and the last term that of
    :func:`negative_binomial_nll` (Lopez et al. 2018, scVI, in logarithms;
    ``scvi.distributions.ZeroInflatedNegativeBinomial`` without its 1e-8). The zero cells are
    computed from :math:`1 - e^{-D}` where their probability is near 1 and from the logarithms of
    its two terms where it is not. What is said there of precision, counts that are no integers,
    ``library`` and gradients holds here.

    Args:
        log_mu: (B, N) float16, bfloat16, float32 or float64; 16-bit inputs are computed in float32,
            and the result stays float32.
        target: (B, N) batch of counts, with sorted, distinct columns in every row. A stored zero is
            a zero.
        log_theta: (N,) or (B, N); of the dtype of ``log_mu``, or float32 beside a 16-bit
            ``log_mu``. Finite.
        zero_logits: (B, N), the logit of a zero that is no count, of the dtype of ``log_mu``.
        library: (B,) totals of the means, any floating dtype, not negative.
        reduction: "none" gives (B,), "sum" their sum, "mean" their mean over rows.
        validate_args: as in :func:`negative_binomial_nll`.

    Returns:
        Nats, of shape (B,) for "none" and () otherwise. The mean over no rows is nan, as in torch.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError, NotImplementedError: as
            :func:`negative_binomial_nll`.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[3.0, 0.0, 1.0]]))
        >>> zeros = torch.zeros(1, 3)
        >>> zero_inflated_negative_binomial_nll(zeros, target, torch.zeros(3), zero_logits=zeros)
        tensor(5.8329)
    """
    return apply(
        ZERO_INFLATED_OP,
        log_mu,
        target,
        log_theta,
        zero_logits,
        library,
        reduction,
        validate_args,
    )


def zero_inflated_negative_binomial_nll_reference(
    log_mu: Tensor,
    target: CSRBatch,
    log_theta: Tensor,
    zero_logits: Tensor,
    library: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The plain-torch form of the function above: unchecked, differentiable by autograd."""
    return reference(log_mu, target, log_theta, zero_logits, library, reduction)
