"""What a training run has measured so far, one row per epoch."""

from __future__ import annotations

import csv
import io
import os
from typing import Any

from .checkpoint import write_atomic

__all__ = ["History", "TensorBoardLog"]

Row = dict[str, float | int]


class History:
    """The epochs of a run and how it ended.

    Attributes:
        rows: one dict per epoch: epoch (from 1), step, loss, nll, kl, penalty (means per training
            row, nats), beta (at the epoch's last step), rows_per_s, seconds, wait_share, and with
            validation the metrics as "valid_recall@20" and so on.
        best_epoch: epoch (from 1) with the best monitored metric; 0 without validation.
        best_metric: that metric, None without validation.
        stopped: "epochs" (all were run), "early" (no improvement for `patience` validations) or
            "paused" (stop_after was reached; the run can be resumed).
    """

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows: list[Row] = rows if rows is not None else []
        self.best_epoch = 0
        self.best_metric: float | None = None
        self.stopped = "epochs"

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Return the epochs that have the column `name`, and its values there."""
        pairs = [(int(row["epoch"]), float(row[name])) for row in self.rows if name in row]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as comma-separated values, atomically."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=names, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(path, text.getvalue())


class TensorBoardLog:
    """Writes every epoch's numbers as TensorBoard scalars.

    Raises:
        ValueError: tensorboard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("fit(): tensorboard=True needs `pip install tensorboard`") from error
        self._writer: Any = SummaryWriter(os.fspath(directory))

    def write(self, row: Row) -> None:
        """Add one epoch's row."""
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name.replace("valid_", "valid/"), value, int(row["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
