"""Which rows train, validate and test."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Split", "split_rows"]

Rows = npt.NDArray[np.int64]


class Split(NamedTuple):
    """Row numbers of the three parts, each ascending; together they are all rows, once."""

    train: Rows
    valid: Rows
    test: Rows


def split_rows(
    n_rows: int, valid_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> Split:
    """Split the rows at random; a function of its arguments alone.

    Args:
        n_rows: number of rows.
        valid_fraction: share of the rows for validation, rounded; at least one row unless 0.
        test_fraction: the same for testing.
        seed: of the permutation, >= 0.

    Raises:
        ValueError: a negative fraction, or no row left to train on.

    Example:
        >>> from sparsevae_ext.train import split_rows
        >>> [len(part) for part in split_rows(50, 0.1, 0.2)]
        [35, 5, 10]
    """
    if not (valid_fraction >= 0 and test_fraction >= 0):
        raise ValueError(
            f"split_rows(): expected fractions >= 0, but got {valid_fraction} and {test_fraction}"
        )
    n_valid, n_test = (
        max(1, round(n_rows * fraction)) if fraction > 0 else 0
        for fraction in (valid_fraction, test_fraction)
    )
    n_train = n_rows - n_valid - n_test
    if n_train < 1:
        raise ValueError(
            f"split_rows(): expected at least one of {n_rows} rows to train on, but "
            f"{n_valid} are for validation and {n_test} for testing"
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(n_rows)
    # Ascending: a memory-mapped file is then read forwards.
    return Split(
        np.sort(order[:n_train]),
        np.sort(order[n_train : n_train + n_valid]),
        np.sort(order[n_train + n_valid :]),
    )
