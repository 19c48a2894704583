"""RowCovariate: the experimental batch of every row of a data set, by number and by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowCovariate"]


class RowCovariate(NamedTuple):
    """Which batch each row comes from.

    Attributes:
        codes: (B,) int64 numbers in [0, len(names)).
        names: of the batches.
        key: where it was read, such as a column's name; None if it was given.
    """

    codes: NDArray[np.int64]
    names: list[str]
    key: str | None = None

    @classmethod
    def of(
        cls, op: str, values: Any, names: Sequence[str] | None = None, key: str | None = None
    ) -> RowCovariate:
        """Numbers the batches.

        Args:
            op: name put before the text of an error.
            values: (B,) integers from 0 on, which are the numbers, or strings, which are numbered
                in sorted order. A pandas categorical keeps its own order.
            names: names of the batches, where ``values`` are numbers.
            key: kept.

        A :class:`RowCovariate` is taken as it is.

        Raises:
            TypeError: the values are neither integers nor strings.
            RuntimeError: they are not in one dimension.
            ValueError: a number below 0, or without a name; a missing value.
        """
        if isinstance(values, RowCovariate):
            return values
        values = getattr(values, "array", values)  # a pandas column's own array
        categories = getattr(values, "categories", None)
        if categories is not None and hasattr(values, "codes"):
            values, names = np.asarray(values.codes), [str(name) for name in categories]
            if (values < 0).any():
                raise ValueError(
                    f"{op}(): expected a batch for every row, but row {int((values < 0).argmax())} "
                    "has none"
                )
        array = np.asarray(values)
        if array.ndim != 1:
            raise RuntimeError(
                f"{op}(): expected batch_index in one dimension, but got shape {array.shape}"
            )
        if array.dtype.kind in "UT" or (
            array.dtype.kind == "O" and all(isinstance(value, str) for value in array)
        ):
            found, codes = np.unique(array.astype(str), return_inverse=True)
            return cls(codes.astype(np.int64), [str(name) for name in found], key)
        if array.dtype.kind not in "iu" and len(array):
            raise TypeError(
                f"{op}(): expected batch_index to hold integers or strings, but got {array.dtype}"
            )
        codes = array.astype(np.int64)
        low, high = (int(codes.min()), int(codes.max())) if len(codes) else (0, -1)
        kept = [str(name) for name in (range(high + 1) if names is None else names)]
        if low < 0:
            raise ValueError(f"{op}(): expected batch numbers from 0 on, but got {low}")
        if high >= len(kept):
            raise ValueError(
                f"{op}(): expected a name for every batch, but got {len(kept)} names and the "
                f"number {high}"
            )
        return cls(codes, kept, key)

    def renamed(self, names: Sequence[str]) -> RowCovariate:
        """The same batches numbered as in ``names``, which may hold more of them.

        Raises:
            ValueError: a batch that occurs is not among them.
        """
        if list(names) == self.names:
            return self
        place = {name: number for number, name in enumerate(names)}
        for number in np.unique(self.codes):
            if self.names[number] not in place:
                raise ValueError(
                    f"batch {self.names[number]!r} is none of the {len(place)} that are known: "
                    f"{', '.join(list(place)[:10])}"
                )
        table = np.array([place.get(name, -1) for name in self.names], dtype=np.int64)
        codes = table[self.codes] if len(self.codes) else self.codes
        return RowCovariate(codes, list(names), self.key)
