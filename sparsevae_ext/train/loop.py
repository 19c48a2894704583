"""The training loop and the state that a resumed run needs."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import CSRBatch, CSRDataset, CSRLoader
from ..optim import RowAdam
from .checkpoint import (
    CheckpointError,
    link_checkpoint,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from .history import History, Row, TensorBoardLog
from .interrupts import Interrupted, StopSignals
from .metrics import split_fold_in
from .non_finite import find_cause, non_finite_parameter
from .optimizers import make_optimizer
from .options import FitOptions
from .progress import Progress
from .schedules import LinearAnnealing
from .seed import get_rng_state, seed_everything, set_rng_state
from .validation import KEPT, measure, monitor_of, ranks, warn_of_collapse

__all__ = ["NonFiniteLossError", "Run"]

# Steps between looks at the loss: on a CPU it is at hand, elsewhere looking waits for the device.
_CHECK_EVERY = {"cpu": 1}
_CHECK_EVERY_ELSEWHERE = 50


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the text names the step, the first bad tensor and the rows."""


class Run:
    """State of one call of `fit`. What `_payload` holds is all that a resumed run needs."""

    def __init__(
        self,
        model: Any,
        train_ds: CSRDataset,
        valid: CSRDataset | tuple[Any, Any] | None,
        options: FitOptions,
        device: torch.device,
    ) -> None:
        self.options = options
        self.device = device
        seed_everything(options.seed)
        # Any: a Module, but what is used of it are its loss parts, its beta and its ranking.
        self.model: Any = model.to(device)
        self.optimizer = make_optimizer(
            model.parameters(),
            options.optimizer,
            lr=options.lr,
            weight_decay=options.weight_decay,
        )
        self.loader = CSRLoader(
            train_ds,
            batch_size=options.batch_size,
            shuffle=True,
            seed=options.seed,
            pin_memory=device.type == "cuda",
        )
        self.rows = len(train_ds)
        self.valid: tuple[Any, Any] | None = None
        if not isinstance(valid, CSRDataset):
            self.valid = valid
        elif len(valid):
            # Only a ranking needs two parts, and whole rows keep the batch they come from.
            ranked = ranks(model)
            self.valid = split_fold_in(valid, seed=options.seed) if ranked else (valid, None)
        self.monitor = monitor_of(model)
        self.beta: LinearAnnealing | None = None
        if hasattr(self.model, "beta"):
            self.beta = LinearAnnealing(
                float(self.model.beta), options.epochs * len(self.loader), options.anneal_fraction
            )
        self.out: Path | None = None
        self.patience: int | None = None
        self.checkpoint_every = 1
        self.config: dict[str, Any] = {}
        self.events: TensorBoardLog | None = None
        self.progress: Progress

        self.history = History()
        self.epoch = 0  # epochs finished
        self.batch = 0  # batches done of the epoch under way
        self.step = 0
        self.bad_validations = 0
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.rows_done = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.best_state: dict[str, torch.Tensor] | None = None
        self.check_every = _CHECK_EVERY.get(device.type, _CHECK_EVERY_ELSEWHERE)
        self.unchecked: list[tuple[int, torch.Tensor]] = []

    # ---- the loop --------------------------------------------------------------------------

    def train(self, stop_after: int | None, restore_best: bool) -> History:
        """Run the epochs that are left, at most `stop_after` of them."""
        last = self.options.epochs
        if stop_after is not None:
            last = min(last, self.epoch + stop_after)
        self.history.stopped = "early" if self._exhausted() else "epochs"
        with StopSignals() as signals:
            try:
                while self.epoch < last and not self._exhausted():
                    with signals.deferred():
                        self._train_epoch(signals)
                    metrics = self._validate()
                    with signals.deferred():
                        self._finish_epoch(metrics, last)
                    if signals.received is not None:
                        raise Interrupted(signals.received)
            except Interrupted as interrupted:
                self.progress.end_epoch()
                if self.out is not None and interrupted.clean:
                    with signals.deferred():
                        interrupted.saved = str(self.save())
                raise
        if restore_best:
            self._restore_best()
        warn_of_collapse(self.history, getattr(self.model, "latent", 0))
        return self.history

    def close(self) -> None:
        """Give the model its own beta back and close what is open."""
        self.progress.end_epoch()
        if self.beta is not None:
            self.model.beta = self.beta.cap
        if self.events is not None:
            self.events.close()

    def _train_epoch(self, signals: StopSignals) -> None:
        self.model.train()
        self.loader.set_epoch(self.epoch)
        self.progress.start_epoch(self.epoch + 1, self.rows_done)
        skip = self.batch
        started = time.perf_counter()
        spent, waited = self.seconds, self.waited
        batches = iter(self.loader)
        try:
            for index, batch in enumerate(batches):
                if index < skip:
                    continue
                self._train_step(batch.to(self.device, non_blocking=True))
                self.seconds = spent + time.perf_counter() - started
                self.waited = waited + self.loader.wait_seconds
                if signals.received is not None:
                    raise Interrupted(signals.received)
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()
        self._check_losses()
        self.seconds = spent + time.perf_counter() - started
        self.progress.end_epoch()
        bad_parameter = non_finite_parameter(self.model)
        if bad_parameter is not None:
            raise NonFiniteLossError(
                f"fit(): step {self.step} (the last of epoch {self.epoch + 1}) made the parameter "
                f"{bad_parameter} non-finite; a smaller lr may help"
            )

    def _train_step(self, batch: CSRBatch) -> None:
        if self.beta is not None:
            self.model.beta = self.beta(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        output = self.model(batch)
        loss = output.loss
        self.unchecked.append((self.step, loss.detach()))
        look = len(self.unchecked) >= self.check_every
        if look:
            self._check_losses(batch, output)
        loss.backward()
        self.optimizer.step()
        parts = torch.stack(
            [part.detach().double() for part in (loss, output.nll, output.kl, output.penalty)]
        )
        self.sums += parts * len(batch)
        self.step += 1
        self.batch += 1
        self.rows_done += len(batch)
        self.progress.step(len(batch), float(loss.detach()) if look else None)

    def _check_losses(self, batch: CSRBatch | None = None, output: Any = None) -> None:
        """Raise for the first non-finite loss since the last check; one sync for all of them."""
        if not self.unchecked:
            return
        steps = [step for step, _ in self.unchecked]
        losses = torch.stack([loss for _, loss in self.unchecked]).double().cpu()
        self.unchecked.clear()
        bad = (~losses.isfinite()).nonzero()
        if bad.numel() == 0:
            return
        step = steps[int(bad[0])]
        where = (
            f"step {step + 1} (epoch {step // len(self.loader) + 1}, "
            f"batch {step % len(self.loader) + 1})"
        )
        # The batch at hand is that of the last step looked at, not of an earlier one.
        at_hand = step == steps[-1]
        cause = find_cause(
            self.model,
            self._rows_of(step),
            self.loader.dataset,
            batch if at_hand else None,
            output if at_hand else None,
        )
        raise NonFiniteLossError(f"fit(): the loss is {float(losses[bad[0]])} at {where}; {cause}")

    def _rows_of(self, step: int) -> NDArray[np.int64]:
        """The row numbers of a step's batch."""
        epoch, place = divmod(step, len(self.loader))
        now = self.loader.epoch
        self.loader.set_epoch(epoch)
        order = self.loader.row_order()
        self.loader.set_epoch(now)
        size = self.loader.batch_size
        return order[place * size : (place + 1) * size]

    # ---- between epochs --------------------------------------------------------------------

    def _validate(self) -> dict[str, float]:
        due = (self.epoch + 1) % self.options.valid_every == 0
        if self.valid is None or not (due or self.epoch + 1 == self.options.epochs):
            return {}
        # Whether and how often one validates must not change what is trained.
        rng = get_rng_state()
        if self.beta is not None:
            # Losses of different epochs compare only under one weight of the divergence.
            self.model.beta = self.beta.cap
        try:
            # A unit is dead when a whole epoch has passed without it.
            return measure(self.model, *self.valid, self.options.batch_size, dead_after=self.rows)
        finally:
            set_rng_state(rng)

    def _finish_epoch(self, metrics: dict[str, float], last: int) -> None:
        loss, nll, kl, penalty = (self.sums / self.rows_done).tolist()
        row: Row = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "loss": loss,
            "nll": nll,
            "kl": kl,
            "penalty": penalty,
            "beta": self.beta(self.step - 1) if self.beta is not None else 0.0,
            "rows_per_s": self.rows_done / max(self.seconds, 1e-9),
            "seconds": self.seconds,
            "wait_share": self.waited / max(self.seconds, 1e-9),
        }
        row.update({f"valid_{name}": metrics[name] for name in KEPT if name in metrics})
        self.history.rows.append(row)
        self.epoch += 1
        self.batch = self.rows_done = 0
        self.seconds = self.waited = 0.0
        self.sums.zero_()
        if isinstance(self.optimizer, RowAdam):
            # Whether and when state is saved must not decide in which steps rows are caught up.
            self.optimizer.sync()
        better = False
        if metrics:
            better = self.monitor.better(metrics[self.monitor.name], self.history.best_metric)
            self.bad_validations = 0 if better else self.bad_validations + 1
            if better:
                self.history.best_metric = float(metrics[self.monitor.name])
                self.history.best_epoch = self.epoch
        finished = self.epoch == self.options.epochs or self._exhausted()
        if self._exhausted():
            self.history.stopped = "early"
        elif self.epoch == last and not finished:
            self.history.stopped = "paused"
        self._keep(better, finished or self.epoch == last)
        self.progress.end_epoch(row, better)
        if self.events is not None:
            self.events.write(row)
        if self.history.stopped == "early":
            self.progress.line(
                f"stopped: no better {self.monitor.name} in {self.bad_validations} validations; "
                f"best epoch {self.history.best_epoch}"
            )

    def _exhausted(self) -> bool:
        return self.patience is not None and self.bad_validations >= self.patience

    def _keep(self, better: bool, ends: bool) -> None:
        if self.out is None:
            if better:
                self.best_state = {
                    name: tensor.detach().clone()
                    for name, tensor in self.model.state_dict().items()
                }
        elif better or ends or self.epoch % self.checkpoint_every == 0:
            self.save()

    def _restore_best(self) -> None:
        if self.history.best_epoch in (0, self.epoch):
            return
        state = self.best_state
        if self.out is not None:
            state = load_checkpoint(self.out / "best.pt", self.device)["model"]
        if state is not None:
            self.model.load_state_dict(state)

    # ---- checkpoints -----------------------------------------------------------------------

    def save(self) -> Path:
        """Write last.pt, link best.pt to it if this is the best epoch, and write history.csv."""
        assert self.out is not None
        self._check_losses()
        path = self.out / "last.pt"
        save_checkpoint(self._payload(), path)
        best = self.out / "best.pt"
        if self.batch == 0 and self.epoch and self.epoch == self.history.best_epoch:
            link_checkpoint(path, best)
        elif self.history.best_epoch == 0:
            remove_checkpoint(best)  # of another run: whoever loads this one would get its weights
        try:
            self.history.to_csv(self.out / "history.csv")
        except OSError as error:
            raise CheckpointError(
                f"{self.out / 'history.csv'} could not be written: {error.strerror or error}"
            ) from error
        return path

    def _payload(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "options": asdict(self.options),
            "plan": asdict(self.beta) if self.beta is not None else {},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": get_rng_state(),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "rows": self.rows,
            "rows_done": self.rows_done,
            "sums": self.sums,
            "seconds": self.seconds,
            "waited": self.waited,
            "bad_validations": self.bad_validations,
            "best_epoch": self.history.best_epoch,
            "best_metric": self.history.best_metric,
            "history": self.history.rows,
            "torch": str(torch.__version__),
        }

    def load(self) -> None:
        """Take over the state in last.pt."""
        assert self.out is not None
        path = self.out / "last.pt"
        saved = load_checkpoint(path)
        self._refuse_other_run(saved, path)
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"fit(): {path} does not fit this model: {reason}") from error
        set_rng_state(saved["rng"])
        if self.beta is not None:
            self.beta = LinearAnnealing(**saved["plan"])
        self.epoch, self.batch, self.step = saved["epoch"], saved["batch"], saved["step"]
        self.rows_done = saved["rows_done"]
        self.sums = saved["sums"].to(self.device)
        self.seconds, self.waited = saved["seconds"], saved["waited"]
        self.bad_validations = saved["bad_validations"]
        self.history.rows = saved["history"]
        self.history.best_epoch = saved["best_epoch"]
        self.history.best_metric = saved["best_metric"]
        if self.batch == 0 and self.epoch and self.epoch == self.history.best_epoch:
            # The process may have died between writing last.pt and linking it.
            link_checkpoint(path, self.out / "best.pt")
        self.progress.line(f"resumed {path} after epoch {self.epoch}, step {self.step}")

    def _refuse_other_run(self, saved: dict[str, Any], path: Path) -> None:
        now = asdict(self.options)
        for name, before in saved["options"].items():
            if name != "epochs" and now.get(name) != before:
                raise ValueError(
                    f"fit(): {path} was trained with {name}={before}, but got {now.get(name)}; "
                    "a resumed run keeps it"
                )
        if saved["rows"] != self.rows:
            raise ValueError(
                f"fit(): {path} was trained on {saved['rows']} rows, but got {self.rows}"
            )
        if self.options.epochs < saved["epoch"]:
            raise ValueError(
                f"fit(): {path} already has {saved['epoch']} epochs, but got "
                f"epochs={self.options.epochs}"
            )
