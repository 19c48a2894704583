"""Training: the loop, schedules, metrics, checkpoints, run directories and figures."""

from __future__ import annotations

from ..data import sparsity_report
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .codes import (
    ActiveUnits,
    PosteriorCollapseWarning,
    PosteriorSummary,
    active_units,
    code_summary,
    posterior_summary,
)
from .fit import fit
from .generate import sample_run
from .history import History
from .interrupts import Interrupted
from .loop import NonFiniteLossError
from .options import FitOptions
from .reconstruction import ExplainedVariance
from .runs import evaluate_run, load_run, recommend_run, saved_settings, train_run
from .schedules import LinearAnnealing
from .search import SearchSettings, k_folds, run_search, saved_search
from .seed import seed_everything
from .settings import RunSettings
from .split import Split, split_rows
from .topics import ComponentCollapseWarning, npmi_coherence, topic_diversity, topic_summary

__all__ = [
    "ActiveUnits",
    "CheckpointError",
    "ComponentCollapseWarning",
    "ExplainedVariance",
    "FitOptions",
    "History",
    "Interrupted",
    "LinearAnnealing",
    "NonFiniteLossError",
    "PosteriorCollapseWarning",
    "PosteriorSummary",
    "RunSettings",
    "SearchSettings",
    "Split",
    "active_units",
    "code_summary",
    "evaluate_run",
    "fit",
    "k_folds",
    "load_checkpoint",
    "load_run",
    "npmi_coherence",
    "posterior_summary",
    "recommend_run",
    "run_search",
    "sample_run",
    "save_checkpoint",
    "saved_search",
    "saved_settings",
    "seed_everything",
    "sparsity_report",
    "split_rows",
    "topic_diversity",
    "topic_summary",
    "train_run",
]
