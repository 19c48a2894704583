"""The demo: a Mult-VAE on the embedded e-mails, against its baselines and its dense twin."""

from __future__ import annotations

import importlib.util
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import data
from .baselines import evaluate_baselines
from .checkpoint import load_checkpoint
from .compare import compare_with_dense
from .directions import latent_directions
from .history import History
from .metrics import split_fold_in
from .report import metric_cells, metric_header, table
from .runs import load_run, train_run
from .settings import RunSettings
from .strict_json import write_metrics

__all__ = ["DEMO", "demo_text", "run_demo"]

LABEL = "demo"

DEMO = RunSettings(
    data="spam",
    model="mult-vae",
    hidden=200,
    latent=50,
    beta=0.2,
    dropout=0.5,
    epochs=30,
    batch_size=100,
    lr=5e-3,
    optimizer="row-adam",
)


def run_demo(
    out: str | os.PathLike[str],
    *,
    epochs: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool | None = None,
    compare_steps: int = 40,
) -> str:
    """Train, measure, compare; write metrics.json and demo.png to `out`.

    Args:
        out: directory; an earlier demo there is replaced, another run is not.
        epochs: other than the demo's own number.
        seed: of the run.
        overwrite: replace whatever run is there.
        progress: see `fit`.
        compare_steps: timed steps of each model in the comparison.

    Returns:
        The text to print: one table and where the files are.
    """
    out = Path(out)
    started = time.perf_counter()
    settings = replace(DEMO, seed=seed, epochs=epochs if epochs is not None else DEMO.epochs)
    ds = data.read(settings.data)
    result, history = train_run(
        settings,
        out,
        overwrite=overwrite or _is_demo(out),
        progress=progress,
        dataset=ds,
        label=LABEL,
    )
    twins = compare_with_dense(
        settings.data,
        hidden=settings.hidden or 600,
        latent=settings.latent or 200,
        batch_size=settings.batch_size,
        threads=torch.get_num_threads(),
        seed=seed,
        steps=compare_steps,
    )
    result["comparison"] = twins
    figure = _draw(out, settings, ds, result, history)
    result["seconds"] = time.perf_counter() - started
    write_metrics(out / "metrics.json", result)
    return demo_text(result, out, figure)


def _is_demo(out: Path) -> bool:
    """Whether the run in `out` is an earlier demo, which may be replaced, and not somebody's."""
    path = out / "last.pt"
    return path.exists() and load_checkpoint(path)["config"].get("label") == LABEL


def _draw(
    out: Path, settings: RunSettings, ds: Any, result: dict[str, Any], history: History
) -> str:
    """Write the figure; returns its name, or why there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no figure: pip install 'sparsevae_ext[plot]'"
    from .plots import demo_figure

    model, _, _ = load_run(out)
    parts = settings.split(len(ds))
    train = ds.subset(parts.train)
    # The line to compare the curve with: the same rows, split as the run split them.
    valid = split_fold_in(ds.subset(parts.valid), seed=settings.seed)
    popularity = evaluate_baselines(train, *valid)["popularity"]["ndcg@100"]
    facts = result["data"]
    demo_figure(
        history,
        latent_directions(model, train),
        out / "demo.png",
        title=(
            f"Mult-VAE on {facts['rows']:,} e-mails x {facts['columns']:,} words, "
            f"{facts['nnz'] / facts['rows'] / facts['columns']:.1%} of the cells filled"
        ),
        baselines={"popularity": popularity},
    )
    return "demo.png"


def demo_text(result: dict[str, Any], out: Path, figure: str) -> str:
    """What the demo prints at its end, from the content of its metrics.json."""
    twins = result["comparison"]

    def cells(kind: str) -> list[str]:
        twin = twins[kind]
        return [f"{twin['rows_per_s']:,.0f}", f"{twin['peak_memory_mib']:,.0f} MiB"]

    rows = [
        ["Mult-VAE, sparse rows", *metric_cells(result["test"]), *cells("sparse")],
        ["Mult-VAE, dense torch", "-", "-", "-", "-", *cells("dense")],
        ["popularity", *metric_cells(result["baselines"]["popularity"]), "-", "-"],
        ["unigram", *metric_cells(result["baselines"]["unigram"]), "-", "-"],
    ]
    header = [
        f"{result['split']['test']} test rows",
        *metric_header(),
        "rows/s",
        "peak memory",
    ]
    own = [twins[kind]["peak_memory_mib"] - twins[kind]["start_memory_mib"] for kind in twins]
    ratio = twins["sparse"]["rows_per_s"] / twins["dense"]["rows_per_s"]
    return "\n".join(
        [
            "",
            table(header, rows),
            "",
            f"Training step: {ratio:.2f}x the rows/s of dense torch on {result['threads']} "
            f"threads. Memory beyond the imports: {own[0]:,.0f} against {own[1]:,.0f} MiB.",
            f"{result['epochs']} epochs, best {result['best_epoch']}; "
            f"{result['seconds']:.0f} s in all. Written to {out}: metrics.json, {figure}",
        ]
    )
