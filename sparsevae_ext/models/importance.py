"""The importance-weighted bound on the marginal likelihood, for any decoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..data.batch import CSRBatch

__all__ = ["importance_bound", "repeated_rows"]


def importance_bound(
    mu: Tensor,
    logvar: Tensor,
    n_samples: int,
    nll: Callable[[Tensor], Tensor],
    *,
    at_a_time: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Importance-weighted bound on the negative log-likelihood of every row.

    .. math::
        -\log \frac1K \sum_{k=1}^K \frac{p(x_i \mid z_k)\, p(z_k)}{q(z_k \mid x_i)},
        \qquad z_k \sim q(z \mid x_i) = N(\mu_i, e^{v_i}), \quad p(z) = N(0, I)

    (Burda, Grosse and Salakhutdinov 2016).

    Args:
        mu: (B, Z) posterior means; 16-bit ones are taken to float32.
        logvar: (B, Z) posterior log-variances.
        n_samples: K.
        nll: gives -log p(x_i | z) as (S, B) for codes (S, B, Z).
        at_a_time: the largest S.
        generator: source of the random numbers, on the device of ``mu``.

    Returns:
        (B,) nats.
    """
    if mu.dtype in (torch.float16, torch.bfloat16):
        mu, logvar = mu.float(), logvar.float()
    parts = []
    for start in range(0, n_samples, at_a_time):
        shape = (min(at_a_time, n_samples - start), *mu.shape)
        eps = torch.randn(shape, dtype=mu.dtype, device=mu.device, generator=generator)
        z = mu + eps * torch.exp(0.5 * logvar)
        # log p(z) - log q(z | x); the constants of the two densities are the same.
        ratio = 0.5 * (eps.square() - z.square() + logvar).sum(dim=2)
        parts.append(ratio - nll(z))
    return math.log(n_samples) - torch.logsumexp(torch.cat(parts), dim=0)


def repeated_rows(batch: CSRBatch, times: int) -> CSRBatch:
    """The rows of a batch several times over, one copy below the other."""
    ends = batch.crow[1:].long() + batch.nnz * torch.arange(times, device=batch.device).unsqueeze(1)
    crow = torch.cat([ends.new_zeros(1), ends.flatten()])
    col, values = batch.col.long().repeat(times), batch.values.repeat(times)
    rows = CSRBatch(crow, col, values, (times * len(batch), batch.n_cols))
    if batch.batch_index is None:
        return rows
    return rows.with_batch_index(batch.batch_index.repeat(times))
