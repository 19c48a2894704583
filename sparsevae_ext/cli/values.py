"""Values of options, checked while the command line is read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

__all__ = ["UsageError", "at_least", "number", "row_list", "several"]


class UsageError(Exception):
    """A bad option; the text is one line."""


def at_least(low: int) -> Callable[[str], int]:
    """An integer from ``low`` on, below 2**32."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}") from None
        if not low <= value < 2**32:
            raise argparse.ArgumentTypeError(f"expected an integer from {low} on, got {value}")
        return value

    return parse


def number(low: float, high: float = float("inf"), open_low: bool = False) -> Any:
    """A number from ``low`` (or above it) to ``high``; never nan or infinite."""
    bounds = f"{'above' if open_low else 'from'} {low:g}"
    if high < float("inf"):
        bounds += f" to {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        # Written so that nan fails it.
        if not (low <= value <= high and value < float("inf")) or (open_low and value == low):
            raise argparse.ArgumentTypeError(f"expected a number {bounds}, got {text}")
        return value

    return parse


def row_list(text: str) -> list[int]:
    """Row numbers like 0,1,2."""
    try:
        rows = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 0,1,2, got {text!r}") from None
    if min(rows) < 0:
        raise argparse.ArgumentTypeError(f"expected row numbers from 0 on, got {text}")
    return rows


def several(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Values of a kind like 10,20,50."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(","))

    return parse
