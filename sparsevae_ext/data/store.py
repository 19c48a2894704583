"""Where the rows of a data set lie, and how a batch of them is gathered."""

from __future__ import annotations

import multiprocessing.context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _load
from .batch import CSRBatch
from .index import INT32_LIMIT, TransposedIndex, transpose_arrays

__all__ = ["CSRArrays", "gather_batch", "gather_numpy"]


class CSRArrays:
    """The three arrays of a CSR matrix in memory or memory-mapped, shared by all views of it.

    Worker processes never get a copy: a forked worker sees the parent's pages, and for a spawned
    one the arrays move once into shared memory. Memory-mapped arrays travel as their folder's path.
    """

    def __init__(
        self,
        crow: NDArray[Any],
        col: NDArray[Any],
        values: NDArray[Any],
        n_cols: int,
        folder: str | None = None,
    ) -> None:
        self.crow = crow
        self.col = col
        self.values = values
        self.n_cols = n_cols
        self.folder = folder

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.crow) - 1

    def __getstate__(self) -> dict[str, Any]:
        if self.folder is not None:
            return {"folder": self.folder}
        state = dict(self.__dict__)
        # Set while a process is being spawned: only then do tensors travel as handles.
        if multiprocessing.context.get_spawning_popen() is not None:
            for name in ("crow", "col", "values"):
                state[name] = self._share(name)
        return state

    def _share(self, name: str) -> torch.Tensor:
        array = getattr(self, name)
        tensor = array.base if isinstance(array.base, torch.Tensor) else None
        if tensor is None:
            try:
                tensor = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype)
                tensor.share_memory_()
            except RuntimeError as error:
                raise RuntimeError(
                    f"CSRDataset: no shared memory for {array.nbytes} bytes of {name}; "
                    f"write_folder() makes a data set that worker processes map from disk ({error})"
                ) from error
            shared = tensor.numpy()
            shared[:] = array
            # From here on this process reads the shared copy too, and lets go of the first one.
            setattr(self, name, shared)
        return tensor

    def __setstate__(self, state: dict[str, Any]) -> None:
        if list(state) == ["folder"]:
            from .folder import open_arrays

            state = open_arrays(state["folder"]).__dict__
        for name, part in state.items():
            setattr(self, name, part.numpy() if isinstance(part, torch.Tensor) else part)


def gather_batch(
    op: str, arrays: CSRArrays, rows: NDArray[np.int64], prepare: bool = False
) -> CSRBatch:
    """Copy the given rows, in this order, into a batch that owns its memory.

    Args:
        op: name put before the text of an error.
        arrays: where the rows lie.
        rows: (n,) int64 row numbers, repeats allowed.
        prepare: build the transposed index in the same call.

    Returns:
        The batch, with int32 indices where they fit.

    Raises:
        IndexError: a row number, or with `prepare` a column, is out of range.
        RuntimeError: the row pointers of a picked row are broken.
    """
    a = arrays
    if _load.C is not None:
        crow, col, values, index = _load.C.gather_rows(
            a.crow, a.col, a.values, rows, a.n_cols, prepare, op
        )
    else:
        crow, col, values = gather_numpy(op, a, rows)
        index = transpose_arrays(op, crow, col, a.n_cols) if prepare else None
    tensor = torch.from_numpy
    return CSRBatch._make(
        tensor(crow),
        tensor(col),
        tensor(values),
        a.n_cols,
        TransposedIndex(*map(tensor, index)) if index is not None else None,
    )


def gather_numpy(
    op: str, arrays: CSRArrays, rows: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """`gather_batch` in numpy, without the transposed index: `(crow, col, values)`."""
    nnz = len(arrays.col)
    outside = (rows < 0) | (rows >= arrays.n_rows)
    if outside.any():
        position = int(outside.argmax())
        raise IndexError(
            f"{op}(): row {rows[position]} at position {position} is out of bounds "
            f"for rows={arrays.n_rows}"
        )
    begin = arrays.crow[rows].astype(np.int64)
    end = arrays.crow[rows + 1].astype(np.int64)
    broken = (begin < 0) | (end < begin) | (end > nnz)
    if broken.any():
        i = int(broken.argmax())
        raise RuntimeError(
            f"{op}(): expected crow_indices to be non-decreasing within [0, {nnz}], "
            f"but row {rows[i]} has {begin[i]} and {end[i]}"
        )
    crow = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(end - begin, out=crow[1:])
    entries: slice | NDArray[np.int64]
    if len(rows) and np.array_equal(begin[1:], end[:-1]):
        entries = slice(int(begin[0]), int(end[-1]))
    else:
        entries = np.repeat(begin - crow[:-1], end - begin) + np.arange(crow[-1])
    col = np.array(arrays.col[entries])
    small = max(arrays.n_cols, len(col), len(rows)) < INT32_LIMIT
    dtype = np.int32 if small else np.int64
    if small and col.dtype == np.int64 and len(col):
        outside = (col < 0) | (col >= arrays.n_cols)
        if outside.any():
            position = int(outside.argmax())
            raise IndexError(
                f"{op}(): column index {col[position]} at position {position} is out of bounds "
                f"for in_features={arrays.n_cols}"
            )
    return (
        crow.astype(dtype, copy=False),
        col.astype(dtype, copy=False),
        np.array(arrays.values[entries]),
    )
