"""The commands of `sparsevae`: from parsed options to printed results; the work is in `train`."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from .values import UsageError

__all__ = ["convert", "demo", "evaluate", "info", "recommend", "sample", "search", "train"]


def _prepare_machine(arguments: argparse.Namespace) -> str:
    import torch

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    name = str(getattr(arguments, "device", "cpu"))
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device: expected cpu, cuda, cuda:N or auto, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device: expected cpu, cuda, cuda:N or auto, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device: {name} is not available here; this torch sees no such GPU")
    return name


def train(arguments: argparse.Namespace) -> None:
    """Train a run, or go on with one."""
    from ..train import RunSettings, plots, report, saved_settings, train_run

    device = _prepare_machine(arguments)
    names = RunSettings.__dataclass_fields__
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if "data" in given:
        given["data"] = _stable_path(given["data"])
    if arguments.resume:
        settings = saved_settings(arguments.out)
        kept = {name: getattr(settings, name) for name in names}
        for name, value in given.items():
            # The data may have moved; that it is the same is checked by its contents.
            if name not in ("epochs", "data") and value != kept[name]:
                option = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{option} {value} differs from the {kept[name]} of the run in "
                    f"{arguments.out}; a resumed run keeps it"
                )
        settings = RunSettings(**(kept | given))
    elif "data" not in given:
        raise UsageError("the option --data is required (unless --resume is given)")
    else:
        settings = RunSettings(**given)
    if arguments.plot:
        plots.require_matplotlib()
    result, history = train_run(
        settings,
        arguments.out,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        device=device,
        patience=arguments.patience,
        checkpoint_every=arguments.checkpoint_every,
        stop_after=arguments.stop_after,
        tensorboard=arguments.tensorboard,
        progress=False if arguments.no_progress else None,
    )
    if arguments.plot:
        plots.training_figure(history, Path(arguments.out) / "training.png")
        if "topics" in result:
            plots.topics_figure(result["topics"], Path(arguments.out) / "topics.png")
    print(report.run_report(result, arguments.out))


def search(arguments: argparse.Namespace) -> None:
    """Try settings on held-out rows, or go on with that."""
    from ..train import RunSettings, SearchSettings, plots, run_search, saved_search
    from ..train.search_report import search_figure, search_report

    device = _prepare_machine(arguments)
    run, own = vars(arguments), ("latent", "beta", "folds", "patience")
    given = {
        name: run[name]
        for name in RunSettings.__dataclass_fields__
        if name not in own and run.get(name) is not None
    }
    axes = {name: run[name] for name in own if run[name] is not None}
    if "data" in given:
        given["data"] = _stable_path(given["data"])
    if arguments.resume:
        settings = saved_search(arguments.out)
        settings = replace(settings, run=replace(settings.run, **given), **axes)
    elif "data" not in given:
        raise UsageError("the option --data is required (unless --resume is given)")
    else:
        settings = SearchSettings(RunSettings(**given), **axes)
    if arguments.plot:
        plots.require_matplotlib()
    result = run_search(
        settings,
        arguments.out,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        device=device,
        progress=False if arguments.no_progress else None,
    )
    if arguments.plot:
        search_figure(result, Path(arguments.out) / "search.png")
    print(search_report(result, arguments.out))


def _stable_path(path: str) -> str:
    # A run is evaluated and resumed from other working directories too.
    return path if path == "spam" else os.path.abspath(path)


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure a run."""
    from ..train import evaluate_run, report
    from ..train.strict_json import strict_json

    device = _prepare_machine(arguments)
    result = evaluate_run(arguments.checkpoint, arguments.data, arguments.rows, device)
    if arguments.json:
        print(strict_json(result))
    else:
        print(report.evaluation_report(result))


def recommend(arguments: argparse.Namespace) -> None:
    """Print the best columns for some rows."""
    from ..train import recommend_run, report
    from ..train.strict_json import strict_json

    device = _prepare_machine(arguments)
    result = recommend_run(
        arguments.checkpoint,
        arguments.rows,
        arguments.data,
        k=arguments.k,
        include_seen=arguments.include_seen,
        device=device,
    )
    if arguments.json:
        print(strict_json(result))
    else:
        print(report.recommendation_report(result))


def sample(arguments: argparse.Namespace) -> None:
    """Write rows drawn from a run and print how sparse they are beside the data."""
    from ..train import plots, sample_run
    from ..train.strict_json import strict_json

    device = _prepare_machine(arguments)
    if arguments.plot:
        plots.require_matplotlib()
    rows, report, _ = sample_run(
        arguments.checkpoint,
        arguments.out,
        arguments.n,
        arguments.data,
        length=arguments.length,
        density=arguments.density,
        imitate=arguments.imitate,
        temperature=arguments.temperature,
        seed=arguments.seed,
        device=device,
    )
    if arguments.plot:
        plots.sparsity_figure(report, arguments.plot, title=f"{len(rows):,} generated rows")
    if arguments.json:
        print(strict_json(report.to_dict()))
    else:
        print(f"{report}\n\nwritten to {arguments.out}")


def convert(arguments: argparse.Namespace) -> None:
    """Write data as a folder of memory-mapped arrays."""
    from .. import data

    folder = Path(arguments.folder)
    if folder.exists() and not arguments.overwrite:
        raise UsageError(f"{folder} exists already; give --overwrite to replace it")
    if folder.exists() and not (folder / "meta.json").is_file():
        raise UsageError(f"{folder} is not a converted data set; it is left alone")
    options = {"batch_key": arguments.batch_key, "layer": arguments.layer}
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    if arguments.file.endswith(".h5ad"):
        # A range of rows at a time: the file may be larger than memory.
        with data.open_h5ad(arguments.file, **options) as matrix:
            ds = data.write_folder(matrix, folder, overwrite=arguments.overwrite)
    else:
        ds = data.read(arguments.file, **options)
        data.write_folder(ds, folder, overwrite=arguments.overwrite)
    print(f"{folder}: {ds.shape[0]:,} rows x {ds.shape[1]:,} columns, {int(ds.nnz):,} non-zeros")


def info(arguments: argparse.Namespace) -> None:
    """Print how the package was built."""
    import importlib

    module = importlib.import_module("sparsevae_ext.info")
    module.main(["--json"] if arguments.json else [])


def demo(arguments: argparse.Namespace) -> None:
    """Train, measure and compare on the embedded e-mails."""
    from ..train.demo import run_demo

    _prepare_machine(arguments)
    print(
        run_demo(
            arguments.out,
            epochs=arguments.epochs,
            seed=arguments.seed,
            overwrite=arguments.overwrite,
            progress=False if arguments.no_progress else None,
        )
    )
