#!/usr/bin/env python3
"""Compile every csrc/cuda/*.cu with all warnings as errors and print what ptxas says of it.

Fails on any compiler warning, register spill or local memory and, except in files named *_f64.cu,
on double arithmetic. Needs nvcc but no GPU; where nvcc is missing it says so and succeeds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from extension_build import find_nvcc  # noqa: E402

DEFAULT_ARCHS = ("80", "90", "100")


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel on one architecture."""

    name: str
    arch: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def command(nvcc: str, source: Path, target: Path, archs: tuple[str, ...]) -> list[str]:
    """The strict compile line for one file; PTX of the newest architecture is compiled too."""
    ptxas = ["-v", "-Werror", "-warn-spills", "-warn-lmem-usage"]
    if not source.stem.endswith("_f64"):
        ptxas.append("-warn-double-usage")
    line = [nvcc, "-std=c++20", "-O3", "-lineinfo", "-Werror", "all-warnings"]
    line += ["-Xcompiler", "-Wall,-Wextra,-Werror", "-Xptxas", ",".join(ptxas)]
    line += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    line += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
    return [*line, "-c", str(source), "-o", str(target)]


def parse(log: str) -> list[Kernel]:
    """The kernels of a `ptxas -v` log, in its order."""
    kernels: list[Kernel] = []
    name = arch = ""
    spilled = 0
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(.+)' for 'sm_(\w+)'", line):
            name, arch = match.groups()
            spilled = 0
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match[1]) + int(match[2])
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels.append(
                Kernel(name, arch, int(match[1]), spilled, int(shared[1]) if shared else 0)
            )
            name = ""
    return kernels


def demangle(names: list[str]) -> list[str]:
    """Readable kernel names where c++filt is there, the mangled ones where it is not."""
    tool = shutil.which("c++filt")
    if not tool or not names:
        return names
    done = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    )
    short = (
        re.sub(r"\(.*", "", n).replace("sparsevae::cuda::", "") for n in done.stdout.split("\n")
    )
    return [n.removeprefix("void ") for n in short][: len(names)]


def summary(kernels: list[Kernel]) -> str:
    """One line for each kernel: registers per architecture, shared memory, spills."""
    archs = sorted({k.arch for k in kernels}, key=lambda a: int(re.sub(r"\D", "", a)))
    rows: dict[str, dict[str, Kernel]] = {}
    for name, kernel in zip(demangle([k.name for k in kernels]), kernels, strict=True):
        rows.setdefault(name, {})[kernel.arch] = kernel
    lines = []
    for name, by_arch in rows.items():
        registers = "  ".join(f"sm_{a} {by_arch[a].registers:3d}" for a in archs if a in by_arch)
        shared = max(k.shared_bytes for k in by_arch.values())
        spilled = sum(k.spilled_bytes for k in by_arch.values())
        lines.append(f"  {name:<58} registers {registers}  shared {shared:4d}  spilled {spilled}")
    return "\n".join(lines)


def complaints(log: str, limit: int = 20) -> str:
    """What is wrong, from a failed compilation's log; all of the log if no line says it."""
    wrong = re.compile(r"(?i)\b(error|warning|fatal)\b")
    lines = [line for line in log.splitlines() if wrong.search(line)]
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join(lines[:limit] + more) or log


def compile_one(nvcc: str, source: Path, folder: Path, archs: tuple[str, ...]) -> tuple[int, str]:
    """Compile one file; its exit status and everything the compiler said."""
    line = command(nvcc, source, folder / f"{source.stem}.o", archs)
    done = subprocess.run(line, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="default: all of csrc/cuda/*.cu")
    parser.add_argument("--archs", default=",".join(DEFAULT_ARCHS), help="such as 80,90,100")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args(argv)

    nvcc = find_nvcc()
    if nvcc is None:
        print("strict compile: nvcc is not on this machine, so the CUDA sources were not compiled.")
        return 0
    sources = args.sources or sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    archs = tuple(args.archs.split(","))
    failed = False
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda s: compile_one(str(nvcc), s, Path(folder), archs), sources)
        for source, (status, log) in zip(sources, results, strict=True):
            print(f"{source.name}: {'ok' if status == 0 else 'FAILED'}")
            if status != 0:
                failed = True
                print(complaints(log))
            print(summary(parse(log)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
