"""What a model has to beat: the most popular items, the unigram model of words, mean counts.

The first two go through the same `evaluate` as the models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ..data.blocks import csr_batches, csr_blocks
from ..models.count_likelihood import poisson_constants
from ..models.ranking import top_items
from ..ops.csr_rows import segment_sum
from .metrics import evaluate

__all__ = ["PoissonMean", "Popularity", "evaluate_baselines"]

_ROWS_AT_A_TIME = 4096


class Popularity:
    r"""The same answer for everybody, from counts over the training rows.

    It ranks items by the number of training rows they occur in, and gives words the unigram
    probability of the training rows, with additive smoothing:

    .. math:: p_j = (c_j + \alpha) / (\textstyle\sum_j c_j + \alpha N)

    with :math:`c_j` the total count of word j. Without smoothing one held-out word that was never
    trained on would make the perplexity infinite; :math:`\alpha = 1` is Laplace's rule.

    Args:
        train: (rows, N) CSRDataset, CSRBatch or scipy CSR matrix; read a block of rows at a time.
        smoothing: :math:`\alpha`, > 0.

    Attributes:
        row_counts: (N,) float64, training rows with the item.
        log_probs: (N,) float64, log unigram probabilities.

    Raises:
        ValueError: if `smoothing` is not positive.

    Example:
        >>> import scipy.sparse as sp
        >>> p = Popularity(sp.csr_matrix([[0.0, 5.0, 1.0], [0.0, 0.0, 1.0]]))
        >>> p.recommend(CSRBatch.from_dense(torch.zeros(1, 3)), 2)[1]
        tensor([[2, 1]])
    """

    def __init__(self, train: Any, smoothing: float = 1.0) -> None:
        if not smoothing > 0:
            raise ValueError(f"Popularity(): expected smoothing > 0, but got {smoothing}")
        n_items = train.shape[1]
        rows, totals = np.zeros(n_items), np.zeros(n_items)
        for block in csr_blocks(train, "Popularity"):
            rows += np.bincount(block.indices[block.data != 0], minlength=n_items)
            totals += np.bincount(block.indices, weights=block.data, minlength=n_items)
        smoothed = totals + smoothing
        self.row_counts = torch.from_numpy(rows)
        self.log_probs = torch.from_numpy(np.log(smoothed / smoothed.sum()))

    def recommend(
        self, batch: CSRBatch, k: int, exclude_seen: bool = True, chunk_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k most popular items that a row does not have; see `MultVAE.recommend`.

        Args:
            batch: (B, N).
            k: how many items, at most N.
            exclude_seen: leave out the items with a non-zero entry in `batch`.
            chunk_size: items scored at a time.

        Returns:
            Numbers of training rows (float64) and items (int64), both (B, k).
        """

        def chunk(start: int, stop: int) -> Tensor:
            return self.row_counts[start:stop].repeat(len(batch), 1)

        seen = batch if exclude_seen else None
        return top_items(chunk, batch.shape, k, seen=seen, chunk_size=chunk_size)

    def row_nll(self, batch: CSRBatch, target: CSRBatch) -> Tensor:
        """Nats (B,) of the counts in `target` under the unigram model, whatever `batch`."""
        logs = target.values.double() * self.log_probs[target.col.long()]
        return -segment_sum(logs, target.crow)


class PoissonMean:
    r"""The same expression for every row: Poisson counts with the training rows' shares.

    .. math:: x_{ij} \sim \operatorname{Poisson}(s_i\, p_j), \qquad s_i = \textstyle\sum_j x_{ij}

    with the shares :math:`p_j` of :class:`Popularity`. Like a model of counts it is told every
    row's total, and shares it out without knowing anything else of the row.

    Args:
        train: (rows, N) CSRDataset, CSRBatch or scipy CSR matrix; read a block of rows at a time.
        smoothing: added to every column's total count, > 0.

    Raises:
        ValueError: if `smoothing` is not positive.

    Example:
        >>> import scipy.sparse as sp
        >>> baseline = PoissonMean(sp.csr_matrix([[0.0, 1.0]]))
        >>> baseline.row_nll(CSRBatch.from_dense(torch.zeros(2, 2))).tolist()
        [0.0, 0.0]
    """

    def __init__(self, train: Any, smoothing: float = 1.0) -> None:
        self.log_shares = Popularity(train, smoothing).log_probs

    def row_nll(self, batch: CSRBatch) -> Tensor:
        """Nats (B,) of every row's counts, float64, with lgamma(x + 1)."""
        values = batch.values.double()
        totals = segment_sum(values, batch.crow)
        shared = segment_sum(values * self.log_shares[batch.col.long()], batch.crow)
        return poisson_constants(batch, totals) - shared

    def mean_nll(self, data: Any) -> float:
        """Mean nats of the rows of a data set, read a block at a time; nan without rows."""
        total, rows = 0.0, 0
        for batch in csr_batches(data, _ROWS_AT_A_TIME, "PoissonMean"):
            total += float(self.row_nll(batch).sum())
            rows += len(batch)
        return total / rows if rows else math.nan


def evaluate_baselines(
    train: Any,
    fold_in: Any,
    held_out: Any,
    batch_size: int = 500,
    ks: Sequence[int] = (20, 50, 100),
) -> dict[str, dict[str, float]]:
    """Measures both baselines as `evaluate` measures a model.

    Args:
        train: (rows, N) the training rows.
        fold_in: as in `evaluate`.
        held_out: as in `evaluate`.
        batch_size: rows at a time.
        ks: as in `evaluate`.

    Returns:
        "popularity": its Recall@k and NDCG@k; "unigram": its perplexity.

    Example:
        >>> import scipy.sparse as sp
        >>> rows = sp.csr_matrix(np.ones((3, 4)))
        >>> result = evaluate_baselines(rows, rows, rows, ks=(2,))
        >>> round(result["unigram"]["perplexity"], 6)
        4.0
    """
    result = evaluate(Popularity(train), fold_in, held_out, batch_size, ks)
    ranking = {name: value for name, value in result.items() if "@" in name}
    return {"popularity": ranking, "unigram": {"perplexity": result["perplexity"]}}
