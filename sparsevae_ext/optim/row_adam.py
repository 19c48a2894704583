"""RowAdam: Adam that touches only the rows that a batch touched."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from ..data.batch import CSRBatch
from ..data.index import TransposedIndex
from ..ops._checks import FLOATING
from ..ops.row_source import RowTap, RowTapped, layers_of
from .exchange import Kind, broadcast, gather_kinds, hide_from_ddp, mean_of_dense, mean_of_rows
from .table import RowTable
from .taps import add_to_dense_grad, merged, new_leaf, stand_in

__all__ = ["RowAdam"]

#: What torch.optim.AdamW keeps in a group and RowAdam does not offer, with the value that it has here.
_FIXED = {
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": True,
    "decoupled_weight_decay": True,
}


class RowAdam(torch.optim.Optimizer):
    r"""AdamW at the cost of the rows that a batch touched.

    The gradient of a :class:`~sparsevae_ext.nn.CSRLinear` weight is non-zero for the features of the batch
    only. From layers whose weight RowAdam owns it gets just these rows, and steps just these rows; a dense
    gradient never exists. Every other parameter is stepped by torch's fused AdamW in the same call.

    What happens to a row whose feature is not in the batch depends on the mode:

    - ``"exact"``: AdamW moves every weight in every step, by its decaying moments and the weight decay.
      Here these moves are made up for when the row is next read, so that training equals
      ``torch.optim.AdamW`` to rounding, learning rate schedules included.
    - ``"lazy"``: nothing, as in ``torch.optim.SparseAdam``. Faster by what the moves cost, and not Adam:
      the moments of a rare feature do not decay between its occurrences.

    In exact mode a weight in memory is therefore not up to date everywhere. What a layer reads in a forward
    is, and so are ``state_dict()`` of model and optimizer, copies and pickles of the layer. Before
    any other look at ``layer.weight``, call :meth:`sync`. Before the forward of a compiled model, call
    :meth:`prepare` with the batch.

    Between backward and :meth:`zero_grad` the rows are the gradients of additional leaves in the weight's
    parameter group, so that whatever goes through ``param_groups``, such as ``torch.amp.GradScaler``, finds
    them; ``weight.grad`` is an empty sparse tensor that stands for them. To clip gradients use
    :func:`sparsevae_ext.optim.clip_grad_norm_`.

    A weight that gets a dense gradient as well (a tied decoder, a penalty on the weight, a dense batch, a
    hook on the weight) is stepped densely from then on. A layer whose optimizer has died goes back to
    dense gradients.

    Args:
        params: a module, or parameters or groups as for every ``torch.optim`` optimizer.
        lr: learning rate.
        betas: decay of the averages of the gradient and its square.
        eps: added to the denominator.
        weight_decay: decoupled weight decay, as in AdamW. Lazy mode has none for the rows.
        mode: ``"exact"`` or ``"lazy"``.
        fused_backward: step the rows as soon as backward has their gradient, which is then let go; the
            other parameters are stepped in :meth:`step`. No gradient is left to accumulate, clip, scale or
            exchange: one backward through one forward of each layer for each step, and values that
            need a gradient are refused by autograd.
        process_group: of ``torch.distributed``, to train with data parallel processes: build RowAdam from
            the module, then wrap the module in ``DistributedDataParallel``. The weights that
            RowAdam owns are broadcast from the group's first process and hidden from DDP; every step
            exchanges their rows. The processes' weights are equal to rounding: rows are brought
            up to date when a process reads them.

    Raises:
        ValueError: an option outside its range, a parameter in two groups, no parameters.
        TypeError: ``params`` is a tensor, or holds something else than tensors.

    Example:
        >>> model = nn.CSRLinear(1000, 4)
        >>> opt = sv.optim.RowAdam(model, lr=0.1)
        >>> batch = CSRBatch(torch.tensor([0, 2]), torch.tensor([7, 9]), torch.ones(2), (1, 1000))
        >>> before = model.weight.detach().clone()
        >>> for _ in range(2):
        ...     opt.zero_grad()
        ...     model(batch).square().sum().backward()
        ...     opt.step()
        >>> opt.sync()
        >>> (model.weight != before).any(0).nonzero().flatten().tolist()
        [7, 9]
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        mode: Literal["exact", "lazy"] = "exact",
        fused_backward: bool = False,
        process_group: Any = None,
    ) -> None:
        if mode not in ("exact", "lazy"):
            raise ValueError(f"RowAdam(): expected mode to be 'exact' or 'lazy', but got {mode!r}")
        self.mode = mode
        self.fused_backward = fused_backward
        self.process_group = process_group
        if fused_backward and process_group is not None:
            raise ValueError(
                "RowAdam(): fused_backward leaves no gradient to exchange in a process_group"
            )
        self._start()
        module = params if isinstance(params, nn.Module) else None
        if process_group is not None and module is None:
            raise TypeError(
                "RowAdam(): process_group needs a module, whose weights are hidden from DDP, but got "
                f"{type(params).__name__}"
            )
        if isinstance(params, nn.Module):
            params = params.parameters()
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, {**defaults, **_FIXED})
        if module is not None and process_group is not None:
            hide_from_ddp(module, set(self._tables))
            for weight in self._tables:
                broadcast(weight, process_group)

    def _start(self) -> None:
        """What is neither state nor option: who owns what, and what waits."""
        #: Weights that are, or can be, stepped by rows; None before the first rows.
        self._tables: dict[Tensor, RowTable | None] = {}
        self._dense: set[Tensor] = set()
        self._stepped_early: set[Tensor] = set()  # by fused_backward, since the last step()
        self._taps: dict[Tensor, list[RowTap]] = {}
        self._stand_ins: dict[Tensor, tuple[Tensor, int]] = {}
        self._layers: weakref.WeakSet[RowTapped] = weakref.WeakSet()
        finalizer = weakref.finalize(self, _leave, self._tables, self._layers)
        finalizer.atexit = False

    # ---- parameters ----------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, as in ``torch.optim.Optimizer``."""
        with self._taps_aside():
            super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_options(group)
            for p in group["params"]:
                if not p.is_floating_point():
                    raise ValueError(f"RowAdam does not support parameters of dtype {p.dtype}")
            self._check_lazy(group)
        except BaseException:
            self.param_groups.pop()
            raise
        for p in group["params"]:
            self._own(p)

    def _check_lazy(self, group: dict[str, Any]) -> None:
        if self.mode == "lazy" and group["weight_decay"] != 0:
            if any(layers_of(p) for p in group["params"]):
                raise ValueError(
                    "RowAdam(): weight_decay needs mode='exact': in lazy mode rows would decay only "
                    "when they are touched; put the weights of sparse layers in a group without it"
                )

    def _own(self, weight: Tensor) -> None:
        layers = layers_of(weight)
        fits = weight.dim() == 2 and weight.t().is_contiguous() and weight.dtype in FLOATING
        if not layers or not fits:
            return
        for layer in layers:
            other = None if layer.row_source is None else layer.row_source()
            if isinstance(other, RowAdam) and other is not self:
                other._disown(weight)
            layer.row_source = weakref.ref(self)
            layer.prepared_tap = None
            self._layers.add(layer)
        self._tables[weight] = None

    def _disown(self, weight: Tensor) -> None:
        table = self._tables.pop(weight, None)
        if table is not None:
            table.sync()
        self._drop(weight)

    def _group_of(self, weight: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(p is weight for p in group["params"]):
                return group
        raise KeyError("the weight is in no parameter group")

    def _table(self, weight: Tensor) -> RowTable | None:
        """The table of a weight that is stepped by rows, made at its first use."""
        if weight not in self._tables or weight in self._dense:
            return None
        table = self._tables[weight]
        if table is None:
            group = self._group_of(weight)
            state = self._state(weight)
            table = RowTable(weight, state, self.mode == "exact", group["betas"], group["eps"])
            self._tables[weight] = table
        return table

    def _state(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    # ---- what layers ask for (see ops/row_source.py) ---------------------------------------------

    @torch.no_grad()
    def tap(self, weight: Tensor, x: CSRBatch) -> RowTap | None:
        """A tap for the rows that a batch touches, which are brought up to date.

        The layers call this in every forward; there is no need to call it.
        """
        if weight.grad is None:
            self._drop(weight)  # model.zero_grad() has been called
        if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
            self._go_dense(weight)
        table = self._table(weight)
        if table is None:
            return None
        index = x.prepare().index
        assert index is not None
        table.catch_up(index.features)
        return self._new_tap(weight, index)

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
                f"RowAdam.prepare(): expected a CSRBatch, but got {type(batch).__name__}"
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
            optimizer, tap = owner(), RowTap(leaf, features)
            if optimizer is not None and weight in optimizer._tables:
                optimizer._arrived(weight, tap)
            else:
                add_to_dense_grad(weight, tap)

        leaf.register_post_accumulate_grad_hook(arrived)
        return RowTap(leaf, features)

    def _arrived(self, weight: Tensor, tap: RowTap) -> None:
        """A backward has given a tap its gradient."""
        if self.fused_backward:
            self._step_now(weight, tap)
            return
        if weight.grad is None:
            self._drop(weight)
            weight.grad = stand_in(weight)
            self._stand_ins[weight] = (weight.grad, weight.grad._version)
        taps = self._taps.setdefault(weight, [])
        if not any(known.leaf is tap.leaf for known in taps):
            taps.append(tap)
            self._group_of(weight)["params"].append(tap.leaf)

    @torch.no_grad()
    def _step_now(self, weight: Tensor, tap: RowTap) -> None:
        if weight in self._stepped_early:
            raise RuntimeError(
                "RowAdam: with fused_backward=True a weight can get one gradient for each step(), but a "
                "second has arrived"
            )
        table, group = self._table(weight), self._group_of(weight)
        assert table is not None and tap.leaf.grad is not None
        lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
        if lr * weight_decay >= 1:
            raise RuntimeError(
                "RowAdam: with fused_backward=True lr * weight_decay must be less than 1, but got "
                f"{lr * weight_decay}"
            )
        self._check_lazy(group)
        table.use(group["betas"], group["eps"])
        table.take_step(tap.features, tap.leaf.grad, lr, weight_decay)
        tap.leaf.grad = None
        self._stepped_early.add(weight)

    def _drop(self, weight: Tensor) -> None:
        """Forget the rows that wait for a weight."""
        taps = self._taps.pop(weight, None)
        stand_in_and_version = self._stand_ins.pop(weight, None)
        if stand_in_and_version is not None and weight.grad is stand_in_and_version[0]:
            weight.grad = None
        if taps:
            for tap in taps:
                tap.leaf.grad = None  # its graph may still be there for another backward
            gone = {id(tap.leaf) for tap in taps}
            params = self._group_of(weight)["params"]
            params[:] = [p for p in params if id(p) not in gone]

    @contextmanager
    def _taps_aside(self) -> Iterator[None]:
        """The parameter groups as the user made them."""
        waiting = {id(tap.leaf) for taps in self._taps.values() for tap in taps}
        before = [(group, list(group["params"])) for group in self.param_groups]
        for group, params in before:
            group["params"][:] = [p for p in params if id(p) not in waiting]
        try:
            yield
        finally:
            for group, params in before:
                group["params"][:] = params

    def _rows_of(self, weight: Tensor) -> RowTap | None:
        """The rows that wait for a weight as one tap, or None."""
        taps = self._taps.get(weight)
        if not taps:
            return None
        known = self._stand_ins.get(weight)
        if weight.grad is None:  # model.zero_grad()
            self._drop(weight)
            return None
        if known is not None and weight.grad is known[0] and weight.grad._version != known[1]:
            raise RuntimeError(
                "RowAdam: the grad of a weight with row gradients was changed in place, but it only "
                "stands for rows that wait in param_groups; use opt.zero_grad(), "
                "sparsevae_ext.optim.clip_grad_norm_ or the gradients in param_groups"
            )
        taps = [tap for tap in taps if tap.leaf.grad is not None]
        if not taps:
            return None
        if len(taps) > 1 or len(self._taps[weight]) > 1:
            one = merged(taps)
            gone = {id(tap.leaf) for tap in self._taps[weight]}
            params = self._group_of(weight)["params"]
            params[:] = [p for p in params if id(p) not in gone] + [one.leaf]
            self._taps[weight] = [one]
            return one
        return taps[0]

    @torch.no_grad()
    def gradient_of(self, p: Tensor) -> Tensor | None:
        """The tensor whose norm is that of a parameter's gradient; scaling it scales the gradient."""
        if self._is_leaf(p):
            return None  # counted with its weight
        tap = self._rows_of(p)
        if tap is not None and p.grad is not None and not p.grad.is_sparse:
            self._go_dense(p)
            return p.grad
        return p.grad if tap is None else tap.leaf.grad

    def parameters(self) -> list[Tensor]:
        """All parameters, without the leaves that hold their rows."""
        with self._taps_aside():
            return [p for group in self.param_groups for p in group["params"]]

    def _is_leaf(self, p: Tensor) -> bool:
        return any(tap.leaf is p for taps in self._taps.values() for tap in taps)

    def _go_dense(self, weight: Tensor) -> None:
        """From now on a weight is stepped densely; rows that wait join its dense gradient."""
        if weight not in self._tables or weight in self._dense:
            return
        table = self._tables[weight]
        if table is not None:
            table.sync()
        tap = self._rows_of(weight)
        if tap is not None:
            add_to_dense_grad(weight, tap)
            self._taps.setdefault(weight, [])
            dense, weight.grad = weight.grad, None
            self._drop(weight)
            weight.grad = dense
        self._dense.add(weight)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, rows included."""
        for weight in list(self._taps):
            self._drop(weight)
        super().zero_grad(set_to_none)

    # ---- the step ------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient are left alone, as in ``torch.optim``.

        Args:
            closure: evaluated once before the step, with gradients enabled.

        Returns:
            What the closure returned, or None.
        """
        self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for layer in self._layers:
            layer.prepared_tap = None
        self.exchange()
        for group in self.param_groups:
            self._step_group(group)
        self._stepped_early.clear()
        return loss

    @torch.no_grad()
    def exchange(self) -> None:
        """Average the gradients of the owned weights over the process group, if there is one.

        Done by :meth:`step` and :func:`clip_grad_norm_`; every process must take part.
        """
        group = self.process_group
        if group is None or not self._tables:
            return
        weights = list(self._tables)
        taps = [self._rows_of(weight) for weight in weights]
        mine = []
        for weight, tap in zip(weights, taps, strict=True):
            if weight.grad is not None and not weight.grad.is_sparse:
                mine.append((Kind.DENSE, 0))
            else:
                mine.append((Kind.NOTHING, 0) if tap is None else (Kind.ROWS, len(tap.features)))
        everybody = gather_kinds(mine, weights[0].device, group)
        for i, (weight, tap) in enumerate(zip(weights, taps, strict=True)):
            kinds, counts = everybody[:, i].T.tolist()
            if Kind.DENSE in kinds:
                self._go_dense(weight)
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight, memory_format=torch.preserve_format)
                mean_of_dense(weight.grad, group)
            elif Kind.ROWS in kinds:
                whole = mean_of_rows(weight, tap, counts, group)
                self._drop(weight)
                self._arrived(weight, whole)

    def _step_group(self, group: dict[str, Any]) -> None:
        lr, weight_decay = group["lr"], group["weight_decay"]
        dense: list[Tensor] = []
        leaves = {id(tap.leaf) for taps in self._taps.values() for tap in taps}
        for p in [p for p in group["params"] if id(p) not in leaves]:
            if p.grad is None:
                continue
            tap = self._rows_of(p)
            if tap is not None and (not p.grad.is_sparse or float(lr) * weight_decay >= 1):
                self._go_dense(p)
                tap = None
            if tap is not None:
                table = self._table(p)
                assert table is not None and tap.leaf.grad is not None
                self._check_lazy(group)
                table.use(group["betas"], group["eps"])
                table.take_step(tap.features, tap.leaf.grad, float(lr), float(weight_decay))
                continue
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                if p in self._stand_ins:
                    continue  # its rows were taken away
                raise RuntimeError(
                    "RowAdam does not support sparse gradients, please consider SparseAdam instead"
                )
            if p in self._stepped_early:
                raise RuntimeError(
                    "RowAdam: with fused_backward=True a weight cannot get a dense gradient beside its "
                    "rows, which have been stepped already"
                )
            self._go_dense(p)
            dense.append(p)
        if dense:
            self._dense_step(group, dense)

    def _dense_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states = [self._state(p) for p in params]
        grads = [_laid_out_as(p) for p in params]
        beta1, beta2 = group["betas"]
        adam(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=True,
        )
        for p in params:
            table = self._tables.get(p)
            if table is not None:
                table.took_dense_step()

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state, with every row up to date, as ``torch.optim.AdamW`` would have it."""
        self.sync()
        with self._taps_aside():
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of RowAdam, ``torch.optim.Adam``, ``AdamW`` or ``SparseAdam``.

        Raises:
            ValueError: the groups or shapes do not fit, or the state was made with options that RowAdam
                does not have: ``amsgrad``, ``maximize``, or a weight decay that is not decoupled.
        """
        self._check_loadable(state_dict)
        for weight in list(self._taps):
            self._drop(weight)
        self.sync()  # steps that are still owed belong to the state that goes
        before = [dict(group) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, old in zip(self.param_groups, before, strict=True):
            for name in ("lr", "betas", "eps", "weight_decay"):
                group.setdefault(name, old[name])
            group.update(_FIXED)
            for p in group["params"]:
                self._adopt(p)
        for weight in self._tables:
            self._tables[weight] = None

    def _check_loadable(self, state_dict: dict[str, Any]) -> None:
        for group in state_dict["param_groups"]:
            for name in ("amsgrad", "maximize"):
                if group.get(name):
                    raise ValueError(f"RowAdam does not support a state made with {name}=True")
            if group.get("weight_decay") and not group.get("decoupled_weight_decay", False):
                raise ValueError(
                    "RowAdam does not support a state made with a weight_decay that is not decoupled "
                    "(torch.optim.Adam's): no row could be left alone in a step; use AdamW's"
                )
        params = self.parameters()
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        if len(params) != len(numbers):
            return  # torch says what is wrong
        for p, i in zip(params, numbers, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                saved = state_dict["state"].get(i, {}).get(name)
                if saved is not None and saved.shape != p.shape:
                    raise ValueError(
                        f"loaded state dict has {name} of shape {tuple(saved.shape)} for a parameter "
                        f"of shape {tuple(p.shape)}"
                    )

    def _adopt(self, p: Tensor) -> None:
        """A loaded state in the form that the step wants."""
        state = self.state.get(p)
        if not state:
            return
        step = torch.as_tensor(state["step"], dtype=torch.float32, device=p.device)
        state["step"] = step.clone()
        for name in ("exp_avg", "exp_avg_sq"):
            # A copy, laid out as the parameter is.
            state[name] = torch.empty_like(p, memory_format=torch.preserve_format).copy_(
                state[name]
            )

    def __getstate__(self) -> dict[str, Any]:
        self.sync()
        with self._taps_aside():
            groups = [{**group, "params": list(group["params"])} for group in self.param_groups]
        return {
            **super().__getstate__(),
            "param_groups": groups,
            "mode": self.mode,
            "fused_backward": self.fused_backward,
            "process_group": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_tables" not in self.__dict__:  # unpickled or copied, not load_state_dict
            self._start()
        super().__setstate__(state)


def _laid_out_as(p: Tensor) -> Tensor:
    """The gradient with the parameter's strides: the fused kernel walks memory, not indices."""
    grad = p.grad
    assert grad is not None
    if grad.stride() == p.stride():
        return grad
    return torch.empty_like(p, memory_format=torch.preserve_format).copy_(grad)


def owner_of(tensor: Tensor) -> RowAdam | None:
    """The RowAdam that gets the rows of this weight's gradient, if there is one."""
    for layer in layers_of(tensor):
        source = None if layer.row_source is None else layer.row_source()
        if isinstance(source, RowAdam):
            return source
    return None


def _leave(tables: dict[Tensor, RowTable | None], layers: Iterable[RowTapped]) -> None:
    """The optimizer has died: nobody else can make up for missed steps."""
    with torch.no_grad():
        for table in tables.values():
            if table is not None:
                table.sync()
    for layer in layers:
        layer.prepared_tap = None


def _check_options(group: dict[str, Any]) -> None:
    # In the words of torch.optim.Adam.
    lr, betas, eps = group["lr"], group["betas"], group["eps"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not eps >= 0.0:
        raise ValueError(f"Invalid epsilon value: {eps}")
    for i, beta in enumerate(betas):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
    if not group["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")
