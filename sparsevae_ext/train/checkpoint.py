"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is one file that `torch.load(path, weights_only=True)` reads: plain Python types and
tensors in torch's zip format. The zip's comment holds a SHA-256 of everything else in the file,
because torch checks neither the payload's bytes nor, reliably, the file's length.

It is written as: temporary file in the same directory, fsync, `os.replace`, fsync of the
directory. Whoever looks sees the old file or the new one, never a part of either.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

__all__ = [
    "FORMAT_VERSION",
    "CheckpointError",
    "clean_orphans",
    "link_checkpoint",
    "load_checkpoint",
    "remove_checkpoint",
    "save_checkpoint",
    "write_atomic",
]

FORMAT_VERSION = 1
_FORMAT = "sparsevae_ext checkpoint"
_TAG = b"sparsevae-sha256:"
_COMMENT_LENGTH = len(_TAG) + 64
_END_OF_ZIP = b"PK\x05\x06"
_END_LENGTH = 22  # of the zip's end record, the comment not counted
_CHUNK = 1 << 20
_TMP_SUFFIX = ".tmp"


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read or trusted; the text is one line with the path."""


def save_checkpoint(payload: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `payload` to `path` atomically, with a checksum.

    Args:
        payload: plain Python types and tensors only (what `weights_only=True` reads back); NumPy's
            scalars are written as Python's.
        path: the file to make or replace; its directory must exist.

    Raises:
        TypeError: the payload holds something else, which could be written but not read back.
        CheckpointError: the file cannot be written (disk full, size limit, no permission). The
            file that was there before is untouched and no temporary file stays behind.

    Example:
        >>> import tempfile, torch
        >>> from sparsevae_ext.train import load_checkpoint, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as d:
        ...     save_checkpoint({"weight": torch.ones(2), "epoch": 3}, d + "/last.pt")
        ...     load_checkpoint(d + "/last.pt")["epoch"]
        3
    """
    target = Path(path)
    document = {"format": _FORMAT, "version": FORMAT_VERSION, "payload": _without_numpy(payload)}

    def write(file: BinaryIO) -> None:
        # An open file and not a path: torch then reports a full disk as OSError, else as an
        # internal position error that tells nobody anything.
        torch.save(document, file)
        file.seek(0)
        foreign = get_unsafe_globals_in_checkpoint(file)
        if foreign:
            raise TypeError(
                "save_checkpoint(): expected plain Python types and tensors, but the payload holds "
                f"{', '.join(sorted(foreign))}, which would not be read back"
            )
        _append_checksum(file)

    try:
        _replace_atomically(target, write)
    except OSError as error:
        raise CheckpointError(_write_failure(target, error)) from error
    except RuntimeError as error:
        # torch's zip writer can turn the callback's OSError into a RuntimeError of its own.
        cause: BaseException | None = error.__context__ or error.__cause__
        raise CheckpointError(
            _write_failure(target, cause if isinstance(cause, OSError) else error)
        ) from error


def load_checkpoint(
    path: str | os.PathLike[str], map_location: str | torch.device = "cpu"
) -> dict[str, Any]:
    """Read a checkpoint after checking its SHA-256; nothing in the file is ever executed.

    Args:
        path: a file made by `save_checkpoint`.
        map_location: where the tensors go, as in `torch.load`.

    Returns:
        The payload that was saved.

    Raises:
        CheckpointError: the file is missing, truncated, changed, or not a checkpoint of ours.
    """
    target = Path(path)
    try:
        with open(target, "rb") as file:
            _verify_checksum(file, target)
            file.seek(0)
            try:
                document = torch.load(file, map_location=map_location, weights_only=True)
            except OSError:
                raise
            except Exception as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise CheckpointError(
                    f"{target} cannot be read as tensors and plain types: {reason}"
                ) from error
    except OSError as error:
        raise CheckpointError(f"{target}: {error.strerror or error}") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise CheckpointError(f"{target} is not a sparsevae checkpoint")
    version = document.get("version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{target} has checkpoint format {version}, but this version reads {FORMAT_VERSION}"
        )
    payload: dict[str, Any] = document["payload"]
    return payload


def link_checkpoint(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make `target` the same checkpoint as `source`, atomically and without writing it again.

    A hard link costs nothing and cannot change later: `source` is only ever replaced as a whole.
    Where the file system has no hard links the bytes are copied.
    """
    source, target = Path(source), Path(target)

    def copy(file: BinaryIO) -> None:
        with open(source, "rb") as original:
            while chunk := original.read(_CHUNK):
                file.write(chunk)

    temporary = _temporary_name(target)
    try:
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:
            _replace_atomically(target, copy)
            return
        try:
            os.replace(temporary, target)
        finally:
            # Renaming one name of a file onto another name of the same file does nothing.
            temporary.unlink(missing_ok=True)
        _sync_directory(target.parent)
    except OSError as error:
        raise CheckpointError(_write_failure(target, error)) from error


def remove_checkpoint(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint, if it is there; raises CheckpointError if that is not possible."""
    target = Path(path)
    try:
        target.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{target} could not be removed: {error.strerror or error}"
        ) from error


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace a small file (metrics, history) as a whole; raises OSError."""
    raw = data.encode() if isinstance(data, str) else data

    def write(file: BinaryIO) -> None:
        file.write(raw)

    _replace_atomically(Path(path), write)


def clean_orphans(directory: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary files that a killed process left in `directory`; returns their paths."""
    removed = []
    for path in sorted(Path(directory).glob(f".*{_TMP_SUFFIX}")):
        parts = path.name.split(".")
        # .<name>.<16 hex digits>.tmp : only what _temporary_name makes.
        if len(parts) >= 4 and len(parts[-2]) == 16 and set(parts[-2]) <= set("0123456789abcdef"):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _without_numpy(value: Any) -> Any:
    """The same with Python's numbers in place of NumPy's scalars, which cannot be read back.

    They come in with an option such as ``lr=np.geomspace(1e-4, 1e-2, 5)[0]``. What has none in it is
    returned as it is, so that a state_dict keeps its metadata.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        pairs = [(_without_numpy(key), _without_numpy(part)) for key, part in value.items()]
        if all(a is b and c is d for (a, c), (b, d) in zip(pairs, value.items(), strict=True)):
            return value
        plain = copy.copy(value)
        plain.clear()
        plain.update(pairs)
        return plain
    if type(value) in (list, tuple):
        parts = [_without_numpy(part) for part in value]
        same = all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    return value


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}{_TMP_SUFFIX}")


def _replace_atomically(target: Path, write: Callable[[BinaryIO], None]) -> None:
    temporary = _temporary_name(target)
    # 0o666 and not tempfile's 0o600: the finished file should have the mode the umask asks for.
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    # The rename itself is durable only when the directory is; not every platform can open one.
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _append_checksum(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(size - _END_LENGTH)
    end = file.read(_END_LENGTH)
    if not end.startswith(_END_OF_ZIP) or end[-2:] != b"\0\0":
        raise RuntimeError("save_checkpoint(): expected torch.save to write a plain zip file")
    # The comment's length is part of what is hashed, so it has to be set before.
    file.seek(size - 2)
    file.write(_COMMENT_LENGTH.to_bytes(2, "little"))
    digest = _digest(file, size)
    file.seek(size)
    file.write(_TAG + digest.encode())


def _digest(file: BinaryIO, size: int) -> str:
    file.seek(0)
    state = hashlib.sha256()
    left = size
    while left > 0:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            break
        state.update(chunk)
        left -= len(chunk)
    return state.hexdigest()


def _verify_checksum(file: BinaryIO, path: Path) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _COMMENT_LENGTH))
    comment = file.read(_COMMENT_LENGTH)
    if not comment.startswith(_TAG):
        file.seek(0)
        if size and not b"PK\x03\x04".startswith(file.read(4)):
            raise CheckpointError(f"{path} is not a sparsevae checkpoint")
        raise CheckpointError(f"{path} is truncated or corrupt (its checksum is missing)")
    if _digest(file, size - _COMMENT_LENGTH).encode() != comment[len(_TAG) :]:
        raise CheckpointError(f"{path} is truncated or corrupt (sha256 mismatch)")


def _write_failure(path: Path, error: BaseException) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    kept = "; the checkpoint before it is intact" if path.exists() else ""
    return f"{path} could not be written: {' '.join(reason.split())}{kept}"
