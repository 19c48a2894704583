"""A run directory: a model, its data, its split and its checkpoints, from settings to metrics."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from .. import data, models
from ..data import CSRDataset
from .baselines import PoissonMean, evaluate_baselines
from .checkpoint import CheckpointError, load_checkpoint
from .fit import fit
from .history import History
from .memory import peak_memory_mib
from .metrics import split_fold_in
from .seed import seed_everything
from .settings import RunSettings
from .strict_json import write_metrics
from .topics import has_topics, topic_summary
from .validation import counts, measure, monitor_of, ranks, warn_of_fractions

__all__ = [
    "evaluate_run",
    "load_run",
    "recommend_run",
    "saved_settings",
    "train_run",
]

#: Codes drawn for each row of the estimate of a marginal likelihood.
MARGINAL_SAMPLES = 20
_OURS = (
    "last.pt",
    "best.pt",
    "metrics.json",
    "history.csv",
    "training.png",
    "topics.png",
    "demo.png",
)


def train_run(
    settings: RunSettings,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    patience: int | None = None,
    checkpoint_every: int = 1,
    stop_after: int | None = None,
    tensorboard: bool = False,
    progress: bool | None = None,
    dataset: CSRDataset | None = None,
    label: str = "",
) -> tuple[dict[str, Any], History]:
    """Train, choose the best epoch, and measure it and the baselines on the test rows.

    Args:
        settings: what to train on what.
        out: the run's directory; made if missing.
        resume: go on from its last.pt.
        overwrite: remove the run that is there (only the files a run writes).
        device: see `fit`, like the following.
        patience: validations without a better NDCG@100 or loss.
        checkpoint_every: epochs between writes of last.pt.
        stop_after: epochs of this call.
        tensorboard: write events.
        progress: True, False, or None for a bar only on a terminal.
        dataset: the data of `settings.data`, where it is in memory already.
        label: kept in the checkpoints' config; tells what kind of run it is.

    Returns:
        The contents of out/metrics.json, and the history.

    Raises:
        ValueError: a bad setting, or a run in `out` and neither resume nor overwrite.
        DataFileError, CheckpointError, NonFiniteLossError, Interrupted: see `data.read` and `fit`.
    """
    out = Path(out)
    present = _refuse_existing(out, resume or overwrite)
    ds = dataset if dataset is not None else read_run_data(settings)
    facts = data_facts(ds)
    model_config = settings.model_config(ds.shape[1], ds.n_batch)
    if resume:
        _refuse_other_data(out, settings, facts)
    parts = settings.split(len(ds))
    train, valid, test = (ds.subset(rows) for rows in parts)
    # The initial weights are part of the run: they come from its seed.
    seed_everything(settings.seed)
    model = models.build(model_config)
    if counts(model):
        warn_of_fractions(train, settings.data)
    config = {
        "label": label,
        "settings": asdict(settings),
        "model": model.config(),
        "data": facts,
    }
    if not resume:
        # Only now: a mistake in the options or the data must not cost the run that was there.
        for name in present:
            (out / name).unlink()
    history = fit(
        model,
        train,
        valid=valid,
        **settings.fit_options(),
        device=device,
        patience=patience,
        out=out,
        resume=resume,
        checkpoint_every=checkpoint_every,
        stop_after=stop_after,
        config=config,
        tensorboard=tensorboard,
        progress=progress,
    )
    result: dict[str, Any] = {
        **config,
        "split": {name: len(rows) for name, rows in parts._asdict().items()},
        "device": device,
        "threads": torch.get_num_threads(),
        "epochs": len(history),
        "stopped": history.stopped,
        "best_epoch": history.best_epoch,
        f"best_valid_{monitor_of(model).name}": history.best_metric,
        "train_rows_per_s": _median([float(row["rows_per_s"]) for row in history.rows]),
        "peak_memory_mib": peak_memory_mib(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    if len(test):
        two = halves_of(model, test, settings.seed)
        result["test"] = measure(
            model, *two, settings.batch_size, dead_after=len(train), n_samples=MARGINAL_SAMPLES
        )
        if ranks(model):
            result["baselines"] = evaluate_baselines(train, *two)
        elif counts(model):
            result["baselines"] = {"poisson mean": {"nll": PoissonMean(train).mean_nll(test)}}
    if has_topics(model):
        # The training found out already whether they are all alike.
        result["topics"] = topic_summary(model, train, warn=False)
    write_metrics(out / "metrics.json", result)
    return result, history


def evaluate_run(
    run: str | os.PathLike[str],
    data_path: str | None = None,
    rows: str = "auto",
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure a run's best epoch; see `validation.measure`.

    Args:
        run: a run's directory (best.pt, else last.pt) or one checkpoint file.
        data_path: other data with the same columns; None is what the run was trained on.
        rows: "test", "valid" or "train" rows of the run's own split, "all" rows, or "auto":
            test rows of the run's own data, all rows of other data.
        device: where to compute.

    Returns:
        The measurements, with what was measured on what: recall@20, recall@50, ndcg@100 and
        perplexity of a model that recommends, otherwise loss, nll, kl and penalty per row, and
        marginal_nll of a model of counts.

    Raises:
        ValueError: data of another width, or no such rows.
        CheckpointError, DataFileError: a file cannot be read.
    """
    model, saved, path = load_run(run, device)
    settings = _settings_in(saved, path)
    ds, source = read_data(saved, path, data_path)
    facts = saved["config"]["data"]
    parts = settings.split(facts["rows"])
    own = (len(ds), int(ds.nnz)) == (facts["rows"], facts["nnz"])
    if rows == "auto":
        rows = "test" if own else "all"
    if rows != "all":
        if not own:
            raise ValueError(
                f"the {rows} rows are known only for the run's own data, "
                f"{facts['rows']} rows with {facts['nnz']} non-zeros; use rows all"
            )
        ds = ds.subset(getattr(parts, rows))
    if len(ds) == 0:
        raise ValueError(f"there are no {rows} rows to evaluate")
    two = halves_of(model, ds, settings.seed)
    dead_after, n_samples = len(parts.train), MARGINAL_SAMPLES
    return {
        "checkpoint": str(path),
        "epoch": saved["epoch"],
        "data": source,
        "rows": rows,
        "n_rows": len(ds),
        **measure(model, *two, settings.batch_size, dead_after=dead_after, n_samples=n_samples),
    }


def recommend_run(
    run: str | os.PathLike[str],
    rows: Sequence[int],
    data_path: str | None = None,
    k: int = 10,
    include_seen: bool = False,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Recommend the `k` best columns for some rows of a data set.

    Args:
        run: a run's directory or checkpoint file.
        rows: row numbers.
        data_path: data with the run's columns; None is what the run was trained on.
        k: how many columns.
        include_seen: also recommend what a row has already.
        device: where to compute.

    Returns:
        One dict per row: row, items (column numbers, best first), scores (logits), and names
        where the data has a vocabulary.

    Raises:
        ValueError: a row or `k` out of range, or data of another width.
        CheckpointError, DataFileError: a file cannot be read.
    """
    model, saved, checkpoint = load_run(run, device)
    ds, path = read_data(saved, checkpoint, data_path)
    if not ranks(model):
        raise ValueError(f"{saved['config']['model']['name']} is no model that recommends")
    for row in rows:
        if not 0 <= row < len(ds):
            raise ValueError(f"row {row} is out of range: {path} has rows 0 to {len(ds) - 1}")
    if not 1 <= k <= ds.shape[1]:
        raise ValueError(f"expected 1 <= k <= {ds.shape[1]} (the number of columns), got {k}")
    model.eval()
    with torch.no_grad():
        scores, items = model.recommend(
            ds.rows(list(rows)).to(device), k, exclude_seen=not include_seen
        )
    result = []
    for row, row_scores, row_items in zip(rows, scores.tolist(), items.tolist(), strict=True):
        # A row that has nearly every column leaves fewer than k to recommend.
        kept = [(i, s) for i, s in zip(row_items, row_scores, strict=True) if s > float("-inf")]
        entry: dict[str, Any] = {
            "row": int(row),
            "items": [item for item, _ in kept],
            "scores": [score for _, score in kept],
        }
        if ds.vocab is not None:
            entry["names"] = [str(ds.vocab[item]) for item, _ in kept]
        result.append(entry)
    return result


def load_run(
    run: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[Any, dict[str, Any], Path]:
    """Build a run's model with its saved weights.

    Args:
        run: a run's directory (best.pt, else last.pt) or one checkpoint file.
        device: where the model goes.

    Returns:
        The model in evaluation mode, the checkpoint's contents, and the checkpoint's path.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    path = Path(run)
    if path.is_dir():
        best = path / "best.pt"
        path = best if best.exists() else path / "last.pt"
    saved = _load(path)
    if "model" not in saved or not isinstance(saved.get("config"), dict):
        raise CheckpointError(f"{path} was not written by fit(): it holds no state of a training")
    if "model" not in saved["config"]:
        # fit() writes what it is given, which may be nothing.
        raise CheckpointError(
            f"{path} does not say how its model was made: load its weights into one made alike, or "
            f'train with `fit(..., config={{"model": model.config()}})`'
        )
    try:
        model = models.build(saved["config"]["model"])
        model.load_state_dict(saved["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} holds no model of this version: {reason}") from error
    return model.to(device).eval(), saved, path


def read_run_data(settings: RunSettings) -> CSRDataset:
    """The data of a run; raises DataFileError when it cannot be read."""
    return data.read(settings.data, batch_key=settings.batch_key, layer=settings.layer)


def data_facts(ds: CSRDataset) -> dict[str, Any]:
    """What tells one data set from another: size, entries, and the names of its batches."""
    facts: dict[str, Any] = {"rows": ds.shape[0], "columns": ds.shape[1], "nnz": int(ds.nnz)}
    if ds.batch_names is not None:
        facts["batches"] = ds.batch_names
    return facts


def read_data(saved: dict[str, Any], checkpoint: Path, path: str | None) -> tuple[CSRDataset, str]:
    """The data at `path`, or what the checkpoint's run was trained on, and where it was read.

    Raises:
        CheckpointError: the checkpoint does not say what its run was.
        ValueError: data of another width, or without the batches that the model knows.
        DataFileError: it cannot be read.
    """
    settings = _settings_in(saved, checkpoint)
    where = path if path is not None else settings.data
    columns = saved["config"]["data"]["columns"]
    # Other data may be of a kind that has no layers.
    layer = settings.layer if where.endswith(".h5ad") else None
    ds = data.read(where, n_cols=columns, batch_key=settings.batch_key, layer=layer)
    _check_width(ds, columns, where)
    if saved["config"]["model"].get("n_batch"):
        try:
            ds = ds.with_batch_names(saved["config"]["data"]["batches"])
        except ValueError as error:
            raise ValueError(f"{where} does not fit the model: {error}") from error
    return ds, where


def saved_settings(out: str | os.PathLike[str]) -> RunSettings:
    """The settings kept in a run's last.pt, for resuming it; raises CheckpointError."""
    path = Path(out) / "last.pt"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: there is no run to resume")
    return _settings_in(_load(path), path)


def _settings_in(saved: dict[str, Any], path: Path) -> RunSettings:
    config = saved.get("config")
    kept = config.get("settings") if isinstance(config, dict) else None
    if kept is None:
        raise CheckpointError(
            f"{path} was not written by `sparsevae train`: it does not say on what and how its "
            "model was trained; load_run() gives the model"
        )
    if kept["model"] == "mult-dae":
        # Earlier versions kept options there that the model does not have.
        kept = {name: value for name, value in kept.items() if name not in ("latent", "beta")}
    known = {field.name for field in fields(RunSettings)}
    return RunSettings(**{name: value for name, value in kept.items() if name in known})


def _refuse_existing(out: Path, allowed: bool) -> list[str]:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a run needs a directory")
    present = [name for name in _OURS if (out / name).exists()]
    if present and not allowed:
        raise ValueError(
            f"{out} already holds a run ({present[0]}); give --resume to go on with it, "
            "--overwrite to replace it, or another --out"
        )
    return present


def _refuse_other_data(out: Path, settings: RunSettings, facts: dict[str, int]) -> None:
    before = _load(out / "last.pt")["config"].get("data")
    if before != facts:
        raise ValueError(
            f"{settings.data} is not the data {out} was trained on: expected {before}, "
            f"but got {facts}"
        )


def halves_of(model: Any, ds: CSRDataset, seed: int) -> tuple[Any, Any]:
    """What `measure` takes: two parts of every row to rank with, else whole rows."""
    return split_fold_in(ds, seed=seed) if ranks(model) else (ds, None)


def _check_width(ds: CSRDataset, columns: int, path: str) -> None:
    if ds.shape[1] != columns:
        raise ValueError(
            f"{path} has {ds.shape[1]} columns, but the model was trained on {columns}"
        )


def _load(path: Path) -> dict[str, Any]:
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        other = path.with_name("last.pt" if path.name == "best.pt" else "best.pt")
        try:
            epoch = load_checkpoint(other)["epoch"] if other != path else None
        except (CheckpointError, KeyError):
            epoch = None
        if epoch is None:
            raise
        hint = f"; {other} (epoch {epoch}) is intact"
        if path.name == "last.pt":
            hint += f", copy it to {path} to go on from there"
        raise CheckpointError(f"{error}{hint}") from error


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0
