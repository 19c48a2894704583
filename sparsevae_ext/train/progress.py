"""What a person sees of a training run: a bar on a terminal, one line per epoch everywhere."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

__all__ = ["Progress"]

_VALIDATION = {
    "valid_ndcg@100": ("valid ndcg@100", ".4f"),
    "valid_loss": ("valid loss", ".5g"),
    "valid_perplexity": ("perplexity", ",.1f"),
    "valid_active_units": ("active units", ".0f"),
    "valid_l0": ("l0", ".4g"),
    "valid_dead_units": ("dead", ".0f"),
    "valid_topic_diversity": ("diversity", ".2f"),
}


class Progress:
    """Reports a run on `stream`.

    Args:
        show: True for a bar and lines, False for silence, None for lines and, on a terminal, a
            bar.
        epochs: planned number of epochs.
        rows: training rows per epoch.
        stream: where to write; sys.stderr by default, so that results on stdout stay clean.
    """

    def __init__(
        self, show: bool | None, epochs: int, rows: int, stream: TextIO | None = None
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._lines = show is not False
        self._bars = self._stream.isatty() if show is None else show
        self._epochs = epochs
        self._rows = rows
        self._bar: Any = None

    def start_epoch(self, epoch: int, rows_done: int = 0) -> None:
        """Begin the bar of an epoch (from 1)."""
        if self._bars:
            self._bar = tqdm(
                total=self._rows,
                initial=rows_done,
                desc=f"epoch {epoch}/{self._epochs}",
                unit="row",
                unit_scale=True,
                leave=False,
                dynamic_ncols=True,
                file=self._stream,
            )

    def step(self, rows: int, loss: float | None) -> None:
        """Count `rows` more; `loss` None where reading it would stall the device."""
        if self._bar is not None:
            if loss is not None:
                self._bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            self._bar.update(rows)

    def end_epoch(self, row: dict[str, float | int] | None = None, best: bool = False) -> None:
        """Close the bar; with a row of History, print its line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if row is not None:
            self.line(_epoch_line(row, self._epochs, best))

    def line(self, text: str) -> None:
        """Print one line."""
        if self._lines:
            print(text, file=self._stream, flush=True)


def _epoch_line(row: dict[str, float | int], epochs: int, best: bool) -> str:
    width = len(str(epochs))
    parts = [f"epoch {row['epoch']:>{width}}/{epochs}", f"loss {row['loss']:.5g}"]
    if row["kl"]:
        parts.append(f"nll {row['nll']:.5g}  kl {row['kl']:.4g}  beta {row['beta']:.3g}")
    if row["penalty"]:
        parts.append(f"penalty {row['penalty']:.4g}")
    parts.append(f"{row['rows_per_s']:,.0f} rows/s")
    parts += [
        f"{label} {row[name]:{form}}" for name, (label, form) in _VALIDATION.items() if name in row
    ]
    return "  ".join(parts) + ("  *" if best else "")
