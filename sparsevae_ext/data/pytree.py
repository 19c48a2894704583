"""CSRBatch as a pytree node, so that compiled and exported functions take it as an argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.utils._pytree as pytree

from .batch import CSRBatch
from .index import TransposedIndex

_ALWAYS = ("crow", "col", "values")
_SOMETIMES = ("index", "batch_index")

# Columns, whether there is a transposed index, whether there is a batch index.
Context = tuple[int, bool, bool]


def _parts(batch: CSRBatch) -> tuple[list[tuple[str, Any]], Context]:
    parts: list[tuple[str, Any]] = [(name, getattr(batch, name)) for name in _ALWAYS]
    parts += [(n, getattr(batch, n)) for n in _SOMETIMES if getattr(batch, n) is not None]
    return parts, (batch.n_cols, batch.index is not None, batch.batch_index is not None)


def _flatten(batch: CSRBatch) -> tuple[list[Any], Context]:
    parts, context = _parts(batch)
    return [part for _, part in parts], context


def _flatten_with_keys(
    batch: CSRBatch,
) -> tuple[list[tuple[pytree.KeyEntry, Any]], Context]:
    parts, context = _parts(batch)
    return [(pytree.GetAttrKey(name), part) for name, part in parts], context


def _unflatten(leaves: Iterable[Any], context: Context) -> CSRBatch:
    crow, col, values, *others = leaves
    rest = iter(others)
    n_cols, *present = context
    index, batch_index = (next(rest) if there else None for there in present)
    return CSRBatch._make(crow, col, values, n_cols, index, batch_index)


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
