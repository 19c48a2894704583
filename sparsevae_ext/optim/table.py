"""A weight that is stepped row by row: its moments, and what its rows owe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..data.index import TransposedIndex
from ..ops.csr_linear_row_adam import csr_linear_row_adam
from ..ops.row_adam import History, row_adam, row_adam_catch_up
from .rows import Rows, by_feature

__all__ = ["RowTable"]


class RowTable(Rows):
    """One weight of shape (out, N), whose rows are those of its transpose.

    Args:
        weight: laid out by feature: ``weight.t()`` is contiguous.
        state: the optimizer's state of it: "step", "exp_avg", "exp_avg_sq".
        exact: whether rows make up for the steps they missed.
        betas, eps: of Adam.

    Attributes:
        step: the number of steps taken, as "step" in the state, on the host.
    """

    def __init__(
        self,
        weight: Tensor,
        state: dict[str, Any],
        exact: bool,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self.weight, self.state, self.exact = weight, state, exact
        self.betas, self.eps = betas, eps
        self.step = int(state["step"])
        self.last_step: Tensor | None = None
        self.history: History | None = None
        self._device_table: Tensor | None = None
        # The state's step, and its memory as numpy sees it.
        self._counter: tuple[Tensor, Any] | None = None
        self._sent = 0
        # Rows that have been brought up to date since the last step, so that the step need not look.
        self._current: Tensor | None = None
        if exact:
            self.last_step = torch.full(
                (weight.shape[1], 2), self.step, dtype=torch.int32, device=weight.device
            )
            self._restart()

    # ---- what rows owe -------------------------------------------------------------------------

    def _restart(self) -> None:
        if self.history is None or (self.history.betas, self.history.eps) != (self.betas, self.eps):
            self.history = History(self.betas, self.eps)
            self._device_table = None
        self.history.restart(self.step)
        self._sent = 0

    @property
    def owes(self) -> bool:
        """Whether some row may have missed a step."""
        return self.history is not None and self.history.step > self.history.base

    def _table(self) -> Tensor:
        """The history's table on the weight's device: what has changed since the last time is sent."""
        assert self.history is not None
        host, device = torch.from_numpy(self.history.table), self.weight.device
        if device.type == "cpu":
            return host
        if self._device_table is None or self._device_table.device != device:
            self._device_table, self._sent = torch.empty_like(host, device=device), 0
        # A step changes the sums of the starts in its window, and adds its own row.
        end = self.history.step - self.history.base + 1
        begin = max(0, min(self._sent, end) - self.history.window - 1)
        self._device_table[begin:end].copy_(host[begin:end])
        self._sent = end
        return self._device_table

    def catch_up(self, rows: Tensor | None) -> None:
        """Bring these rows (ascending) of the weight, or all and their moments, up to date."""
        if not self.owes or (rows is not None and rows is self._current):
            return
        assert self.history is not None and self.last_step is not None
        param, exp_avg, exp_avg_sq = self._tables()
        row_adam_catch_up(
            param, exp_avg, exp_avg_sq, self.last_step, rows, self.history, self._table()
        )
        self._current = rows

    def sync(self) -> None:
        """Bring every row up to date and forget the steps."""
        if self.owes:
            self.catch_up(None)
            self._restart()

    # ---- steps ---------------------------------------------------------------------------------

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weight and its averages m and v, by feature."""
        state = self.state
        return by_feature(self.weight), state["exp_avg"].t(), state["exp_avg_sq"].t()

    def use(self, betas: tuple[float, float], eps: float) -> None:
        """Take over betas and eps; what was missed under others is made up for first."""
        if (betas, eps) != (self.betas, self.eps):
            self.sync()
            self.betas, self.eps = betas, eps
            if self.exact:
                self._restart()

    def take_step(self, rows: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
        """Step the rows (ascending) by their gradient, and all others by none."""
        facts = self._next_step(rows, lr, weight_decay)
        row_adam(*self._tables(), self.last_step, rows, grad, **facts)
        torch.autograd.graph.increment_version(self.weight)

    def take_fused_step(
        self, index: TransposedIndex, values: Tensor, grad: Tensor, lr: float, weight_decay: float
    ) -> None:
        """The same from the batch and the gradient of the layer's output."""
        facts = self._next_step(index.features, lr, weight_decay)
        csr_linear_row_adam(*self._tables(), self.last_step, index, values, grad, **facts)
        torch.autograd.graph.increment_version(self.weight)

    def _next_step(self, rows: Tensor, lr: float, weight_decay: float) -> dict[str, Any]:
        """Begin a step that has a gradient for these rows, and say what it is."""
        self.catch_up(rows)
        if self.history is not None and self.history.full:
            self.sync()
        self.step += 1
        self._count_step()
        self._current = None
        beta1, beta2 = self.betas
        root = math.sqrt(1 - beta2**self.step)
        step_size = lr / (1 - beta1**self.step)
        if self.history is not None:
            self.history.append(lr, weight_decay)
        return dict(
            step=self.step,
            betas=self.betas,
            eps=self.eps,
            # torch.optim.SparseAdam leaves eps outside the bias correction.
            step_size=step_size if self.exact else step_size * root,
            root_scale=1 / root if self.exact else 1.0,
            decay=1 - lr * weight_decay,
        )

    def _count_step(self) -> None:
        """Add one to the state's step; an op would take as long as all the rest of `_next_step`."""
        step = self.state["step"]
        if step.device.type != "cpu":
            step += 1
            return
        if self._counter is None or self._counter[0] is not step:
            self._counter = step, step.numpy()
        self._counter[1][()] += 1

    def took_dense_step(self) -> None:
        """Note that somebody else has stepped the whole weight, which was up to date."""
        self.step += 1
        if self.last_step is not None:
            self.last_step.fill_(self.step)
            self._restart()
