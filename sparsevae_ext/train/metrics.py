"""Ranking metrics and held-out perplexity by the strong-generalisation protocol.

Rows that were not trained on are split in two: their *fold-in* part is shown to the model, their
*held-out* part is what it should rank high and give probability to (Liang et al. 2018, section
4.2; for text, "document completion", Wallach et al. 2009).

    R_i        the held-out items of row i (entries other than 0; counts do not matter here)
    Recall@k   |top k of row i in R_i| / min(k, |R_i|), the mean over rows
    NDCG@k     sum over places r <= k of [item at r in R_i] / log2(r + 1), divided by the same sum
               for a perfect ranking, sum over r <= min(k, |R_i|); the mean over rows
    perplexity exp(sum_i nll_i / sum_i N_i), with nll_i = -sum_j x_ij log p_ij over the held-out
               counts x_i, N_i their sum, and p_i the model's softmax given the fold-in part.
               The multinomial coefficient is left out: it is the perplexity per word.

Items of the fold-in part are not ranked, but keep their probability in the perplexity. Rows
without a held-out entry are dropped, and counted. Nothing here makes a dense (rows, items)
matrix: the ranking and the probabilities come from the model in chunks of columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.batch import CSRBatch
from ..data.canonical import is_canonical

__all__ = [
    "Recommender",
    "as_scipy",
    "evaluate",
    "evaluation_mode",
    "ndcg_at_k",
    "perplexity",
    "recall_at_k",
    "split_fold_in",
]

Array = NDArray[Any]


class Recommender(Protocol):
    """What `evaluate` needs of a model; the models and the baselines have it."""

    def recommend(self, batch: CSRBatch, k: int) -> tuple[Tensor, Tensor]:
        """Scores and items (B, k) of the best items that are not in the batch; -1 for none."""
        ...

    def row_nll(self, batch: CSRBatch, target: CSRBatch) -> Tensor:
        """Nats (B,) of the counts in `target`, given the rows in `batch`."""
        ...


def split_fold_in(
    data: Any, fraction: float = 0.8, seed: int = 0
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Splits the entries of every row at random into a fold-in part and a held-out part.

    Of a row's n entries, floor((1 - fraction) n) are held out, but at least one, and at least
    one stays. A row with one entry keeps it in the fold-in part: there is nothing to predict. An
    entry goes to one side with its whole count. Stored zeros are not entries.

    Args:
        data: (rows, N) CSRDataset, CSRBatch or scipy CSR matrix.
        fraction: share folded in, in (0, 1).
        seed: decides the split, together with the data alone.

    Returns:
        Two (rows, N) matrices of the same rows, which add up to `data`.

    Raises:
        ValueError: if `fraction` is not in (0, 1).
        TypeError: if `data` is none of the above.

    Example:
        >>> fold_in, held_out = split_fold_in(sp.csr_matrix(np.ones((1, 10))))
        >>> fold_in.nnz, held_out.nnz
        (8, 2)
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"split_fold_in(): expected fraction in (0, 1), but got {fraction}")
    rows = _entries(data, "split_fold_in")
    counts = np.diff(rows.indptr)
    # 1e-9: (1 - 0.8) * 5 is 0.9999999999999998 and means one entry.
    held = np.floor((1.0 - fraction) * counts + 1e-9).astype(np.int64)
    held = np.where(counts >= 2, np.clip(held, 1, counts - 1), 0)
    row_of = np.repeat(np.arange(rows.shape[0]), counts)
    draw = np.random.default_rng(seed).random(rows.nnz)
    shuffled = np.lexsort((draw, row_of))
    place = np.arange(rows.nnz) - np.repeat(rows.indptr[:-1].astype(np.int64), counts)
    is_held = np.empty(rows.nnz, dtype=bool)
    is_held[shuffled] = place < np.repeat(held, counts)
    return _keep(rows, row_of, ~is_held), _keep(rows, row_of, is_held)


def recall_at_k(items: Array | Tensor, held_out: Any, k: int) -> Array:
    """Recall@k of every row, hits / min(k, |R|).

    Args:
        items: (B, >= k) recommended items, best first; -1 means none.
        held_out: (B, N) scipy CSR matrix or CSRBatch of the relevant items.
        k: places that count.

    Returns:
        (B,) float64; nan for a row without a held-out entry.

    Raises:
        ValueError: if there are fewer than k places, or another number of rows.

    Example:
        >>> recall_at_k(np.array([[2, 0, 1]]), sp.csr_matrix([[1, 0, 0, 1]]), k=2)
        array([0.5])
    """
    hits, relevant = _hits(items, held_out, k, "recall_at_k")
    return _divide(hits.sum(axis=1), np.minimum(relevant, k))


def ndcg_at_k(items: Array | Tensor, held_out: Any, k: int) -> Array:
    """Binary NDCG@k of every row.

    Args:
        items: (B, >= k) recommended items, best first; -1 means none.
        held_out: (B, N) scipy CSR matrix or CSRBatch of the relevant items.
        k: places that count.

    Returns:
        (B,) float64; nan for a row without a held-out entry.

    Raises:
        ValueError: if there are fewer than k places, or another number of rows.

    Example:
        >>> ndcg_at_k(np.array([[2, 0]]), sp.csr_matrix([[1, 0, 0]]), k=2).round(3)
        array([0.631])
    """
    hits, relevant = _hits(items, held_out, k, "ndcg_at_k")
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    return _divide(hits @ discount, ideal[np.minimum(relevant, k)])


def perplexity(nll: Any, counts: Any) -> float:
    """Perplexity per word, exp(sum nll / sum counts).

    Args:
        nll: nats per row.
        counts: words per row.

    Returns:
        The perplexity; nan without words, inf beyond the range of a float.

    Example:
        >>> round(perplexity([2 * math.log(8)], [2]), 6)
        8.0
    """
    total, words = float(np.sum(nll)), float(np.sum(counts))
    if words == 0:
        return math.nan
    try:
        return math.exp(total / words)
    except OverflowError:
        return math.inf


def evaluate(
    model: Recommender,
    fold_in: Any,
    held_out: Any,
    batch_size: int = 500,
    ks: Sequence[int] = (20, 50, 100),
) -> dict[str, float]:
    """Ranks and scores the held-out part of every row given its fold-in part.

    The definitions are at the head of this file. The model is put in evaluation mode and back.

    Args:
        model: has `recommend` and `row_nll`.
        fold_in: (rows, N) scipy CSR matrix, CSRBatch or CSRDataset.
        held_out: the same shape and kind.
        batch_size: rows at a time.
        ks: the k of Recall@k and NDCG@k. A k above N ranks all N items.

    Returns:
        "recall@k" and "ndcg@k" for every k, "perplexity", "ranked_rows" (rows with a held-out
        entry) and "dropped_rows" (those without). The means over no rows are nan.

    Raises:
        ValueError: if `batch_size` or a k is not positive.
        RuntimeError: if the shapes differ.

    Example:
        >>> from sparsevae_ext.models import MultVAE
        >>> fold_in, held_out = split_fold_in(sp.csr_matrix(np.ones((3, 10))))
        >>> result = evaluate(MultVAE(10, hidden=4, latent=2), fold_in, held_out, ks=(2, 5))
        >>> sorted(result)[:4]
        ['dropped_rows', 'ndcg@2', 'ndcg@5', 'perplexity']
    """
    if batch_size < 1 or not ks or min(ks) < 1:
        raise ValueError(
            f"evaluate(): expected batch_size >= 1 and ks >= 1, but got {batch_size} and {ks}"
        )
    shown, hidden = as_scipy(fold_in, "evaluate"), _entries(held_out, "evaluate")
    if shown.shape != hidden.shape:
        raise RuntimeError(
            f"evaluate(): expected fold_in and held_out of one shape, but got {shown.shape} and "
            f"{hidden.shape}"
        )
    rankable = np.flatnonzero(np.diff(hidden.indptr))
    sums: dict[str, list[Array]] = {f"{name}@{k}": [] for k in ks for name in ("recall", "ndcg")}
    nll, words = [0.0], [0.0]
    with evaluation_mode(model) as device:
        for start in range(0, len(rankable), batch_size):
            rows = rankable[start : start + batch_size]
            relevant = hidden[rows]
            batch = CSRBatch.from_scipy(shown[rows]).to(device)
            target = CSRBatch.from_scipy(relevant).to(device)
            places = min(max(ks), shown.shape[1])
            items = model.recommend(batch, places)[1].cpu().numpy()
            if places < max(ks):
                missing = np.full((len(rows), max(ks) - places), -1)
                items = np.concatenate([items, missing], axis=1)
            for k in ks:
                sums[f"recall@{k}"].append(recall_at_k(items, relevant, k))
                sums[f"ndcg@{k}"].append(ndcg_at_k(items, relevant, k))
            nll.append(float(model.row_nll(batch, target).sum()))
            words.append(float(relevant.data.sum(dtype=np.float64)))
    result = {name: _mean(parts) for name, parts in sums.items()}
    result["perplexity"] = perplexity(nll, words)
    result["ranked_rows"] = float(len(rankable))
    result["dropped_rows"] = float(shown.shape[0] - len(rankable))
    return result


@contextmanager
def evaluation_mode(model: Any) -> Iterator[torch.device]:
    """Puts a module into evaluation mode without gradients, and back; gives its device."""
    if not isinstance(model, torch.nn.Module):
        yield torch.device("cpu")
        return
    # Of each part: one that its owner has frozen stays so.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield next((p.device for p in model.parameters()), torch.device("cpu"))
    finally:
        for module, training in modes:
            module.training = training


def as_scipy(data: Any, op: str) -> sp.csr_matrix:
    """The rows as a scipy CSR matrix; raises TypeError naming ``op`` for anything else."""
    if hasattr(data, "to_scipy"):
        data = data.to_scipy()
    if not sp.issparse(data) or data.format != "csr":
        kind = f"format {data.format}" if sp.issparse(data) else type(data).__name__
        raise TypeError(
            f"{op}(): expected a CSRDataset, a CSRBatch or a scipy CSR matrix, but got {kind}"
        )
    return data


def _entries(data: Any, op: str) -> sp.csr_matrix:
    """The rows as `as_scipy` gives them, every entry once and none of them 0."""
    rows = as_scipy(data, op)
    # Looked at, not asked for: scipy keeps what it once knew of arrays that may have changed since.
    twice = not is_canonical(rows.indptr, rows.indices)
    if twice or not np.all(rows.data):
        rows = rows.copy()  # which knows nothing yet
        if twice:
            rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows


def _keep(rows: sp.csr_matrix, row_of: Array, chosen: Array) -> sp.csr_matrix:
    indptr = np.zeros(rows.shape[0] + 1, dtype=rows.indptr.dtype)
    np.cumsum(np.bincount(row_of[chosen], minlength=rows.shape[0]), out=indptr[1:])
    return sp.csr_matrix((rows.data[chosen], rows.indices[chosen], indptr), shape=rows.shape)


def _hits(items: Array | Tensor, held_out: Any, k: int, op: str) -> tuple[Array, Array]:
    """Gives the hits (B, k) as float64 and the number of relevant items (B,)."""
    ranked = items.cpu().numpy() if isinstance(items, Tensor) else np.asarray(items)
    relevant = _entries(held_out, op)
    if ranked.ndim != 2 or ranked.shape[0] != relevant.shape[0] or not 1 <= k <= ranked.shape[1]:
        raise ValueError(
            f"{op}(): expected items of shape ({relevant.shape[0]}, >= {k}) and k >= 1, but got "
            f"{ranked.shape} and k={k}"
        )
    counts = np.diff(relevant.indptr)
    n_rows, n_items = relevant.shape
    # One number per (row, item): membership becomes a single search for all rows.
    row_of = np.repeat(np.arange(n_rows, dtype=np.int64), counts)
    known = row_of * n_items + relevant.indices
    top = ranked[:, :k].astype(np.int64)
    asked = np.arange(n_rows, dtype=np.int64)[:, None] * n_items + top
    return (np.isin(asked, known) & (top >= 0)).astype(np.float64), counts


def _divide(value: Array, by: Array) -> Array:
    return np.divide(value, by, out=np.full(len(value), np.nan), where=by > 0)


def _mean(parts: list[Array]) -> float:
    return float(np.concatenate(parts).mean()) if parts else math.nan
