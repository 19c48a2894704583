"""What a latent direction means, in words."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import CSRDataset
from ..models import MultinomialModel

__all__ = ["Direction", "latent_directions"]


class Direction(NamedTuple):
    """One direction of the code and the columns that it raises and lowers most.

    Attributes:
        share: its share of the variance of the rows' codes.
        high: (name, log-odds) of the columns whose probability it raises, largest first.
        low: the same for those it lowers.
    """

    share: float
    high: list[tuple[str, float]]
    low: list[tuple[str, float]]


@torch.no_grad()
def latent_directions(
    model: MultinomialModel,
    ds: CSRDataset,
    n_directions: int = 4,
    n_words: int = 6,
    width: float = 1.0,
    batch_size: int = 500,
) -> list[Direction]:
    """Describe the main directions of the codes by the columns that change most along them.

    The directions are the principal axes of the posterior means of `ds`. Along an axis with
    deviation s the decoder is evaluated at the mean code plus and minus `width` * s, giving the
    column probabilities p+ and p-. A column's weight in the choice is
    sqrt((p+ + p-) / 2) * |log(p+ / p-)|: large for columns that change much and are no rarities.

    Args:
        model: a trained MultVAE or MultDAE.
        ds: (rows, n_items), with a vocabulary for names.
        n_directions: how many axes, by decreasing variance.
        n_words: columns for each end of an axis.
        width: how far to go, in deviations.
        batch_size: rows encoded at a time.

    Returns:
        The directions; their ends carry log(p+ / p-).
    """
    model.eval()
    device = next(model.parameters()).device
    codes = torch.cat(
        [
            model.encode(ds.rows(list(range(start, min(start + batch_size, len(ds))))).to(device))
            for start in range(0, len(ds), batch_size)
        ]
    ).double()
    centre = codes.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(codes - centre, full_matrices=False)
    variances = sizes.square() / max(1, len(codes) - 1)
    result = []
    for axis, variance in zip(axes[:n_directions], variances, strict=False):
        step = width * variance.sqrt() * axis
        ends = torch.stack([centre + step, centre - step]).to(model.output.weight.dtype)
        log_p = torch.log_softmax(model.output(model.decode_hidden(ends)).double(), dim=1)
        log_odds = log_p[0] - log_p[1]
        weight = log_p.exp().mean(dim=0).sqrt() * log_odds
        result.append(
            Direction(
                float(variance / variances.sum()),
                _strongest(weight, log_odds, n_words, ds.vocab),
                _strongest(-weight, log_odds, n_words, ds.vocab),
            )
        )
    return result


def _strongest(weight: Tensor, log_odds: Tensor, n: int, vocab: Any) -> list[tuple[str, float]]:
    chosen = weight.topk(min(n, len(weight))).indices.tolist()
    pairs = [
        (str(vocab[item]) if vocab is not None else f"column {item}", float(log_odds[item]))
        for item in chosen
    ]
    return sorted(pairs, key=lambda pair: -abs(pair[1]))
