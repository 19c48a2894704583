"""How a layer hands an optimizer the rows of a weight's gradient instead of a dense one: the row tap.

A weight of logical shape (out, N) cannot carry a row-sparse ``.grad`` over its N features, and a backward
must not leave anything behind on the side (torch.compile refuses it). So the rows arrive as the gradient of
a leaf of their own:

- An optimizer that wants rows makes itself the ``row_source`` of the layers whose weight it owns, with
  :func:`own_rows`. It must be a :class:`RowSource`.
- In each forward that records a graph, the layer asks its source for a tap: a leaf of shape (U, out), one
  row for each feature that the batch touches, without memory of its own. The layer computes with the
  detached weight and the tap; the backward gives the tap the (U, out) gradient and the weight none.
- The optimizer finds the rows in ``tap.grad``. Or it makes the tap with a ``step``: then the backward
  calls that with what the rows would be made of, and no gradient is made.

The source may also have brought rows of the weight up to date at that moment; so the layer tells it of
every forward, also of one that records nothing. A layer without a source, or whose source has died, is
differentiated as any other: the weight gets its dense gradient, from whatever optimizer.

In a compiled region nothing can be asked for. There the layer uses the tap that ``RowAdam.prepare`` or
``RowAdagrad.prepare`` has left in ``prepared_tap``, if it is for this very batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..data.batch import CSRBatch
from ..data.index import TransposedIndex

__all__ = ["RowSource", "RowTap", "RowTapped", "layers_of", "own_rows", "row_tap"]


class RowTap(NamedTuple):
    """A leaf that gets the gradient of some rows of a weight.

    Attributes:
        leaf: (U, out), requires grad.
        features: (U,), the features, ascending.
        step: called by the backward with the batch's transposed index, its values and the gradient of
            the layer's output, or None. False tells it to give the leaf its gradient all the same.
    """

    leaf: Tensor
    features: Tensor
    step: Callable[[TransposedIndex, Tensor, Tensor], bool] | None = None


class RowSource(Protocol):
    """What an optimizer is for a layer whose weight it wants row by row."""

    def tap(self, weight: Tensor, x: CSRBatch) -> RowTap | None:
        """Bring the rows of `weight` that `x` touches up to date and make a tap for them.

        None means that the weight is to get its dense gradient.
        """

    def refresh(self, weight: Tensor, x: CSRBatch | None) -> None:
        """Bring the rows that `x` touches up to date, or all; they are about to be read."""


# Breaks the graph of a compiled region; made for the first layer that has a source.
_row_tap_outside_of_the_graph: Any = None
# Every layer that could be tapped, so that an optimizer which is given parameters finds them.
_LAYERS: weakref.WeakSet[RowTapped] = weakref.WeakSet()


class RowTapped(nn.Module):
    """Base of layers whose ``weight`` (out, N) can be owned by a :class:`RowSource`.

    Attributes:
        row_source: weak reference to the owner, or None.
        prepared_tap: tap for the next compiled forward, or None.
    """

    row_source: weakref.ref[Any] | None = None
    prepared_tap: RowTap | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _LAYERS.add(self)

    def refresh_rows(self, x: CSRBatch | None = None) -> None:
        """Have the rows that `x` touches brought up to date, or all of them."""
        source = None if self.row_source is None else self.row_source()
        if source is not None:
            source.refresh(self._parameters["weight"], x)

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to nobody, and holds the weight as it is after all steps.
        self.refresh_rows()
        state = self.__dict__.copy()
        state.pop("row_source", None)
        state.pop("prepared_tap", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _LAYERS.add(self)


def layers_of(weight: Tensor) -> list[RowTapped]:
    """The layers that have `weight` for their weight."""
    return [layer for layer in _LAYERS if layer._parameters.get("weight") is weight]


def own_rows(layer: RowTapped, source: RowSource) -> None:
    """Make `source` the one that the layer asks for taps; the layer holds it weakly."""
    global _row_tap_outside_of_the_graph
    layer.row_source = weakref.ref(source)
    layer.prepared_tap = None
    if _row_tap_outside_of_the_graph is None:
        # Not on import: this loads torch's compiler, which takes as long as all the rest of the package.
        reason = "the optimizer's prepare(batch) was not called before this compiled forward"
        _row_tap_outside_of_the_graph = torch.compiler.disable(_row_tap_in_eager, reason=reason)


def row_tap(layer: RowTapped, x: CSRBatch) -> RowTap | None:
    """The tap for a forward of `layer` over `x`; None when the weight is to be used as it is.

    Rows that the forward is about to read are brought up to date.
    """
    if layer.row_source is None:
        return None
    if torch.compiler.is_compiling():
        prepared = layer.prepared_tap
        if prepared is not None and x.index is not None and x.index.features is prepared.features:
            return prepared
        return _row_tap_outside_of_the_graph(layer, x)
    source, weight = layer.row_source(), layer._parameters["weight"]
    if source is None or weight is None:
        return None
    if x.n_cols != weight.shape[1] or x.device != weight.device:
        return None  # csr_linear says what is wrong
    wanted = weight.requires_grad and torch.is_grad_enabled()
    if not wanted or torch._C._are_functorch_transforms_active():
        source.refresh(weight, x)
        return None
    tap: RowTap | None = source.tap(weight, x)
    return tap


def _row_tap_in_eager(layer: RowTapped, x: CSRBatch) -> RowTap | None:
    return row_tap(layer, x)
