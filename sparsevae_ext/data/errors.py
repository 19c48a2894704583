"""The one exception that every reader of data files raises."""

from __future__ import annotations

import os

__all__ = ["DataFileError"]


class DataFileError(ValueError):
    """A data file that is missing, damaged or not what it should be; one line with its path.

    Args:
        path: the file or folder.
        problem: what is wrong with it; line breaks become spaces.

    Example:
        >>> str(DataFileError("x.npz", "it is truncated"))
        'x.npz: it is truncated'
    """

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        self.path = os.fspath(path)
        self.problem = " ".join(problem.split())
        super().__init__(f"{self.path}: {self.problem}")

    def __reduce__(self) -> tuple[type[DataFileError], tuple[str, str]]:
        return type(self), (self.path, self.problem)
