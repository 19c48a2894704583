"""Figures of a run; needs matplotlib, which is an optional extra."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data import SparsityReport
from .directions import Direction
from .history import History

__all__ = [
    "canvas",
    "demo_figure",
    "require_matplotlib",
    "sparsity_figure",
    "topics_figure",
    "training_figure",
]

_BLUE, _ORANGE, _GREY, _INK = "#2f6db3", "#d9762b", "#9aa3ad", "#22272e"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
}


def require_matplotlib() -> None:
    """Raise ValueError with what to install when matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("figures need matplotlib: pip install 'sparsevae_ext[plot]'") from error


def training_figure(history: History, path: str | os.PathLike[str]) -> None:
    """Write the training curves as a PNG.

    Args:
        history: of a run.
        path: the file.
    """
    with canvas(figsize=(6.4, 6.0)) as (figure, save):
        top, bottom = figure.subplots(2, 1, sharex=True)
        _curves(top, bottom, history, {})
        save(path)


def demo_figure(
    history: History,
    directions: Sequence[Direction],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    baselines: dict[str, float] | None = None,
) -> None:
    """Write training curves beside the top words of a few latent directions as a PNG.

    Args:
        history: of a run.
        directions: up to four, see `latent_directions`.
        path: the file.
        title: line above all panels.
        baselines: names and NDCG@100 of what the model is compared with.
    """
    with canvas(figsize=(14.5, 7.6)) as (figure, save):
        left, right = figure.subfigures(1, 2, width_ratios=(0.62, 1), wspace=0.02)
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=_INK)
        top, bottom = left.subplots(2, 1, sharex=True)
        _curves(top, bottom, history, baselines or {})
        panels = right.subplots(2, 2).ravel()
        for number, (axes, direction) in enumerate(zip(panels, directions, strict=False), 1):
            _words(axes, direction, f"Latent direction {number}")
        for axes in panels[len(directions) :]:
            axes.set_axis_off()
        save(path)


def sparsity_figure(report: SparsityReport, path: str | os.PathLike[str], title: str = "") -> None:
    """Write the row lengths and the column frequencies of generated rows and data as a PNG.

    Args:
        report: see `data.sparsity_report`.
        path: the file.
        title: line above both panels.
    """
    sides = (("data", report.data, _GREY), ("generated", report.generated, _BLUE))
    with canvas(figsize=(11.0, 4.6)) as (figure, save):
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=_INK)
        left, right = figure.subplots(1, 2)
        longest = max((side.row_lengths.max(initial=0) for _, side, _ in sides), default=0)
        # The tail of row lengths is long: equal steps of the logarithm, and a place for 0.
        bins = np.concatenate([[0.0], np.geomspace(0.5, longest + 1.0, 40)])
        for name, side, color in sides:
            weights = np.full(len(side.row_lengths), 1.0 / max(1, len(side.row_lengths)))
            left.hist(
                side.row_lengths,
                bins,
                weights=weights,
                histtype="stepfilled" if name == "data" else "step",
                linewidth=2,
                alpha=0.45 if name == "data" else 1.0,
                color=color,
                label=name,
            )
        left.set_xscale("symlog", linthresh=1.0)
        left.set_xlim(left=0)
        left.set_title(f"Row lengths: KS distance {report.row_length_ks:.3f}")
        left.set_xlabel("non-zeros per row")
        left.set_ylabel("share of the rows")
        left.legend(frameon=False)
        frequencies = [1.0 - side.zero_fractions for _, side, _ in sides]
        right.scatter(*frequencies, s=8, color=_BLUE, alpha=0.35, linewidths=0)
        reach = max((float(part.max(initial=0.0)) for part in frequencies), default=0.0)
        lowest = min((float(part[part > 0].min(initial=1.0)) for part in frequencies), default=1.0)
        right.plot([0, reach], [0, reach], color=_INK, linewidth=0.8)
        for axis in (right.set_xscale, right.set_yscale):
            axis("symlog", linthresh=lowest)
        right.set_xlim(0, reach * 1.3)
        right.set_ylim(0, reach * 1.3)
        right.set_title(f"Columns: correlation {report.column_correlation:.3f}")
        right.set_xlabel("share of the data's rows with the column")
        right.set_ylabel("share of the generated rows")
        save(path)


def topics_figure(summary: dict[str, Any], path: str | os.PathLike[str], title: str = "") -> None:
    """Write the words of the most coherent topics, up to nine of them, as a PNG.

    Args:
        summary: see `topic_summary`.
        path: the file.
        title: line above all panels.
    """
    topics = summary["topics"][:9]
    with canvas(figsize=(11.0, 2.9 * max(1, -(-len(topics) // 3)))) as (figure, save):
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=_INK)
        panels = figure.subplots(max(1, -(-len(topics) // 3)), 3, squeeze=False).ravel()
        for axes, topic in zip(panels, topics, strict=False):
            places = range(len(topic["words"]))[::-1]
            axes.barh(list(places), topic["probabilities"], color=_BLUE, height=0.72)
            axes.set_yticks(list(places), topic["words"])
            axes.tick_params(axis="y", length=0)
            axes.grid(False, axis="y")
            axes.set_title(f"Topic {topic['number']}: NPMI {topic['npmi']:.2f}")
            axes.set_xlabel("probability in the topic")
        for axes in panels[len(topics) :]:
            axes.set_axis_off()
        save(path)


class canvas:
    """A figure on the file-only backend, whatever backend the user's session has chosen."""

    def __init__(self, figsize: tuple[float, float]) -> None:
        self._figsize = figsize

    def __enter__(self) -> tuple[Any, Any]:
        require_matplotlib()
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._style = matplotlib.rc_context(_STYLE)
        self._style.__enter__()
        figure = Figure(figsize=self._figsize, layout="constrained")
        FigureCanvasAgg(figure)

        def save(path: str | os.PathLike[str]) -> None:
            figure.savefig(path, dpi=130, format="png")

        return figure, save

    def __exit__(self, *exc: object) -> None:
        self._style.__exit__(None, None, None)


def _curves(top: Any, bottom: Any, history: History, baselines: dict[str, float]) -> None:
    epochs, nll = history.column("nll")
    _, kl = history.column("kl")
    top.plot(epochs, nll, color=_BLUE, linewidth=2)
    top.set_title("Training loss")
    top.set_ylabel("negative log-likelihood, nats per row", color=_BLUE if any(kl) else _INK)
    if any(kl):
        twin = top.twinx()
        twin.plot(epochs, kl, color=_ORANGE, linewidth=1.6)
        twin.set_ylabel("KL divergence, nats per row", color=_ORANGE)
        twin.tick_params(axis="y", colors=_ORANGE)
        twin.set_ylim(bottom=0)
        twin.grid(False)
        twin.spines["right"].set_visible(True)
        twin.spines["right"].set_color(_ORANGE)

    # The first that was measured: a model of topics is chosen by its perplexity, one that does not
    # recommend by its loss, where less is better.
    pick, form, title = max, ".3f", "NDCG@100 on rows not trained on"
    if history.column("valid_topic_diversity")[0]:
        name, pick, form = "perplexity", min, ",.0f"
        title = "Perplexity of held-out words"
    elif history.column("valid_loss")[0]:
        name, pick, form = "loss", min, ".5g"
        title = "Loss on rows not trained on, nats per row"
    else:
        name = "ndcg@100"
    epochs, values = history.column(f"valid_{name}")
    bottom.set_title(title)
    bottom.set_xlabel("epoch")
    if epochs:
        bottom.plot(epochs, values, color=_BLUE, linewidth=2)
        best = pick(range(len(values)), key=values.__getitem__)
        bottom.scatter([epochs[best]], [values[best]], color=_BLUE, s=36, zorder=3)
        bottom.annotate(
            f"best {values[best]:{form}}",
            (epochs[best], values[best]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=_BLUE,
        )
        bottom.margins(y=0.15)
    for name, value in baselines.items():
        bottom.axhline(value, color=_GREY, linewidth=1.4, linestyle=(0, (5, 3)))
        bottom.annotate(
            f"{name} {value:.3f}",
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color="#6b7480",
        )


def _words(axes: Any, direction: Direction, title: str) -> None:
    # The words that rise from the top down, then those that fall, the strongest outermost.
    pairs = [*direction.high, *reversed(direction.low)]
    places = range(len(pairs))[::-1]
    values = [value for _, value in pairs]
    colors = [_BLUE if value >= 0 else _ORANGE for value in values]
    axes.barh(list(places), values, color=colors, height=0.72)
    for place, (word, value) in zip(places, pairs, strict=True):
        # Beside the zero line, on the side where the bar is not.
        axes.annotate(
            word,
            (0, place),
            xytext=(-5 if value >= 0 else 5, 0),
            textcoords="offset points",
            ha="right" if value >= 0 else "left",
            va="center",
            color=_INK,
            fontsize=10.5,
        )
    reach = 1.05 * max((abs(value) for value in values), default=1.0)
    axes.set_xlim(-reach, reach)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    axes.set_title(f"{title}: {direction.share:.0%} of the variance")
    axes.set_xlabel("log-odds of the word at the two ends")
