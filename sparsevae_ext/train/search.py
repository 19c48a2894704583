"""Trying settings on held-out rows: a grid, k folds, a table, results that survive an interruption."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import models
from ..data import CSRDataset
from .checkpoint import CheckpointError
from .codes import PosteriorCollapseWarning
from .fit import fit
from .interrupts import Interrupted
from .loop import NonFiniteLossError
from .runs import data_facts, halves_of, read_run_data
from .seed import seed_everything
from .settings import RunSettings
from .split import split_rows
from .strict_json import write_metrics
from .topics import ComponentCollapseWarning
from .validation import Monitor, has_posterior, measure, monitor_of

__all__ = ["SearchSettings", "k_folds", "run_search", "saved_search"]

#: What a search writes.
RESULTS, FIGURE = "search.json", "search.png"
#: The settings that a search can try several values of.
AXES = ("latent", "beta")


@dataclass(frozen=True)
class SearchSettings:
    """What defines a search; kept in its results.

    Args:
        run: what all runs have in common; its width of the code and beta are not used.
        latent: sizes of the code to try: the ``latent`` of mult-vae and vae, the ``topics`` of
            topic-vae, the ``hidden`` of the others. Empty leaves it to the model.
        beta: weights of the divergence to try; empty leaves it to the model.
        folds: parts of the rows, each held out once.
        patience: validations without a better one before a run stops; None never stops early.

    Raises:
        ValueError: fewer than two folds, a value twice, or one that the model does not take.
    """

    run: RunSettings
    latent: tuple[int, ...] = ()
    beta: tuple[float, ...] = ()
    folds: int = 3
    patience: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "latent", tuple(self.latent))
        object.__setattr__(self, "beta", tuple(float(value) for value in self.beta))
        if self.folds < 2:
            raise ValueError(f"search(): expected folds >= 2, but got {self.folds}")
        for axis in AXES:
            values = getattr(self, axis)
            if len(set(values)) < len(values):
                raise ValueError(f"search(): expected each {axis} once, but got {list(values)}")
        if not (self.latent or self.beta):
            raise ValueError("search(): expected values of --latent or --beta to try, but got none")
        # Before any data is read: a model that has no beta refuses it here.
        for point in self.points():
            self.settings(point)

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> SearchSettings:
        """The settings from what ``dataclasses.asdict`` and JSON made of them."""
        return cls(**{**kept, "run": RunSettings(**kept["run"])})

    def points(self) -> list[dict[str, Any]]:
        """The grid, in the order in which it is tried."""
        axes = {axis: getattr(self, axis) for axis in AXES if getattr(self, axis)}
        return [
            dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
        ]

    def settings(self, point: dict[str, Any]) -> RunSettings:
        """The settings of the runs at a point of the grid."""
        changes: dict[str, Any] = {}
        if "latent" in point:
            changes[self.run.code_option()] = point["latent"]
        if "beta" in point:
            changes["beta"] = point["beta"]
        return replace(self.run, **changes)


def k_folds(rows: NDArray[np.int64], folds: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Deals rows into parts at random; a function of its arguments alone.

    Args:
        rows: row numbers.
        folds: how many parts; their lengths differ by one at most.
        seed: of the permutation.

    Returns:
        The parts, each ascending; together they are all rows, once.

    Raises:
        ValueError: fewer than two parts, or fewer rows than parts.

    Example:
        >>> [part.tolist() for part in k_folds(np.arange(5), 2)]
        [[2, 3, 4], [0, 1]]
    """
    if not 2 <= folds <= len(rows):
        raise ValueError(
            f"k_folds(): expected from 2 folds to one of each of {len(rows)} rows, but got {folds}"
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(rows)
    return [np.sort(part) for part in np.array_split(order, folds)]


def run_search(
    search: SearchSettings,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    progress: bool | None = None,
    dataset: CSRDataset | None = None,
) -> dict[str, Any]:
    """Trains a model at every point of the grid on every fold, and measures it on the rows left out.

    The rows are those that ``train`` with the same seed and ``test_fraction`` does not test on: a
    model trained with what is found here still has test rows that nobody has looked at. Within a
    run the best epoch is chosen as in ``fit``. Runs are compared by NDCG@100 of a model that
    recommends, by the perplexity of held-out words of a topic model, and otherwise by the held-out
    nll + kl, the bound on the likelihood whatever the weight of the divergence in training.

    A run whose loss becomes non-finite counts as failed, and its point with it.

    Args:
        search: what to try on what.
        out: a directory; after every run its search.json holds all that is known, written
            atomically.
        resume: skip the runs that are in search.json. The grid may have grown; all else has to be
            as it was.
        overwrite: replace the search that is there.
        device: where to train.
        progress: False prints nothing; otherwise a line for each run.
        dataset: the data of the settings, where it is in memory already.

    Returns:
        The contents of search.json: "search" (the settings), "data", "objective" (its name and
        whether it rises), "runs", "table" (for each point the mean and the standard deviation over
        the folds, best first) and "best" (the first of them).

    Raises:
        ValueError: a bad setting, another search in ``out``, or data that differs from what was
            searched before.
        DataFileError, CheckpointError, Interrupted: see ``train_run``.
    """
    out = Path(out)
    before = _before(out, search, resume, overwrite)
    ds = dataset if dataset is not None else read_run_data(search.run)
    facts = data_facts(ds)
    if before is not None and before["data"] != facts:
        raise ValueError(
            f"{search.run.data} is not the data of the search in {out}: expected "
            f"{before['data']}, but got {facts}"
        )
    pool = split_rows(len(ds), 0.0, search.run.test_fraction, search.run.seed).train
    folds = k_folds(pool, search.folds, search.run.seed)
    points = search.points()
    config = search.settings(points[0]).model_config(ds.shape[1], ds.n_batch)
    objective = objective_of(models.build(config))
    result: dict[str, Any] = {
        "search": asdict(search),
        "data": facts,
        "objective": objective._asdict(),
        "runs": [] if before is None else _wanted(before["runs"], points, search.folds),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / RESULTS
    _write(path, result, points)
    log = _Log(progress, len(points) * search.folds, len(result["runs"]), objective.name)
    try:
        # Fold by fold: after the first, every point has been tried once.
        for fold, point in itertools.product(range(search.folds), points):
            if _find(result["runs"], point, fold) is not None:
                continue
            started = time.perf_counter()
            run = _one_run(search, point, ds, pool, folds[fold], device, objective)
            run = {**point, "fold": fold, **run, "seconds": time.perf_counter() - started}
            result["runs"].append(run)
            _write(path, result, points)
            log.run(point, run, search.folds)
    except Interrupted as interrupted:
        interrupted.saved = str(path)
        raise
    return result


def objective_of(model: Any) -> Monitor:
    """What points of a grid are compared by: comparable whatever the weight of the divergence."""
    monitor = monitor_of(model)
    if monitor.name != "loss":
        return monitor
    return Monitor("nll + kl" if has_posterior(model) else "nll", False)


def saved_search(out: str | os.PathLike[str]) -> SearchSettings:
    """The settings kept in a search's results, for resuming it; raises CheckpointError."""
    path = Path(out) / RESULTS
    try:
        return SearchSettings.from_dict(_read(path)["search"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} was not written by this version: {error}") from error


def _one_run(
    search: SearchSettings,
    point: dict[str, Any],
    ds: CSRDataset,
    pool: NDArray[np.int64],
    held: NDArray[np.int64],
    device: str,
    objective: Monitor,
) -> dict[str, Any]:
    settings = search.settings(point)
    train = ds.subset(np.setdiff1d(pool, held, assume_unique=True))
    seed_everything(settings.seed)
    model = models.build(settings.model_config(ds.shape[1], ds.n_batch))
    valid = halves_of(model, ds.subset(held), settings.seed)
    try:
        with warnings.catch_warnings():
            # Some corners of a grid are meant to be bad; the metrics show it.
            warnings.simplefilter("ignore", PosteriorCollapseWarning)
            warnings.simplefilter("ignore", ComponentCollapseWarning)
            history = fit(
                model,
                train,
                valid=valid,
                **settings.fit_options(),
                device=device,
                patience=search.patience,
                progress=False,
            )
    except NonFiniteLossError as error:
        return {"objective": None, "failed": str(error)}
    # The best epoch's weights are back.
    metrics = measure(model, *valid, settings.batch_size, dead_after=len(train))
    parts = (metrics.get("nll", 0.0), metrics.get("kl", 0.0))
    value = metrics.get(objective.name, sum(parts))
    return {
        "objective": value,
        "metrics": metrics,
        "epochs": len(history),
        "best_epoch": history.best_epoch,
    }


def _table(
    runs: list[dict[str, Any]], points: list[dict[str, Any]], rises: bool
) -> list[dict[str, Any]]:
    """Mean and deviation of every point that has been tried, the best first, failed ones last."""
    rows = []
    for point in points:
        tried = [run for run in runs if _at(run, point)]
        values = [run["objective"] for run in tried]
        if not values:
            continue
        failed = sum(value is None or not math.isfinite(value) for value in values)
        whole = failed == 0
        rows.append(
            {
                **point,
                "mean": mean(values) if whole else None,
                "std": stdev(values) if whole and len(values) > 1 else None,
                "folds": len(values),
                "failed": failed,
            }
        )
    sign = -1.0 if rises else 1.0
    rows.sort(key=lambda row: math.inf if row["mean"] is None else sign * row["mean"])
    return rows


def _write(path: Path, result: dict[str, Any], points: list[dict[str, Any]]) -> None:
    result["table"] = _table(result["runs"], points, result["objective"]["rises"])
    good = [row for row in result["table"] if row["mean"] is not None]
    result["best"] = good[0] if good else None
    write_metrics(path, result)


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: there is no search to resume")
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(result, dict) or not {"search", "data", "runs"} <= result.keys():
        raise CheckpointError(f"{path} holds no search")
    return result


def _before(
    out: Path, search: SearchSettings, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    """The results to go on from, if any; refuses those of another search."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a search needs a directory")
    path = out / RESULTS
    if not resume:
        if path.exists() and not overwrite:
            raise ValueError(
                f"{out} already holds a search; give --resume to go on with it, --overwrite to "
                "replace it, or another --out"
            )
        return None
    result, kept = _read(path), saved_search(out)
    # The data may have moved; that it is the same is checked by its contents.
    now = asdict(replace(search, run=replace(search.run, data=kept.run.data)))
    was = asdict(kept)
    for name in ("folds", "patience", "run"):
        if now[name] != was[name]:
            parts = [(name, was[name], now[name])]
            if name == "run":
                parts = [(key, value, now["run"][key]) for key, value in was["run"].items()]
            key, old, new = next(part for part in parts if part[1] != part[2])
            raise ValueError(
                f"the search in {out} was made with {key} {old}, but got {new}; a resumed search "
                "keeps it"
            )
    return result


def _wanted(
    runs: list[dict[str, Any]], points: list[dict[str, Any]], folds: int
) -> list[dict[str, Any]]:
    """The finished runs that belong to the grid."""
    places = itertools.product(points, range(folds))
    found = (_find(runs, point, fold) for point, fold in places)
    return [run for run in found if run is not None]


def _find(runs: list[dict[str, Any]], point: dict[str, Any], fold: int) -> dict[str, Any] | None:
    return next((run for run in runs if run["fold"] == fold and _at(run, point)), None)


def _at(run: dict[str, Any], point: dict[str, Any]) -> bool:
    return {axis: run[axis] for axis in AXES if axis in run} == point


class _Log:
    """A line for each run, with the time that is left."""

    def __init__(self, show: bool | None, total: int, done: int, objective: str) -> None:
        self._show = show is not False
        self._total, self._done = total, done
        self._objective = objective
        self._times: list[float] = []
        if self._show and done:
            self._line(f"{done} of {total} runs were done before")

    def run(self, point: dict[str, Any], run: dict[str, Any], folds: int) -> None:
        self._done += 1
        self._times.append(run["seconds"])
        value = run["objective"]
        said = "failed" if value is None else f"{self._objective} {value:.5g}"
        left = mean(self._times) * (self._total - self._done)
        names = "  ".join(f"{axis} {point[axis]:g}" for axis in point)
        width = len(str(self._total))
        self._line(
            f"run {self._done:>{width}}/{self._total}  {names}  fold {run['fold'] + 1}/{folds}  "
            f"{said}  {run['seconds']:.1f} s" + (f", {_duration(left)} left" if left else "")
        )

    def _line(self, text: str) -> None:
        if self._show:
            print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
