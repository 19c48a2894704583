"""The experimental batch of every row, as a model takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.batch import CSRBatch
from ..data.parts import check_batch_index

__all__ = ["BatchIndex", "covered_rows", "index_of_rows"]

#: (B,) integers, or one for all rows.
BatchIndex = Tensor | int


def covered_rows(
    owner: str, rows: CSRBatch, batch_index: BatchIndex | None, n_batch: int
) -> CSRBatch:
    """Gives the rows with the batch index that is given, or else with their own, checked.

    A model without batches takes rows that carry an index as they are: data may know more than a
    model asks for.

    Raises:
        TypeError, RuntimeError, ValueError, IndexError: see :func:`index_of_rows`.
    """
    if batch_index is None and (n_batch == 0 or rows.batch_index is not None):
        _check_range(owner, rows.batch_index, n_batch)
        return rows
    index = index_of_rows(owner, batch_index, len(rows), n_batch, rows.device)
    return rows.with_batch_index(index)


def index_of_rows(
    owner: str, batch_index: BatchIndex | None, n_rows: int, n_batch: int, device: torch.device
) -> Tensor | None:
    """Gives the index of ``n_rows`` rows as int64 (n_rows,), or None for a model without batches.

    Raises:
        TypeError: if it is neither a tensor nor an int.
        RuntimeError: if it is no (n_rows,) integer tensor.
        ValueError: if the model has batches and there is no index, or the other way round.
        IndexError: if an index is not in [0, n_batch); known without waiting on the CPU only.
    """
    if batch_index is None:
        if n_batch:
            raise ValueError(
                f"{owner}(): expected batch_index, the batch of each row in [0, {n_batch}), but "
                "got none: neither as an argument nor with the rows"
            )
        return None
    if n_batch == 0:
        raise ValueError(
            f"{owner}(): expected batch_index to be None for a model with n_batch=0, but got one"
        )
    if isinstance(batch_index, bool) or not isinstance(batch_index, Tensor | int):
        raise TypeError(
            f"{owner}(): expected batch_index to be an integer tensor or an int, but got "
            f"{type(batch_index).__name__}"
        )
    if isinstance(batch_index, int):
        index = torch.full((n_rows,), batch_index, dtype=torch.int64, device=device)
    else:
        index = check_batch_index(owner, batch_index, n_rows, device)
    _check_range(owner, index, n_batch)
    return index


def _check_range(owner: str, index: Tensor | None, n_batch: int) -> None:
    if index is None or n_batch == 0 or len(index) == 0:
        return
    # Elsewhere the answer would wait for the device; inside torch.compile it is not known.
    if torch.compiler.is_compiling() or index.device.type != "cpu":
        return
    low, high = torch.aminmax(index)
    if int(low) < 0 or int(high) >= n_batch:
        position = int(((index < 0) | (index >= n_batch)).to(torch.uint8).argmax())
        raise IndexError(
            f"{owner}(): batch index {int(index[position])} at position {position} is out of "
            f"bounds for n_batch={n_batch}"
        )
