"""Which units of a sparse code still fire, and the auxiliary code that brings the others back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data import CSRBatch
from ..ops._checks import check_tensor
from ..ops.topk import select_topk
from .topk import activate, check_activation, check_positive_int, sparse_rows

__all__ = ["AuxTopK", "FiringCounter"]


class FiringCounter(nn.Module):
    r"""Counts how often each unit of a code fires, and for how many rows it has been silent.

    A unit fires in a row when its value is stored and greater than zero. All counters are integers on the
    device; nothing waits for it, and they are saved in the ``state_dict``.

    Args:
        n: number of units, H.
        device: where the counters live.

    Attributes:
        silent: (n,) int64, rows seen since the unit last fired (0: it fired in the last row seen), or
            since the start if it never did.
        fired: (n,) int64, rows in which the unit fired.
        rows: () int64, rows seen.

    Raises:
        TypeError: ``n`` is not an int; ``update`` gets neither a tensor nor a CSRBatch.
        ValueError: ``n`` is not positive, or ``after_rows`` is not.
        RuntimeError: a code does not have ``n`` columns.

    Example:
        >>> counter = FiringCounter(3)
        >>> counter.update(torch.tensor([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]]))
        >>> counter.silent.tolist(), counter.dead(2).tolist(), counter.l0().item()
        ([0, 0, 2], [False, False, True], 1.5)
    """

    silent: Tensor
    fired: Tensor
    rows: Tensor

    def __init__(self, n: int, device: Any = None) -> None:
        super().__init__()
        check_positive_int("FiringCounter", "n", n)
        self.n = n
        for name, shape in (("silent", (n,)), ("fired", (n,)), ("rows", ())):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64, device=device))

    @torch.no_grad()
    def update(self, code: Tensor | CSRBatch) -> None:
        """Count a batch of codes, (B, n); a CSRBatch costs its stored entries only."""
        if not isinstance(code, CSRBatch):
            check_tensor("FiringCounter.update", "code", code)
        if len(code.shape) != 2 or code.shape[1] != self.n:
            raise RuntimeError(
                f"FiringCounter.update(): expected code of shape (B, {self.n}), but got "
                f"{tuple(code.shape)}"
            )
        n_rows = code.shape[0]
        if n_rows == 0:
            return
        counted, last = _fired_sparse(code) if isinstance(code, CSRBatch) else _fired_dense(code)
        self.fired += counted
        self.silent.copy_(torch.where(counted > 0, n_rows - 1 - last, self.silent + n_rows))
        self.rows += n_rows

    def dead(self, after_rows: int) -> Tensor:
        """The units that have been silent for at least that many rows: (n,) bool."""
        check_positive_int("FiringCounter.dead", "after_rows", after_rows)
        return self.silent >= after_rows

    def l0(self) -> Tensor:
        """Mean number of units that fired in a row, () float64; nan before the first row."""
        return self.fired.sum().double() / self.rows

    def reset(self) -> None:
        """Forget everything."""
        for buffer in (self.silent, self.fired, self.rows):
            buffer.zero_()

    def forward(self, code: Tensor | CSRBatch) -> Tensor | CSRBatch:
        """Count a batch in training mode and hand it on, so that the counter can sit in a Sequential."""
        if self.training:
            self.update(code)
        return code

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"{self.n}"


def _fired_dense(code: Tensor) -> tuple[Tensor, Tensor]:
    """For each unit the rows in which it fired and the last of them (0 where there is none)."""
    active = code > 0
    # As int32: the widest temporary is then no larger than a float32 code.
    rows = torch.arange(code.shape[0], dtype=torch.int32, device=code.device)
    return active.sum(0), torch.where(active, rows[:, None], 0).amax(0).long()


def _fired_sparse(code: CSRBatch) -> tuple[Tensor, Tensor]:
    active = (code.values > 0).long()
    column, row = code.col.long(), code.row_ids().long()
    zeros = torch.zeros(code.n_cols, dtype=torch.int64, device=code.device)
    last = zeros.scatter_reduce(0, column, row * active, "amax")
    return zeros.index_add(0, column, active), last


class AuxTopK(nn.Module):
    r"""The k largest pre-activations among the dead units, as a sparse code: AuxK's.

    Gao et al. 2024 (arXiv 2406.04093, appendix A.2): the residual of the reconstruction is modelled by
    the code of the k_aux largest dead units, so that they receive a gradient again. Where fewer than k
    units are dead the remaining entries are stored zeros without gradient.

    Args:
        k: k_aux, stored entries a row.
        activation: of the chosen entries, "relu" or "identity".

    Shape:
        - Input: x (B, H) pre-activations, dead (H,) bool, from :meth:`FiringCounter.dead`.
        - Output: a CSRBatch (B, H) with k stored entries a row, columns ascending.

    Raises:
        TypeError: ``k`` is not an int, or an argument not a tensor.
        ValueError: ``k`` is not positive, or at a call larger than H; or the activation is unknown.
        RuntimeError: ``dead`` is not bool of shape (H,).

    Example:
        >>> x = torch.tensor([[5.0, 1.0, 4.0, 3.0]])
        >>> code = AuxTopK(2)(x, torch.tensor([False, True, True, True]))
        >>> code.to_dense().tolist()
        [[0.0, 0.0, 4.0, 3.0]]
    """

    def __init__(self, k: int, activation: str = "relu") -> None:
        super().__init__()
        check_positive_int("AuxTopK", "k", k)
        self.k = k
        check_activation("AuxTopK", activation)
        self.activation = activation

    def forward(self, x: Tensor, dead: Tensor) -> CSRBatch:
        """The code of the dead units."""
        check_tensor("AuxTopK", "x", x)
        check_tensor("AuxTopK", "dead", dead)
        if dead.dtype != torch.bool or x.dim() != 2 or dead.shape != x.shape[1:]:
            raise RuntimeError(
                "AuxTopK(): expected x of shape (B, H) and dead of shape (H,) and dtype bool, but got "
                f"{tuple(x.shape)}, {tuple(dead.shape)} and {dead.dtype}"
            )
        candidates = torch.where(dead, x, -torch.inf)
        values, columns = select_topk(candidates, self.k, by_index=True, op="AuxTopK")
        values = torch.where(dead[columns], activate(self.activation, values), 0.0)
        return sparse_rows(values, columns, x.shape[1])

    def extra_repr(self) -> str:
        """For ``repr``."""
        return f"{self.k}, activation={self.activation!r}"
