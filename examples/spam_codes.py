"""What codes learned without labels know: a linear probe tells spam from ham.

    python examples/spam_codes.py [--epochs 10] [--figure docs/spam_codes.png] [--json results.json]

A variational and several sparse autoencoders learn from the words of the embedded e-mails, whether
a word occurs or not, and never see a label. Then a logistic regression on their codes is compared
with one on the words themselves. All of it is measured on rows that neither the autoencoders nor
the regressions were trained on.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.optimize import minimize
from scipy.special import expit

import sparsevae_ext as sv
from sparsevae_ext.train import (
    ExplainedVariance,
    code_summary,
    fit,
    posterior_summary,
    seed_everything,
    split_rows,
)

LAMBDAS = (0.0, 0.03, 0.1, 0.3, 0.6)
PENALTIES = (1e-4, 1e-3, 1e-2)


# ---- the probe -----------------------------------------------------------------------------


def fit_logistic(x: Any, y: np.ndarray, penalty: float) -> np.ndarray:
    """Weights and bias of the logistic regression with the lowest penalised mean loss.

    mean log(1 + exp(-s_i (x_i w + b))) + penalty / 2 |w|^2, s_i = +-1, by L-BFGS.
    """
    sign = 2.0 * y - 1.0

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ weights[:-1] + weights[-1])
        value = np.logaddexp(0.0, -margin).mean() + penalty / 2 * weights[:-1] @ weights[:-1]
        slope = -sign * expit(-margin) / len(y)
        return value, np.append(x.T @ slope + penalty * weights[:-1], slope.sum())

    start = np.zeros(x.shape[1] + 1)
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x


def accuracy(x: Any, y: np.ndarray, weights: np.ndarray) -> float:
    """Share of the rows on the right side."""
    return float(((x @ weights[:-1] + weights[-1] > 0) == (y == 1)).mean())


def probe(x: Any, y: np.ndarray, parts: dict[str, np.ndarray]) -> dict[str, float]:
    """Accuracy on the test rows; the penalty is the one that does best on the validation rows."""
    # Columns of equal scale, so that one penalty fits all; without centring, zeros stay zeros.
    x = sp.csr_matrix(x, dtype=np.float64) if sp.issparse(x) else np.asarray(x, np.float64)
    square = x.multiply(x) if sp.issparse(x) else x * x
    train = x[parts["train"]]
    spread = np.sqrt(np.asarray(square[parts["train"]].mean(axis=0)).ravel())
    scale = 1.0 / np.where(spread > 0, spread, 1.0)
    x = (x @ sp.diags(scale)).tocsr() if sp.issparse(x) else x * scale
    train = x[parts["train"]]
    fits = [fit_logistic(train, y[parts["train"]], penalty) for penalty in PENALTIES]
    scores = [accuracy(x[parts["valid"]], y[parts["valid"]], weights) for weights in fits]
    best = int(np.argmax(scores))
    return {
        "accuracy": accuracy(x[parts["test"]], y[parts["test"]], fits[best]),
        "valid_accuracy": scores[best],
        "penalty": PENALTIES[best],
        "features": float(x.shape[1]),
    }


# ---- the models ----------------------------------------------------------------------------


@torch.no_grad()
def codes_of(model: Any, data: Any) -> np.ndarray:
    """The codes of all rows."""
    model.eval()
    blocks = [
        model.encode(data.rows(np.arange(start, min(start + 1000, len(data)))))
        for start in range(0, len(data), 1000)
    ]
    return torch.cat(blocks).double().numpy()


@torch.no_grad()
def explained(model: Any, data: Any) -> float:
    """Share of the variance of the rows that the reconstructed probabilities explain."""
    measured = ExplainedVariance(data.shape[1])
    model.eval()
    for start in range(0, len(data), 500):
        batch = data.rows(np.arange(start, min(start + 500, len(data))))
        measured.update(batch, model.reconstruct(batch))
    return measured.value()


def train(model: Any, data: Any, parts: dict[str, np.ndarray], epochs: int, seed: int) -> Any:
    """The history of a short training with Adam, from the words' own frequencies on."""
    rows = data.subset(parts["train"])
    # From biases of 0, every word as likely as not, most of a short training would go into
    # learning that words are rare.
    share = (sv.data.sparsity_stats(rows).column_counts + 0.5) / (len(rows) + 1.0)
    with torch.no_grad():
        model.output.bias.copy_(torch.from_numpy(share).logit())
    return fit(
        model,
        rows,
        valid=data.subset(parts["valid"]),
        epochs=epochs,
        valid_every=max(1, epochs // 3),
        batch_size=200,
        lr=5e-3,
        seed=seed,
        progress=False,
    )


def measure(model: Any, data: Any, parts: dict[str, np.ndarray], history: Any) -> dict[str, float]:
    """What the test rows say about a trained model."""
    test = data.subset(parts["test"])
    batch = test.rows(slice(None))
    model.eval()
    with torch.no_grad():
        output = model(batch)
    use = code_summary(model, test)
    return {
        "loss_first_epoch": history.rows[0]["loss"],
        "loss_last_epoch": history.rows[-1]["loss"],
        "nll": float(output.nll),
        "kl": float(output.kl),
        "explained_variance": explained(model, test),
        "l0": use["l0"],
        "dead_units": use["dead_units"],
    }


# ---- the whole -----------------------------------------------------------------------------


def run(
    epochs: int = 10,
    hidden: int = 128,
    latent: int = 32,
    lambdas: tuple[float, ...] = LAMBDAS,
    rows: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train and probe everything; returns numbers, and the VAE's codes for the figure."""
    started = time.perf_counter()
    counts = sv.data.load_spam()
    if rows is not None:
        chosen = np.random.default_rng(seed).permutation(len(counts))[:rows]
        counts = counts.subset(np.sort(chosen))
    matrix = counts.to_scipy()
    labels = np.asarray(counts.labels).astype(np.float64)
    present = matrix.copy()
    present.data = np.ones_like(present.data)
    data = sv.data.CSRDataset(present)
    parts = split_rows(len(data), 0.15, 0.2, seed)._asdict()
    n_words = data.shape[1]

    share = labels[parts["test"]].mean()
    logs = matrix.astype(np.float64)
    logs.data = np.log1p(logs.data)
    probes = {
        "majority class": {"accuracy": float(max(share, 1 - share)), "features": 0.0},
        "word counts": probe(matrix, labels, parts),
        "log(1 + counts)": probe(logs, labels, parts),
        "words present": probe(present, labels, parts),
    }

    seed_everything(seed)
    vae = sv.models.VAE(n_words, hidden=hidden, latent=latent, likelihood="bernoulli")
    history = train(vae, data, parts, epochs, seed)
    posterior = posterior_summary(vae, data.subset(parts["test"]))
    codes = codes_of(vae, data)
    probes["VAE code"] = probe(codes, labels, parts)
    results: dict[str, Any] = {
        "vae": {
            **measure(vae, data, parts, history),
            "active_units": posterior.active,
            "latent": latent,
        }
    }

    table = []
    for weight in lambdas:
        seed_everything(seed)
        model = sv.models.SparseAutoencoder(
            n_words, hidden, sparsity=f"l1:{weight}" if weight else None, loss="bernoulli"
        )
        history = train(model, data, parts, epochs, seed)
        table.append(
            {
                "lambda": weight,
                "units": hidden,
                **measure(model, data, parts, history),
                **{
                    f"probe_{name}": value
                    for name, value in probe(codes_of(model, data), labels, parts).items()
                },
            }
        )
    middle = table[len(table) // 2]
    probes[f"sparse code, λ = {middle['lambda']:g}"] = {
        "accuracy": middle["probe_accuracy"],
        "features": middle["probe_features"],
    }
    results |= {
        "sparse_autoencoder": table,
        "probes": probes,
        "rows": {name: len(part) for name, part in parts.items()},
        "words": n_words,
        "epochs": epochs,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "seconds": time.perf_counter() - started,
    }
    return {"results": results, "codes": codes[parts["test"]], "labels": labels[parts["test"]]}


def text(results: dict[str, Any]) -> str:
    """The tables to print."""
    lines = [f"{'linear probe on':24}{'features':>10}{'test accuracy':>15}"]
    lines += [
        f"{name:24}{entry['features']:10.0f}{entry['accuracy']:15.4f}"
        for name, entry in results["probes"].items()
    ]
    vae = results["vae"]
    lines += [
        "",
        f"VAE: nll {vae['nll']:.1f} and KL {vae['kl']:.1f} nats per test row, "
        f"{vae['active_units']} of {vae['latent']} units active",
        "",
        f"{'lambda':>8}{'L0':>8}{'never fire':>12}{'nll':>9}{'explained':>11}{'probe':>9}",
    ]
    lines += [
        f"{row['lambda']:8g}{row['l0']:8.1f}{row['dead_units']:12.0f}{row['nll']:9.1f}"
        f"{row['explained_variance']:11.3f}"
        f"{row['probe_accuracy']:9.4f}"
        for row in results["sparse_autoencoder"]
    ]
    lines += ["", f"{results['seconds']:.0f} s on {results['threads']} threads"]
    return "\n".join(lines)


def draw(outcome: dict[str, Any], path: Path) -> None:
    """The figure: accuracies, sparsity against lambda, and the plane of the VAE's codes."""
    from sparsevae_ext.train.plots import canvas

    blue, orange, grey, ink = "#2f6db3", "#d9762b", "#9aa3ad", "#22272e"
    results = outcome["results"]
    with canvas(figsize=(15.0, 4.8)) as (figure, save):
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
        names = list(results["probes"])
        values = [results["probes"][name]["accuracy"] for name in names]
        learned = ["code" in name for name in names]
        places = list(range(len(names)))[::-1]
        left.barh(places, values, color=[blue if code else grey for code in learned], height=0.68)
        for place, name, value in zip(places, names, values, strict=True):
            width = int(results["probes"][name]["features"])
            label = f"{value:.3f}" + (f"  ({width:,} features)" if width else "")
            left.annotate(
                label, (value, place), xytext=(-5, 0), textcoords="offset points", ha="right",
                va="center", color="white", fontsize=9.5, fontweight="bold",
            )  # fmt: skip
        left.set_yticks(places, names)
        left.set_xlim(0.5, 1.0)
        left.grid(False, axis="y")
        left.set_title("Spam or ham: logistic regression on ...")
        left.set_xlabel("accuracy on test e-mails")

        table = [row for row in results["sparse_autoencoder"] if row["lambda"] > 0]
        weights = [row["lambda"] for row in table]
        middle.plot(weights, [row["l0"] for row in table], color=blue, marker="o", linewidth=2)
        middle.set_xscale("log")
        middle.set_ylim(0, 1.08 * max(row["l0"] for row in table))
        middle.set_xticks(weights, [f"{weight:g}" for weight in weights])
        middle.minorticks_off()
        middle.set_xlabel("λ, weight of the L1 penalty")
        middle.set_ylabel("units that fire in an e-mail (L0)", color=blue)
        twin = middle.twinx()
        twin.plot(
            weights, [row["probe_accuracy"] for row in table], color=orange, marker="s",
            linewidth=1.6,
        )  # fmt: skip
        twin.set_ylabel("accuracy of the probe", color=orange)
        twin.tick_params(axis="y", colors=orange)
        twin.grid(False)
        twin.spines["right"].set_visible(True)
        twin.spines["right"].set_color(orange)
        middle.set_title(f"Sparse autoencoder, {table[0]['units']} units")

        codes = outcome["codes"] - outcome["codes"].mean(axis=0)
        plane = codes @ np.linalg.svd(codes, full_matrices=False)[2][:2].T
        for label, name, color in ((0, "ham", blue), (1, "spam", orange)):
            chosen = outcome["labels"] == label
            right.scatter(*plane[chosen].T, s=9, color=color, alpha=0.5, linewidths=0, label=name)
        right.legend(frameon=False, markerscale=2.5, labelcolor=ink)
        right.set_title("VAE codes, two main directions")
        right.set_xlabel("first")
        right.set_ylabel("second")
        save(path)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--rows", type=int, help="use this many e-mails only")
    parser.add_argument("--figure", type=Path, help="write the figure here")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    outcome = run(arguments.epochs, rows=arguments.rows, seed=arguments.seed)
    print(text(outcome["results"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(outcome["results"], indent=2) + "\n")
    if arguments.figure:
        draw(outcome, arguments.figure)


if __name__ == "__main__":
    main()
