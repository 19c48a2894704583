"""The `sparsevae` command: options, exit codes and one-line errors; the work is in `train`."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from .options import build_parser
from .values import UsageError

__all__ = ["build_parser", "main"]

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv without the program by default).

    Returns:
        The exit code.
    """
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse's --help, --version and errors
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line_warning
            arguments.run(arguments)
        sys.stdout.flush()
        return EXIT_OK
    except BaseException as error:
        if arguments.debug and not isinstance(error, BrokenPipeError):
            traceback.print_exc()
        code, line = _explain(error)
        if line:
            print(f"sparsevae {arguments.command}: {line}", file=sys.stderr)
        return code


def _one_line_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"sparsevae: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line for an exception."""
    from ..data import DataFileError
    from ..train import CheckpointError, Interrupted, NonFiniteLossError

    text = " ".join(str(error).split())
    if isinstance(error, Interrupted):
        saved = f"; --resume goes on from {error.saved}" if error.saved else ""
        return error.exit_code, f"interrupted{saved}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, BrokenPipeError):
        # The reader of a pipe has what it wanted (`| head`); nothing may be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13, ""
    if isinstance(error, DataFileError | CheckpointError | NonFiniteLossError):
        return EXIT_FAILURE, f"error: {text}"
    if isinstance(error, UsageError | ValueError):
        return EXIT_USAGE, f"error: {text}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return EXIT_FAILURE, f"error: {where}{error.strerror or text}"
    if isinstance(error, MemoryError):
        return EXIT_FAILURE, "error: out of memory; a smaller --batch-size or --hidden may help"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILURE, ""
    return EXIT_FAILURE, f"error: {type(error).__name__}: {text} (--debug shows where)"
