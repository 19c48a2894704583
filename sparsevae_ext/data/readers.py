"""read(): a data set from a file or folder of any kind the package knows."""

from __future__ import annotations

import gzip
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from .batch import CSRBatch
from .covariate import RowCovariate
from .dataset import CSRDataset
from .errors import DataFileError
from .folder import check_arrays
from .h5ad import open_h5ad
from .spam import load_spam
from .svmlight import parse_svmlight

__all__ = ["read", "read_npz", "read_svmlight", "read_torch"]

PathLike = str | os.PathLike[str]


def read(
    path: PathLike,
    *,
    nonnegative: bool = True,
    check: bool = True,
    n_cols: int | None = None,
    batch_key: str | None = None,
    layer: str | None = None,
) -> CSRDataset:
    """Open a data set by the name of its file.

    `spam` is the embedded data set; a folder is one that `write_folder` made; `.npz` is scipy's
    `save_npz` format; `.pt`/`.pth` is a `torch.save`d `sparse_csr` tensor; `.svm`, `.svmlight`,
    `.libsvm` and `.txt` hold one `label index:value ...` line per row, also with `.gz` behind;
    `.h5ad` is an AnnData file with a CSR matrix (`open_h5ad`), which is read into memory.

    Args:
        path: the file, folder or name.
        nonnegative: values below 0 are an error, for the models here work with counts.
        check: look at every value and column (one pass; for a folder much larger than memory
            False skips it: indices are still checked where they are used).
        n_cols: number of columns of an svmlight file, which does not say it.
        batch_key: where the experimental batch of every row is: a column of an `.h5ad` file's
            `obs`, or an array of an `.npz` file. A folder has what it was written with, by the
            same name. None takes what a folder, or the array `batch_index` of an `.npz`, says.
        layer: of an `.h5ad` file, see `open_h5ad`.

    Returns:
        The data set; memory-mapped for a folder, in memory otherwise.

    Raises:
        DataFileError: missing, truncated, not CSR, wrong dtype, NaN, infinite or negative values,
            an unknown kind of file, or a kind without such a key or layer. One line that begins
            with the path.

    Example:
        >>> read("spam").shape
        (6046, 8273)
    """
    text = os.fspath(path)
    place = Path(text)
    kind = place.name.removesuffix(".gz").rpartition(".")[2].lower()
    is_h5ad = kind == "h5ad" and text != "spam" and not place.is_dir()
    if layer is not None and not is_h5ad:
        raise DataFileError(text, f"layer {layer!r} was asked for, but only .h5ad files have any")
    if text == "spam":
        return _with_key(text, load_spam(), batch_key)
    if place.is_dir():
        ds = _with_key(text, CSRDataset(place), batch_key)
        if check:
            check_arrays(text, ds._arrays, nonnegative)
        return ds
    if not place.exists():
        raise DataFileError(text, "there is no such file")
    if not place.is_file():
        raise DataFileError(text, "it is neither a file nor a folder")
    if is_h5ad:
        with open_h5ad(text, layer=layer, batch_key=batch_key, nonnegative=nonnegative) as matrix:
            return matrix.to_dataset()
    if kind == "npz":
        ds = read_npz(text, batch_key=batch_key)
    elif kind in ("pt", "pth"):
        ds = read_torch(text)
    elif kind in ("svm", "svmlight", "libsvm", "txt"):
        ds = read_svmlight(text, n_cols=n_cols)
    else:
        raise DataFileError(
            text, "unknown kind of file; known are .npz, .h5ad, .pt, .svmlight[.gz] and folders"
        )
    ds = _with_key(text, ds, batch_key)
    if check:
        check_arrays(text, ds._arrays, nonnegative)
    return ds


def _with_key(path: str, ds: CSRDataset, batch_key: str | None) -> CSRDataset:
    """The data set, if its batches are those that were asked for."""
    if batch_key is not None and ds.batch_key != batch_key:
        known = "none" if ds.batch_key is None else repr(ds.batch_key)
        raise DataFileError(path, f"it has no batch key {batch_key!r} (found {known})")
    return ds


def _guarded(path: str, action: Callable[[], Any]) -> Any:
    """Run a piece of reading; whatever goes wrong becomes a DataFileError with the path."""
    try:
        return action()
    except DataFileError:
        raise
    except Exception as error:
        # Damaged files make the libraries below fail in a dozen ways, some with empty texts.
        text = str(error) or "unexpected end"
        problem = f"it is damaged, truncated or of another kind ({type(error).__name__}: {text})"
        raise DataFileError(path, problem) from error


def _dataset(
    path: str,
    matrix: Any,
    vocab: list[str] | None = None,
    labels: Any = None,
    covariate: RowCovariate | None = None,
) -> CSRDataset:
    try:
        return CSRDataset(matrix, vocab=vocab, labels=labels, batch_index=covariate)
    except (TypeError, RuntimeError, IndexError, NotImplementedError) as error:
        raise DataFileError(path, str(error).removeprefix("CSRDataset(): ")) from error


def read_npz(path: PathLike, *, batch_key: str | None = None) -> CSRDataset:
    """Read a matrix that `scipy.sparse.save_npz` wrote, as CSR.

    Arrays `vocab` (N,), `labels` (B,) and `batch_index` (B,) in the same file are taken over; scipy
    ignores them.

    Args:
        path: the file.
        batch_key: name of the array (B,) of experimental batches; None takes `batch_index` if it
            is there.

    Returns:
        The data set, in memory.

    Raises:
        DataFileError: not such a file, or its content is no CSR matrix of numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     sp.save_npz(tmp + "/x.npz", sp.csr_matrix([[0, 2], [1, 0]]))
        ...     read_npz(tmp + "/x.npz").shape
        (2, 2)
    """
    text = os.fspath(path)

    def load() -> dict[str, NDArray[Any]]:
        with np.load(text, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise DataFileError(text, "it is a single array, not a CSR matrix")
            return {name: archive[name] for name in archive.files}

    parts = _guarded(text, load)
    if "format" not in parts:
        raise DataFileError(text, f"it holds no sparse matrix (found {sorted(parts)})")
    name = parts["format"].item() if parts["format"].ndim == 0 else None
    name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
    if name != "csr":
        raise DataFileError(text, f"it holds a {name} matrix, not CSR; save it after .tocsr()")
    missing = {"indptr", "indices", "data", "shape"} - set(parts)
    if missing:
        raise DataFileError(text, f"not CSR: it has no {', '.join(sorted(missing))}")
    shape = parts["shape"]
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 0).any():
        raise DataFileError(text, f"not CSR: its shape is {shape.tolist()}")
    matrix = _raw_csr(text, parts["data"], parts["indices"], parts["indptr"], shape.tolist())
    vocab = parts["vocab"].tolist() if "vocab" in parts else None
    return _dataset(text, matrix, vocab, parts.get("labels"), _npz_batches(text, parts, batch_key))


def _npz_batches(
    path: str, parts: dict[str, NDArray[Any]], batch_key: str | None
) -> RowCovariate | None:
    key = "batch_index" if batch_key is None else batch_key
    if key not in parts:
        if batch_key is None:
            return None
        raise DataFileError(path, f"it has no array {key!r} (found {sorted(parts)})")
    try:
        return RowCovariate.of(key, parts[key], key=key)._replace(key=key)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataFileError(path, f"array {error}") from error


def _raw_csr(
    path: str, data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], shape: list[int]
) -> sp.csr_matrix:
    """A csr_matrix of exactly these arrays; scipy's constructor would cast and guess."""
    for name, array, kinds in (
        ("data", data, "biuf"),
        ("indices", indices, "iu"),
        ("indptr", indptr, "iu"),
    ):
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise DataFileError(
                path, f"its {name} has the wrong dtype or shape: {array.dtype}, {array.shape}"
            )
    if len(data) != len(indices):
        raise DataFileError(path, f"not CSR: {len(indices)} column indices but {len(data)} values")
    matrix = sp.csr_matrix((0, 0), dtype=np.float32)
    matrix._shape = (shape[0], shape[1])
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return matrix


def read_torch(path: PathLike) -> CSRDataset:
    """Read a two-dimensional `torch.sparse_csr` tensor that `torch.save` wrote.

    Args:
        path: the file; it is loaded with `weights_only=True`, so no code in it is run.

    Returns:
        The data set, in memory.

    Raises:
        DataFileError: not such a file, or another layout.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     torch.save(torch.eye(3).to_sparse_csr(), tmp + "/x.pt")
        ...     read_torch(tmp + "/x.pt").shape
        (3, 3)
    """
    text = os.fspath(path)

    def load() -> Any:
        with warnings.catch_warnings():
            # torch calls CSR a beta feature on every first use.
            warnings.simplefilter("ignore")
            return torch.load(text, map_location="cpu", weights_only=True)

    tensor = _guarded(text, load)
    covariate = None
    if isinstance(tensor, CSRBatch):
        if tensor.batch_index is not None:
            codes = tensor.batch_index.numpy()
            covariate = _guarded(text, lambda: RowCovariate.of("batch_index", codes))
        tensor = _guarded(text, tensor.to_torch)
    if not isinstance(tensor, torch.Tensor):
        raise DataFileError(text, f"it holds a {type(tensor).__name__}, not a sparse_csr tensor")
    if tensor.layout != torch.sparse_csr or tensor.dim() != 2:
        raise DataFileError(
            text, f"not CSR: it holds a {tensor.dim()}-D tensor of layout {tensor.layout}"
        )
    values = tensor.values().detach()
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    matrix = _raw_csr(
        text,
        _guarded(text, values.numpy),
        tensor.col_indices().numpy(),
        tensor.crow_indices().numpy(),
        list(tensor.shape),
    )
    return _dataset(text, matrix, covariate=covariate)


def read_svmlight(
    path: PathLike, *, n_cols: int | None = None, zero_based: bool | None = None
) -> CSRDataset:
    r"""Read svmlight/libsvm text: one `label index:value ...` line per row, `#` starts a comment.

    Labels that are single numbers become the data set's `labels`; `qid:` entries are skipped.

    Args:
        path: the file, gzipped if it ends in `.gz`.
        n_cols: number of columns; by default the largest index tells.
        zero_based: whether the first column is 0; by default it is 1 unless a 0 occurs.

    Returns:
        The data set, in memory, float32.

    Raises:
        DataFileError: not such a file; names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     _ = Path(tmp, "x.svm").write_text("1 1:2 3:1\n-1 2:0.5\n")
        ...     read_svmlight(tmp + "/x.svm").shape
        (2, 3)
    """
    text = os.fspath(path)

    def load() -> tuple[Any, Any]:
        opener = gzip.open if text.endswith(".gz") else open
        with opener(text, "rb") as file:
            return parse_svmlight(text, file, n_cols, zero_based)

    matrix, labels = _guarded(text, load)
    return _dataset(text, matrix, None, labels)
