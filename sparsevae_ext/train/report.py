"""Results as text for a terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

__all__ = ["evaluation_report", "recommendation_report", "run_report", "table", "topics_report"]

_LABELS = {
    "recall@20": "Recall@20",
    "recall@50": "Recall@50",
    "ndcg@100": "NDCG@100",
    "perplexity": "perplexity",
}
# What a model that does not recommend is measured by, and what is known of its code.
_PARTS = {
    "loss": ",.4f",
    "nll": ",.4f",
    "kl": ",.4f",
    "penalty": ",.4g",
    "marginal_nll": ",.4f",
}
_USE = {
    "active_units": ("active units", ",.0f"),
    "l0": ("l0", ",.1f"),
    "dead_units": ("dead units", ",.0f"),
    "topic_diversity": ("topic diversity", ".3f"),
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * len("  ".join("x" * width for width in widths)))
    return "\n".join(text)


def metric_cells(metrics: dict[str, Any]) -> list[str]:
    """Format the four metrics, "-" where one was not measured."""
    cells = []
    for name in _LABELS:
        value = metrics.get(name)
        form = ",.1f" if name == "perplexity" else ".4f"
        cells.append("-" if value is None else format(value, form))
    return cells


def metric_header() -> list[str]:
    """Names of what `metric_cells` formats."""
    return list(_LABELS.values())


def run_report(result: dict[str, Any], out: str | os.PathLike[str]) -> str:
    """Text for the end of `sparsevae train`."""
    facts = result["data"]
    lines = [
        f"{result['model']['name']} on {facts['rows']:,} x {facts['columns']:,} "
        f"({facts['nnz']:,} non-zeros): {result['epochs']} epochs, "
        f"{result['train_rows_per_s']:,.0f} rows/s"
        + (f", best epoch {result['best_epoch']}" if result["best_epoch"] else "")
    ]
    if "loss" in result.get("test", {}):
        title = f"{result['split']['test']} test rows"
        table_ = _parts_table(title, "model", result["test"], result.get("baselines", {}))
        lines += ["", table_, ""]
    elif "test" in result:
        rows = [["model", *metric_cells(result["test"])]]
        rows += [
            [name, *metric_cells(values)] for name, values in result.get("baselines", {}).items()
        ]
        lines += ["", table([f"{result['split']['test']} test rows", *metric_header()], rows), ""]
        lines += [f"{label}: {value}\n" for label, value in _use(result["test"])]
    if "topics" in result:
        lines += [topics_report(result["topics"]), ""]
    lines.append(f"written to {os.fspath(out)}")
    return "\n".join(lines)


def evaluation_report(result: dict[str, Any]) -> str:
    """Text of `sparsevae evaluate`."""
    head = f"{result['checkpoint']} (epoch {result['epoch']})"
    name = f"{result['n_rows']} {result['rows']} rows of {result['data']}"
    if "loss" in result:
        return f"{head}\n" + _parts_table("", name, result)
    lines = [head, table(["", *metric_header()], [[name, *metric_cells(result)]])]
    lines += [f"{label}: {value}" for label, value in _use(result)]
    return "\n".join(lines)


def topics_report(summary: dict[str, Any], at_most: int = 20) -> str:
    """The topics' words, the most coherent topic first."""
    topics = summary["topics"]
    lines = [
        f"{len(topics)} topics: NPMI coherence {summary['npmi']:.3f}, diversity "
        f"{summary['topic_diversity']:.3f}"
    ]
    lines += [f"  {topic['npmi']:>6.3f}  {' '.join(topic['words'])}" for topic in topics[:at_most]]
    if len(topics) > at_most:
        lines.append(f"  ... and {len(topics) - at_most} more, see metrics.json")
    return "\n".join(lines)


def _parts_table(
    title: str,
    name: str,
    metrics: dict[str, Any],
    baselines: dict[str, dict[str, float]] | None = None,
) -> str:
    """The loss of a model that reconstructs, its parts per row, and the use of its code."""
    # A part that the model does not have is 0 in every row.
    parts = [part for part in _PARTS if part == "loss" or metrics.get(part)]
    use = _use(metrics)
    header = [title, *(part.replace("_", " ") for part in parts), *(label for label, _ in use)]

    def cells(values: dict[str, Any]) -> list[str]:
        return [format(values[part], _PARTS[part]) if part in values else "-" for part in parts]

    rows = [[name, *cells(metrics), *(cell for _, cell in use)]]
    rows += [[other, *cells(v), *("-" for _ in use)] for other, v in (baselines or {}).items()]
    return table(header, rows)


def _use(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (label, format(metrics[key], form)) for key, (label, form) in _USE.items() if key in metrics
    ]


def recommendation_report(result: list[dict[str, Any]]) -> str:
    """Text of `sparsevae recommend`: one block per row."""
    blocks = []
    for entry in result:
        names = entry.get("names") or [f"column {item}" for item in entry["items"]]
        width = max((len(name) for name in names), default=0)
        lines = [f"row {entry['row']}"]
        lines += [
            f"  {place:>3}  {name.ljust(width)}  {score:>8.3f}"
            for place, (name, score) in enumerate(zip(names, entry["scores"], strict=True), 1)
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
