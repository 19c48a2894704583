"""Where a loss that is NaN or infinite comes from: the term, the parameter, the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import CSRBatch, CSRDataset

__all__ = ["find_cause", "non_finite_parameter"]

#: Rows that a message lists.
LISTED = 5


def find_cause(
    model: Any,
    rows: NDArray[np.int64],
    dataset: CSRDataset,
    batch: CSRBatch | None,
    output: Any,
) -> str:
    """Says what is not finite first: the values of the batch, a parameter, or a term of the loss.

    Looked at are, in this order, the values of the batch, the parameters, and the terms of the
    model's output, with the rows to blame: those with such values, or those that alone, or in as
    small a group as can be told, give such a term.

    Args:
        model: as it was when the loss was computed, or a few steps later.
        rows: the row numbers of the batch in ``dataset``.
        dataset: the training rows.
        batch: the batch, if the model is as it was then.
        output: what the model gave for it.
    """
    values = batch if batch is not None else dataset.rows(rows)
    bad = _rows_with_bad_values(values)
    if len(bad):
        return f"first non-finite tensor: the values of the batch, {_named(bad, rows)}"
    parameter = non_finite_parameter(model)
    if parameter is not None:
        return (
            f"first non-finite tensor: the parameter {parameter} (after the step before it; a "
            "smaller lr may help)"
        )
    for name in ("nll", "kl", "penalty"):
        part = getattr(output, name, None)
        if part is None or bool(part.isfinite().all()):
            continue
        text = f"first non-finite tensor: {name} of the model's output, from finite values and parameters"
        if batch is not None:
            found = _rows_to_blame(model, batch, name)
            text += f", {_named(found, rows)}" if found else "; no row gives it alone, drawn anew"
        return text
    return "first non-finite tensor: the loss"


def non_finite_parameter(model: Any) -> str | None:
    """The name of the first parameter with a NaN or infinity."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            return str(name)
    return None


def _rows_with_bad_values(batch: CSRBatch) -> list[int]:
    entries = (~batch.values.detach().isfinite()).nonzero().flatten()
    if entries.numel() == 0:
        return []
    owners = torch.searchsorted(batch.crow.to(entries.dtype), entries, right=True) - 1
    return sorted(set(owners.tolist()))


@torch.no_grad()
def _rows_to_blame(model: Any, batch: CSRBatch, name: str) -> list[int]:
    """Rows that give a non-finite term by themselves, found by halving; at most ``LISTED`` + 1.

    Run with the model as it trains. Its noise is another than in the step, so that a row that is bad
    only with some draws may not be found.
    """
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def bad(rows: list[int]) -> bool:
        return not bool(getattr(model(batch[rows]), name).isfinite().all())

    try:
        return _halve(list(range(len(batch))), bad)
    except Exception:
        # A model that cannot take a part of a batch; that must not hide what was found out so far.
        return []
    finally:
        # Running statistics and counters have seen these rows again.
        model.load_state_dict(state)


def _halve(rows: list[int], bad: Callable[[list[int]], bool]) -> list[int]:
    found: list[int] = []
    groups = [rows]
    while groups and len(found) <= LISTED:
        group = groups.pop()
        if not bad(group):
            continue
        if len(group) == 1:
            found += group
            continue
        middle = len(group) // 2
        groups += [group[middle:], group[:middle]]
    return found


def _named(found: list[int], rows: NDArray[np.int64]) -> str:
    """Both numbers of every row: where it stands in the batch and in the training rows."""
    listed = ", ".join(f"{place} (training row {rows[place]})" for place in found[:LISTED])
    more = " and more" if len(found) > LISTED else ""
    return f"row{'s' if len(found) > 1 else ''} {listed}{more} of the batch"
