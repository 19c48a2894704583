"""The peak memory of every provider, each in a process of its own.

    python -m benchmarks.memory --scale full --save benchmarks/results/cpu.json

What is counted is what a provider takes beyond the imports and beyond the inputs that all of its group
share (the batch, the initial weights): its own copies of them, what it keeps, what it needs on the way.
A first life of the provider, made, run and let go, loads what is loaded once (libraries, compiled code,
thread pools); the peak is that of a second one.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from sparsevae_ext.train.memory import peak_memory_mib

Step = Callable[[], object]

ROOT = Path(__file__).resolve().parent.parent
#: Steps of each life; the optimizers' state exists after the first.
STEPS = 3
MIB = 2**20


def _settle() -> None:
    """Give back what nothing uses, so that a later peak cannot hide in it."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reset_peak() -> float | None:
    """Start the kernel's record of the process's peak anew; what the process holds now, in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None  # no Linux, or not allowed: the record goes on
    return peak_memory_mib()


def _live(make: Callable[[], Step]) -> None:
    step = make()
    for _ in range(STEPS):
        step()


def measure(make: Callable[[], Step], device: str) -> dict[str, float | None]:
    """Peak memory of a provider, beyond what was there before: on the host, on CUDA the device's.

    Args:
        make: prepares the provider and returns its step, as in :func:`turns.measure`.
        device: "cpu" or "cuda".

    Returns:
        ``peak_mib``, None where the system does not tell.
    """
    _live(make)
    _settle()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _live(make)
        torch.cuda.synchronize()
        return {"peak_mib": round((torch.cuda.max_memory_allocated() - before) / MIB, 1)}
    held = _reset_peak()
    _live(make)
    peak = peak_memory_mib()
    return {"peak_mib": None if held is None or peak is None else round(peak - held, 1)}


def collect(scale: str, only: Iterable[str], more: Iterable[str] = ()) -> list[str]:
    """The node ids of all providers of the benchmarks of these ops; of all ops if none is named.

    Without the loader, which keeps nothing, and the int64 variants, whose indices are twice as large.
    """
    paths = [str(path) for path in files(only)]
    command = [sys.executable, "-m", "pytest", *paths, "--collect-only", "-q", *more]
    done = subprocess.run(
        [*command, f"--scale={scale}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    nodes = [line for line in done.stdout.splitlines() if "::" in line]
    nodes = [node for node in nodes if "test_loader.py" not in node and "-int64" not in node]
    if not nodes:
        raise SystemExit(f"nothing to measure:\n{done.stdout}{done.stderr}")
    return nodes


def files(only: Iterable[str]) -> list[Path]:
    """The test files of these ops; all if none is named."""
    folder = ROOT / "benchmarks"
    found = [folder / f"test_{op}.py" for op in only]
    for path in found:
        if not path.exists():
            known = sorted(p.stem.removeprefix("test_") for p in folder.glob("test_*.py"))
            raise SystemExit(f"expected some of {', '.join(known)}, but got {path.stem[5:]}")
    return found or sorted(folder.glob("test_*.py"))


def run(node: str, scale: str) -> dict[str, Any] | None:
    """One provider in a new process; None if it was skipped."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "memory.json"
        command = [sys.executable, "-m", "pytest", node, "-q", "-p", "no:cacheprovider"]
        command += ["--benchmark-only", f"--memory={into}", f"--scale={scale}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{node} failed:\n{done.stdout}{done.stderr}")
        return json.loads(into.read_text()) if into.exists() else None


def add(summary: dict[str, Any], used: Iterable[dict[str, Any]]) -> None:
    """Put the peaks beside the times of the same group and provider in a compact summary."""
    by_key = {(u["group"], u["provider"]): u["peak_mib"] for u in used}
    for entry in summary["results"]:
        key = entry["group"], entry["provider"]
        if key in by_key:
            entry["peak_mib"] = by_key[key]


def measure_all(scale: str, only: Iterable[str], more: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Every provider, one process after the other; prints as it goes."""
    out = []
    for node in collect(scale, only, more):
        used = run(node, scale)
        if used is not None:
            print(f"{used['peak_mib']:>9} MiB  {used['group']}  {used['provider']}", flush=True)
            out.append(used)
    return out


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--scale", choices=("small", "full"), default="small")
    parser.add_argument("--only", default="", help="ops, e.g. mult_vae,csr_linear")
    parser.add_argument("--save", type=Path, help="compact results to put the peaks into")
    options = parser.parse_args(argv)
    used = measure_all(options.scale, filter(None, options.only.split(",")))
    if options.save:
        summary = json.loads(options.save.read_text())
        add(summary, used)
        options.save.write_text(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
