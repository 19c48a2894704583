"""Ranking metrics, the fold-in split, perplexity and the baselines, against slow definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparsevae_ext.data import CSRBatch, CSRDataset
from sparsevae_ext.models import MultDAE, MultVAE
from sparsevae_ext.train.baselines import Popularity, evaluate_baselines
from sparsevae_ext.train.metrics import (
    evaluate,
    ndcg_at_k,
    perplexity,
    recall_at_k,
    split_fold_in,
)


def counts(n_rows=40, n_items=30, density=0.3, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 5, (n_rows, n_items)) * (rng.random((n_rows, n_items)) < density)
    return sp.csr_matrix(dense.astype(np.float32))


# ---- the metrics by hand -----------------------------------------------------------------------


def test_recall_and_ndcg_by_hand():
    items = np.array([[4, 0, 2], [1, 3, 0], [2, 1, -1], [0, 1, 2]])
    held_out = sp.csr_matrix(
        [
            [7.0, 0, 1, 1, 0],  # items 0 and 2 found in places 2 and 3, item 3 missed
            [0, 0, 0, 1, 0],  # found in place 2
            [0, 0, 0, 0, 1],  # -1 is not item 4
            [0, 0, 0, 0, 0],  # nothing to find
        ]
    )
    np.testing.assert_allclose(recall_at_k(items, held_out, 3), [2 / 3, 1, 0, np.nan])
    np.testing.assert_allclose(recall_at_k(items, held_out, 2), [1 / 2, 1, 0, np.nan])
    np.testing.assert_allclose(recall_at_k(items, held_out, 1), [0, 0, 0, np.nan])
    log2 = math.log2
    ideal = 1 + 1 / log2(3) + 1 / log2(4)
    first = (1 / log2(3) + 1 / log2(4)) / ideal
    np.testing.assert_allclose(ndcg_at_k(items, held_out, 3), [first, 1 / log2(3), 0, np.nan])
    np.testing.assert_allclose(
        ndcg_at_k(items, held_out, 2), [(1 / log2(3)) / (1 + 1 / log2(3)), 1 / log2(3), 0, np.nan]
    )


def slow_metrics(items, relevant, k):
    hits = [item in relevant for item in items[:k]]
    dcg = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits) if hit)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
    return sum(hits) / min(k, len(relevant)), dcg / ideal


@pytest.mark.parametrize("k", [1, 3, 10, 25])
def test_recall_and_ndcg_equal_a_loop(k):
    held_out = counts()
    rng = np.random.default_rng(1)
    items = np.stack([rng.permutation(30)[:25] for _ in range(40)])
    wanted = [slow_metrics(list(row), set(held_out[i].indices), k) for i, row in enumerate(items)]
    for relevant in (held_out, CSRBatch.from_scipy(held_out)):
        np.testing.assert_allclose(recall_at_k(items, relevant, k), [r for r, _ in wanted])
        np.testing.assert_allclose(
            ndcg_at_k(torch.tensor(items), relevant, k), [n for _, n in wanted]
        )


def test_stored_zeros_are_not_relevant():
    held_out = sp.csr_matrix((np.array([0.0, 1.0]), np.array([0, 1]), np.array([0, 2])), (1, 3))
    assert recall_at_k(np.array([[0]]), held_out, 1).tolist() == [0.0]
    assert held_out.nnz == 2  # the caller's matrix is left alone


def test_perfect_ranking_scores_one():
    held_out = counts()
    items = np.argsort(-held_out.toarray(), axis=1, kind="stable")
    for k in (1, 5, 30):
        np.testing.assert_allclose(recall_at_k(items, held_out, k), 1)
        np.testing.assert_allclose(ndcg_at_k(items, held_out, k), 1)


def test_wrong_shapes():
    for items, k in ((np.zeros((3, 5)), 2), (np.zeros((2, 5)), 6), (np.zeros((2, 5)), 0)):
        for metric in (recall_at_k, ndcg_at_k):
            with pytest.raises(ValueError, match=r"_at_k\(\): expected items"):
                metric(items, sp.csr_matrix((2, 9)), k)


def test_perplexity_values():
    assert perplexity([3 * math.log(5), math.log(5)], [3, 1]) == pytest.approx(5)
    assert math.isnan(perplexity([], []))
    assert perplexity([1e6], [1]) == math.inf
    assert perplexity([math.inf], [1]) == math.inf


# ---- the split -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.99, 0.01])
def test_split_is_a_partition_with_the_right_sizes(fraction):
    rows = sp.csr_matrix(np.tril(np.ones((30, 30), dtype=np.float32)) * 3)  # 1 to 30 entries
    rows = sp.vstack([sp.csr_matrix((1, 30)), rows]).tocsr()
    fold_in, held_out = split_fold_in(rows, fraction, seed=1)
    assert (fold_in + held_out != rows).nnz == 0
    assert fold_in.multiply(held_out).nnz == 0
    for n in range(31):
        held = held_out[n].nnz
        if n < 2:
            assert held == 0
        else:
            assert held == min(max(math.floor(round((1 - fraction) * n, 6)), 1), n - 1)
            assert fold_in[n].nnz >= 1


def test_split_holds_out_a_fifth_of_five():
    assert split_fold_in(sp.csr_matrix(np.ones((1, 5))))[1].nnz == 1
    assert split_fold_in(sp.csr_matrix(np.ones((1, 10))))[1].nnz == 2


def test_split_follows_its_seed_and_is_uniform():
    rows = sp.csr_matrix(np.ones((4000, 10), dtype=np.float32))
    held = split_fold_in(rows, seed=3)[1]
    assert (held != split_fold_in(rows, seed=3)[1]).nnz == 0
    assert (held != split_fold_in(rows, seed=4)[1]).nnz > 0
    share = np.asarray(held.mean(axis=0)).ravel()
    assert np.abs(share - 0.2).max() < 5 * (0.2 * 0.8 / 4000) ** 0.5


def test_split_ignores_stored_zeros_and_leaves_its_input_alone():
    rows = sp.csr_matrix(
        (np.array([0.0, 1.0, 0.0, 2.0]), np.array([0, 1, 2, 3]), np.array([0, 4])), (1, 5)
    )
    fold_in, held_out = split_fold_in(rows)
    assert fold_in.nnz == held_out.nnz == 1
    assert rows.nnz == 4


def test_split_of_a_batch_and_of_nothing():
    rows = counts()
    direct = split_fold_in(rows, seed=5)
    batched = split_fold_in(CSRBatch.from_scipy(rows), seed=5)
    for left, right in zip(direct, batched, strict=True):
        assert (left != right).nnz == 0
    assert split_fold_in(sp.csr_matrix((0, 4)))[0].shape == (0, 4)
    assert split_fold_in(sp.csr_matrix((3, 4)))[1].nnz == 0


def test_split_errors():
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            split_fold_in(counts(), fraction)
    with pytest.raises(TypeError, match="csc"):
        split_fold_in(counts().tocsc())
    with pytest.raises(TypeError, match="ndarray"):
        split_fold_in(np.ones((2, 2)))


# ---- evaluation ----------------------------------------------------------------------------------


def slow_evaluation(model, fold_in, held_out, ks):
    """Everything dense, row by row, in float64."""
    model.eval()
    with torch.no_grad():
        hidden = model.decode_hidden(model.encode(torch.from_numpy(fold_in.toarray())))
        logits = (hidden @ model.output.weight.t() + model.output.bias).double()
    log_p = torch.log_softmax(logits, dim=1).numpy()
    values = {f"{name}@{k}": [] for k in ks for name in ("recall", "ndcg")}
    nll = words = 0.0
    for i in range(fold_in.shape[0]):
        relevant = set(held_out[i].indices)
        if not relevant:
            continue
        seen = set(fold_in[i].indices)
        order = sorted(
            (j for j in range(fold_in.shape[1]) if j not in seen),
            key=lambda j, i=i: (-logits[i, j].item(), j),
        )
        for k in ks:
            recall, ndcg = slow_metrics(order, relevant, k)
            values[f"recall@{k}"].append(recall)
            values[f"ndcg@{k}"].append(ndcg)
        row = held_out[i].toarray()[0]
        nll -= float(row @ log_p[i])
        words += row.sum()
    return {name: np.mean(v) for name, v in values.items()} | {"perplexity": math.exp(nll / words)}


def model_of(kind, n_items=30):
    torch.manual_seed(0)
    model = MultVAE(n_items, hidden=9, latent=4) if kind == "vae" else MultDAE(n_items, hidden=9)
    with torch.no_grad():
        model.output.weight.mul_(5)
    return model.double()


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("kind", ["vae", "dae"])
def test_evaluate_equals_the_slow_definition(kind, batch_size):
    rows = counts(25)
    rows = sp.vstack([rows, sp.csr_matrix((2, 30)), sp.eye(1, 30)]).tocsr().astype(np.float64)
    fold_in, held_out = split_fold_in(rows, seed=2)
    model = model_of(kind).train()
    ks = (1, 5, 20)
    result = evaluate(model, fold_in, held_out, batch_size=batch_size, ks=ks)
    assert model.training
    wanted = slow_evaluation(model, fold_in, held_out, ks)
    for name, value in wanted.items():
        assert result[name] == pytest.approx(value), name
    assert result["ranked_rows"] == 25
    assert result["dropped_rows"] == 3
    assert set(result) == set(wanted) | {"ranked_rows", "dropped_rows"}


def test_evaluate_names_and_ranks_beyond_the_number_of_items():
    fold_in, held_out = split_fold_in(counts())
    result = evaluate(model_of("vae").float(), fold_in, held_out)
    assert {"recall@20", "recall@50", "ndcg@100", "perplexity"} <= set(result)
    assert result["recall@50"] == 1  # all 30 items are ranked


def test_evaluate_without_anything_to_rank():
    empty = sp.csr_matrix((3, 30))
    result = evaluate(model_of("vae"), empty, empty)
    assert math.isnan(result["ndcg@100"])
    assert math.isnan(result["perplexity"])
    assert result["dropped_rows"] == 3


def test_evaluate_takes_entries_that_are_zero_or_stored_twice():
    fold_in, held_out = split_fold_in(counts(25).astype(np.float64))
    dropped = held_out.copy()
    dropped.data[dropped.indptr[3] : dropped.indptr[4]] = 0.0  # row 3 has nothing but zeros
    clean = dropped.copy()
    clean.eliminate_zeros()
    twice = sp.csr_matrix(
        (clean.data.repeat(2) / 2, clean.indices.repeat(2), clean.indptr * 2), clean.shape
    )
    twice.has_canonical_format = True  # scipy's memory of arrays that were others
    model = model_of("vae")
    wanted = evaluate(model, fold_in, clean, ks=(5,))
    assert wanted["dropped_rows"] == 1
    assert evaluate(model, fold_in, dropped, ks=(5,)) == wanted
    assert evaluate(model, fold_in, twice, ks=(5,)) == wanted
    assert dropped.nnz == held_out.nnz  # the caller's matrices are left alone
    assert twice.nnz == 2 * clean.nnz


def test_a_duplicate_entry_goes_to_one_side():
    columns = np.arange(20) // 2
    fold_in, held_out = split_fold_in(
        sp.csr_matrix((np.ones(20), columns, np.array([0, 20])), (1, 10))
    )
    assert (fold_in.nnz, held_out.nnz) == (8, 2)
    assert (fold_in + held_out).toarray().tolist() == [[2.0] * 10]
    assert not set(fold_in.indices) & set(held_out.indices)


def test_evaluate_errors():
    fold_in, held_out = split_fold_in(counts())
    model = model_of("vae")
    with pytest.raises(RuntimeError, match="one shape"):
        evaluate(model, fold_in, held_out[:3])
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(model, fold_in, held_out, batch_size=0)
    with pytest.raises(ValueError, match="ks"):
        evaluate(model, fold_in, held_out, ks=(0,))


def test_evaluate_restores_the_mode_after_an_error():
    fold_in, held_out = split_fold_in(counts())
    model = model_of("vae", n_items=29).train()
    with pytest.raises(RuntimeError, match="29 columns"):
        evaluate(model, fold_in, held_out)
    assert model.training
    assert torch.is_grad_enabled()


def test_evaluate_leaves_frozen_parts_frozen():
    model = model_of("vae").train()
    model.encoder.eval()
    evaluate(model, *split_fold_in(counts().astype(np.float64)))
    assert model.training and model.output.training and not model.encoder.training


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    fold_in, held_out = split_fold_in(counts())
    model = model_of("vae")
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
    result = evaluate(model, fold_in.astype(np.float64), held_out)
    assert result["perplexity"] == pytest.approx(30)


# ---- baselines -----------------------------------------------------------------------------------


def test_popularity_ranks_by_training_rows_not_by_counts():
    train = sp.csr_matrix([[0.0, 9.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    popularity = Popularity(train)
    batch = CSRBatch.from_dense(torch.tensor([[0.0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]]))
    scores, items = popularity.recommend(batch, 3)
    assert items.tolist() == [[2, 0, 1], [0, 1, 3], [-1, -1, -1]]
    assert scores[:2].tolist() == [[2, 1, 1], [1, 1, 0]]
    assert popularity.recommend(batch, 1, exclude_seen=False)[1].tolist() == [[2]] * 3


def test_unigram_perplexity_by_hand():
    train = sp.csr_matrix([[3.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    p = np.array([5 + 0.5, 0.5, 1.5]) / 7.5
    target = CSRBatch.from_dense(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
    nll = Popularity(train, smoothing=0.5).row_nll(target, target)
    np.testing.assert_allclose(nll.numpy(), [-math.log(p[0]) - 2 * math.log(p[1]), 0], rtol=1e-6)


def test_baselines_equal_the_slow_definition(monkeypatch):
    train, rows = counts(100, seed=3), counts(seed=4)
    fold_in, held_out = split_fold_in(rows, seed=2)
    monkeypatch.setattr("sparsevae_ext.data.blocks.ROWS_AT_A_TIME", 7)
    result = evaluate_baselines(train, fold_in, held_out, batch_size=9, ks=(3, 20))
    popular = np.diff(train.tocsc().indptr)
    order = sorted(range(30), key=lambda j: (-popular[j], j))
    slow = [
        slow_metrics([j for j in order if fold_in[i, j] == 0], set(held_out[i].indices), 3)
        for i in range(rows.shape[0])
    ]
    assert result["popularity"]["recall@3"] == pytest.approx(np.mean([r for r, _ in slow]))
    assert result["popularity"]["ndcg@3"] == pytest.approx(np.mean([n for _, n in slow]))
    p = (np.asarray(train.sum(axis=0)).ravel() + 1) / (train.sum() + 30)
    nll = -(held_out @ np.log(p)).sum()
    assert result["unigram"] == {"perplexity": pytest.approx(math.exp(nll / held_out.sum()))}
    again = evaluate_baselines(CSRBatch.from_scipy(train), fold_in, held_out, ks=(3, 20))
    assert again["unigram"]["perplexity"] == pytest.approx(result["unigram"]["perplexity"])


def test_smoothing_must_be_positive():
    for smoothing in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="smoothing"):
            Popularity(counts(), smoothing)


def test_popularity_does_not_count_stored_zeros():
    train = sp.csr_matrix((np.array([0.0, 0.0, 1.0]), np.array([0, 0, 1]), np.array([0, 1, 3])))
    assert Popularity(train).row_counts.tolist() == [0, 1]


def test_data_sets_and_matrices_give_the_same():
    rows = counts()
    dataset = CSRDataset(rows)
    for left, right in zip(split_fold_in(dataset), split_fold_in(rows), strict=True):
        assert (left != right).nnz == 0
    part = dataset.subset([3, 1, 7])
    assert (split_fold_in(part)[0] != split_fold_in(rows[[3, 1, 7]])[0]).nnz == 0
    fold_in, held_out = split_fold_in(rows)
    assert evaluate_baselines(dataset, fold_in, held_out) == evaluate_baselines(
        rows, fold_in, held_out
    )
