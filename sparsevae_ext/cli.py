"""The `sparsevae` command: options, exit codes and one-line errors; the work is in `train`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["build_parser", "main"]

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2

_EPILOG = """\
exit codes: 0 success; 1 a file that cannot be used or a run that failed; 2 a bad option;
130 stopped by Ctrl-C and 143 by SIGTERM, after the state was saved.
Every error is one line; --debug adds the traceback.
"""

_DATA_HELP = (
    "scipy .npz (CSR), svmlight (.svm, .svmlight, .libsvm, .txt, also .gz), torch .pt (sparse_csr), a "
    "folder made by `sparsevae convert`, or the word spam for the embedded data set"
)


class _UsageError(Exception):
    """A bad option; the text is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse prints the usage before it; one line says what is wrong and where help is.
        line = " ".join(message.split())
        self.exit(EXIT_USAGE, f"{self.prog}: error: {line} (see {self.prog} --help)\n")


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


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the one line for an exception."""
    from .data import DataFileError
    from .train import CheckpointError, Interrupted, NonFiniteLossError

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
    if isinstance(error, _UsageError | ValueError):
        return EXIT_USAGE, f"error: {text}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return EXIT_FAILURE, f"error: {where}{error.strerror or text}"
    if isinstance(error, MemoryError):
        return EXIT_FAILURE, "error: out of memory; a smaller --batch-size or --hidden may help"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILURE, ""
    return EXIT_FAILURE, f"error: {type(error).__name__}: {text} (--debug shows where)"


# ---- options -------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    parser = _Parser(
        prog="sparsevae",
        description="Train and use variational autoencoders on sparse rows, never made dense.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_recommend(commands)
    _add_convert(commands)
    _add_info(commands)
    _add_demo(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[..., None], text: str, **more: Any) -> Any:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", **more
    )
    parser.set_defaults(run=run)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_machine(parser: Any) -> None:
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1 ... or auto (default: cpu)"
    )
    parser.add_argument(
        "--threads", type=_at_least(1), help="CPU threads (default: torch's choice)"
    )


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "train a model on sparse rows",
        epilog="example: sparsevae train --data spam --out runs/spam --epochs 10\n" + _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # No defaults here: a resumed run keeps its own settings, and only options given on the
    # command line are compared with them. The defaults are RunSettings'.
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="directory of the run, made if missing")
    add("--data", metavar="FILE", help=f"{_DATA_HELP}. Required unless --resume is given")
    add(
        "--model",
        choices=("mult-vae", "mult-dae"),
        help="mult-vae [N-600-200-600-N] or mult-dae [N-200-N], Liang et al. 2018 "
        "(default: mult-vae)",
    )
    add("--hidden", type=_at_least(1), help="hidden width (default: 600 vae, 200 dae)")
    add("--latent", type=_at_least(1), help="code width, mult-vae only (default: 200)")
    add("--beta", type=_number(0), help="cap of the KL weight, mult-vae only (default: 0.2)")
    add(
        "--anneal-fraction",
        type=_number(0, 1),
        metavar="F",
        help="share of all steps over which the KL weight rises linearly from 0 to --beta; 0: "
        "constant (default: 0.5)",
    )
    add(
        "--dropout",
        type=_number(0, 1),
        help="probability of dropping a stored input value (default: 0.5)",
    )
    add(
        "--epochs",
        type=_at_least(1),
        help="passes over the training rows, those of a resumed run included (default: 20)",
    )
    add("--batch-size", type=_at_least(1), help="rows per step (default: 500)")
    add("--lr", type=_number(0, open_low=True), help="Adam's learning rate (default: 0.001)")
    add("--weight-decay", type=_number(0), help="L2 penalty on the weights (default: 0)")
    add("--seed", type=_at_least(0), help="of weights, row split, order and noise (default: 0)")
    add(
        "--valid-fraction",
        type=_number(0, 1),
        metavar="F",
        help="share of the rows that chooses the best epoch by NDCG@100 (default: 0.1)",
    )
    add(
        "--test-fraction",
        type=_number(0, 1),
        metavar="F",
        help="share of the rows for the numbers at the end (default: 0.1)",
    )
    add("--valid-every", type=_at_least(1), metavar="N", help="epochs per validation (default: 1)")
    add(
        "--patience",
        type=_at_least(1),
        metavar="N",
        help="stop after N validations without a better NDCG@100 (default: never)",
    )
    add(
        "--checkpoint-every",
        type=_at_least(1),
        default=1,
        metavar="N",
        help="epochs between writes of last.pt; a better epoch is always written (default: 1)",
    )
    add(
        "--stop-after",
        type=_at_least(1),
        metavar="N",
        help="stop after N epochs of this call; --resume goes on as if nothing had happened",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on from DIR/last.pt with the run's own settings; --epochs may be raised",
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run in DIR")
    add("--plot", action="store_true", help="write DIR/training.png (needs matplotlib)")
    add("--tensorboard", action="store_true", help="write TensorBoard events to DIR")
    add("--no-progress", action="store_true", help="print no progress, only the result")
    _add_machine(parser)


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "measure a run: recall, NDCG and perplexity on rows it did not see",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="directory of a run, or a .pt file")
    add("--data", metavar="FILE", help=f"{_DATA_HELP} (default: what the run was trained on)")
    add(
        "--rows",
        choices=("auto", "test", "valid", "train", "all"),
        default="auto",
        help="rows to use; auto: the run's test rows of its own data, all rows of other data",
    )
    add("--json", action="store_true", help="print JSON")
    _add_machine(parser)


def _add_recommend(commands: Any) -> None:
    parser = _command(
        commands,
        "recommend",
        _recommend,
        "print the best columns for some rows",
        epilog="example: sparsevae recommend --checkpoint runs/spam --data spam --rows 0,1 --k 5",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="RUN", help="directory of a run, or a .pt file")
    add("--data", metavar="FILE", help=f"{_DATA_HELP} (default: what the run was trained on)")
    add("--rows", type=_row_list, required=True, metavar="I,J,...", help="row numbers, from 0")
    add("--k", type=_at_least(1), default=10, help="columns per row (default: 10)")
    add("--include-seen", action="store_true", help="also columns the row has already")
    add("--json", action="store_true", help="print JSON")
    _add_machine(parser)


def _add_convert(commands: Any) -> None:
    parser = _command(
        commands,
        "convert",
        _convert,
        "write data as a folder of memory-mapped arrays, which may be larger than memory",
    )
    parser.add_argument("file", metavar="FILE", help=_DATA_HELP)
    parser.add_argument(
        "folder", metavar="DIR", help="the folder to make; it appears complete or not at all"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the data set in DIR")


def _add_info(commands: Any) -> None:
    parser = _command(
        commands, "info", _info, "print how the package was built and what will run here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "train a Mult-VAE on the embedded e-mails and compare it with dense torch (3 minutes)",
    )
    add = parser.add_argument
    add("--out", default="runs/demo", metavar="DIR", help="where to write (default: runs/demo)")
    add("--overwrite", action="store_true", help="replace a run in DIR that is no demo")
    add("--epochs", type=_at_least(1), help="fewer epochs make a quicker demo")
    add("--seed", type=_at_least(0), default=0, help="(default: 0)")
    add("--threads", type=_at_least(1), help="CPU threads (default: torch's choice)")
    add("--no-progress", action="store_true", help="print no progress, only the result")


def _at_least(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}") from None
        if not low <= value < 2**32:
            raise argparse.ArgumentTypeError(f"expected an integer from {low} on, got {value}")
        return value

    return parse


def _number(low: float, high: float = float("inf"), open_low: bool = False) -> Any:
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


def _row_list(text: str) -> list[int]:
    try:
        rows = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 0,1,2, got {text!r}") from None
    if min(rows) < 0:
        raise argparse.ArgumentTypeError(f"expected row numbers from 0 on, got {text}")
    return rows


def _version() -> str:
    from importlib import metadata

    try:
        return f"sparsevae {metadata.version('sparsevae-ext')}"
    except metadata.PackageNotFoundError:
        return "sparsevae (not installed)"


# ---- commands ------------------------------------------------------------------------------


def _prepare_machine(arguments: argparse.Namespace) -> str:
    import torch

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    name = str(getattr(arguments, "device", "cpu"))
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise _UsageError(f"--device: expected cpu, cuda, cuda:N or auto, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise _UsageError(f"--device: expected cpu, cuda, cuda:N or auto, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _UsageError(f"--device: {name} is not available here; this torch sees no such GPU")
    return name


def _train(arguments: argparse.Namespace) -> None:
    from .train import RunSettings, plots, report, saved_settings, train_run

    device = _prepare_machine(arguments)
    names = RunSettings.__dataclass_fields__
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if "data" in given:
        given["data"] = _stable_path(given["data"])
    if arguments.resume:
        settings = saved_settings(arguments.out)
        kept = {name: getattr(settings, name) for name in names}
        for name, value in given.items():
            # The data may have moved; that it is the same is checked by its contents.
            if name not in ("epochs", "data") and value != kept[name]:
                option = "--" + name.replace("_", "-")
                raise _UsageError(
                    f"{option} {value} differs from the {kept[name]} of the run in "
                    f"{arguments.out}; a resumed run keeps it"
                )
        settings = RunSettings(**(kept | given))
    elif "data" not in given:
        raise _UsageError("the option --data is required (unless --resume is given)")
    else:
        settings = RunSettings(**given)
    if settings.model == "mult-dae" and given.keys() & {"latent", "beta"}:
        raise _UsageError("--latent and --beta are for --model mult-vae only")
    if arguments.plot:
        plots.require_matplotlib()
    result, history = train_run(
        settings,
        arguments.out,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        device=device,
        patience=arguments.patience,
        checkpoint_every=arguments.checkpoint_every,
        stop_after=arguments.stop_after,
        tensorboard=arguments.tensorboard,
        progress=False if arguments.no_progress else None,
    )
    if arguments.plot:
        plots.training_figure(history, Path(arguments.out) / "training.png")
    print(report.run_report(result, arguments.out))


def _stable_path(path: str) -> str:
    # A run is evaluated and resumed from other working directories too.
    return path if path == "spam" else os.path.abspath(path)


def _evaluate(arguments: argparse.Namespace) -> None:
    from .train import evaluate_run, report

    device = _prepare_machine(arguments)
    result = evaluate_run(arguments.checkpoint, arguments.data, arguments.rows, device)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(report.evaluation_report(result))


def _recommend(arguments: argparse.Namespace) -> None:
    from .train import recommend_run, report

    device = _prepare_machine(arguments)
    result = recommend_run(
        arguments.checkpoint,
        arguments.rows,
        arguments.data,
        k=arguments.k,
        include_seen=arguments.include_seen,
        device=device,
    )
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(report.recommendation_report(result))


def _convert(arguments: argparse.Namespace) -> None:
    from . import data

    folder = Path(arguments.folder)
    if folder.exists() and not arguments.overwrite:
        raise _UsageError(f"{folder} exists already; give --overwrite to replace it")
    if folder.exists() and not (folder / "meta.json").is_file():
        raise _UsageError(f"{folder} is not a converted data set; it is left alone")
    ds = data.read(arguments.file)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    data.write_folder(ds, folder, overwrite=arguments.overwrite)
    print(f"{folder}: {ds.shape[0]:,} rows x {ds.shape[1]:,} columns, {int(ds.nnz):,} non-zeros")


def _info(arguments: argparse.Namespace) -> None:
    import importlib

    module = importlib.import_module("sparsevae_ext.info")
    module.main(["--json"] if arguments.json else [])


def _demo(arguments: argparse.Namespace) -> None:
    from .train.demo import run_demo

    _prepare_machine(arguments)
    print(
        run_demo(
            arguments.out,
            epochs=arguments.epochs,
            seed=arguments.seed,
            overwrite=arguments.overwrite,
            progress=False if arguments.no_progress else None,
        )
    )
