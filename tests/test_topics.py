"""Coherence and diversity of topics against their definitions, counted by hand."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sparsevae_ext.data import CSRBatch, CSRDataset, blocks
from sparsevae_ext.models import TopicVAE
from sparsevae_ext.train import (
    ComponentCollapseWarning,
    fit,
    npmi_coherence,
    topic_diversity,
    topic_summary,
)


def documents(n_rows=60, n_words=12, seed=0):
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.poisson(0.4, (n_rows, n_words)).astype(np.float32))


def by_hand(topic, matrix):
    present = matrix.toarray() > 0
    scores = []
    for a, b in itertools.combinations(topic, 2):
        both = (present[:, a] & present[:, b]).mean()
        if both in (0.0, 1.0):
            scores.append(-1.0 if both == 0.0 else 1.0)
            continue
        pmi = math.log(both / (present[:, a].mean() * present[:, b].mean()))
        scores.append(pmi / -math.log(both))
    return sum(scores) / len(scores)


def test_npmi_is_its_definition_on_every_kind_of_data(monkeypatch):
    matrix = documents()
    topics = [[0, 1, 2], [3, 4], [11, 0, 7, 5]]
    expected = [by_hand(topic, matrix) for topic in topics]
    # More than one block of rows, also of one row.
    monkeypatch.setattr(blocks, "ROWS_AT_A_TIME", 59)
    for data in (matrix, CSRDataset(matrix), CSRBatch.from_scipy(matrix)):
        np.testing.assert_allclose(npmi_coherence(topics, data), expected, rtol=1e-12)
    assert all(-1 < value < 1 for value in expected)


def test_npmi_at_its_ends():
    # Word 0 and 1 always together, 2 never with them, 3 in every document, 4 and 5 in none.
    matrix = sp.csr_matrix(
        np.array([[1, 5, 0, 1, 0, 0], [2, 1, 0, 1, 0, 0], [0, 0, 3, 1, 0, 0]], dtype=np.float32)
    )
    topics = [[0, 1], [0, 2], [0, 3], [0, 4], [4, 5]]
    np.testing.assert_allclose(npmi_coherence(topics, matrix), [1, -1, 0, -1, -1], atol=1e-12)
    everywhere = sp.csr_matrix(np.ones((3, 2), dtype=np.float32))
    assert npmi_coherence([[0, 1]], everywhere).tolist() == [1.0]


def test_npmi_counts_documents_and_not_entries():
    """A stored zero is no word, and a column stored twice is one."""
    crow, col = torch.tensor([0, 3, 5]), torch.tensor([0, 0, 1, 0, 1])
    batch = CSRBatch(crow, col, torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0]), (2, 3))
    clean = sp.csr_matrix(np.array([[3, 1, 0], [1, 0, 0]], dtype=np.float32))
    expected = npmi_coherence([[0, 1]], clean)
    np.testing.assert_allclose(npmi_coherence([[0, 1]], batch), expected)
    assert expected.tolist() == [by_hand([0, 1], clean)] == [0.0]


@pytest.mark.parametrize(
    ("error", "text", "topics"),
    [
        (ValueError, "two different words", [[0]]),
        (ValueError, "two different words", [[0, 1], [2, 2]]),
        (IndexError, "word 12 is out of bounds for 12", [[0, 12]]),
        (IndexError, "word -1 is out of bounds", [[0, -1]]),
    ],
)
def test_npmi_refuses(error, text, topics):
    with pytest.raises(error, match=text):
        npmi_coherence(topics, documents())
    with pytest.raises(ValueError, match="at least one document"):
        npmi_coherence([[0, 1]], documents()[:0])
    with pytest.raises(TypeError, match="ndarray"):
        npmi_coherence([[0, 1]], np.ones((3, 12)))


def test_diversity():
    assert topic_diversity([[0, 1], [2, 3]]) == 1.0
    assert topic_diversity([[0, 1]] * 4) == 0.25
    assert math.isnan(topic_diversity([]))


def test_summary_names_the_words_the_most_coherent_first():
    matrix = documents(n_words=40)
    vocab = [f"word{j}" for j in range(40)]
    model = TopicVAE(40, topics=4, hidden=8)
    summary = topic_summary(model, CSRDataset(matrix, vocab=vocab), warn=False)
    tops = model.top_words(10, vocab)
    assert sorted(topic["number"] for topic in summary["topics"]) == [0, 1, 2, 3]
    matrix_of_topics = model.topic_word_matrix()
    for topic in summary["topics"]:
        assert topic["words"] == tops[topic["number"]]
        columns = [vocab.index(word) for word in topic["words"]]
        assert topic["npmi"] == pytest.approx(by_hand(columns, matrix))
        row = matrix_of_topics[topic["number"], columns]
        assert topic["probabilities"] == pytest.approx(row.tolist())
    values = [topic["npmi"] for topic in summary["topics"]]
    assert values == sorted(values, reverse=True)
    assert summary["npmi"] == pytest.approx(sum(values) / 4)
    # 25 words of each: without a vocabulary the words are column numbers.
    assert summary["topic_diversity"] == topic_diversity(model.top_words(25))
    plain = topic_summary(model, matrix, warn=False)
    assert [f"word{j}" for j in plain["topics"][0]["words"]] == summary["topics"][0]["words"]


def test_equal_topics_are_warned_of_and_different_ones_not():
    data = CSRDataset(documents(n_words=300))
    model = TopicVAE(300, topics=8, hidden=8, decoder="mixture")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ComponentCollapseWarning)
        topic_summary(model, data)
    with torch.no_grad():
        model.output.weight[:] = torch.randn(300, 1)
    with pytest.warns(ComponentCollapseWarning, match="12% of the 8 topics"):
        topic_summary(model, data)
    # So does a run at its end, of what its last validation found.
    with pytest.warns(ComponentCollapseWarning):
        history = fit(model, data, valid=data, epochs=1, batch_size=30, lr=1e-9, progress=False)
    assert history.rows[-1]["valid_topic_diversity"] == 0.125
    assert history.best_metric == history.rows[-1]["valid_perplexity"]
