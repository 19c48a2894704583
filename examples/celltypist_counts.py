"""A variational autoencoder for single-cell counts, against the mean of the training cells.

    pip install --no-deps celltypist
    python examples/celltypist_counts.py [--epochs 60] [--figure latent.png] [--json results.json]

CountVAE learns from the 559 cells of human immune tissue that the package celltypist holds as a
sample, raw counts of 32,786 genes. What it gives to cells that it was not trained on is compared
with the likelihood of Poisson counts whose means are the training cells' gene shares times the
cell's total, which both are told. The figure shows the codes of all cells, coloured by the marker
genes that stand out in each: the file has no annotation, and the model sees neither.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

import sparsevae_ext as sv
from sparsevae_ext.train import fit, seed_everything, split_rows
from sparsevae_ext.train.baselines import PoissonMean
from sparsevae_ext.train.validation import measure

SAMPLE = ("data", "samples", "sample_cell_by_gene.csv")
#: Genes that tell the large groups of immune cells apart.
MARKERS = {
    "T cells": ("CD3D", "CD3E", "TRAC", "IL7R"),
    "B cells": ("MS4A1", "CD79A", "CD79B", "CD19"),
    "plasma cells": ("MZB1", "JCHAIN", "IGJ", "SDC1", "DERL3"),
    "NK cells": ("GNLY", "NKG7", "KLRD1", "NCAM1", "KLRF1"),
    "myeloid cells": ("LYZ", "CST3", "CD14", "FCER1A", "S100A8", "C1QA"),
    "mast cells": ("TPSAB1", "CPA3", "TPSB2"),
}


# ---- the data ------------------------------------------------------------------------------


def sample_path() -> Path:
    """Where the installed package keeps its sample; it is not imported, for it needs much."""
    spec = importlib.util.find_spec("celltypist")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "the counts are in the package celltypist: pip install --no-deps celltypist"
        )
    return Path(spec.submodule_search_locations[0]).joinpath(*SAMPLE)


def read_csv(path: Path) -> tuple[sp.csr_matrix, list[str]]:
    """The counts of a table of cells by genes, a line at a time, and the genes' names."""
    columns, values, ends = [], [], [0]
    with open(path, encoding="utf-8") as file:
        genes = [name.strip('"') for name in file.readline().rstrip("\n").split(",")[1:]]
        for line in file:
            row = np.fromstring(line.partition(",")[2], dtype=np.float32, sep=",")
            if len(row) != len(genes):
                raise SystemExit(f"{path}: a line of {len(row)} counts for {len(genes)} genes")
            found = np.flatnonzero(row)
            columns.append(found)
            values.append(row[found])
            ends.append(ends[-1] + len(found))
    shape = (len(ends) - 1, len(genes))
    matrix = sp.csr_matrix((np.concatenate(values), np.concatenate(columns), ends), shape=shape)
    return matrix, genes


def frequent(matrix: sp.csr_matrix, genes: list[str], least: int) -> tuple[Any, list[str]]:
    """The genes found in at least ``least`` cells."""
    kept = np.flatnonzero(np.bincount(matrix.indices, minlength=matrix.shape[1]) >= least)
    return matrix[:, kept].tocsr(), [genes[gene] for gene in kept]


def marked(matrix: sp.csr_matrix, genes: list[str]) -> np.ndarray:
    """For each cell the group whose marker genes stand out most, by name; "other" if none does.

    A gene's log(1 + counts per 10,000) is compared with its mean and deviation over all cells.
    """
    totals = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1.0)
    place = {gene: column for column, gene in enumerate(genes)}
    names, scores = ["other"], [np.full(matrix.shape[0], 0.5)]
    for name, markers in MARKERS.items():
        columns = [place[gene] for gene in markers if gene in place]
        if columns:
            level = np.log1p(matrix[:, columns].toarray() / totals[:, None] * 1e4)
            level = (level - level.mean(axis=0)) / (level.std(axis=0) + 1e-9)
            names.append(name)
            scores.append(level.mean(axis=1))
    return np.array(names)[np.argmax(scores, axis=0)]


# ---- the whole -----------------------------------------------------------------------------


def run(
    matrix: sp.csr_matrix,
    genes: list[str],
    *,
    epochs: int = 60,
    hidden: int = 128,
    latent: int = 10,
    likelihood: str = "nb",
    batch_size: int = 64,
    lr: float = 3e-3,
    least: int = 3,
    n_samples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Train and measure; returns numbers, and the codes and groups of all cells."""
    started = time.perf_counter()
    matrix, genes = frequent(matrix, genes, least)
    data = sv.data.CSRDataset(matrix, vocab=genes)
    parts = split_rows(len(data), 0.1, 0.2, seed)
    train, valid, test = (data.subset(rows) for rows in parts)
    seed_everything(seed)
    model = sv.models.CountVAE(len(genes), hidden, latent, likelihood=likelihood)
    history = fit(
        model,
        train,
        valid=valid,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        valid_every=2,
        progress=None,
    )
    found = measure(model, test, None, batch_size, n_samples=n_samples)
    baseline = PoissonMean(train).mean_nll(test)
    results = {
        "cells": len(data),
        "genes": len(genes),
        "density": matrix.nnz / (matrix.shape[0] * matrix.shape[1]),
        "rows": {name: len(rows) for name, rows in parts._asdict().items()},
        "likelihood": likelihood,
        "epochs": len(history),
        "best_epoch": history.best_epoch,
        "loss_first_epoch": float(history.rows[0]["loss"]),
        "loss_last_epoch": float(history.rows[-1]["loss"]),
        "test": found,
        "poisson_mean_nll": baseline,
        "nats_won_per_cell": baseline - found["marginal_nll"],
        "cells_per_s": float(np.median([row["rows_per_s"] for row in history.rows])),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "seconds": time.perf_counter() - started,
    }
    codes = model.get_latent(data).numpy()
    return {"results": results, "codes": codes, "groups": marked(matrix, genes)}


def text(results: dict[str, Any]) -> str:
    """The table to print."""
    test = results["test"]
    return "\n".join(
        [
            f"{results['cells']:,} cells x {results['genes']:,} genes, "
            f"{results['density']:.1%} of the counts are not 0",
            "",
            f"nats per cell, {results['rows']['test']} cells not trained on",
            f"  Poisson mean of the training cells      {results['poisson_mean_nll']:>11,.1f}",
            f"  CountVAE ({results['likelihood']}), marginal likelihood    "
            f"{test['marginal_nll']:>11,.1f}",
            f"    reconstruction {test['nll']:,.1f}, divergence {test['kl']:.1f}, "
            f"{test['active_units']:.0f} units active",
            "",
            f"{results['epochs']} epochs (best {results['best_epoch']}), "
            f"{results['cells_per_s']:,.0f} cells/s, {results['seconds']:.0f} s on "
            f"{results['threads']} threads",
        ]
    )


def draw(outcome: dict[str, Any], path: Path) -> None:
    """The figure: the codes in their two main directions, by group."""
    from sparsevae_ext.train.plots import canvas

    colours = ("#9aa3ad", "#2f6db3", "#d9762b", "#3a9b6a", "#b3497c", "#7a5cc0", "#c2a12b")
    codes = outcome["codes"] - outcome["codes"].mean(axis=0)
    plane = codes @ np.linalg.svd(codes, full_matrices=False)[2][:2].T
    with canvas(figsize=(7.2, 5.4)) as (figure, save):
        axes = figure.subplots()
        for name, colour in zip(("other", *MARKERS), colours, strict=True):
            chosen = outcome["groups"] == name
            if chosen.any():
                label = f"{name} ({chosen.sum()})"
                axes.scatter(*plane[chosen].T, s=16, color=colour, linewidths=0, label=label)
        axes.legend(frameon=False, markerscale=1.6)
        axes.set_title("CountVAE codes of single cells, by marker genes")
        axes.set_xlabel("first main direction")
        axes.set_ylabel("second")
        save(path)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="a table of cells by genes in place of the sample")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--likelihood", choices=("nb", "zinb", "poisson"), default="nb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--figure", type=Path, help="write the figure here")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    matrix, genes = read_csv(arguments.csv or sample_path())
    outcome = run(
        matrix,
        genes,
        epochs=arguments.epochs,
        likelihood=arguments.likelihood,
        seed=arguments.seed,
    )
    print(text(outcome["results"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(outcome["results"], indent=2) + "\n")
    if arguments.figure:
        draw(outcome, arguments.figure)


if __name__ == "__main__":
    main()
