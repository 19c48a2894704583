"""CSRDataset: the rows of a sparse matrix as a torch data set."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from .batch import CSRBatch
from .canonical import canonical_csr
from .covariate import RowCovariate
from .store import CSRArrays, gather_batch

__all__ = ["CSRDataset"]


class CSRDataset(torch.utils.data.Dataset[CSRBatch]):
    """Rows of a sparse matrix, in memory or in a folder of memory-mapped arrays.

    A scipy matrix that is in order (sorted columns, no duplicates, float32 or float64) is used in
    place, not copied: do not change it afterwards. Otherwise an ordered copy is made.

    Opening a folder looks at its row pointers and file sizes; the rest is read when rows are
    picked. `read(folder)` looks at everything once.

    For `torch.utils.data.DataLoader` pass `collate_fn=CSRDataset.collate`. Worker processes,
    forked or spawned, share the arrays. In-process and usually faster is `CSRLoader`.

    Args:
        data: a scipy `csr_matrix`/`csr_array` (B, N), or the path of a folder that
            `write_folder` made.
        vocab: names of the N columns; a folder may bring its own.
        labels: (B,) one label per row; a folder may bring its own.
        batch_index: (B,) experimental batch of each row (donor, run, chemistry): numbers from 0
            on, or strings, which are numbered in sorted order. Every batch of rows carries its
            part, see `CSRBatch.with_batch_index`. A folder may bring its own.
        batch_names: names of the batches, where `batch_index` holds numbers.

    Attributes:
        vocab: names of the columns, or None.

    Raises:
        TypeError: `data` is neither a scipy CSR matrix nor a path.
        DataFileError: the folder is missing or damaged.
        RuntimeError: a broken row pointer array, or a vocabulary, labels or batch index of another
            length.
        IndexError: a column outside [0, N).
        ValueError: a batch number below 0 or without a name.

    Example:
        >>> ds = CSRDataset(sp.csr_matrix([[0, 2], [1, 0], [0, 0]]))
        >>> len(ds), ds.shape, ds.nnz, ds[1].to_dense().tolist()
        (3, (3, 2), 2, [[1.0, 0.0]])
        >>> ds = CSRDataset(sp.csr_matrix([[0, 2], [1, 0]]), batch_index=["run 2", "run 1"])
        >>> ds.n_batch, ds.batch_names, ds.rows([0, 1]).batch_index
        (2, ['run 1', 'run 2'], tensor([1, 0]))
    """

    vocab: list[str] | None
    _arrays: CSRArrays
    _rows: NDArray[np.int64] | None
    _labels: NDArray[Any] | None
    _covariate: RowCovariate | None

    def __init__(
        self,
        data: Any,
        *,
        vocab: Sequence[str] | None = None,
        labels: Any = None,
        batch_index: Any = None,
        batch_names: Sequence[str] | None = None,
    ) -> None:
        self._rows = None
        self._covariate = None
        if isinstance(data, (str, os.PathLike)):
            from .folder import open_folder

            self._arrays, stored_vocab, stored_labels, self._covariate = open_folder(data)
            vocab = stored_vocab if vocab is None else vocab
            labels = stored_labels if labels is None else labels
        else:
            crow, col, values = canonical_csr("CSRDataset", data)
            self._arrays = CSRArrays(_plain(crow), _plain(col), _plain(values), int(data.shape[1]))
        self.vocab = None if vocab is None else [str(word) for word in vocab]
        self._labels = None if labels is None else np.asarray(labels)
        if self.vocab is not None and len(self.vocab) != self._arrays.n_cols:
            raise RuntimeError(
                f"CSRDataset(): expected a vocab of {self._arrays.n_cols} words, "
                f"but got {len(self.vocab)}"
            )
        if self._labels is not None and len(self._labels) != self._arrays.n_rows:
            raise RuntimeError(
                f"CSRDataset(): expected {self._arrays.n_rows} labels, but got {len(self._labels)}"
            )
        if batch_index is not None:
            self._covariate = RowCovariate.of("CSRDataset", batch_index, batch_names)
        covariate = self._covariate
        if covariate is not None and len(covariate.codes) != self._arrays.n_rows:
            raise RuntimeError(
                f"CSRDataset(): expected batch_index of length {self._arrays.n_rows}, but got "
                f"{len(covariate.codes)}"
            )

    # ---- facts ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._arrays.n_rows if self._rows is None else len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, N)."""
        return (len(self), self._arrays.n_cols)

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        if self._rows is None:
            return len(self._arrays.col)
        return int(self.row_lengths().sum())

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the values, torch.float32 or torch.float64."""
        return torch.float64 if self._arrays.values.dtype == np.float64 else torch.float32

    @property
    def labels(self) -> NDArray[Any] | None:
        """One label per row, (B,), or None."""
        if self._labels is None or self._rows is None:
            return self._labels
        return self._labels[self._rows]

    @property
    def batch_index(self) -> NDArray[np.int64] | None:
        """Number of each row's experimental batch, (B,) int64, or None."""
        if self._covariate is None or self._rows is None:
            return None if self._covariate is None else self._covariate.codes
        return self._covariate.codes[self._rows]

    @property
    def batch_names(self) -> list[str] | None:
        """Names of the experimental batches, of a subset those of the whole; or None."""
        return None if self._covariate is None else list(self._covariate.names)

    @property
    def n_batch(self) -> int:
        """Number of experimental batches; 0 for a data set that knows of none."""
        return 0 if self._covariate is None else len(self._covariate.names)

    @property
    def batch_key(self) -> str | None:
        """Name of the column that the experimental batches were read from, or None."""
        return None if self._covariate is None else self._covariate.key

    def with_batch_names(self, names: Sequence[str]) -> CSRDataset:
        """A view whose batches are numbered as in ``names``, as a model trained with them needs.

        Args:
            names: of the batches; there may be more of them than this data set has.

        Raises:
            ValueError: a batch of this data set is not among them, or it has no batches.

        Example:
            >>> ds = CSRDataset(sp.csr_matrix([[0, 2], [1, 0]]), batch_index=["b", "b"])
            >>> ds.with_batch_names(["a", "b"]).batch_index.tolist()
            [1, 1]
        """
        if self._covariate is None:
            raise ValueError(
                "CSRDataset.with_batch_names(): expected a data set with a batch index, but got "
                "one without"
            )
        view = copy.copy(self)
        view._covariate = self._covariate.renamed(names)
        return view

    @property
    def is_memory_mapped(self) -> bool:
        """Whether the arrays lie in a folder on disk."""
        return self._arrays.folder is not None

    def row_lengths(self) -> NDArray[np.int64]:
        """Number of stored entries of each row, (B,) int64."""
        crow = self._arrays.crow
        if self._rows is None:
            return np.diff(crow).astype(np.int64, copy=False)
        return (crow[self._rows + 1] - crow[self._rows]).astype(np.int64, copy=False)

    def __repr__(self) -> str:
        where = f", folder={self._arrays.folder!r}" if self.is_memory_mapped else ""
        return f"CSRDataset(shape={self.shape}, nnz={self.nnz}, dtype={self.dtype}{where})"

    # ---- rows ----------------------------------------------------------------------------------

    def rows(self, index: Any, prepare: bool = False) -> CSRBatch:
        """Copy rows into a batch.

        Args:
            index: row numbers (sequence, array or tensor; negative ones count from the end), a
                slice, or a bool mask (B,).
            prepare: also build the transposed index, in the same pass.

        Returns:
            A batch that owns its memory, rows in the order asked for.

        Raises:
            IndexError: a row number is out of range, or with `prepare` a stored column is.
            TypeError: `index` is none of the above.

        Example:
            >>> ds = CSRDataset(sp.csr_matrix([[0, 2], [1, 0], [0, 3]]))
            >>> ds.rows([2, 0]).values.tolist()
            [3.0, 2.0]
        """
        rows = _row_numbers(index, len(self))
        if self._rows is not None:
            rows = self._rows[rows]
        batch = gather_batch("CSRDataset.rows", self._arrays, rows, prepare)
        if self._covariate is not None:
            batch.batch_index = torch.from_numpy(self._covariate.codes[rows])
        return batch

    def __getitem__(self, index: int) -> CSRBatch:
        """One row, as a batch of one."""
        return self.rows([index])

    def __getitems__(self, indices: Sequence[int]) -> CSRBatch:
        """Several rows as one batch; `DataLoader` calls it with a batch of row numbers."""
        return self.rows(indices)

    @staticmethod
    def collate(items: Any) -> CSRBatch:
        """The `collate_fn` for `DataLoader`: passes a batch through, joins single rows.

        Args:
            items: what `__getitems__` gave, or a list of `CSRBatch` over the same columns.

        Returns:
            One batch.

        Raises:
            RuntimeError: the batches have different numbers of columns, or there are none.

        Example:
            >>> ds = CSRDataset(sp.csr_matrix([[0, 2], [1, 0], [0, 3]]))
            >>> loader = torch.utils.data.DataLoader(ds, 2, collate_fn=CSRDataset.collate)
            >>> [len(batch) for batch in loader]
            [2, 1]
        """
        if isinstance(items, CSRBatch):
            return items
        batches = list(items)
        widths = {batch.n_cols for batch in batches}
        if len(widths) != 1:
            raise RuntimeError(
                f"CSRDataset.collate(): expected batches over the same columns, "
                f"but got {sorted(widths)}"
            )
        crow = [batches[0].crow[:1]]
        shift = 0
        for batch in batches:
            crow.append(batch.crow[1:] + shift)
            shift += batch.nnz
        joined = CSRBatch(
            torch.cat(crow),
            torch.cat([batch.col for batch in batches]),
            torch.cat([batch.values for batch in batches]),
            (sum(len(batch) for batch in batches), widths.pop()),
        )
        covariates = [batch.batch_index for batch in batches if batch.batch_index is not None]
        if covariates and len(covariates) != len(batches):
            raise RuntimeError(
                "CSRDataset.collate(): expected all batches to carry a batch index or none, but "
                f"got {len(covariates)} of {len(batches)} that do"
            )
        return joined.with_batch_index(torch.cat(covariates)) if covariates else joined

    def subset(self, rows: Any) -> CSRDataset:
        """A view of some rows: shares the arrays, keeps only their numbers.

        Args:
            rows: as in `rows()`.

        Returns:
            A data set of these rows in this order.

        Example:
            >>> ds = CSRDataset(sp.csr_matrix([[0, 2], [1, 0], [0, 3]]))
            >>> ds.subset([2, 1]).subset([0])[0].values.tolist()
            [3.0]
        """
        picked = _row_numbers(rows, len(self))
        view = object.__new__(CSRDataset)
        view.__dict__.update(self.__dict__)
        view._rows = picked.copy() if self._rows is None else self._rows[picked]
        return view

    def to_scipy(self) -> sp.csr_matrix:
        """The rows as a scipy `csr_matrix`; of a whole data set it shares the arrays.

        Example:
            >>> CSRDataset(sp.csr_matrix([[0, 2], [1, 0]])).to_scipy().toarray().tolist()
            [[0.0, 2.0], [1.0, 0.0]]
        """
        if self._rows is not None:
            return self.rows(slice(None)).to_scipy()
        a = self._arrays
        return sp.csr_matrix((a.values, a.col, a.crow), shape=self.shape, copy=False)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous, aligned ndarray without subclass, as the compiled helper wants it."""
    return np.require(np.asarray(array), requirements=["C", "A"])


def _row_numbers(index: Any, n_rows: int) -> NDArray[np.int64]:
    if isinstance(index, slice):
        return np.arange(*index.indices(n_rows), dtype=np.int64)
    rows = np.asarray(index)
    if rows.ndim != 1 or (rows.dtype.kind not in "biu" and rows.size):
        raise TypeError(
            f"CSRDataset.rows(): expected row numbers in one dimension, but got "
            f"shape {rows.shape} of {rows.dtype}"
        )
    if rows.dtype.kind == "b":
        if len(rows) != n_rows:
            raise IndexError(
                f"CSRDataset.rows(): expected a mask of {n_rows} rows, but got {len(rows)}"
            )
        return np.flatnonzero(rows)
    rows = np.ascontiguousarray(rows, dtype=np.int64)
    if rows.size == 0:
        return rows
    low, high = int(rows.min()), int(rows.max())
    if low < -n_rows or high >= n_rows:
        bad = high if high >= n_rows else low
        raise IndexError(
            f"CSRDataset.rows(): row {bad} is out of bounds for a data set of {n_rows} rows"
        )
    return np.where(rows < 0, rows + n_rows, rows) if low < 0 else rows
