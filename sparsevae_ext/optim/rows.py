"""What the owner of a weight needs to know of its rows."""

from __future__ import annotations

from torch import Tensor

__all__ = ["Rows", "by_feature"]


def by_feature(tensor: Tensor) -> Tensor:
    """The (N, out) table behind a weight of shape (out, N), for reading and writing.

    ``data`` does not share the version counter: bringing a row up to date changes memory, but not what
    the weight stands for, and no graph has read that row since the step before.
    """
    return tensor.data.t()


class Rows:
    """The rows of a weight that is stepped by rows: these are never behind, a subclass's may be."""

    @property
    def owes(self) -> bool:
        """Whether some row may have missed a step."""
        return False

    def catch_up(self, rows: Tensor | None) -> None:
        """Bring these rows (ascending) of the weight, or all, up to date."""

    def sync(self) -> None:
        """Bring every row up to date and forget the steps."""

    def took_dense_step(self) -> None:
        """Note that somebody else has stepped the whole weight, which was up to date."""
