"""Multinomial, Bernoulli and Poisson likelihoods with the decoder's last linear layer inside.

The arithmetic, its derivatives and the memory are those of ``_linear_nll_op``; here are the public
functions. Without a kernel they make the logits and call the loss on given logits.
"""

from __future__ import annotations

from torch import Tensor

from ..data.batch import CSRBatch
from ._linear_nll import Decoder, check_decoder, has_kernel
from ._linear_nll_op import fused
from ._nll import check_support
from .bernoulli_nll import bernoulli_nll
from .csr_rows import check_structure
from .multinomial_nll import multinomial_nll
from .poisson_nll import poisson_nll

__all__ = ["linear_bernoulli_nll", "linear_multinomial_nll", "linear_poisson_nll"]

_COUNTS = "non-negative counts"


def linear_multinomial_nll(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: CSRBatch,
    reduction: str = "mean",
    max_memory: int | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Multinomial negative log-likelihood of sparse counts, with the linear layer of the logits.

    .. math::
        l_i = W h_i + b, \qquad
        \mathrm{nll}_i = N_i \operatorname{logsumexp}(l_i) - \sum_{j \in nz(i)} x_{ij} l_{ij}

    as ``multinomial_nll(torch.nn.functional.linear(h, weight, bias), target)``, without the
    (B, N) tensor of the logits and without its gradient: they are made for a panel of columns at
    a time. The first sweep over the panels gives every row's logsumexp, a second its gradient.
    Between the two the logits wait in the memory of the gradient of ``weight`` where that has
    room: for B up to H (2 H for 16-bit products of a float32 weight). Otherwise they are made
    again, at the cost of one more matrix product, but for the panels that ``max_memory`` has room
    for.

    The gradients are computed in the forward pass, where they cost no further sweep, unless
    ``reduction`` is "none". Columns must ascend within a row, as :meth:`CSRBatch.from_scipy` and
    the loaders leave them.

    Args:
        h: (B, H) float16, bfloat16, float32 or float64. Under autocast the products are made in
            its dtype as nn.Linear would, and everything after them in float32.
        weight: (N, H), as in ``torch.nn.Linear``.
        bias: (N,) or None.
        target: (B, N) batch of non-negative counts (any non-negative weights).
        reduction: "none" gives (B,), "sum" their sum, "mean" their mean over rows.
        max_memory: bytes that logits may take beside the gradients; None is an eighth of what
            all would take. At least a narrow panel is used. With room for all of them none is
            made twice.
        validate_args: check that no count is negative; None means on the CPU only. Inside
            ``torch.compile`` values are never checked.

    Returns:
        Nats, of shape (B,) for "none" and () otherwise; float32 for 16-bit inputs.

    Raises:
        TypeError: if an argument is of the wrong Python type.
        ValueError: if ``reduction`` or ``max_memory`` is invalid or a count is negative.
        RuntimeError: if shapes, dtypes or devices do not fit, or the target is damaged or
            unsorted.
        IndexError: if a column index is out of range.
        NotImplementedError: for other dtypes, the gradient of the target's values, a second
            derivative, or forward-mode derivatives.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, 1.0]]))
        >>> linear_multinomial_nll(torch.ones(1, 2), torch.zeros(3, 2), None, target)
        tensor(2.1972)
    """
    op = "linear_multinomial_nll"
    decoder = Decoder(h, weight, bias)
    check_decoder(op, decoder, target, reduction, max_memory)
    check_support(op, _COUNTS, target, lambda values: values < 0, validate_args)
    if has_kernel(h):
        return fused("multinomial", decoder, target, reduction, max_memory)
    check_structure(op, target)
    return multinomial_nll(decoder.logits(), target, reduction, validate_args=False)


def linear_bernoulli_nll(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: CSRBatch,
    reduction: str = "mean",
    max_memory: int | None = None,
    validate_args: bool | None = None,
) -> Tensor:
    r"""Bernoulli negative log-likelihood of sparse rows, with the linear layer of the logits.

    .. math::
        l_i = W h_i + b, \qquad
        \mathrm{nll}_i = \sum_j \operatorname{softplus}(l_{ij}) - \sum_{j \in nz(i)} x_{ij} l_{ij}

    as ``bernoulli_nll(torch.nn.functional.linear(h, weight, bias), target)``, without the (B, N)
    tensor of the logits and without its gradient: they are made for a panel of columns at a time,
    in one sweep that gives value and gradients. See :func:`linear_multinomial_nll` for the
    arguments.

    Args:
        h: (B, H) floating.
        weight: (N, H), as in ``torch.nn.Linear``.
        bias: (N,) or None.
        target: (B, N) batch of values in [0, 1].
        reduction: "none" gives (B,), "sum" their sum, "mean" their mean over rows.
        max_memory: bytes that logits may take; None is an eighth of what all would take.
        validate_args: check that all values are in [0, 1]; None means on the CPU only.

    Returns:
        Nats, of shape (B,) for "none" and () otherwise; float32 for 16-bit inputs.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError, NotImplementedError: as
            :func:`linear_multinomial_nll`.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, 1.0]]))
        >>> linear_bernoulli_nll(torch.ones(1, 2), torch.zeros(3, 2), None, target)
        tensor(2.0794)
    """
    op = "linear_bernoulli_nll"
    decoder = Decoder(h, weight, bias)
    check_decoder(op, decoder, target, reduction, max_memory)
    check_support(op, "values in [0, 1]", target, lambda x: ~((x >= 0) & (x <= 1)), validate_args)
    if has_kernel(h):
        return fused("bernoulli", decoder, target, reduction, max_memory)
    check_structure(op, target)
    return bernoulli_nll(decoder.logits(), target, reduction, validate_args=False)


def linear_poisson_nll(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: CSRBatch,
    reduction: str = "mean",
    max_memory: int | None = None,
    link: str = "log",
    validate_args: bool | None = None,
) -> Tensor:
    r"""Poisson negative log-likelihood of sparse counts, with the linear layer of the rate.

    .. math::
        l_i = W h_i + b, \qquad
        \mathrm{nll}_i = \sum_j e^{l_{ij}} - \sum_{j \in nz(i)}
                         \left( x_{ij} l_{ij} - \log \Gamma(x_{ij} + 1) \right)

    with ``link="log"``: as ``poisson_nll(torch.nn.functional.linear(h, weight, bias), target)``,
    without the (B, N) tensor of the log-rates and without its gradient, in one sweep over panels
    of columns. With ``link="identity"`` the rate itself is :math:`W h_i + b`, which must not be
    negative (``h``, ``weight`` and ``bias`` are checked to be non-negative); its sum over all
    features is a product with the sum of the rows of W, so that only the stored entries cost
    anything. See :func:`linear_multinomial_nll` for the arguments.

    Args:
        h: (B, H) floating.
        weight: (N, H), as in ``torch.nn.Linear``.
        bias: (N,) or None.
        target: (B, N) batch of non-negative counts.
        reduction: "none" gives (B,), "sum" their sum, "mean" their mean over rows.
        max_memory: bytes that logits may take; None is an eighth of what all would take. The
            identity link has none.
        link: "log" or "identity".
        validate_args: check that no count is negative and, for the identity link, that no rate
            can be; None means on the CPU only.

    Returns:
        Nats, of shape (B,) for "none" and () otherwise; float32 for 16-bit inputs.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError, NotImplementedError: as
            :func:`linear_multinomial_nll`; ValueError for an unknown ``link`` too.

    Example:
        >>> target = CSRBatch.from_dense(torch.tensor([[1.0, 0.0, 2.0]]))
        >>> linear_poisson_nll(torch.ones(1, 2), torch.zeros(3, 2), None, target)
        tensor(3.6931)
    """
    op = "linear_poisson_nll"
    if link not in ("log", "identity"):
        raise ValueError(f'{op}(): expected link to be "log" or "identity", but got {link!r}')
    decoder = Decoder(h, weight, bias)
    check_decoder(op, decoder, target, reduction, max_memory)
    if link == "identity":
        from .linear_poisson_identity import linear_poisson_identity_nll

        return linear_poisson_identity_nll(h, weight, bias, target, reduction, validate_args)
    check_support(op, _COUNTS, target, lambda values: values < 0, validate_args)
    if has_kernel(h):
        return fused("poisson", decoder, target, reduction, max_memory)
    check_structure(op, target)
    return poisson_nll(decoder.logits(), target, reduction, validate_args=False)
