"""Loads the compiled extension, or remembers in one sentence why it is not there.

Loading registers the ops under ``torch.ops.sparsevae_ext``. Without the object everything still works in
plain torch and numpy, slower; the user is told so once. ``SPARSEVAE_EXT_DISABLE=1`` asks for that on
purpose, e.g. to find out whether a kernel is at fault.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import warnings
from types import ModuleType
from typing import Any

import torch

MINIMUM_TORCH = (2, 10)

#: The compiled module, or None.
C: ModuleType | None = None
#: Why C is None; empty when it is loaded.
reason: str = ""


def _torch_version() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", torch.__version__)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _load() -> tuple[ModuleType | None, str]:
    if os.environ.get("SPARSEVAE_EXT_DISABLE", "0") not in ("", "0"):
        return None, "SPARSEVAE_EXT_DISABLE is set"
    if _torch_version() < MINIMUM_TORCH:
        return None, f"it needs torch >= 2.10, but torch {torch.__version__} is installed"
    try:
        _C = importlib.import_module("sparsevae_ext._C")
    except ModuleNotFoundError:
        return None, "sparsevae_ext/_C was not built for this Python (pip install . builds it)"
    except ImportError as error:
        return None, f"sparsevae_ext/_C does not load: {error}"
    return _C, ""


def build_facts() -> dict[str, Any]:
    """What the object was built with: torch, CUDA, architectures, compiler, commit; {} without it."""
    return json.loads(C.build_facts()) if C is not None else {}


def _warn() -> None:
    found = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    warnings.warn(
        f"sparsevae_ext runs without its compiled kernels, in plain torch: {reason}. Found: {found}. "
        "It was to be built for torch >= 2.10 (stable ABI). `python -m sparsevae_ext.info` tells more.",
        RuntimeWarning,
        stacklevel=4,
    )


C, reason = _load()
if C is None and os.environ.get("SPARSEVAE_EXT_DISABLE", "0") in ("", "0"):
    _warn()
