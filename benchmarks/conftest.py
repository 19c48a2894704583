"""Options and the facts that every result carries."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable

import pytest
import torch

import sparsevae_ext as sv


def pytest_addoption(parser: pytest.Parser) -> None:
    """--scale and --seconds."""
    parser.addoption(
        "--scale", choices=("small", "full"), default="small", help="size of the shapes"
    )
    parser.addoption("--seconds", type=float, default=0.5, help="time for each measurement")


@pytest.fixture(params=["cpu"] + (["cuda"] if torch.cuda.is_available() else []))
def device(request: pytest.FixtureRequest) -> str:
    """Every device there is."""
    return request.param


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> str:
    """The size of the shapes: small or full."""
    return request.config.getoption("--scale")


@pytest.fixture
def timed(benchmark, request: pytest.FixtureRequest) -> Callable:
    """A function (step, device, **facts) that warms up, chooses the rounds, measures, keeps the facts."""

    def run(step: Callable[[], object], device: str, **facts: object) -> object:
        def call() -> object:
            out = step()
            if device == "cuda":
                torch.cuda.synchronize()
            return out

        first = call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        rounds = int(min(200, max(3, request.config.getoption("--seconds") / max(once, 1e-6))))
        benchmark.extra_info.update(
            facts,
            device=device,
            device_name=torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),
            isa=sv.info()["cpu"]["isa"],
            scale=request.config.getoption("--scale"),
        )
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=2, iterations=1)
        return first

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Bandwidth and GEMM rate of this machine, measured in this run: the floor of every result."""
    machine_info["sparsevae_ext"] = sv.info()
    if not config.getoption("--benchmark-only"):
        return  # the test suite passes through here too
    machine_info["copy_gb_per_s"], machine_info["gemm_gflop_per_s"] = measure_machine()
    machine_info["cpu_name"] = _cpu_name()


def _best(call: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_machine() -> tuple[float, float]:
    """(GB/s of a copy of 256 MB counted read plus written, GFLOP/s of a 2048-cubed float32 GEMM)."""
    source, target = torch.ones(2**26), torch.ones(2**26)
    copy = 2 * source.nbytes / _best(lambda: target.copy_(source)) / 1e9
    a = torch.randn(2048, 2048)
    gemm = 2 * 2048**3 / _best(lambda: a @ a) / 1e9
    return copy, gemm


def _cpu_name() -> str:
    try:
        text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor()
    names = [
        line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Model name")
    ]
    return names[0] if names else platform.processor()
