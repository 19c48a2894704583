"""What the code of a model does: active units, divergence, entries per row, dead units."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import CSRBatch
from ..data.blocks import csr_batches
from .metrics import evaluation_mode

__all__ = [
    "ActiveUnits",
    "PosteriorCollapseWarning",
    "PosteriorSummary",
    "active_units",
    "code_summary",
    "has_posterior",
    "posterior_summary",
]

#: A unit is active when its posterior mean varies by more than this over the rows (Burda 2015).
ACTIVE_VARIANCE = 0.01
#: Below this many nats over the whole code a posterior is the prior, for every purpose.
COLLAPSED_KL = 0.01


class PosteriorCollapseWarning(UserWarning):
    """The posterior does not depend on the row: the decoder works without the code."""


class PosteriorSummary(NamedTuple):
    """How much of a row a posterior keeps.

    Attributes:
        active: number of active units.
        latent: number of units.
        kl: mean divergence from the prior, nats per row.
        variances: (latent,) float64, variance of each unit's posterior mean over the rows.
    """

    active: int
    latent: int
    kl: float
    variances: Tensor

    @property
    def collapsed(self) -> bool:
        """No active unit, or less than 0.01 nats of divergence over the whole code."""
        return self.active == 0 or self.kl < COLLAPSED_KL


class ActiveUnits:
    r"""Counts the units whose posterior mean varies over the rows, a batch at a time.

    .. math:: A = \#\{k : \operatorname{Var}_x(\mathrm{E}_{q(z \mid x)} z_k) > 0.01\}

    (Burda, Grosse and Salakhutdinov 2015, arXiv 1509.00519, section 5.) Sums are float64 and
    relative to the first row, so a large common mean costs no digits.

    Args:
        threshold: the variance above which a unit counts.

    Raises:
        RuntimeError: the posterior means are no matrix, or of another width than before.

    Example:
        >>> units = ActiveUnits()
        >>> units.update(torch.tensor([[0.0, 5.0], [1.0, 5.0]]))
        >>> units.count(), units.variances().tolist()
        (1, [0.25, 0.0])
    """

    def __init__(self, threshold: float = ACTIVE_VARIANCE) -> None:
        self.threshold = threshold
        self.rows = 0
        self._origin: Tensor | None = None
        self._sum = self._squares = torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def update(self, means: Tensor) -> None:
        """Adds a batch of posterior means (B, latent)."""
        width = None if self._origin is None else len(self._origin)
        if means.dim() != 2 or (width is not None and means.shape[1] != width):
            raise RuntimeError(
                f"ActiveUnits.update(): expected means of shape (B, {width or 'latent'}), but got "
                f"{tuple(means.shape)}"
            )
        if len(means) == 0:
            return
        means = means.double()
        if self._origin is None:
            self._origin = means[0]
            self._sum = self._squares = torch.zeros_like(self._origin)
        shifted = means - self._origin
        self._sum = self._sum + shifted.sum(dim=0)
        self._squares = self._squares + shifted.square().sum(dim=0)
        self.rows += len(means)

    def variances(self) -> Tensor:
        """(latent,) float64 variances over the rows so far; empty before the first."""
        if self.rows == 0:
            return self._sum
        return (self._squares / self.rows - (self._sum / self.rows).square()).clamp(min=0)

    def count(self) -> int:
        """Number of active units."""
        return int((self.variances() > self.threshold).sum())


def has_posterior(model: Any) -> bool:
    """Whether the model has a posterior and a prior; those carry the weight ``beta``."""
    return hasattr(model, "beta")


def active_units(
    model: Any, data: Any, batch_size: int = 500, threshold: float = ACTIVE_VARIANCE
) -> int:
    """Number of units whose posterior mean varies by more than ``threshold`` over the rows.

    Args:
        model: a model with a posterior; its ``posterior_mean``, or else ``encode``, gives the mean.
        data: CSRDataset, CSRBatch or scipy CSR matrix.
        batch_size: rows encoded at a time.
        threshold: the variance above which a unit counts.

    Raises:
        ValueError: the model has no posterior, or ``batch_size`` is not positive.

    Example:
        >>> model = models.MultVAE(30, hidden=8, latent=4)
        >>> active_units(model, sv.CSRBatch.from_dense(torch.eye(30)[:1]))
        0
    """
    _need_posterior("active_units", model)
    units = ActiveUnits(threshold)
    with evaluation_mode(model) as device:
        for batch in batches(data, batch_size, device, "active_units"):
            units.update(_means(model, batch))
    return units.count()


def posterior_summary(
    model: Any, data: Any, batch_size: int = 500, *, warn: bool = True
) -> PosteriorSummary:
    """Active units and mean divergence of a model's posterior over some rows.

    The posterior counts as collapsed when no unit is active (no posterior mean varies by more
    than 0.01 over the rows), or when the divergence over the whole code is below 0.01 nats per
    row. Then a :class:`PosteriorCollapseWarning` says so. A smaller ``beta``, a slower annealing
    or free bits are the usual remedies. A few inactive units are no collapse.

    Args:
        model: a model with a posterior.
        data: CSRDataset, CSRBatch or scipy CSR matrix.
        batch_size: rows at a time.
        warn: whether to warn.

    Raises:
        ValueError: the model has no posterior, there are no rows, or ``batch_size`` is not
            positive.

    Example:
        >>> model = models.MultVAE(30, hidden=8, latent=4)
        >>> rows = sv.CSRBatch.from_dense(torch.eye(30))
        >>> posterior_summary(model, rows, warn=False).latent
        4
    """
    _need_posterior("posterior_summary", model)
    units, kl = ActiveUnits(), 0.0
    with evaluation_mode(model) as device:
        for batch in batches(data, batch_size, device, "posterior_summary"):
            units.update(_means(model, batch))
            kl += float(model(batch).kl) * len(batch)
    if units.rows == 0:
        raise ValueError("posterior_summary(): expected at least one row, but got none")
    variances = units.variances()
    summary = PosteriorSummary(units.count(), len(variances), kl / units.rows, variances)
    if warn and summary.collapsed:
        warnings.warn(
            f"the posterior has collapsed: {summary.active} of {summary.latent} units are active "
            f"and the divergence is {summary.kl:.3g} nats per row; a smaller beta, a slower "
            "annealing or free bits may help",
            PosteriorCollapseWarning,
            stacklevel=2,
        )
    return summary


def code_summary(
    model: Any, data: Any, batch_size: int = 500, *, dead_after: int | None = None
) -> dict[str, float]:
    """How the code of a sparse model is used over some rows.

    Args:
        model: its ``encode`` gives codes of which a unit fires where it is above 0.
        data: CSRDataset, CSRBatch or scipy CSR matrix.
        batch_size: rows encoded at a time.
        dead_after: with it, and a model that counts its firing in training (``model.firing``),
            units that were silent for that many training rows are dead. Otherwise the units that
            fire in none of these rows are.

    Returns:
        "l0" (mean number of units that fire in a row; nan without rows), "dead_units" and
        "units".

    Example:
        >>> model = models.MultDAE(30, hidden=8)
        >>> sorted(code_summary(model, sv.CSRBatch.from_dense(torch.eye(30))))
        ['dead_units', 'l0', 'units']
    """
    fired: Tensor | None = None
    entries, rows = 0, 0
    with evaluation_mode(model) as device:
        for batch in batches(data, batch_size, device, "code_summary"):
            code = model.encode(batch)
            if isinstance(code, CSRBatch):
                code = code.to_dense()
            here = (code > 0).sum(dim=0)
            fired = here if fired is None else fired + here
            entries += int(here.sum())
            rows += len(batch)
    counter = getattr(model, "firing", None)
    if dead_after is not None and counter is not None:
        dead = counter.dead(dead_after)
    else:
        dead = fired == 0 if fired is not None else torch.zeros(0, dtype=torch.bool)
    return {
        "l0": entries / rows if rows else math.nan,
        "dead_units": float(dead.sum()),
        "units": float(len(dead)),
    }


def batches(data: Any, batch_size: int, device: Any, op: str) -> Iterator[CSRBatch]:
    """The rows in order, ``batch_size`` at a time, on ``device``."""
    for rows in csr_batches(data, batch_size, op):
        yield rows.to(device)


def _means(model: Any, batch: CSRBatch) -> Tensor:
    # The code of a topic model is a softmax of it.
    return getattr(model, "posterior_mean", model.encode)(batch)


def _need_posterior(op: str, model: Any) -> None:
    if not has_posterior(model):
        raise ValueError(f"{op}(): expected a model with a posterior: {type(model).__name__}")
