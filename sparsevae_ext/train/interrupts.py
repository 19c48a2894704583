"""Ctrl-C and SIGTERM as a request to stop at the next safe point."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "StopSignals"]


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after its state was saved.

    Args:
        signum: the signal's number.
        clean: the signal came at a point where the training state is whole.
        saved: path of the checkpoint that holds the state, None if nothing was written.
    """

    def __init__(self, signum: int, clean: bool = True, saved: str | None = None) -> None:
        super().__init__(signum)
        self.signum = signum
        self.clean = clean
        self.saved = saved

    @property
    def exit_code(self) -> int:
        """The shell's convention: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


class StopSignals:
    """Collects SIGINT and SIGTERM while the `with` block runs.

    Within `deferred()` the first signal is only noted, so that an optimizer step is never cut in
    half. Elsewhere, and for a second signal in any place, Interrupted is raised at once. In a
    thread other than the main one Python allows no handlers, and nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._depth = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal while this block runs."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        second = self.received is not None
        self.received = signum
        if self._depth == 0 or second:
            raise Interrupted(signum, clean=self._depth == 0)
