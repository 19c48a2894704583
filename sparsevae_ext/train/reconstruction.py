"""How much of the data a reconstruction explains, without making the data dense."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..data import CSRBatch

__all__ = ["ExplainedVariance"]


class ExplainedVariance:
    r"""The share of the data's variance that a reconstruction explains, a batch at a time.

    .. math::
        1 - \frac{\sum_j \operatorname{Var}(x_j - \hat x_j)}{\sum_j \operatorname{Var}(x_j)},
        \qquad \operatorname{Var}(a) = \mathrm{E}\,a^2 - (\mathrm{E}\,a)^2

    per column j over all rows. The data is looked at where it is stored only: with
    :math:`\sum_i (x - \hat x)^2 = \sum \hat x^2 - 2 \sum_{nnz} x \hat x + \sum_{nnz} x^2`, a batch
    costs O(nnz + N) beyond the sums over the reconstruction itself. Sums are float64.

    Args:
        n_features: number of columns N.
        device: where the sums live; that of the batches.

    Raises:
        RuntimeError: a batch or a reconstruction of another shape.

    Example:
        >>> x = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
        >>> explained = ExplainedVariance(2)
        >>> explained.update(CSRBatch.from_dense(x), x / 2)
        >>> explained.value()
        0.75
    """

    def __init__(self, n_features: int, device: torch.device | str = "cpu") -> None:
        self.n_features = n_features
        self.rows = 0
        # Sums over the rows of x, x^2, the error and its square, per column.
        self._sums = torch.zeros(4, n_features, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, batch: CSRBatch, reconstruction: Tensor) -> None:
        """Adds a batch of rows (B, N) and what was made of them, dense (B, N)."""
        if batch.shape[1] != self.n_features or tuple(reconstruction.shape) != batch.shape:
            raise RuntimeError(
                f"ExplainedVariance.update(): expected a batch and a reconstruction of shape "
                f"({len(batch)}, {self.n_features}), but got {batch.shape} and "
                f"{tuple(reconstruction.shape)}"
            )
        row, column = batch.row_ids().long(), batch.col.long()
        values = batch.values.double()
        guess = reconstruction[row, column].double()
        x, x2, error, error2 = self._sums
        x.index_add_(0, column, values)
        x2.index_add_(0, column, values.square())
        error.index_add_(0, column, values).sub_(reconstruction.sum(dim=0, dtype=torch.float64))
        error2.index_add_(0, column, values.square() - 2 * values * guess)
        # Squares in float64 and not the square's sum: the identity above cancels digits.
        error2.add_(reconstruction.double().square().sum(dim=0))
        self.rows += len(batch)

    def per_feature(self) -> tuple[Tensor, Tensor]:
        """Variance of the error and of the data, both (N,) float64; nan before the first row."""
        x, x2, error, error2 = self._sums / self.rows if self.rows else self._sums * math.nan
        return (error2 - error.square()).clamp(min=0), (x2 - x.square()).clamp(min=0)

    def value(self) -> float:
        """The share explained, at most 1; nan where the data does not vary."""
        error, data = self.per_feature()
        total = float(data.sum())
        return 1.0 - float(error.sum()) / total if total > 0 else math.nan
