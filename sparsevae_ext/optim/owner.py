"""What makes an optimizer the owner of weights of sparse layers: it gets their gradients as rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ..data.index import TransposedIndex
from ..ops._checks import FLOATING
from ..ops.row_source import RowTap, RowTapped, layers_of, own_rows
from .exchange import exchange_gradients
from .rows import Rows
from .taps import add_to_dense_grad, new_leaf
from .waiting import WaitingRows, gradient_rows

__all__ = ["RowOwner", "StepInBackward", "owner_of"]

StepInBackward = Callable[[TransposedIndex, Tensor, Tensor], bool]


class RowOwner(torch.optim.Optimizer):
    """The half of a row optimizer that faces the layers: a `RowSource` (see ops/row_source.py).

    It knows which weights are stepped by rows, hands out taps for them, collects the rows and brings
    weights up to date. Taking steps is left to the subclass (row_optimizer.py).

    Attributes:
        process_group: see RowAdam.
    """

    process_group: Any

    def _new_state(self, p: Tensor) -> dict[str, Any]:
        """The state of a parameter that has taken no step."""
        raise NotImplementedError

    def _new_rows(self, weight: Tensor) -> Rows:
        """What is known of the rows of a weight, whose state has been made."""
        raise NotImplementedError

    def _start(self) -> None:
        """What is neither state nor option: what is owned, and what waits."""
        #: Weights that are, or can be, stepped by rows; None before the first rows.
        self._tables: dict[Tensor, Rows | None] = {}
        self._dense: set[Tensor] = set()
        self._waiting = WaitingRows(type(self).__name__)
        self._layers: weakref.WeakSet[RowTapped] = weakref.WeakSet()
        finalizer = weakref.finalize(self, _leave, self._tables, self._layers)
        finalizer.atexit = False

    def _own(self, weight: Tensor) -> None:
        layers = layers_of(weight)
        fits = weight.dim() == 2 and weight.t().is_contiguous() and weight.dtype in FLOATING
        if not layers or not fits:
            return
        for layer in layers:
            other = None if layer.row_source is None else layer.row_source()
            if isinstance(other, RowOwner) and other is not self:
                other._disown(weight)
            own_rows(layer, self)
            self._layers.add(layer)
        self._tables[weight] = None

    def _disown(self, weight: Tensor) -> None:
        table = self._tables.pop(weight, None)
        if table is not None:
            table.sync()
        self._waiting.drop(weight, self.param_groups)

    def _table(self, weight: Tensor) -> Rows | None:
        """The table of a weight that is stepped by rows, made at its first use."""
        if weight not in self._tables or weight in self._dense:
            return None
        table = self._tables[weight]
        if table is None:
            table = self._tables[weight] = self._new_rows(weight)
        return table

    def _state(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state.update(self._new_state(p))
        return state

    # ---- what layers ask for ---------------------------------------------------------------------

    def tap(self, weight: Tensor, x: CSRBatch) -> RowTap | None:
        """A tap for the rows that a batch touches, which are brought up to date.

        The layers call this in every forward; there is no need to call it.
        """
        if weight.grad is None:
            self._waiting.drop(weight, self.param_groups)  # model.zero_grad() has been called
        if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
            with torch.no_grad():
                self._go_dense(weight)
        table = self._table(weight)
        if table is None:
            return None
        index = x.prepare().index
        assert index is not None
        if table.owes:
            with torch.no_grad():
                table.catch_up(index.features)
        return self._new_tap(weight, index)

    def _step_in_backward(self, weight: Tensor) -> StepInBackward | None:
        """What a tap's backward is to call instead of giving the tap a gradient; None: nothing."""
        return None

    @torch.no_grad()
    def refresh(self, weight: Tensor, x: CSRBatch | None = None) -> None:
        """Bring the rows that a batch touches up to date, or all; the layers call this."""
        table = self._tables.get(weight)
        if table is None or not table.owes:
            return
        if x is None:
            table.sync()
        else:
            index = x.prepare().index
            assert index is not None
            table.catch_up(index.features)

    def prepare(self, batch: CSRBatch) -> None:
        """Make ready for one forward over a batch in a compiled region, and its backward.

        The batch is prepared (:meth:`CSRBatch.prepare`) and its rows are brought up to date. In eager mode
        the layers see to this themselves.

        Args:
            batch: what the compiled function is going to be called with.

        Example:
            >>> layer = nn.CSRLinear(3, 2)
            >>> opt = sv.optim.RowAdam(layer)
            >>> opt.prepare(CSRBatch.from_dense(torch.eye(3)))
        """
        if not isinstance(batch, CSRBatch):
            raise TypeError(
                f"{type(self).__name__}.prepare(): expected a CSRBatch, but got {type(batch).__name__}"
            )
        for layer in self._layers:
            weight = layer._parameters["weight"]
            if (
                weight is not None
                and weight.shape[1] == batch.n_cols
                and weight.device == batch.device
            ):
                layer.prepared_tap = self.tap(weight, batch)

    @torch.no_grad()
    def sync(self) -> None:
        """Bring every row of every weight up to date.

        Example:
            >>> opt = sv.optim.RowAdam(nn.CSRLinear(3, 2))
            >>> opt.sync()
        """
        for table in self._tables.values():
            if table is not None:
                table.sync()

    # ---- rows that wait ------------------------------------------------------------------------

    def _new_tap(self, weight: Tensor, index: TransposedIndex) -> RowTap:
        features = index.features
        leaf = new_leaf(weight, features.shape[0])
        owner = weakref.ref(self)

        def arrived(leaf: Tensor) -> None:
            if leaf.grad is None:
                return  # the step has been taken in the backward
            optimizer, tap = owner(), RowTap(leaf, features)
            if optimizer is not None and weight in optimizer._tables:
                optimizer._arrived(weight, tap)
            else:
                add_to_dense_grad(weight, tap)

        leaf.register_post_accumulate_grad_hook(arrived)
        return RowTap(leaf, features, self._step_in_backward(weight))

    def _arrived(self, weight: Tensor, tap: RowTap) -> None:
        """A backward has given a tap its gradient."""
        self._waiting.add(weight, tap, self.param_groups)

    @torch.no_grad()
    def gradient_of(self, p: Tensor) -> Tensor | None:
        """The tensor whose norm is that of a parameter's gradient; scaling it scales the gradient."""
        if id(p) in self._waiting.leaves():
            return None  # counted with its weight
        tap = self._waiting.of(p, self.param_groups)
        if tap is not None and p.grad is not None and not p.grad.is_sparse:
            self._go_dense(p)
            return p.grad
        return p.grad if tap is None else gradient_rows(tap)

    def parameters(self) -> list[Tensor]:
        """All parameters, without the leaves that hold their rows."""
        with self._waiting.aside(self.param_groups):
            return [p for group in self.param_groups for p in group["params"]]

    def _go_dense(self, weight: Tensor) -> None:
        """From now on a weight is stepped densely; rows that wait join its dense gradient."""
        if weight not in self._tables or weight in self._dense:
            return
        table = self._tables[weight]
        if table is not None:
            table.sync()
        tap = self._waiting.of(weight, self.param_groups)
        if tap is not None:
            add_to_dense_grad(weight, tap)
            dense, weight.grad = weight.grad, None
            self._waiting.drop(weight, self.param_groups)
            weight.grad = dense
        self._dense.add(weight)

    @torch.no_grad()
    def exchange(self) -> None:
        """Average the gradients of the owned weights over the process group, if there is one.

        Done by :meth:`step` and :func:`clip_grad_norm_`; every process must take part.
        """
        group = self.process_group
        if group is None or not self._tables:
            return
        rows = {weight: self._waiting.of(weight, self.param_groups) for weight in self._tables}
        for weight, whole in exchange_gradients(rows, self._go_dense, group).items():
            self._waiting.drop(weight, self.param_groups)
            self._waiting.add(weight, whole, self.param_groups)


def owner_of(tensor: Tensor) -> RowOwner | None:
    """The optimizer that gets the rows of this weight's gradient, if there is one."""
    for layer in layers_of(tensor):
        source = None if layer.row_source is None else layer.row_source()
        if isinstance(source, RowOwner):
            return source
    return None


def _leave(tables: dict[Tensor, Rows | None], layers: Iterable[RowTapped]) -> None:
    """The optimizer has died: nobody else can make up for missed steps."""
    with torch.no_grad():
        for table in tables.values():
            if table is not None:
                table.sync()
    for layer in layers:
        layer.prepared_tap = None
