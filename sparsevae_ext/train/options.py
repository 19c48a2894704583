"""The options of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["FitOptions"]


@dataclass(frozen=True)
class FitOptions:
    """Everything that decides which numbers a run computes; saved in every checkpoint.

    Args:
        epochs: passes over the training rows. A resumed run may raise it.
        batch_size: rows per step.
        lr: learning rate.
        weight_decay: L2 penalty.
        anneal_fraction: share of the run's steps over which a model's `beta` rises from 0 to the
            value the model came with (`schedules.LinearAnnealing`).
        seed: seeds Python, numpy, torch, the order of the rows and the validation split.
        optimizer: a name `optimizers.make_optimizer` knows.
        valid_every: epochs between validations; the last epoch is always validated.

    Raises:
        TypeError: a number of something is no int.
        ValueError: an option is out of its range.
    """

    epochs: int = 20
    batch_size: int = 500
    lr: float = 1e-3
    weight_decay: float = 0.0
    anneal_fraction: float = 0.5
    seed: int = 0
    optimizer: str = "adam"
    valid_every: int = 1

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("valid_every", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(
                    f"fit(): expected {name} to be an int, but got {type(value).__name__}"
                )
            if value < low:
                raise ValueError(f"fit(): expected {name} >= {low}, but got {value}")
            object.__setattr__(self, name, int(value))
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"fit(): expected lr > 0, but got {self.lr}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"fit(): expected weight_decay >= 0, but got {self.weight_decay}")
        if not 0 <= self.anneal_fraction <= 1:
            raise ValueError(
                f"fit(): expected 0 <= anneal_fraction <= 1, but got {self.anneal_fraction}"
            )
