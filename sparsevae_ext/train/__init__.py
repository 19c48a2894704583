"""Training: the loop, schedules, metrics, checkpoints, run directories and figures."""

from __future__ import annotations

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .fit import fit
from .history import History
from .interrupts import Interrupted
from .loop import NonFiniteLossError
from .options import FitOptions
from .runs import RunSettings, evaluate_run, load_run, recommend_run, saved_settings, train_run
from .schedules import LinearAnnealing
from .seed import seed_everything
from .split import Split, split_rows

__all__ = [
    "CheckpointError",
    "FitOptions",
    "History",
    "Interrupted",
    "LinearAnnealing",
    "NonFiniteLossError",
    "RunSettings",
    "Split",
    "evaluate_run",
    "fit",
    "load_checkpoint",
    "load_run",
    "recommend_run",
    "save_checkpoint",
    "saved_settings",
    "seed_everything",
    "split_rows",
    "train_run",
]
