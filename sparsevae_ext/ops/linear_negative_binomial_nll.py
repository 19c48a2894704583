"""Negative binomial likelihoods with the decoder's last linear layer inside.

As in ``linear_nll``: the public functions. Here too the arithmetic is that of ``_linear_nll_op``.
"""

from __future__ import annotations

from torch import Tensor

from ..data.batch import CSRBatch
from ._linear_nll import Decoder, check_decoder, check_log_scale, has_kernel
from ._linear_nll_op import fused
from ._nll import accumulate_dtype, check_support
from .csr_rows import check_structure
from .negative_binomial_nll import negative_binomial_nll
from .zero_inflated_negative_binomial_nll import zero_inflated_negative_binomial_nll

__all__ = ["linear_negative_binomial_nll", "linear_zero_inflated_negative_binomial_nll"]


def linear_negative_binomial_nll(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: CSRBatch,
    log_theta: Tensor,
    library: Tensor | None = None,
    reduction: str = "mean",
    max_memory: int | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Negative binomial negative log-likelihood, with the linear layer of the log-mean.

    .. math::
        l_i = W h_i + b, \qquad \mu_{ij} = e^{l_{ij}} \quad \text{or} \quad
        \mu_i = \mathrm{library}_i \operatorname{softmax}(l_i)

    as ``negative_binomial_nll(torch.nn.functional.linear(h, weight, bias), target, log_theta,
    library)``, without the (B, N) tensor of the log-means and without its gradient: they are made
    for a panel of columns at a time. Without ``library`` one sweep gives value and gradients;
    with it (scVI's parametrisation, Lopez et al. 2018) a sweep for every row's logsumexp comes
    before, and one for the gradient through it after; whether these make the log-means again is as
    in :func:`linear_multinomial_nll`.

    Columns must ascend strictly within a row, as :meth:`CSRBatch.from_scipy` leaves them. A
    count that is not an integer goes through the gamma function, as in
    :func:`negative_binomial_nll`.

    Args:
        h: (B, H) floating; see :func:`linear_multinomial_nll` for autocast.
        weight: (N, H), as in ``torch.nn.Linear``.
        bias: (N,) or None.
        target: (B, N) batch of non-negative counts.
        log_theta: (N,) or (B, N) log-dispersions of any floating dtype.
        library: (B,) positive sizes, or None for the mean :math:`e^l`.
        reduction: "none" gives (B,), "sum" their sum, "mean" their mean over rows.
        max_memory: bytes that logits may take; None is an eighth of what all would take.
        validate_args: check that no count is negative; None means on the CPU only.

    Returns:
        Nats, of shape (B,) for "none" and () otherwise; float32 for 16-bit inputs.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError, NotImplementedError: as
            :func:`linear_multinomial_nll`.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, 1.0]]))
        >>> h, weight = torch.ones(1, 2), torch.zeros(3, 2)
        >>> linear_negative_binomial_nll(h, weight, None, target, log_theta=torch.zeros(3))
        tensor(3.4657)
    """
    op = "linear_negative_binomial_nll"
    decoder = Decoder(h, weight, bias, log_scale=log_theta, library=library)
    _check(op, decoder, log_theta, target, reduction, max_memory, validate_args)
    if has_kernel(h):
        return fused("negative_binomial", decoder, target, reduction, max_memory)
    check_structure(op, target)
    logits = decoder.logits()
    log_theta = log_theta.to(accumulate_dtype(logits.dtype))
    return negative_binomial_nll(logits, target, log_theta, library, reduction, validate_args=False)


def linear_zero_inflated_negative_binomial_nll(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    zero_weight: Tensor,
    zero_bias: Tensor | None,
    target: CSRBatch,
    log_theta: Tensor,
    library: Tensor | None = None,
    reduction: str = "mean",
    max_memory: int | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Zero-inflated negative binomial negative log-likelihood, with both linear layers.

    .. math::
        l_i = W h_i + b, \qquad z_i = W^{0} h_i + b^{0}, \qquad
        P(x) = \sigma(z) [x = 0] + (1 - \sigma(z)) \operatorname{NB}(x; \mu, \theta)

    as ``zero_inflated_negative_binomial_nll`` on the two outputs of ``torch.nn.functional.linear``,
    neither of which is ever made as a whole. See :func:`linear_negative_binomial_nll` for the mean
    and the arguments that are not listed here.

    Args:
        h: (B, H) floating.
        weight: (N, H), layer of the log-mean.
        bias: (N,) or None.
        zero_weight: (N, H), layer of the logit of an inflated zero.
        zero_bias: (N,) or None.
        target: (B, N) batch of non-negative counts.
        log_theta: (N,) or (B, N) log-dispersions of any floating dtype.
        library: (B,) positive sizes, or None.
        reduction: "none" gives (B,), "sum" their sum, "mean" their mean over rows.
        max_memory: bytes that logits of either kind may take together; None is an eighth of what
            all logits of one kind would take.
        validate_args: check that no count is negative; None means on the CPU only.

    Returns:
        Nats, of shape (B,) for "none" and () otherwise; float32 for 16-bit inputs.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError, NotImplementedError: as
            :func:`linear_multinomial_nll`.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, 1.0]]))
        >>> h, layer, theta = torch.ones(1, 2), torch.zeros(3, 2), torch.zeros(3)
        >>> loss = linear_zero_inflated_negative_binomial_nll
        >>> loss(h, layer, None, layer, None, target, log_theta=theta)
        tensor(4.4466)
    """
    op = "linear_zero_inflated_negative_binomial_nll"
    decoder = Decoder(
        h,
        weight,
        bias,
        zero_weight,
        zero_bias,
        log_scale=log_theta,
        library=library,
    )
    _check(op, decoder, log_theta, target, reduction, max_memory, validate_args)
    if has_kernel(h):
        return fused("zero_inflated_negative_binomial", decoder, target, reduction, max_memory)
    check_structure(op, target)
    logits = decoder.logits()
    log_theta = log_theta.to(accumulate_dtype(logits.dtype))
    return zero_inflated_negative_binomial_nll(
        logits,
        target,
        log_theta,
        decoder.zero_logits(),
        library,
        reduction,
        validate_args=False,
    )


def _check(
    op: str,
    decoder: Decoder,
    log_theta: Tensor,
    target: CSRBatch,
    reduction: str,
    max_memory: int | None,
    validate_args: bool | None,
) -> None:
    check_decoder(op, decoder, target, reduction, max_memory)
    check_log_scale(op, "log_theta", log_theta, decoder.h, target.shape[1])
    check_support(op, "non-negative counts", target, lambda values: values < 0, validate_args)
