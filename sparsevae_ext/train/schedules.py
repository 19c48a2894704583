"""Schedules over a run, measured as fractions of its total number of steps.

Annealing in absolute steps silently does nothing on small data: a warm-up of 200,000 steps never
ends in a run of 300.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LinearAnnealing"]


@dataclass(frozen=True)
class LinearAnnealing:
    """beta(t) = cap * min(1, t / (fraction * total_steps)), Bowman et al. 2016 (1511.06349).

    Args:
        cap: the value reached and kept.
        total_steps: optimizer steps of the whole run, as planned at its start.
        fraction: share of the run over which beta rises, 0..1; 0 means the cap from the start.

    Raises:
        ValueError: a negative cap, a fraction outside 0..1, or no steps.

    Example:
        >>> from sparsevae_ext.train import LinearAnnealing
        >>> beta = LinearAnnealing(cap=0.2, total_steps=100, fraction=0.5)
        >>> beta(0), beta(25), beta(50), beta(99)
        (0.0, 0.1, 0.2, 0.2)
    """

    cap: float
    total_steps: int
    fraction: float = 0.5

    def __post_init__(self) -> None:
        if not self.cap >= 0:
            raise ValueError(f"LinearAnnealing(): expected cap >= 0, but got {self.cap}")
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"LinearAnnealing(): expected 0 <= fraction <= 1: {self.fraction}")
        if self.total_steps < 1:
            raise ValueError(f"LinearAnnealing(): expected total_steps >= 1: {self.total_steps}")

    @property
    def warmup_steps(self) -> float:
        """Steps until the cap is reached."""
        return self.fraction * self.total_steps

    def __call__(self, step: int) -> float:
        """Return beta for the step of index `step`, counted from 0."""
        if step >= self.warmup_steps:
            return self.cap
        return self.cap * (step / self.warmup_steps)
