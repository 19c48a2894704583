#!/usr/bin/env python3
"""Tries wheels as a user would: a fresh environment, no compiler, away from the source tree.

    python tools/smoke_wheel.py dist/*.whl
    python tools/smoke_wheel.py dist/*cp312*.whl --torch 2.10.0

For each wheel: pip installs it with the torch of constraints.txt (or --torch), from wheels alone and with
nothing on PATH but the environment (with --torch-backend uv does it); `sparsevae info` answers;
tools/smoke_steps.py checks the version, the CUDA it was built for and the registered ops, and trains three
steps. Wheels of the same Python share torch: each is uninstalled before the next comes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build_wheels
import wheel_matrix

STEPS = Path(__file__).with_name("smoke_steps.py")


class FailedError(Exception):
    """What a wheel did not do."""


def parse(wheel: Path) -> tuple[str, str, str]:
    """(version, CUDA or "cpu", Python) of a wheel's file name."""
    match = re.fullmatch(r"sparsevae_ext-([^-]+)-cp3(\d+)-cp3\d+-[^-]+\.whl", wheel.name)
    if not match:
        raise SystemExit(f"expected a wheel of sparsevae_ext, but got {wheel.name}")
    version, minor = match.groups()
    local = version.partition("+")[2]
    cuda = next((row.cuda for row in wheel_matrix.wheels() if row.local == local), None)
    if cuda is None:
        raise SystemExit(f"{wheel.name}: {local!r} is not in tools/{wheel_matrix.PATH.name}")
    return version, cuda, f"3.{minor}"


def bare(folder: Path) -> dict[str, str]:
    """The environment variables of a machine without compilers: PATH is the environment's bin alone."""
    dropped = ("PYTHON", "SPARSEVAE_", "CUDA_", "LD_", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return env | {"PATH": str(folder / "bin")}


def step(command: list[str | Path], folder: Path) -> str:
    """Runs one command of the environment, away from the source tree; its output."""
    done = subprocess.run(
        command, env=bare(folder), cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        text = (done.stdout + done.stderr).strip()
        raise FailedError(f"{Path(command[0]).name} {command[1]} failed:\n{text[-3000:]}")
    return done.stdout


def installer(inside: Path, backend: str | None) -> list[str | Path]:
    """The install command: the environment's own pip, or uv, which can choose a build of torch."""
    if backend is None:
        # Half a minute less: of torch's thousands of files a few are compiled, when they are imported.
        line = [inside, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        return [*line, "--no-compile"]
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("--torch-backend needs uv: pip install uv")
    return [uv, "pip", "install", "-q", "--python", inside, "--torch-backend", backend]


def try_wheels(
    wheels: list[Path], torch: str, backend: str | None, folder: Path
) -> Iterator[tuple[Path, str]]:
    """Each wheel of one Python in one environment, one after the other: (wheel, "" or what failed)."""
    _, _, python = parse(wheels[0])
    subprocess.run([build_wheels.find_python(python), "-m", "venv", folder], check=True)
    inside = folder / "bin" / "python"
    pip = [inside, "-m", "pip", "--disable-pip-version-check", "-q"]
    install = [*installer(inside, backend), "--only-binary", ":all:"]
    install += ["-c", folder / "constraints.txt"]
    text = (wheel_matrix.ROOT / "constraints.txt").read_text()
    text = re.sub(r"(?m)^torch==.*$", f"torch=={torch}", text)
    (folder / "constraints.txt").write_text(text)
    for wheel in wheels:
        version, cuda, _ = parse(wheel)
        start = time.monotonic()
        print(wheel.name, flush=True)
        try:
            step([*install, wheel.resolve(), f"torch=={torch}"], folder)
            step([*pip, "check"], folder)
            installed = time.monotonic()
            said = step([folder / "bin" / "sparsevae", "info"], folder)
            if f"sparsevae_ext {version} " not in said:
                raise FailedError(f"`sparsevae info` does not say {version}:\n{said}")
            # A fall back to plain torch is a RuntimeWarning.
            line = [inside, "-I", "-W", "error::RuntimeWarning", STEPS, version, cuda]
            print(step(line, folder), end="")
            step([*pip, "uninstall", "-y", "sparsevae-ext"], folder)
            left = [str(path) for path in folder.glob("lib/*/site-packages/sparsevae_ext*")]
            if left:
                raise FailedError(f"uninstalled, but these are left: {', '.join(left)}")
        except FailedError as error:
            yield wheel, str(error)
        else:
            end = time.monotonic()
            print(f"  ok: installed in {installed - start:.0f} s, tried in {end - installed:.0f} s")
            yield wheel, ""


def main(argv: list[str] | None = None) -> int:
    """Tries every wheel; 1 when one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument(
        "--torch", default=wheel_matrix.pinned("torch"), help="default: constraints"
    )
    parser.add_argument(
        "--torch-backend", help="cpu, cu126, cu130: install with uv, and which torch"
    )
    options = parser.parse_args(argv)
    by_python: dict[str, list[Path]] = {}
    for wheel in options.wheels:
        by_python.setdefault(parse(wheel)[2], []).append(wheel)
    failed = 0
    for wheels in by_python.values():
        with tempfile.TemporaryDirectory(prefix="sparsevae-smoke-") as folder:
            try:
                tried = try_wheels(
                    wheels, options.torch, options.torch_backend, Path(folder, "env")
                )
                for _, problem in tried:
                    failed += bool(problem)
                    print(f"  FAILED: {problem}\n" if problem else "", end="", flush=True)
            except build_wheels.NotBuiltError as error:
                failed += len(wheels)
                print(f"  FAILED: {error}")
    total = len(options.wheels)
    print(f"{total - failed} of {total} wheels work")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
