"""Speed and memory of the sparse model and its dense twin.

For speed both train in one process, a step of one and a step of the other in turn, so that a busy
moment of the machine meets both. For memory each has a process of its own: a peak never goes down
again, so in one process both would show the larger one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from typing import Any, cast

import torch

from ..data import CSRDataset, CSRLoader
from ..models import MultVAE
from .dense_twin import DenseMultVAE
from .memory import peak_memory_mib
from .optimizers import make_optimizer
from .seed import seed_everything

__all__ = ["compare_with_dense", "measure_memory", "measure_speed"]

KINDS = ("sparse", "dense")


def compare_with_dense(
    data_path: str,
    *,
    hidden: int,
    latent: int,
    batch_size: int,
    threads: int,
    seed: int = 0,
    steps: int = 40,
) -> dict[str, dict[str, float]]:
    """Train both models for the same steps and return what was measured.

    Args:
        data_path: what `data.read` takes.
        hidden: width of the hidden layers of both models.
        latent: width of their code.
        batch_size: rows per step.
        threads: CPU threads.
        seed: of the weights, the noise and the order of the rows.
        steps: timed steps of each model.

    Returns:
        For "sparse" and "dense": rows_per_s, peak_memory_mib, and start_memory_mib, the peak
        before any data was read.

    Raises:
        RuntimeError: a measuring process failed; the text ends with its last line.
    """
    options = {
        "data_path": data_path,
        "hidden": hidden,
        "latent": latent,
        "batch_size": batch_size,
        "threads": threads,
        "seed": seed,
    }
    speed = _in_a_process("measure_speed", {**options, "steps": steps})
    return {
        kind: {
            "rows_per_s": speed[kind],
            **_in_a_process("measure_memory", {"kind": kind, **options}),
        }
        for kind in KINDS
    }


def measure_speed(steps: int, warmup: int = 5, **options: Any) -> dict[str, float]:
    """Rows per second of both models in this process.

    Args:
        steps: timed steps of each model, taken in turn.
        warmup: steps of each before the clock starts.
        options: as in `compare_with_dense`.

    Returns:
        For each model the batch size over the lower quartile of its step times, what it does
        while nothing else wants the machine. Getting the batch is part of a step.
    """
    models = {kind: _prepare(kind, **options) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(warmup + steps):
        for kind, (batches, step) in models.items():
            started = time.perf_counter()
            step(next(batches))
            times[kind].append(time.perf_counter() - started)
    for batches, _ in models.values():
        batches.close()
    return {
        kind: options["batch_size"] / sorted(taken[warmup:])[steps // 4]
        for kind, taken in times.items()
    }


def measure_memory(kind: str, steps: int = 5, **options: Any) -> dict[str, float]:
    """Peak memory of one model in this process, which must be new.

    Args:
        kind: "sparse" or "dense".
        steps: training steps; the peak is reached in the second.
        options: as in `compare_with_dense`.

    Returns:
        peak_memory_mib and start_memory_mib; nan where the platform does not tell.
    """
    start = peak_memory_mib()
    batches, step = _prepare(kind, **options)
    for _ in range(steps):
        step(next(batches))
    batches.close()
    peak = peak_memory_mib()
    nan = float("nan")
    return {
        "peak_memory_mib": nan if peak is None else peak,
        "start_memory_mib": nan if start is None else start,
    }


def _in_a_process(what: str, options: dict[str, Any]) -> dict[str, float]:
    run = subprocess.run(
        [sys.executable, "-m", "sparsevae_ext.train.compare", what],
        input=json.dumps(options),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or ["no output"]
        raise RuntimeError(f"compare_with_dense(): {what} failed: {lines[-1]}")
    result: dict[str, float] = json.loads(run.stdout)
    return result


def _prepare(
    kind: str,
    data_path: str,
    hidden: int,
    latent: int,
    batch_size: int,
    threads: int,
    seed: int,
) -> tuple[Generator[Any, None, None], Callable[[Any], None]]:
    """The batches of one model and what trains it on one of them."""
    from .. import data

    torch.set_num_threads(threads)
    ds = data.read(data_path)
    seed_everything(seed)
    model: torch.nn.Module = MultVAE(ds.shape[1], hidden=hidden, latent=latent)
    if kind == "dense":
        # Rebound, so that the sparse model's weights do not count as the dense one's memory.
        model = DenseMultVAE(cast(MultVAE, model))
    batches = (_dense_batches if kind == "dense" else _batches)(ds, batch_size, seed)
    return batches, _step(model.train())


def _batches(ds: CSRDataset, batch_size: int, seed: int) -> Generator[Any, None, None]:
    loader = CSRLoader(ds, batch_size=min(batch_size, len(ds)), seed=seed, drop_last=True)
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def _dense_batches(
    ds: CSRDataset, batch_size: int, seed: int
) -> Generator[torch.Tensor, None, None]:
    # The whole matrix dense would be faster to cut and far larger; one batch at a time is how
    # careful dense code does it.
    matrix = ds.to_scipy()
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(ds))
    while True:
        order = torch.randperm(len(ds), generator=generator).numpy()
        for start in range(0, len(ds) - batch_size + 1, batch_size):
            yield torch.from_numpy(matrix[order[start : start + batch_size]].toarray())


def _step(model: torch.nn.Module) -> Callable[[Any], None]:
    # For the dense twin, which has no sparse layers, this is torch's fused Adam.
    optimizer = make_optimizer(model.parameters(), "row-adam")

    def step(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch).loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    _measure = measure_speed if sys.argv[1] == "measure_speed" else measure_memory
    print(json.dumps(_measure(**json.load(sys.stdin))))
