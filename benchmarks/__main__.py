"""`make bench`: run everything, print ratios against the best peer, keep the results."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from . import report


def main() -> int:
    """Command line; unknown options go to pytest."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scale", choices=("small", "full"), default="full")
    parser.add_argument(
        "--save", type=Path, help="keep compact results, e.g. benchmarks/results/cpu.json"
    )
    parser.add_argument("--passes", type=int, default=3, help="repetitions of the whole")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = [Path(folder) / f"pass{i}.json" for i in range(options.passes)]
        for path in raw:
            command = [sys.executable, "-m", "pytest", str(report.ROOT / "benchmarks"), "-q"]
            command += ["--benchmark-enable", "--benchmark-only", "--benchmark-disable-gc"]
            command += ["--benchmark-json", str(path), "--benchmark-columns=median,min,rounds"]
            command += [f"--scale={options.scale}", *rest]
            status = subprocess.run(command, cwd=report.ROOT, check=False).returncode
            if status != 0:
                return status
        report.main([*map(str, raw), *(["--save", str(options.save)] if options.save else [])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
