"""How good topics are: coherence and diversity of their top words."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ..data.blocks import csr_blocks

__all__ = [
    "ComponentCollapseWarning",
    "diversity_of",
    "has_topics",
    "npmi_coherence",
    "topic_diversity",
    "topic_summary",
    "warn_of_equal_topics",
]

#: Words of a topic that coherence looks at (Lau, Newman and Baldwin 2014), and those of diversity
#: (Dieng, Ruiz and Blei 2020).
COHERENCE_WORDS, DIVERSITY_WORDS = 10, 25
#: Below it most topics repeat each other.
LOW_DIVERSITY = 0.2


class ComponentCollapseWarning(UserWarning):
    """The topics of a model are nearly all the same."""


def npmi_coherence(topics: Sequence[Sequence[int]], data: Any) -> NDArray[np.float64]:
    r"""Normalised pointwise mutual information of the words of every topic.

    .. math::
        \mathrm{NPMI}(a, b) = \frac{\log \frac{p(a, b)}{p(a)\, p(b)}}{-\log p(a, b)},

    with p the share of the documents that have the word, or both (Bouma 2009), and its mean over the
    pairs of a topic's words (Lau, Newman and Baldwin 2014). 1 is always together, 0 independent,
    -1 never together; a word that does not occur is never together with any, and two words of
    every document are always. Of the data only the columns of these words are looked at, a block of
    rows at a time.

    Args:
        topics: column numbers of the top words of each topic, at least two and no one twice.
        data: (rows, N) CSRDataset, CSRBatch or scipy CSR matrix of the reference documents.

    Returns:
        (K,) float64, the coherence of each topic.

    Raises:
        ValueError: if a topic has fewer than two words or one twice, or there are no documents.
        IndexError: if a word is not in [0, N).
        TypeError: if ``data`` is none of the above.

    Example:
        >>> documents = sp.csr_matrix([[1, 2, 0], [3, 1, 0], [0, 0, 1], [0, 0, 2]])
        >>> npmi_coherence([[0, 1], [0, 2]], documents)
        array([ 1., -1.])
    """
    words = sorted({int(word) for topic in topics for word in topic})
    for number, topic in enumerate(topics):
        if len(topic) < 2 or len(set(topic)) < len(topic):
            raise ValueError(
                f"npmi_coherence(): expected at least two different words in a topic, but got "
                f"{list(topic)} for topic {number}"
            )
    n_words = data.shape[1]
    if words and not 0 <= words[0] <= words[-1] < n_words:
        wrong = words[0] if words[0] < 0 else words[-1]
        raise IndexError(f"npmi_coherence(): word {wrong} is out of bounds for {n_words} columns")
    together, documents = _together(data, words)
    if documents == 0:
        raise ValueError("npmi_coherence(): expected at least one document, but got none")
    place = {word: i for i, word in enumerate(words)}
    scores = _npmi(together / documents)
    result = []
    for topic in topics:
        at = [place[int(word)] for word in topic]
        pairs = scores[np.ix_(at, at)]
        result.append(pairs[np.triu_indices(len(at), 1)].mean())
    return np.array(result, dtype=np.float64)


def topic_diversity(topics: Sequence[Sequence[int]]) -> float:
    """Share of different words among the top words of all topics (Dieng, Ruiz and Blei 2020).

    Args:
        topics: the top words of each topic; theirs are 25.

    Returns:
        1 when no two topics share a word, 1 / K when all are the same; nan without words.

    Example:
        >>> topic_diversity([[1, 2], [2, 3]])
        0.75
    """
    words = [word for topic in topics for word in topic]
    return len(set(words)) / len(words) if words else float("nan")


def topic_summary(
    model: Any, data: Any, vocab: Sequence[str] | None = None, *, warn: bool = True
) -> dict[str, Any]:
    """Coherence and diversity of a topic model, and its topics' words.

    Args:
        model: a model with ``top_words``, such as :class:`~sparsevae_ext.models.TopicVAE`.
        data: (rows, N) reference documents, see :func:`npmi_coherence`.
        vocab: the words of the columns; None takes those of ``data``, if it has any.
        warn: whether to warn of a low diversity.

    Returns:
        "npmi" (mean over the topics, of 10 words each), "topic_diversity" (of 25 words each),
        "topics": for each topic, the most coherent first, its "number", "npmi", "words" and
        their "probabilities".

    Warns:
        ComponentCollapseWarning: the diversity is below 0.2.

    Example:
        >>> from sparsevae_ext.models import TopicVAE
        >>> model = TopicVAE(30, topics=4, hidden=8)
        >>> summary = topic_summary(model, sp.csr_matrix(np.eye(30)), warn=False)
        >>> summary["npmi"], len(summary["topics"])
        (-1.0, 4)
    """
    n_words = data.shape[1]
    if n_words < 2:
        raise ValueError(f"topic_summary(): expected at least two words, but got {n_words}")
    leading = model.top_words(min(COHERENCE_WORDS, n_words))
    coherence = npmi_coherence(leading, data)
    diversity = diversity_of(model)
    if vocab is None:
        vocab = getattr(data, "vocab", None)
    matrix = model.topic_word_matrix().detach()
    topics = [
        {
            "number": number,
            "npmi": float(coherence[number]),
            "probabilities": matrix[number, leading[number]].double().tolist(),
            "words": [str(word) if vocab is None else vocab[word] for word in leading[number]],
        }
        for number in np.argsort(-coherence, kind="stable").tolist()
    ]
    if warn:
        warn_of_equal_topics(diversity, len(leading))
    return {
        "npmi": float(coherence.mean()),
        "topic_diversity": diversity,
        "topics": topics,
    }


def has_topics(model: Any) -> bool:
    """Whether the model has topics to measure."""
    return hasattr(model, "top_words")


def diversity_of(model: Any) -> float:
    """Diversity of a topic model's topics, of 25 words each."""
    return topic_diversity(model.top_words(min(DIVERSITY_WORDS, model.n_features)))


def warn_of_equal_topics(diversity: float, topics: int, stacklevel: int = 3) -> None:
    """Warns when the topics share most of their words."""
    # All topics alike give 1 / K, which is no small number for a handful of topics.
    if diversity < max(LOW_DIVERSITY, 1.5 / max(topics, 1)):
        warnings.warn(
            f"the topics have collapsed: only {diversity:.0%} of the {topics} topics' top words "
            "differ; a higher learning rate, a slower annealing, larger batches or fewer topics "
            "may help",
            ComponentCollapseWarning,
            stacklevel=stacklevel,
        )


def _together(data: Any, words: Sequence[int]) -> tuple[NDArray[np.float64], int]:
    """Documents with both of two of the words, (U, U), and the number of documents."""
    counts = np.zeros((len(words), len(words)))
    documents = 0
    wanted = np.full(data.shape[1], -1, dtype=np.int64)
    wanted[list(words)] = np.arange(len(words))
    for block in csr_blocks(data, "npmi_coherence"):
        documents += block.shape[0]
        keep = (wanted[block.indices] >= 0) & (block.data > 0)
        rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[keep]
        present = sp.csr_matrix(
            (np.ones(len(rows)), (rows, wanted[block.indices[keep]])),
            shape=(block.shape[0], len(words)),
        )
        # A column stored twice in a row is one word of the document.
        present.data[:] = 1.0
        counts += (present.T @ present).toarray()
    return counts, documents


def _npmi(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """NPMI of every pair from the joint probabilities, whose diagonal are the words' own."""
    alone = p.diagonal()
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = (np.log(p) - np.log(alone)[:, None] - np.log(alone)[None, :]) / -np.log(p)
    scores[p == 0.0] = -1.0
    scores[p == 1.0] = 1.0
    return scores
