"""What a search found, as text for a terminal and as a figure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .plots import canvas
from .report import table
from .search import AXES, RESULTS, SearchSettings

__all__ = ["search_figure", "search_report"]

#: Colours of the lines, from a small beta to a large one.
_SHADES = ("#2f6db3", "#d9762b", "#4b9b6f", "#8c5fa8", "#c4a035", "#5b6570")


def search_report(result: dict[str, Any], out: str | os.PathLike[str]) -> str:
    """Text for the end of `sparsevae search`: the table, and the command that trains the best."""
    search = SearchSettings.from_dict(result["search"])
    facts, objective = result["data"], result["objective"]
    rows, axes = result["table"], _axes(result)
    lines = [
        f"{search.run.model} on {facts['rows']:,} x {facts['columns']:,} ({facts['nnz']:,} "
        f"non-zeros): {len(rows)} settings, {search.folds} folds, "
        f"{'higher' if objective['rises'] else 'lower'} {objective['name']} is better",
        "",
        table([*axes, objective["name"], "std", "folds"], [_cells(row, axes) for row in rows]),
    ]
    if result["best"] is not None:
        options = [f"--data {search.run.data} --model {search.run.model}"]
        point = {axis: result["best"][axis] for axis in axes}
        settings = search.settings(point)
        for axis in axes:
            name = settings.code_option() if axis == "latent" else axis
            options.append(f"--{name} {getattr(settings, name):g}")
        lines += [
            "",
            f"best: sparsevae train {' '.join(options)} --out DIR, with the other options",
        ]
    lines += ["", f"written to {Path(out) / RESULTS}"]
    return "\n".join(lines)


def search_figure(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the objective over the grid, mean and deviation of the folds, as a PNG.

    Args:
        result: see `run_search`.
        path: the file.
    """
    axes = _axes(result)
    objective, run = result["objective"], result["search"]["run"]
    # Along the axis with more values; a line for each value of the other.
    values = {axis: sorted({row[axis] for row in result["table"]}) for axis in axes}
    along = max(axes, key=lambda axis: len(values[axis]))
    other = next((axis for axis in axes if axis != along), None)
    with canvas(figsize=(7.2, 4.6)) as (figure, save):
        plot = figure.subplots()
        levels = values[other] if other else [None]
        places = {value: float(place) for place, value in enumerate(values[along])}
        for number, level in enumerate(levels):
            # Side by side, or the deviations of several lines would cover each other.
            aside = 0.04 * (number - (len(levels) - 1) / 2)
            rows = [
                row
                for row in result["table"]
                if row["mean"] is not None and (other is None or row[other] == level)
            ]
            rows.sort(key=lambda row: float(row[along]))
            plot.errorbar(
                [places[row[along]] + aside for row in rows],
                [row["mean"] for row in rows],
                yerr=[row["std"] or 0.0 for row in rows],
                color=_SHADES[number % len(_SHADES)],
                linewidth=2,
                marker="o",
                markersize=5,
                capsize=3,
                label=None if other is None else f"{other} {level:g}",
            )
        plot.set_xticks(list(places.values()), [f"{value:g}" for value in values[along]])
        plot.margins(x=0.1)
        plot.set_xlabel(along)
        plot.set_ylabel(objective["name"])
        best = "higher" if objective["rises"] else "lower"
        plot.set_title(f"{run['model']}: held-out {objective['name']}, {best} is better")
        if other is not None:
            plot.legend(frameon=False)
        save(path)


def _axes(result: dict[str, Any]) -> list[str]:
    return [axis for axis in AXES if result["search"][axis]]


def _cells(row: dict[str, Any], axes: list[str]) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.5g}"

    folds = str(row["folds"]) + (f" ({row['failed']} failed)" if row["failed"] else "")
    return [*(f"{row[axis]:g}" for axis in axes), number(row["mean"]), number(row["std"]), folds]
