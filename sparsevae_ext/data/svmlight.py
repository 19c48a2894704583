"""Parser of svmlight/libsvm text, in blocks of lines so that numpy does the number reading."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from itertools import islice

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .errors import DataFileError

__all__ = ["parse_svmlight"]

_BLOCK_LINES = 4096
_QID = re.compile(rb"\bqid:\S+")
_LABEL = re.compile(rb"[+-]?[\d.]+(?:[eE][+-]?\d+)?(?:,[+-]?[\d.]+(?:[eE][+-]?\d+)?)*")
_ENTRIES = re.compile(rb"\s*(?:\d+:[^\s:]+(?:\s+|\Z))*")
_PAIR = re.compile(rb"\d+:[+-]?(?:\d+\.?\d*|\.\d+|nan|inf|infinity)(?:e[+-]?\d+)?$", re.I)
_MAX_COLUMN = 2**53  # indices pass through float64 on their way


def parse_svmlight(
    path: str, lines: Iterable[bytes], n_cols: int | None, zero_based: bool | None
) -> tuple[sp.csr_matrix, NDArray[np.float64] | None]:
    """Turn lines into a matrix and labels; the matrix may hold duplicates and unsorted columns.

    Args:
        path: named in errors.
        lines: the text, line by line.
        n_cols: number of columns or None.
        zero_based: whether column numbers start at 0, None to find out.

    Returns:
        The matrix (float32) and one label per row, or None when a label is no single number.

    Raises:
        DataFileError: a line is not `label index:value ...`, or an index does not fit.
    """
    counts: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float32]] = []
    labels: list[bytes] = []
    iterator = iter(lines)
    first = 1
    while block := list(islice(iterator, _BLOCK_LINES)):
        rows: list[bytes] = []
        numbers: list[int] = []
        for number, line in enumerate(block, first):
            line = line.partition(b"#")[0]
            if b"qid:" in line:
                line = _QID.sub(b"", line)
            words = line.split(None, 1)
            if not words:
                continue
            label = words[0]
            if not _LABEL.fullmatch(label):
                shown = label[:40].decode("ascii", "replace")
                raise DataFileError(path, f"line {number} begins with {shown!r}, not with a label")
            labels.append(label)
            rows.append(words[1] if len(words) > 1 else b"")
            numbers.append(number)
        first += len(block)
        if not rows:
            continue
        count = np.array([row.count(b":") for row in rows], dtype=np.int64)
        joined = b" ".join(rows)
        flat = _numbers(joined.replace(b":", b" ")) if _ENTRIES.fullmatch(joined) else None
        # Cheap test for the whole block; only a block that fails it is read line by line.
        if flat is None or len(flat) != 2 * count.sum() or _too_large(flat):
            _explain(path, rows, numbers)
            raise DataFileError(path, f"lines {numbers[0]} to {numbers[-1]} are not svmlight text")
        counts.append(count)
        columns.append(flat[0::2].astype(np.int64))
        with np.errstate(over="ignore"):
            values.append(flat[1::2].astype(np.float32))
    if not labels:
        raise DataFileError(path, "it holds no rows")
    col = np.concatenate(columns)
    if zero_based is None:
        zero_based = bool(len(col)) and int(col.min()) == 0
    if not zero_based:
        col = col - 1
    low, high = (int(col.min()), int(col.max())) if len(col) else (0, -1)
    width = high + 1 if n_cols is None else n_cols
    if low < 0 or high >= width:
        raise DataFileError(
            path, f"column {high if high >= width else low} is outside [0, {width})"
        )
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    matrix = sp.csr_matrix((len(labels), width), dtype=np.float32)
    matrix.data, matrix.indices, matrix.indptr = np.concatenate(values), col, indptr
    return matrix, _labels(labels)


def _numbers(text: bytes) -> NDArray[np.float64] | None:
    with warnings.catch_warnings():
        # numpy warns, and later versions raise, where the text stops being numbers.
        warnings.simplefilter("error")
        try:
            return np.fromstring(text.decode("ascii"), dtype=np.float64, sep=" ")
        except (ValueError, DeprecationWarning):
            return None


def _too_large(flat: NDArray[np.float64]) -> bool:
    return bool((flat[0::2] >= _MAX_COLUMN).any())


def _explain(path: str, rows: list[bytes], numbers: list[int]) -> None:
    for row, number in zip(rows, numbers, strict=True):
        for entry in row.split():
            if not _PAIR.match(entry) or int(entry.partition(b":")[0]) >= _MAX_COLUMN:
                shown = entry[:40].decode("ascii", "replace")
                raise DataFileError(path, f"line {number}: {shown!r} is not index:value")


def _labels(labels: list[bytes]) -> NDArray[np.float64] | None:
    try:
        return np.array([float(label) for label in labels])
    except ValueError:
        return None
