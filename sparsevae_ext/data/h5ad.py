"""AnnData `.h5ad` files: the CSR matrix in them, read a range of rows at a time.

The matrix is read through h5py, for AnnData's own backed mode reads every layer but X into memory;
anndata decodes the few columns that are needed of the tables beside it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .canonical import float_values, is_canonical, native_index, sort_and_sum
from .covariate import RowCovariate
from .dataset import CSRDataset
from .errors import DataFileError
from .index import check_columns, check_structure
from .source import check_entries

__all__ = ["H5adMatrix", "open_h5ad"]

PathLike = str | os.PathLike[str]


def open_h5ad(
    path: PathLike,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    nonnegative: bool = True,
) -> H5adMatrix:
    """Open the matrix of an AnnData file without reading it.

    `write_folder` makes a folder of it a range of rows at a time, for files larger than memory;
    `read` takes all of it into memory. Needs the package anndata (`sparsevae-ext[anndata]`).

    Args:
        path: the `.h5ad` file.
        layer: which matrix: None is X, "raw" is raw.X, any other name one of the layers. Models of
            counts want the raw counts, which X often no longer is.
        batch_key: column of `obs` that says which experimental batch a row comes from.
        nonnegative: values below 0 are an error.

    Returns:
        The matrix; close it, or use it in a `with` statement.

    Raises:
        DataFileError: anndata is not installed, or the file is missing, damaged, has no such
            matrix or column, or the matrix is dense or CSC.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.gettempdir(), "there-is-no-such-file.h5ad")
        >>> open_h5ad(path)
        Traceback (most recent call last):
        sparsevae_ext.data.errors.DataFileError: ...
    """
    return H5adMatrix(os.fspath(path), layer, batch_key, nonnegative)


class H5adMatrix:
    """A CSR matrix in an `.h5ad` file; see `open_h5ad`, which makes it.

    Attributes:
        shape: (B, N).
        value_dtype: numpy dtype of the values as they are read.
        crow: (B + 1,) int64 row pointers.
        vocab: names of the columns, or None.
        labels: None.
        covariate: the experimental batch of every row, or None.
    """

    def __init__(
        self, path: str, layer: str | None, batch_key: str | None, nonnegative: bool
    ) -> None:
        self.path = path
        self.nonnegative = nonnegative
        self.labels: NDArray[Any] | None = None
        h5py, read_elem = _libraries(path)
        if not os.path.exists(path):
            raise DataFileError(path, "there is no such file")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise DataFileError(path, f"it is no HDF5 file, or damaged ({error})") from error
        try:
            self._open(h5py, read_elem, layer, batch_key)
        except DataFileError:
            self.close()
            raise
        except Exception as error:
            self.close()
            # Whatever a damaged file makes the libraries below stumble over.
            reason = f"{type(error).__name__}: {error}"
            raise DataFileError(path, f"it is damaged or of another kind ({reason})") from error

    def _open(self, h5py: Any, read_elem: Any, layer: str | None, batch_key: str | None) -> None:
        group, table = self._group(h5py, layer)
        name = "X" if layer is None else f"layer {layer}"
        kind = group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", ""))
        kind = kind.decode() if isinstance(kind, bytes) else str(kind)
        if not isinstance(group, h5py.Group):
            raise DataFileError(
                self.path,
                f"its {name} is dense; save it as CSR: adata.X = scipy.sparse.csr_matrix(adata.X)",
            )
        if kind not in ("csr_matrix", "csr"):
            raise DataFileError(
                self.path, f"its {name} is {kind or 'no matrix'}, not CSR; save it after .tocsr()"
            )
        shape = group.attrs["shape" if "shape" in group.attrs else "h5sparse_shape"]
        self.shape: tuple[int, int] = (int(shape[0]), int(shape[1]))
        self._col, self._values = group["indices"], group["data"]
        self.value_dtype = float_values("read", np.empty(0, self._values.dtype)).dtype
        if self._col.dtype.kind not in "iu":
            raise DataFileError(self.path, f"its column indices are {self._col.dtype}")
        self.crow: NDArray[np.int64] = group["indptr"][:].astype(np.int64)
        if len(self.crow) != self.shape[0] + 1 or len(self._col) != len(self._values):
            raise DataFileError(self.path, f"its {name} is not CSR: lengths do not fit")
        check_structure("indptr", self.crow, len(self._col))
        names = read_elem(table[_index_name(table)])
        self.vocab: list[str] | None = [str(name) for name in names]
        self.covariate: RowCovariate | None = None
        if batch_key is not None:
            self.covariate = self._covariate(read_elem, batch_key)

    def _group(self, h5py: Any, layer: str | None) -> tuple[Any, Any]:
        """The matrix and the table of its columns."""
        place = {None: "X", "raw": "raw/X"}.get(layer, f"layers/{layer}")
        if place not in self._file:
            layers = sorted(self._file["layers"]) if "layers" in self._file else []
            if "raw" in self._file:
                layers.append("raw")
            found = f"layers: {', '.join(layers)}" if layers else "no layers"
            raise DataFileError(self.path, f"it has no {place} ({found})")
        return self._file[place], self._file["raw/var" if layer == "raw" else "var"]

    def _covariate(self, read_elem: Any, key: str) -> RowCovariate:
        obs = self._file["obs"]
        columns = [str(name) for name in obs.attrs.get("column-order", sorted(obs))]
        if key not in columns:
            raise DataFileError(
                self.path, f"its obs has no column {key!r} (found {', '.join(columns) or 'none'})"
            )
        values = read_elem(obs[key])
        if not hasattr(values, "categories"):
            # Numbers are names here: a donor 17 is not the 17th of 18 batches.
            values = np.asarray(values).astype(str)
        try:
            covariate = RowCovariate.of(key, values, key=key)._replace(key=key)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataFileError(self.path, f"obs column {error}") from error
        if len(covariate.codes) != self.shape[0]:
            raise DataFileError(self.path, f"obs column {key} has {len(covariate.codes)} rows")
        return covariate

    def entries(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Columns, ascending in each row, and values of the rows in [start, stop).

        Raises:
            DataFileError: a column out of range or twice in a row, or a value that is NaN,
                infinite, or negative where that is an error.
        """
        begin, end = int(self.crow[start]), int(self.crow[stop])
        crow = self.crow[start : stop + 1] - begin
        try:
            col = native_index("read", "indices", self._col[begin:end])
            values = float_values("read", self._values[begin:end])
        except OSError as error:
            raise DataFileError(self.path, f"it is truncated or damaged ({error})") from error
        if not is_canonical(crow, col):
            try:
                check_columns("indices", col, self.shape[1])
            except IndexError as error:
                raise DataFileError(self.path, str(error)) from error
            _, col, values = sort_and_sum(crow, col, values)
            if len(col) != end - begin:
                raise DataFileError(
                    self.path,
                    f"rows {start} to {stop - 1} hold a column twice; save the file after "
                    "adata.X.sum_duplicates()",
                )
        check_entries(self.path, start, crow, col, values, self.shape[1], self.nonnegative)
        return col, values

    def to_dataset(self) -> CSRDataset:
        """All rows, in memory."""
        col, values = self.entries(0, self.shape[0])
        matrix = sp.csr_matrix((values, col, self.crow), shape=self.shape, copy=False)
        return CSRDataset(matrix, vocab=self.vocab, batch_index=self.covariate)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> H5adMatrix:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"H5adMatrix({self.path!r}, shape={self.shape}, nnz={int(self.crow[-1])})"


def _index_name(table: Any) -> str:
    name = table.attrs.get("_index", "_index")
    return name.decode() if isinstance(name, bytes) else str(name)


def _libraries(path: str) -> tuple[Any, Any]:
    try:
        import h5py
        from anndata.io import read_elem
    except ImportError as error:
        raise DataFileError(
            path, f"reading it needs anndata: pip install 'sparsevae-ext[anndata]' ({error})"
        ) from error
    return h5py, read_elem
