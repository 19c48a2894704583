"""Runs Python code in a process of its own against a build of the kernels under a sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import build

HERE = Path(__file__).resolve().parent
RUNTIMES = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    # Python and torch are not instrumented: only what the kernels themselves do counts.
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:ignore_noninstrumented_modules=1",
    # Blocks as OS threads without an order, so that races between blocks are races.
    "CUDA_EMU_TSAN_BLOCKS": "1",
}


def cases() -> list[str]:
    """The modules that the sanitizer runs go through."""
    return sorted(path.stem for path in HERE.glob("cases_*.py"))


def _environment(kind: str) -> dict[str, str]:
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout
        for name in (*RUNTIMES[kind], "libstdc++.so")
    ]
    return {
        **os.environ,
        **OPTIONS,
        "LD_PRELOAD": " ".join(path.strip() for path in found),
        "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE.parent.parent))),
        "OMP_NUM_THREADS": "1",
    }


def _command(kind: str) -> list[str]:
    # The thread sanitizer needs the addresses where it expects them, which a kernel that randomises
    # more bits of them than it was built for does not give.
    fixed = ["setarch", "--addr-no-randomize"] if kind == "thread" else []
    return [*fixed, sys.executable]


def why_not(kind: str) -> str | None:
    """The reason why a process cannot run under this sanitizer here, or None."""
    if kind == "thread" and shutil.which("setarch") is None:
        return "the thread sanitizer needs util-linux's setarch"
    command = [*_command(kind), "-c", "print('started')"]
    done = subprocess.run(command, env=_environment(kind), capture_output=True, text=True)
    if done.returncode == 0 and "started" in done.stdout:
        return None
    return f"Python does not start under it: {done.stderr.strip()[:300]}"


def sanitized(code: str, kind: str = "address") -> subprocess.CompletedProcess[str]:
    """Runs Python code under a sanitizer; in it `ops` are the ops of the sanitized build."""
    start = (
        "import torch\n"
        f"torch.ops.load_library({str(build.build(kind))!r})\n"
        f"ops = torch.ops.{build.NAMESPACE}\n"
    )
    return subprocess.run(
        [*_command(kind), "-c", start + code],
        env=_environment(kind),
        capture_output=True,
        text=True,
        timeout=300,
    )
