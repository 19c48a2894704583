"""CSRBatch as a pytree node, so that compiled and exported functions take it as an argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.utils._pytree as pytree

from .batch import CSRBatch
from .index import TransposedIndex


def _flatten(batch: CSRBatch) -> tuple[list[Any], tuple[int, bool]]:
    leaves: list[Any] = [batch.crow, batch.col, batch.values]
    if batch.index is not None:
        leaves.append(batch.index)
    return leaves, (batch.n_cols, batch.index is not None)


def _flatten_with_keys(
    batch: CSRBatch,
) -> tuple[list[tuple[pytree.KeyEntry, Any]], tuple[int, bool]]:
    leaves, context = _flatten(batch)
    names = ("crow", "col", "values", "index")
    return [(pytree.GetAttrKey(n), t) for n, t in zip(names, leaves, strict=False)], context


def _unflatten(leaves: Iterable[Any], context: tuple[int, bool]) -> CSRBatch:
    crow, col, values, *index = leaves
    return CSRBatch._make(crow, col, values, context[0], index[0] if context[1] else None)


pytree.register_pytree_node(
    CSRBatch,
    _flatten,
    _unflatten,
    serialized_type_name="sparsevae_ext.CSRBatch",
    to_dumpable_context=list,
    from_dumpable_context=tuple,
    flatten_with_keys_fn=_flatten_with_keys,
)
# Plain data: torch.load(weights_only=True) and torch.export.load may read batches back.
torch.serialization.add_safe_globals([CSRBatch, TransposedIndex])

# torch knows every named tuple, but torch.export.save asks for a name to write; the call is private.
if hasattr(pytree, "_register_namedtuple"):
    pytree._register_namedtuple(
        TransposedIndex, serialized_type_name="sparsevae_ext.TransposedIndex"
    )
