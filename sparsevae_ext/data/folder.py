"""A folder of memory-mapped arrays: data sets larger than memory.

`crow.npy`, `col.npy` and `values.npy` hold the matrix, `meta.json` says what they must look like,
`vocab.json`, `labels.npy` and the pair `batch_index.npy`, `batches.json` are optional.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .covariate import RowCovariate
from .dataset import CSRDataset
from .errors import DataFileError
from .h5ad import H5adMatrix
from .index import INT32_LIMIT, check_structure
from .source import RowSource, check_entries, row_chunks
from .store import CSRArrays

__all__ = [
    "check_arrays",
    "is_folder",
    "open_arrays",
    "open_folder",
    "verify_folder",
    "write_folder",
]

FORMAT = "sparsevae-csr"
VERSION = 1
ARRAYS = ("crow", "col", "values")
_CHUNK_ENTRIES = 1 << 22


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a folder that says it holds a data set."""
    return (Path(path) / "meta.json").is_file()


# ---- reading -------------------------------------------------------------------------------------


def _read_meta(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise DataFileError(folder, "there is no such folder")
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        shape = meta["shape"]
        fits = (
            meta["format"] == FORMAT
            and len(shape) == 2
            and all(type(n) is int and n >= 0 for n in (*shape, meta["nnz"]))
            and set(meta["dtype"]) == set(ARRAYS)
        )
    except FileNotFoundError as error:
        raise DataFileError(folder, "it holds no data set (no meta.json)") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFileError(folder, f"meta.json is damaged ({error!r})") from error
    if not fits:
        raise DataFileError(folder, f"meta.json does not describe a {FORMAT} data set")
    if meta["version"] != VERSION:
        raise DataFileError(folder, f"format version {meta['version']} is not {VERSION}")
    return dict(meta)


def _map_array(folder: Path, name: str, length: int, kinds: tuple[str, ...]) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        # Read-only: a batch is always a copy, so nobody can write into the data by accident.
        array = np.load(path, mmap_mode="r" if length else None, allow_pickle=False)
    except Exception as error:
        # Whatever a damaged header makes numpy stumble over.
        raise DataFileError(folder, f"{name}.npy is missing or damaged ({error})") from error
    if array.shape != (length,):
        raise DataFileError(
            folder, f"{name}.npy has shape {array.shape}, but meta.json asks for ({length},)"
        )
    if array.dtype.str not in kinds:
        raise DataFileError(folder, f"{name}.npy has the wrong dtype {array.dtype}")
    return np.asarray(array)


def open_arrays(folder: str | os.PathLike[str]) -> CSRArrays:
    """Map a folder's arrays; checks sizes, dtypes and all row pointers, reads nothing else.

    Raises:
        DataFileError: missing, truncated or inconsistent.
    """
    folder = Path(folder).absolute()
    meta = _read_meta(folder)
    n_rows, n_cols = meta["shape"]
    crow = _map_array(folder, "crow", n_rows + 1, ("<i4", "<i8"))
    col = _map_array(folder, "col", meta["nnz"], ("<i4", "<i8"))
    values = _map_array(folder, "values", meta["nnz"], ("<f4", "<f8"))
    try:
        check_structure("crow.npy", crow, len(col))
    except RuntimeError as error:
        raise DataFileError(folder, str(error)) from error
    return CSRArrays(crow, col, values, n_cols, str(folder))


def open_folder(
    folder: str | os.PathLike[str],
) -> tuple[CSRArrays, list[str] | None, NDArray[Any] | None, RowCovariate | None]:
    """The arrays, vocabulary, labels and experimental batches of a folder.

    Raises:
        DataFileError: missing, truncated or inconsistent.
    """
    path = Path(folder)
    arrays = open_arrays(path)
    vocab: list[str] | None = None
    labels: NDArray[Any] | None = None
    try:
        if (path / "vocab.json").exists():
            vocab = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
            if not isinstance(vocab, list) or len(vocab) != arrays.n_cols:
                raise DataFileError(path, f"vocab.json is no list of {arrays.n_cols} words")
        if (path / "labels.npy").exists():
            labels = np.load(path / "labels.npy", allow_pickle=False)
            if labels.shape != (arrays.n_rows,):
                raise DataFileError(path, f"labels.npy has shape {labels.shape}")
    except DataFileError:
        raise
    except Exception as error:
        raise DataFileError(path, f"vocab.json or labels.npy is damaged ({error})") from error
    return arrays, vocab, labels, _read_batches(path, arrays.n_rows)


def _read_batches(path: Path, n_rows: int) -> RowCovariate | None:
    if not (path / "batches.json").exists():
        return None
    try:
        said = json.loads((path / "batches.json").read_text(encoding="utf-8"))
        codes = np.load(path / "batch_index.npy", allow_pickle=False)
        if codes.shape != (n_rows,) or not isinstance(said["names"], list):
            raise ValueError(f"shape {codes.shape} and {len(said['names'])} names")
        return RowCovariate.of("batch_index.npy", codes, said["names"], said["key"])
    except Exception as error:
        raise DataFileError(path, f"its batch index is missing or damaged ({error})") from error


def check_arrays(path: str | os.PathLike[str], arrays: CSRArrays, nonnegative: bool = True) -> None:
    """Look at every entry, in pieces: columns in range and ascending, values finite (and >= 0).

    Raises:
        DataFileError: naming the row of the first offender.
    """
    for start, stop in row_chunks(arrays.crow, _CHUNK_ENTRIES):
        begin, end = int(arrays.crow[start]), int(arrays.crow[stop])
        crow = np.asarray(arrays.crow[start : stop + 1]) - begin
        col, values = arrays.col[begin:end], arrays.values[begin:end]
        check_entries(path, start, crow, col, values, arrays.n_cols, nonnegative)


def verify_folder(folder: str | os.PathLike[str]) -> None:
    """Compare every array of a folder with the SHA-256 that was stored when it was written.

    Args:
        folder: what `write_folder` wrote.

    Raises:
        DataFileError: a file has changed.

    Example:
        >>> import tempfile, scipy.sparse as sp
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     ds = write_folder(sp.eye(3, format="csr"), parent + "/data")
        ...     verify_folder(parent + "/data")
    """
    path = Path(folder)
    meta = _read_meta(path)
    for name in ARRAYS:
        digest = hashlib.sha256()
        with open(path / f"{name}.npy", "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != meta.get("sha256", {}).get(name):
            raise DataFileError(path, f"{name}.npy has changed since it was written (sha256)")


# ---- writing -------------------------------------------------------------------------------------


#: No room: on the disk, in the user's share of it, or below the limit of a file's size.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _NpyWriter:
    """Appends blocks to a .npy file of known length and keeps its checksum."""

    def __init__(self, path: Path, length: int, dtype: str) -> None:
        self.digest = hashlib.sha256()
        self.dtype = np.dtype(dtype)
        self._file: BinaryIO = open(path, "wb")
        np.lib.format.write_array_header_1_0(
            self, {"descr": dtype, "fortran_order": False, "shape": (length,)}
        )

    def write(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self._file.write(data)

    def append(self, block: NDArray[Any]) -> None:
        self.write(np.ascontiguousarray(block, dtype=self.dtype).data)

    def finish(self) -> str:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self.digest.hexdigest()

    def close(self) -> None:
        self._file.close()


def write_folder(
    data: Any, folder: str | os.PathLike[str], *, overwrite: bool = False
) -> CSRDataset:
    """Write a data set as a folder of memory-mapped arrays, atomically and piece by piece.

    The folder appears complete or not at all: it is filled under another name next to its place
    and renamed at the end. Memory use does not grow with the data.

    Args:
        data: a `CSRDataset` (a subset too), a scipy CSR matrix, or a matrix in a file that
            `open_h5ad` opened, of which a piece is read at a time.
        folder: where; its parent must exist.
        overwrite: replace a data set that is there.

    Returns:
        The data set, opened from the folder.

    Raises:
        FileExistsError: the place is taken and is no data set, or `overwrite` is False.
        OSError: the disk is full or not writable; nothing is left behind.

    Example:
        >>> import scipy.sparse as sp, tempfile
        >>> with tempfile.TemporaryDirectory() as tmp:
        ...     write_folder(sp.csr_matrix([[0, 2], [1, 0]]), tmp + "/d").shape
        (2, 2)
    """
    source: RowSource
    if isinstance(data, H5adMatrix):
        source = data
    else:
        source = _DatasetSource(data if isinstance(data, CSRDataset) else CSRDataset(data))
    place = Path(folder).absolute()
    if place.exists() and not (overwrite and is_folder(place)):
        hint = "it is no data set" if overwrite else "pass overwrite=True to replace a data set"
        raise FileExistsError(f"write_folder(): {place} exists; {hint}")
    token = secrets.token_hex(4)
    # mkdir, not tempfile.mkdtemp: the finished folder shall follow the umask like any other.
    work = place.with_name(f".{place.name}.tmp-{token}")
    work.mkdir()
    try:
        _fill(source, work)
        if place.exists():
            old = place.with_name(f".{place.name}.old-{token}")
            os.rename(place, old)
            os.rename(work, place)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(work, place)
        _sync_folder(place.parent)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None and error.errno in _FULL:
            # Such a write does not say what it was writing.
            raise OSError(error.errno, error.strerror, str(place)) from error
        raise
    return CSRDataset(place)


class _DatasetSource:
    """A data set as what `_fill` reads."""

    def __init__(self, ds: CSRDataset) -> None:
        self.ds = ds
        self.shape = ds.shape
        self.value_dtype = ds._arrays.values.dtype
        self.crow = np.zeros(len(ds) + 1, dtype=np.int64)
        np.cumsum(ds.row_lengths(), out=self.crow[1:])
        self.vocab = ds.vocab
        self.labels = ds.labels
        self.covariate = ds._covariate
        if self.covariate is not None and ds.batch_index is not None:
            self.covariate = self.covariate._replace(codes=ds.batch_index)

    def entries(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        batch = self.ds.rows(slice(start, stop))
        return batch.col.numpy(), batch.values.numpy()


def _fill(source: RowSource, work: Path) -> None:
    crow, nnz = source.crow, int(source.crow[-1])
    dtypes = {
        "crow": "<i4" if nnz < INT32_LIMIT else "<i8",
        "col": "<i4" if source.shape[1] < INT32_LIMIT else "<i8",
        "values": "<f8" if source.value_dtype == np.float64 else "<f4",
    }
    sha256: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        writers = {
            name: _NpyWriter(work / f"{name}.npy", n, dtypes[name])
            for name, n in (("crow", len(crow)), ("col", nnz), ("values", nnz))
        }
        for writer in writers.values():
            stack.callback(writer.close)
        for start in range(0, len(crow), _CHUNK_ENTRIES):
            writers["crow"].append(crow[start : start + _CHUNK_ENTRIES])
        for start, stop in row_chunks(crow, _CHUNK_ENTRIES):
            col, values = source.entries(start, stop)
            writers["col"].append(col)
            writers["values"].append(values)
        sha256 = {name: writer.finish() for name, writer in writers.items()}
    if source.vocab is not None:
        _write_text(work / "vocab.json", json.dumps(source.vocab, ensure_ascii=False))
    if source.labels is not None:
        np.save(work / "labels.npy", source.labels, allow_pickle=False)
    if source.covariate is not None:
        codes, names, key = source.covariate
        np.save(work / "batch_index.npy", codes, allow_pickle=False)
        said = json.dumps({"key": key, "names": names}, ensure_ascii=False)
        _write_text(work / "batches.json", said)
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "shape": list(source.shape),
        "nnz": nnz,
        "dtype": dtypes,
        "sha256": sha256,
    }
    _write_text(work / "meta.json", json.dumps(meta, indent=2) + "\n")
    _sync_folder(work)


def _write_text(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
