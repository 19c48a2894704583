"""The half of a row optimizer that faces its user: groups, steps, state, data parallel processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .exchange import broadcast, hide_from_ddp
from .owner import RowOwner
from .waiting import gradient_rows

__all__ = ["RowOptimizer"]

# torch 2.10 has this check under its older name, for CUDA only.
_HEALTH_CHECK = next(
    name
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")
    if hasattr(torch.optim.Optimizer, name)
)


class RowOptimizer(RowOwner):
    """What RowAdam and RowAdagrad have in common: all but options, state and arithmetic.

    Args:
        params: a module, or parameters or groups as for every ``torch.optim`` optimizer.
        options: the defaults of a group's options.
        process_group: see RowAdam.

    Attributes:
        FIXED: what the optimizer of torch keeps in a group and this one does not offer, with the value that
            it has here.
        FOR_SPARSE: the optimizer of torch that takes the sparse gradients of an embedding.
    """

    FIXED: ClassVar[dict[str, Any]] = {}
    FOR_SPARSE: ClassVar[str] = ""

    def __init__(
        self, params: nn.Module | Iterable[Any], options: dict[str, Any], process_group: Any
    ) -> None:
        self.process_group = process_group
        self._start()
        module = params if isinstance(params, nn.Module) else None
        if process_group is not None and module is None:
            raise TypeError(
                f"{type(self).__name__}(): process_group needs a module, whose weights are hidden from "
                f"DDP, but got {type(params).__name__}"
            )
        if isinstance(params, nn.Module):
            params = params.parameters()
        super().__init__(params, {**options, **self.FIXED})
        if module is not None and process_group is not None:
            hide_from_ddp(module, set(self._tables))
            for weight in self._tables:
                broadcast(weight, process_group)

    # ---- what a subclass has to say ------------------------------------------------------------

    def _check_group(self, group: dict[str, Any]) -> None:
        """ValueError, in the words of torch.optim, for an option outside its range."""
        raise NotImplementedError

    def _step_rows(
        self, group: dict[str, Any], weight: Tensor, features: Tensor, grad: Tensor
    ) -> None:
        """Step the rows of a weight that have a gradient (ascending)."""
        raise NotImplementedError

    def _rows_need_dense_step(self, group: dict[str, Any]) -> bool:
        """Whether the group's options leave no way to step rows alone."""
        return False

    def _before_dense_step(self, p: Tensor) -> None:
        """RuntimeError if a parameter cannot take a dense step."""

    def _dense_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Step parameters, of which some may be owned weights, by their dense gradients."""
        raise NotImplementedError

    def _after_step(self) -> None:
        """Called at the end of each step."""

    def _check_loadable(self, state_dict: dict[str, Any]) -> None:
        """ValueError if a state was made with other options, or for other shapes."""
        raise NotImplementedError

    def _adopt(self, p: Tensor, state: dict[str, Any], saved: dict[str, Any]) -> None:
        """Bring the loaded state of a parameter into the form that the step wants: copies.

        ``saved`` is the state before torch has cast it to the parameter's dtype.
        """
        raise NotImplementedError

    # ---- parameters ----------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, as in ``torch.optim.Optimizer``."""
        with self._waiting.aside(self.param_groups):
            super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
            for p in group["params"]:
                if not p.is_floating_point():
                    raise ValueError(
                        f"{type(self).__name__} does not support parameters of dtype {p.dtype}"
                    )
        except BaseException:
            self.param_groups.pop()
            raise
        for p in group["params"]:
            self._own(p)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, rows included."""
        self._waiting.drop_all(self.param_groups)
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    # ---- the step ------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient are left alone, as in ``torch.optim``.

        Args:
            closure: evaluated once before the step, with gradients enabled.

        Returns:
            What the closure returned, or None.
        """
        getattr(self, _HEALTH_CHECK)()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for layer in self._layers:
            if layer.prepared_tap is not None:
                layer.prepared_tap = None
        if self.process_group is not None:
            self.exchange()
        for group in self.param_groups:
            self._step_group(group)
        self._after_step()
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        dense: list[Tensor] = []
        leaves = self._waiting.leaves()
        for p in [p for p in group["params"] if id(p) not in leaves]:
            if p.grad is None:
                continue
            tap = self._waiting.of(p, self.param_groups)
            if tap is not None and (not p.grad.is_sparse or self._rows_need_dense_step(group)):
                self._go_dense(p)
                tap = None
            if tap is not None:
                self._step_rows(group, p, tap.features, gradient_rows(tap))
                continue
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                if self._waiting.stands_in(p):
                    continue  # its rows were taken away
                raise RuntimeError(
                    f"{type(self).__name__} does not support sparse gradients, please consider "
                    f"{self.FOR_SPARSE} instead"
                )
            self._before_dense_step(p)
            self._go_dense(p)
            dense.append(p)
        if not dense:
            return
        self._dense_step(group, dense)
        for p in dense:
            table = self._tables.get(p)
            if table is not None:
                table.took_dense_step()

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state, with every row up to date."""
        self.sync()
        with self._waiting.aside(self.param_groups):
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state.

        Raises:
            ValueError: the groups or shapes do not fit, or the state was made with options that this
                optimizer does not have.
        """
        self._check_loadable(state_dict)
        self._waiting.drop_all(self.param_groups)
        self.sync()  # steps that are still owed belong to the state that goes
        before = [dict(group) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, old in zip(self.param_groups, before, strict=True):
            for name in self.defaults:
                group.setdefault(name, old[name])
            group.update(self.FIXED)
        numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
        for p, i in zip(self.parameters(), numbers, strict=True):
            if self.state.get(p):
                self._adopt(p, self.state[p], state_dict["state"].get(i, {}))
        for weight in self._tables:
            self._tables[weight] = None

    def __getstate__(self) -> dict[str, Any]:
        self.sync()
        with self._waiting.aside(self.param_groups):
            groups = [{**group, "params": list(group["params"])} for group in self.param_groups]
        return {**super().__getstate__(), "param_groups": groups, "process_group": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_tables" not in self.__dict__:  # unpickled or copied, not load_state_dict
            self._start()
        super().__setstate__(state)
