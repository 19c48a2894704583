"""One seed for every random generator, and their states as plain types for a checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["get_rng_state", "seed_everything", "set_rng_state"]


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's (CPU and CUDA) global generators.

    Args:
        seed: 0 <= seed < 2**32 (numpy's range).

    Raises:
        ValueError: the seed is out of range.

    Example:
        >>> import torch
        >>> from sparsevae_ext.train import seed_everything
        >>> seed_everything(7); a = torch.rand(2); seed_everything(7); b = torch.rand(2)
        >>> bool((a == b).all())
        True
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed_everything(): expected 0 <= seed < 2**32, but got {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds CUDA as well


def get_rng_state() -> dict[str, Any]:
    """Return the states of the global generators as plain types and tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the global generators back into a state taken by `get_rng_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    # A run may go on with another number of GPUs: then their generators start from the seed.
    cuda = state.get("cuda")
    if cuda is not None and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
