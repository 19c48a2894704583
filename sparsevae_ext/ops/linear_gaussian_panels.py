"""The Gaussian likelihood of a linear decoder by panels of means.

One of the two ways of ``linear_gaussian_nll``, which has the public docstring and chooses. The
other, by the Gram matrix of the weight, pays where there are more rows than hidden units.
"""

from __future__ import annotations

from torch import Tensor

from ..data.batch import CSRBatch
from ._linear_nll import Decoder, has_kernel
from ._linear_nll_op import fused
from ._nll import accumulate_dtype
from .gaussian_nll import gaussian_nll

__all__ = ["linear_gaussian_nll_panels"]


def linear_gaussian_nll_panels(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: CSRBatch,
    logvar: Tensor | None = None,
    reduction: str = "mean",
    max_memory: int | None = None,
) -> Tensor:
    """``linear_gaussian_nll`` of checked arguments, without a (B, N) tensor where there is a kernel.

    Args:
        h: (B, H) floating.
        weight: (N, H).
        bias: (N,) or None.
        target: (B, N) batch, columns ascending within a row.
        logvar: (N,) of any floating dtype, or None for unit variance.
        reduction: "none", "sum" or "mean".
        max_memory: bytes that means may take; None is an eighth of what all would take.

    Returns:
        Nats, with the log 2 pi term.

    Raises:
        RuntimeError: if the target is damaged or unsorted.
        IndexError: if a column index is out of range.
        NotImplementedError: for a second derivative or forward-mode derivatives.
    """
    decoder = Decoder(h, weight, bias, log_scale=logvar)
    if has_kernel(h):
        return fused("gaussian", decoder, target, reduction, max_memory)
    mean = decoder.logits()
    if logvar is not None and logvar.dtype != mean.dtype:
        mean = mean.to(accumulate_dtype(mean.dtype))
        logvar = logvar.to(mean.dtype)
    return gaussian_nll(mean, target, logvar, reduction, validate_args=False)
