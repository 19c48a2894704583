"""`make bench`: time everything, measure everybody's memory, keep the results, write a report."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from . import memory, report, summary


def main(argv: list[str] | None = None) -> int:
    """Command line; unknown options go to pytest."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="Other options go to pytest: -k 'not compiled', --seconds 0.2, --benchmark-compare ...",
    )
    parser.add_argument("--scale", choices=("small", "full"), default="full")
    parser.add_argument(
        "--save", type=Path, help="keep compact results, e.g. benchmarks/results/cpu.json"
    )
    parser.add_argument(
        "--passes",
        type=int,
        default=1,
        help="repetitions of the whole, of which each group's best counts; default 1",
    )
    parser.add_argument("--only", default="", help="ops, e.g. mult_vae,csr_linear; default all")
    parser.add_argument(
        "--memory",
        choices=("yes", "no", "only"),
        default="yes",
        help="whether to measure peak memory as well, or that alone into the file of --save",
    )
    parser.add_argument("--out", type=Path, help="folder of the report; default runs/report")
    options, rest = parser.parse_known_args(argv)
    only = [op for op in options.only.split(",") if op]
    paths = memory.files(only)
    if options.memory == "only" and not options.save:
        parser.error("--memory only: expected --save with results to add to")

    if options.memory == "only":
        found = summary.read(options.save)
    else:
        passes = []
        for _ in range(options.passes):
            parts = []
            for number, path in enumerate(paths, 1):
                print(f"== {number} of {len(paths)}: {path.stem.removeprefix('test_')}", flush=True)
                status, part = _measure(path, options.scale, rest)
                if status not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
                    return status
                if part is not None:
                    parts.append(part)
            if not parts:
                parser.error(f"nothing to measure with {' '.join(rest)}")
            passes.append(summary.join(parts))
        found = summary.merge(passes)
    if options.memory != "no":
        selection = [f"-k={rest[rest.index('-k') + 1]}"] if "-k" in rest[:-1] else []
        memory.add(found, memory.measure_all(options.scale, only, selection))
    if options.save:
        if only and options.save.exists() and options.memory != "only":
            found = summary.update(summary.read(options.save), found)
        summary.write(options.save, found)
    out = report.write_report(found, options.out or report.ROOT / "runs" / "report")
    print(report.text(found, detail=bool(only)))
    print(f"written: {out}, and its pictures beside it")
    return 0


def _measure(path: Path, scale: str, rest: list[str]) -> tuple[int, summary.Summary | None]:
    """One op in a process of its own, which gives its memory back: pytest's status and the results."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        command = [sys.executable, "-m", "pytest", str(path), "-q", "--benchmark-only"]
        command += ["--benchmark-disable-gc", "--benchmark-columns=median,min,rounds"]
        command += [f"--benchmark-json={raw}", f"--scale={scale}", *rest]
        status = subprocess.run(command, cwd=report.ROOT, check=False).returncode
        done = status == 0 and raw.exists() and raw.stat().st_size > 0
        return status, summary.read(raw) if done else None


if __name__ == "__main__":
    sys.exit(main())
