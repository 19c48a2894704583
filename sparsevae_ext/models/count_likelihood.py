"""Likelihoods of counts whose means are shares of an observed library size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional as F
from ..data.batch import CSRBatch
from ..ops._nll import reduce_rows
from ..ops.csr_rows import segment_sum

__all__ = ["COUNT_LIKELIHOODS", "DISPERSIONS", "CountHead", "count_nll", "poisson_constants"]

#: Negative binomial, the same with extra zeros, and Poisson.
COUNT_LIKELIHOODS = ("nb", "zinb", "poisson")
#: One dispersion per gene, or one per gene and batch.
DISPERSIONS = ("gene", "gene-batch")
# In place of a library of 0; its logarithm is a float32 that nothing overflows with.
_NO_LIBRARY = 1e-30


class CountHead(NamedTuple):
    """The decoder's last layer.

    Attributes:
        likelihood: one of :data:`COUNT_LIKELIHOODS`.
        weight, bias: (N, H) and (N,), onto the logits whose softmax are the genes' shares.
        log_theta: (N,) log inverse dispersions, (n_batch, N) for one per batch; None for Poisson.
        zero_weight, zero_bias: onto the logits of an extra zero; None but for "zinb".
    """

    likelihood: str
    weight: Tensor
    bias: Tensor
    log_theta: Tensor | None = None
    zero_weight: Tensor | None = None
    zero_bias: Tensor | None = None


def count_nll(
    hidden: Tensor, head: CountHead, target: CSRBatch, library: Tensor, reduction: str = "none"
) -> Tensor:
    r"""Negative log-likelihood of counts with the means ``library * softmax(logits)``.

    The last layer's product is taken inside the loss: no (B, N) tensor exists. With a dispersion
    per gene and batch neither does the (B, N) one of the dispersions: the rows are grouped by
    ``target.batch_index``, and the loss is called once for each batch that occurs.

    A row with library 0 has the mean 0 in every cell, so an empty row is certain. It is given a
    library of 1e-30, whose logarithm is a number: the row's nll and gradients are then of that
    size.

    Args:
        hidden: (B, H) input of the last layer.
        head: the last layer.
        target: (B, N) counts, with its batch index where the dispersion needs it.
        library: (B,) means' row totals, >= 0; 0 only in empty rows. float32 or float64: a total
            may be beyond float16.
        reduction: "none" gives (B,), "sum" their sum. With the sum the gradients are computed in
            the forward pass, without making the logits again.
    """
    library = library.clamp(min=_NO_LIBRARY)
    loss = _Loss(head, reduction, _BY_NAME[head.likelihood])
    if head.log_theta is None or head.log_theta.dim() == 1:
        return loss(hidden, target, library, head.log_theta)
    if target.batch_index is None:
        raise ValueError("count_nll(): expected a target that carries a batch index, but got none")
    # unbind and not an index per group: its gradient is one stack, not a table per group.
    thetas = head.log_theta.unbind(0)
    parts, places = [], []
    for batch, rows in _groups(target.batch_index):
        if len(rows) == len(target):
            return loss(hidden, target, library, thetas[batch])
        parts.append(loss(hidden[rows], target[rows], library[rows], thetas[batch]))
        places.append(rows)
    if not parts:
        return loss(hidden, target, library, thetas[0])
    if reduction == "sum":
        return torch.stack(parts).sum()
    return torch.cat(parts)[torch.cat(places).argsort()]


def _groups(batch_index: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Gives each number that occurs, ascending, with the rows that have it."""
    order = batch_index.argsort(stable=True)
    numbers, counts = batch_index[order].unique_consecutive(return_counts=True)
    rows = order.split(counts.tolist())
    yield from zip(numbers.tolist(), rows, strict=True)


class _Loss(NamedTuple):
    head: CountHead
    reduction: str
    function: Callable[..., Tensor]

    def __call__(
        self, hidden: Tensor, target: CSRBatch, library: Tensor, log_theta: Tensor | None
    ) -> Tensor:
        return self.function(hidden, self.head, target, library, log_theta, self.reduction)


def _nb(
    hidden: Tensor,
    head: CountHead,
    target: CSRBatch,
    library: Tensor,
    log_theta: Tensor,
    reduction: str,
) -> Tensor:
    return F.linear_negative_binomial_nll(
        hidden, head.weight, head.bias, target, log_theta, library=library, reduction=reduction
    )


def _zinb(
    hidden: Tensor,
    head: CountHead,
    target: CSRBatch,
    library: Tensor,
    log_theta: Tensor,
    reduction: str,
) -> Tensor:
    assert head.zero_weight is not None
    return F.linear_zero_inflated_negative_binomial_nll(
        hidden,
        head.weight,
        head.bias,
        head.zero_weight,
        head.zero_bias,
        target,
        log_theta,
        library=library,
        reduction=reduction,
    )


def _poisson(
    hidden: Tensor, head: CountHead, target: CSRBatch, library: Tensor, _: None, reduction: str
) -> Tensor:
    r"""The sum of the means :math:`\mu = s \operatorname{softmax}(l)` is s itself.

    .. math:: s - N \log s + \Big(N \operatorname{logsumexp}(l) - \sum_{nz} x_j l_j\Big)
        + \sum_{nz} \log x_j!

    which is the multinomial's nll and numbers that no parameter enters.
    """
    nll = F.linear_multinomial_nll(hidden, head.weight, head.bias, target, reduction=reduction)
    return nll + reduce_rows(poisson_constants(target, library), reduction).to(nll.dtype)


def poisson_constants(target: CSRBatch, library: Tensor) -> Tensor:
    """What a Poisson's nll (B,) is above the multinomial's, float64; rows' rates sum to library."""
    counts, size = target.values.double(), library.double()
    totals = segment_sum(counts, target.crow)
    factorials = segment_sum(torch.lgamma(counts + 1), target.crow)
    return size - torch.xlogy(totals, size) + factorials


_BY_NAME: dict[str, Callable[..., Tensor]] = {"nb": _nb, "zinb": _zinb, "poisson": _poisson}
