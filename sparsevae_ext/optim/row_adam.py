"""RowAdam: Adam that touches only the rows that a batch touched."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..data.index import TransposedIndex
from ..ops.row_source import RowTap, layers_of
from .adam_state import FIXED, adopt, check_loadable, check_options, new_state
from .fused import fused_adamw_step
from .owner import StepInBackward
from .row_optimizer import RowOptimizer
from .table import RowTable
from .waiting import gradient_rows, group_of

__all__ = ["RowAdam"]


class RowAdam(RowOptimizer):
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
        fused_backward: step each row within the backward, as soon as its gradient is summed; the
            gradient is not stored, and the other parameters are stepped in :meth:`step`. Nothing is left
            to accumulate, clip, scale or exchange: one backward through one forward of each layer for each
            step.
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

    FIXED: ClassVar[dict[str, Any]] = FIXED
    FOR_SPARSE: ClassVar[str] = "SparseAdam"

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
        if fused_backward and process_group is not None:
            raise ValueError(
                "RowAdam(): fused_backward leaves no gradient to exchange in a process_group"
            )
        options = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, options, process_group)

    def _start(self) -> None:
        super()._start()
        self._stepped_early: set[Tensor] = set()  # by fused_backward, since the last step()

    def _new_state(self, p: Tensor) -> dict[str, Any]:
        return new_state(p)

    def _new_rows(self, weight: Tensor) -> RowTable:
        group = group_of(weight, self.param_groups)
        exact = self.mode == "exact"
        return RowTable(weight, self._state(weight), exact, group["betas"], group["eps"])

    # ---- options -------------------------------------------------------------------------------

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group)
        self._check_lazy(group)

    def _check_lazy(self, group: dict[str, Any]) -> None:
        if self.mode == "lazy" and group["weight_decay"] != 0:
            if any(layers_of(p) for p in group["params"]):
                raise ValueError(
                    "RowAdam(): weight_decay needs mode='exact': in lazy mode rows would decay only "
                    "when they are touched; put the weights of sparse layers in a group without it"
                )

    # ---- steps in the backward -----------------------------------------------------------------

    def _arrived(self, weight: Tensor, tap: RowTap) -> None:
        """A backward has given a tap its gradient."""
        if not self.fused_backward:
            super()._arrived(weight, tap)
            return
        # From a compiled region, whose backward does not take the step itself.
        table, lr, weight_decay = self._early_step(weight)
        with torch.no_grad():
            table.take_step(tap.features, gradient_rows(tap), lr, weight_decay)
        tap.leaf.grad = None

    def _step_in_backward(self, weight: Tensor) -> StepInBackward | None:
        if not self.fused_backward:
            return None
        owner = weakref.ref(self)

        def step(index: TransposedIndex, values: Tensor, grad: Tensor) -> bool:
            optimizer = owner()
            if optimizer is None or weight not in optimizer._tables:
                return False
            table, lr, weight_decay = optimizer._early_step(weight)
            with torch.no_grad():
                table.take_fused_step(index, values, grad, lr, weight_decay)
            return True

        return step

    def _early_step(self, weight: Tensor) -> tuple[RowTable, float, float]:
        """What is stepped in the backward, by which learning rate and weight decay."""
        if weight in self._stepped_early:
            raise RuntimeError(
                "RowAdam: with fused_backward=True a weight can get one gradient for each step(), but a "
                "second has arrived"
            )
        table, group = self._table(weight), group_of(weight, self.param_groups)
        if not isinstance(table, RowTable):
            raise RuntimeError(
                "RowAdam: with fused_backward=True a weight cannot get a dense gradient beside its rows"
            )
        lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
        if lr * weight_decay >= 1:
            raise RuntimeError(
                "RowAdam: with fused_backward=True lr * weight_decay must be less than 1, but got "
                f"{lr * weight_decay}"
            )
        self._check_lazy(group)
        table.use(group["betas"], group["eps"])
        self._stepped_early.add(weight)
        return table, lr, weight_decay

    # ---- the step ------------------------------------------------------------------------------

    def _rows_need_dense_step(self, group: dict[str, Any]) -> bool:
        return bool(float(group["lr"]) * group["weight_decay"] >= 1)

    def _step_rows(
        self, group: dict[str, Any], weight: Tensor, features: Tensor, grad: Tensor
    ) -> None:
        table = self._table(weight)
        assert isinstance(table, RowTable)
        self._check_lazy(group)
        table.use(group["betas"], group["eps"])
        table.take_step(features, grad, float(group["lr"]), float(group["weight_decay"]))

    def _before_dense_step(self, p: Tensor) -> None:
        if p in self._stepped_early:
            raise RuntimeError(
                "RowAdam: with fused_backward=True a weight cannot get a dense gradient beside its "
                "rows, which have been stepped already"
            )

    def _dense_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        fused_adamw_step(group, params, [self._state(p) for p in params])

    def _after_step(self) -> None:
        self._stepped_early.clear()

    # ---- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state, with every row up to date, as ``torch.optim.AdamW`` would have it."""
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of RowAdam, ``torch.optim.Adam``, ``AdamW`` or ``SparseAdam``.

        Raises:
            ValueError: the groups or shapes do not fit, or the state was made with options that RowAdam
                does not have: ``amsgrad``, ``maximize``, or a weight decay that is not decoupled.
        """
        super().load_state_dict(state_dict)

    def _check_loadable(self, state_dict: dict[str, Any]) -> None:
        check_loadable(state_dict, self.parameters())

    def _adopt(self, p: Tensor, state: dict[str, Any], saved: dict[str, Any]) -> None:
        adopt(p, state)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "mode": self.mode,
            "fused_backward": self.fused_backward,
        }
