"""Numbers as JSON that every reader takes."""

from __future__ import annotations

import json
import os
from typing import Any

from .checkpoint import CheckpointError, write_atomic

__all__ = ["strict_json", "write_metrics"]


def write_metrics(path: str | os.PathLike[str], metrics: dict[str, Any]) -> None:
    """Write numbers as strict JSON (NaN and infinities become null), atomically."""
    try:
        write_atomic(path, strict_json(metrics) + "\n")
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error


def strict_json(value: Any) -> str:
    """The value as JSON that every reader takes: NaN and infinities become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not (float("-inf") < value < float("inf")):
        return None
    return value
