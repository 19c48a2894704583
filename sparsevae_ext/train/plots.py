"""Figures of a run; needs matplotlib, which is an optional extra."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .directions import Direction
from .history import History

__all__ = ["demo_figure", "require_matplotlib", "training_figure"]

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
    with _canvas(figsize=(6.4, 6.0)) as (figure, save):
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
    with _canvas(figsize=(14.5, 7.6)) as (figure, save):
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


class _canvas:
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

    epochs, ndcg = history.column("valid_ndcg@100")
    bottom.set_title("NDCG@100 on rows not trained on")
    bottom.set_xlabel("epoch")
    if epochs:
        bottom.plot(epochs, ndcg, color=_BLUE, linewidth=2)
        best = max(range(len(ndcg)), key=ndcg.__getitem__)
        bottom.scatter([epochs[best]], [ndcg[best]], color=_BLUE, s=36, zorder=3)
        bottom.annotate(
            f"best {ndcg[best]:.3f}",
            (epochs[best], ndcg[best]),
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
