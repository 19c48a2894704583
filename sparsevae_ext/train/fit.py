"""Training a model on the rows of a data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..data import CSRDataset
from .checkpoint import clean_orphans
from .history import History, TensorBoardLog
from .loop import Run
from .options import FitOptions
from .progress import Progress

__all__ = ["fit"]


def fit(
    model: torch.nn.Module,
    train_ds: CSRDataset,
    *,
    valid: CSRDataset | tuple[Any, Any] | None = None,
    epochs: int = 20,
    batch_size: int = 500,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    anneal_fraction: float = 0.5,
    seed: int = 0,
    optimizer: str = "adam",
    device: str | torch.device = "cpu",
    patience: int | None = None,
    valid_every: int = 1,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    stop_after: int | None = None,
    restore_best: bool = True,
    config: dict[str, Any] | None = None,
    tensorboard: bool = False,
    progress: bool | None = None,
) -> History:
    """Train `model` on the rows of `train_ds`; the model ends up with its best weights.

    Minimises the mean over rows of `model(batch).loss` with Adam. A model that has a `beta` is
    annealed: beta(t) = beta * min(1, t / (anneal_fraction * total steps)) (Liang et al. 2018,
    section 2.2.2). After every `valid_every` epochs the model is measured on the validation rows
    and the best epoch is kept. For a model that recommends that is the epoch with the highest
    NDCG@100 (strong generalisation: 80 % of a row's entries folded in, the others ranked), for
    a topic model the one with the lowest perplexity of the held-out words, for any other the one
    with the lowest loss at the full beta. A model with `start_from` is first shown the training
    rows by it. Active units are counted along for a model with a posterior, l0 and dead units for
    one that counts its firing.

    Args:
        model: gives a named tuple with `loss`, `nll`, `kl` and `penalty` for a CSRBatch.
        train_ds: (rows, n_items).
        valid: rows that are not in `train_ds`, or a pair (fold_in, held_out) made of them; None
            trains without validation.
        epochs: passes over the training rows, those of a resumed run included.
        batch_size: rows per step.
        lr: learning rate.
        weight_decay: L2 penalty; decoupled (AdamW's) with "row-adam".
        anneal_fraction: share of all steps over which beta rises; 0 for a constant beta.
        seed: of the order of the rows, the noise and the validation split.
        optimizer: "adam", "row-adam" for the same steps to rounding at the cost of the columns in a
            batch, or "row-adagrad", see `optimizers.make_optimizer`.
        valid_every: epochs between validations.
        device: where to train, "cpu", "cuda", "cuda:1" ...
        patience: stop after that many validations in a row without a better NDCG@100 or
            loss; None never stops early.
        out: directory for last.pt, best.pt (atomic, checksummed) and history.csv; None writes
            nothing.
        resume: continue from out/last.pt. On a CPU the result is bit-equal to that of a run that
            was never interrupted (with "row-adam" to rounding, if it was interrupted within an
            epoch). The model must be built like the first time; `epochs`,
            `patience`, `device`, `checkpoint_every` may differ. The annealing keeps the first
            run's plan.
        checkpoint_every: epochs between writes of last.pt; a better epoch, the last one and an
            interruption are always written.
        stop_after: return after that many epochs of this call; the run can be resumed.
        restore_best: load the best epoch's weights into `model` at the end.
        config: plain types to keep in the checkpoints (how to build the model, where the data is).
        tensorboard: also write TensorBoard events to `out`.
        progress: True, False, or None for a bar only on a terminal.

    Returns:
        The measured epochs, see `History`.

    Raises:
        TypeError: ``train_ds`` is no CSRDataset, or ``valid`` neither that nor a pair.
        ValueError: an option out of range, an empty data set, or options that contradict the
            checkpoint resumed from.
        NonFiniteLossError: the loss or a weight became NaN or infinite. Nothing non-finite is
            written to a checkpoint.
        CheckpointError: a checkpoint cannot be read or written.
        Interrupted: Ctrl-C or SIGTERM; the state was saved first (when `out` is given).

    Warns:
        PosteriorCollapseWarning: no unit of the posterior was active at the last validation.

    Example:
        >>> import numpy as np, scipy.sparse as sp, sparsevae_ext as sv
        >>> from sparsevae_ext.train import fit
        >>> X = sp.random(40, 30, density=0.2, format="csr", dtype=np.float32, random_state=0)
        >>> model = sv.models.MultVAE(30, hidden=8, latent=4)
        >>> history = fit(model, sv.data.CSRDataset(X), epochs=2, batch_size=10, progress=False)
        >>> len(history)
        2
    """
    options = FitOptions(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        anneal_fraction=anneal_fraction,
        seed=seed,
        optimizer=optimizer,
        valid_every=valid_every,
    )
    for name, number in (("patience", patience), ("stop_after", stop_after)):
        if number is not None and number < 1:
            raise ValueError(f"fit(): expected {name} >= 1 or None, but got {number}")
    if not isinstance(train_ds, CSRDataset):
        raise TypeError(
            f"fit(): expected train_ds to be a CSRDataset, but got {type(train_ds).__name__}"
        )
    if not (valid is None or isinstance(valid, CSRDataset)):
        if not isinstance(valid, tuple | list) or len(valid) != 2:
            raise TypeError(
                "fit(): expected valid to be a CSRDataset, a pair (fold_in, held_out) or None, but "
                f"got {type(valid).__name__}"
            )
    if len(train_ds) == 0:
        raise ValueError("fit(): expected at least one training row, but got an empty data set")
    if resume and out is None:
        raise ValueError("fit(): resume=True needs `out`, the directory to resume from")
    if tensorboard and out is None:
        raise ValueError("fit(): tensorboard=True needs `out`, the directory to write to")
    run = Run(model, train_ds, valid, options, torch.device(device))
    run.out = Path(out) if out is not None else None
    run.patience = patience
    run.checkpoint_every = max(1, checkpoint_every)
    run.config = config if config is not None else {}
    run.progress = Progress(progress, epochs, len(train_ds))
    if run.out is not None:
        run.out.mkdir(parents=True, exist_ok=True)
        clean_orphans(run.out)
    if resume:
        run.load()
    elif hasattr(run.model, "start_from"):
        run.model.start_from(train_ds)
    if tensorboard and run.out is not None:
        run.events = TensorBoardLog(run.out)
    try:
        return run.train(stop_after, restore_best)
    finally:
        run.close()
