"""The negative binomial negative log-likelihood of sparse rows of counts."""

from __future__ import annotations

from torch import Tensor

from ..data.batch import CSRBatch
from ._negative_binomial import OP, apply, reference

__all__ = ["negative_binomial_nll", "negative_binomial_nll_reference"]


def negative_binomial_nll(
    log_mu: Tensor,
    target: CSRBatch,
    log_theta: Tensor,
    library: Tensor | None = None,
    reduction: str = "mean",
    validate_args: bool | None = None,
) -> Tensor:
    r"""Negative binomial negative log-likelihood of sparse rows of counts.

    .. math::
        \mathrm{nll}_i = \sum_j \theta_{ij} \operatorname{softplus}(l_{ij} - \log \theta_{ij})
            + \sum_{j \in nz(i)} x_{ij} \operatorname{softplus}(\log \theta_{ij} - l_{ij})
            - \log \frac{\Gamma(x_{ij} + \theta_{ij})}{\Gamma(\theta_{ij})} + \log \Gamma(x_{ij} + 1)

    with mean :math:`\mu = e^l` and variance :math:`\mu + \mu^2 / \theta` (Lopez et al. 2018, scVI,
    in logarithms; ``scvi.distributions.NegativeBinomial`` without its 1e-8). The first sum never
    looks at the target; gamma functions are needed at the stored entries alone. The target is never
    made dense, and the backward pass makes one (B, N) tensor per dense gradient.

    With ``library`` the mean is scVI's :math:`\mu_{ij} = s_i \operatorname{softmax}(l_i)_j`.

    Holds to 1e-5 in float32 from theta = 1e-4 to 1e8 and from mu = 1e-8 to 1e6, for counts up to
    1e6 (that of the usual formula ends near theta = 1e4). A mean of 0 (a log-mean of -inf) gives 0
    at a zero and inf at a count. A count that is no integer goes through the gamma function, in
    which form it is no probability of anything. Gradients of the counts themselves are not
    implemented.

    Args:
        log_mu: (B, N) float16, bfloat16, float32 or float64; 16-bit inputs are computed in float32,
            and the result stays float32.
        target: (B, N) batch of counts, with sorted, distinct columns in every row, as
            ``CSRBatch.from_scipy`` makes them; its values are cast to the dtype of the arithmetic.
        log_theta: (N,), one dispersion per column, or (B, N); of the dtype of ``log_mu``, or
            float32 beside a 16-bit ``log_mu``. Finite.
        library: (B,) totals of the means, any floating dtype, not negative. Its gradient at 0 is
            nan.
        reduction: "none" gives (B,), "sum" their sum, "mean" their mean over rows.
        validate_args: check that all counts and totals are finite and not negative. None means yes
            on the CPU, where it costs little, and no elsewhere, where it would wait for the device.
            Inside ``torch.compile`` values are never checked.

    Returns:
        Nats, of shape (B,) for "none" and () otherwise. The mean over no rows is nan, as in torch.

    Raises:
        TypeError: if an argument is not a tensor or ``target`` not a CSRBatch.
        ValueError: if ``reduction`` is unknown or a value is outside its range.
        RuntimeError: if shapes, dtypes or devices differ, the target's row pointers are damaged, or
            its columns are not sorted and distinct (the latter two are checked on the CPU).
        IndexError: if a column index is out of range.
        NotImplementedError: for other dtypes, a target that requires a gradient, a second
            derivative, or forward-mode derivatives.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[3.0, 0.0, 1.0]]))
        >>> negative_binomial_nll(torch.zeros(1, 3), target, log_theta=torch.zeros(3))
        tensor(4.8520)
    """
    return apply(OP, log_mu, target, log_theta, None, library, reduction, validate_args)


def negative_binomial_nll_reference(
    log_mu: Tensor,
    target: CSRBatch,
    log_theta: Tensor,
    library: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The plain-torch form of :func:`negative_binomial_nll`: unchecked, differentiable by autograd."""
    return reference(log_mu, target, log_theta, None, library, reduction)
