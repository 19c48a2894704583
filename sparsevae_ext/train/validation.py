"""What is measured of a model on rows it was not trained on, and which number decides."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch

from ..data import CSRDataset
from ..models import ExpressionModel
from .codes import (
    PosteriorCollapseWarning,
    active_units,
    batches,
    code_summary,
    has_posterior,
)
from .history import History
from .metrics import as_scipy, evaluate, evaluation_mode
from .topics import diversity_of, has_topics, warn_of_equal_topics

__all__ = [
    "KEPT",
    "Monitor",
    "counts",
    "measure",
    "monitor_of",
    "ranks",
    "warn_of_collapse",
    "warn_of_fractions",
]

# Rows that are looked at for a value that is no count.
_LOOKED_AT = 1000

#: Measurements that the history of a run keeps, with "valid_" before their names.
KEPT = (
    "recall@20",
    "recall@50",
    "ndcg@100",
    "perplexity",
    "loss",
    "nll",
    "kl",
    "penalty",
    "active_units",
    "l0",
    "dead_units",
    "topic_diversity",
)


class Monitor(NamedTuple):
    """The measurement that chooses the best epoch.

    Attributes:
        name: of the measurement.
        rises: whether a larger value is better.
    """

    name: str
    rises: bool

    def better(self, value: float, best: float | None) -> bool:
        """Whether ``value`` beats ``best``; nan never does."""
        if best is None:
            return value == value
        return value > best if self.rises else value < best


def ranks(model: Any) -> bool:
    """Whether the model recommends; then it is measured by how it ranks held-out entries."""
    return hasattr(model, "recommend") and hasattr(model, "row_nll")


def counts(model: Any) -> bool:
    """Whether the model is one of counts, and so compared with the mean counts."""
    return isinstance(model, ExpressionModel)


def monitor_of(model: Any) -> Monitor:
    """What the model itself names, else NDCG@100 if it recommends, and the loss if it does not."""
    named = getattr(model, "monitor", None)
    if named is not None:
        return Monitor(named, named.startswith(("ndcg", "recall")))
    return Monitor("ndcg@100", True) if ranks(model) else Monitor("loss", False)


def measure(
    model: Any,
    fold_in: Any,
    held_out: Any,
    batch_size: int,
    *,
    dead_after: int | None = None,
    n_samples: int = 0,
) -> dict[str, float]:
    """Measures a model by what it is for.

    A model that recommends ranks the held-out part of every row given its fold-in part
    (`metrics.evaluate`). Any other model reconstructs the whole rows, which the two parts add up
    to: the means over rows of its loss and of the parts of it, in evaluation mode. A model with a
    posterior gets its active units counted besides, one with a firing counter the mean number of
    units that fire (l0) and the dead ones, and one with topics how far they differ.

    Args:
        model: in any mode.
        fold_in: (rows, N) scipy CSR matrix, CSRBatch or CSRDataset.
        held_out: the same shape; None where ``fold_in`` holds the whole rows, which then keep the
            experimental batch they carry. A model that recommends needs it.
        batch_size: rows at a time.
        dead_after: training rows of silence that make a unit dead.
        n_samples: with it, a model that estimates its marginal likelihood does so with as many
            codes for each row ("marginal_nll"). The draws are the same at every call.

    Returns:
        The measurements by name.
    """
    if held_out is not None:
        fold_in, held_out = as_scipy(fold_in, "measure"), as_scipy(held_out, "measure")
    if ranks(model):
        result = evaluate(model, fold_in, held_out, batch_size=batch_size)
        seen = fold_in
    else:
        seen = fold_in if held_out is None else (fold_in + held_out).tocsr()
        result = _reconstruction(model, seen, batch_size)
    if n_samples and hasattr(model, "marginal_nll"):
        with evaluation_mode(model) as device:
            source = torch.Generator(device).manual_seed(0)
            nll = model.marginal_nll(seen, n_samples, generator=source)
        result["marginal_nll"] = float(nll.mean())
    if has_posterior(model):
        result["active_units"] = float(active_units(model, seen, batch_size))
    if getattr(model, "firing", None) is not None:
        use = code_summary(model, seen, batch_size, dead_after=dead_after)
        result |= {name: use[name] for name in ("l0", "dead_units")}
    if has_topics(model):
        result["topic_diversity"] = diversity_of(model)
    return result


def warn_of_collapse(history: History, topics: int = 0) -> None:
    """Warns when the run's last validation found no active unit, or topics that are all alike."""
    epochs, active = history.column("valid_active_units")
    if active and active[-1] == 0:
        warnings.warn(
            f"the posterior has collapsed: no unit of the code is active after epoch "
            f"{epochs[-1]}; a smaller beta, a slower annealing or free bits may help",
            PosteriorCollapseWarning,
            stacklevel=4,
        )
    _, diversity = history.column("valid_topic_diversity")
    if diversity:
        warn_of_equal_topics(diversity[-1], topics, stacklevel=5)


def warn_of_fractions(train: CSRDataset, path: str) -> None:
    """Warns when the first rows are no whole numbers: then they are no counts any more."""
    values = train.rows(slice(0, _LOOKED_AT)).values
    if bool((values != values.round()).any()):
        warnings.warn(
            f"{path} holds values that are not whole numbers, but a model of counts expects raw "
            "counts; an .h5ad file may have them in a layer or in raw",
            stacklevel=3,
        )


def _reconstruction(model: Any, rows: Any, batch_size: int) -> dict[str, float]:
    names = ("loss", "nll", "kl", "penalty")
    sums = dict.fromkeys(names, 0.0)
    with evaluation_mode(model) as device:
        for batch in batches(rows, batch_size, device, "measure"):
            output = model(batch)
            for name in names:
                sums[name] += float(getattr(output, name)) * len(batch)
    n = rows.shape[0]
    return {name: total / n if n else float("nan") for name, total in sums.items()}
