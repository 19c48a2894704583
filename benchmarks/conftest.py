"""Options and the facts that every result carries."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterable

import pytest
import torch

import sparsevae_ext as sv

from . import turns


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


_GROUPS: dict[str, dict[str, turns.Recorded]] = {}


def _selected(request: pytest.FixtureRequest, providers: Iterable[str]) -> set[str]:
    """The providers of this test's group that this run asks for (-k and the like)."""

    def key(item: pytest.Item) -> tuple:
        others = {k: v for k, v in item.callspec.params.items() if k != "provider"}
        return item.path, item.originalname, tuple(sorted(others.items()))

    same = [
        i for i in request.session.items if hasattr(i, "callspec") and key(i) == key(request.node)
    ]
    return {i.callspec.params["provider"] for i in same} & set(providers)


@pytest.fixture
def timed(benchmark, request: pytest.FixtureRequest) -> Callable:
    """A function that times a group's providers in turns and reports the one of this test.

    Called as ``timed(group, provider, make, check, device, **facts)``; `make` and `check` as in
    :func:`turns.measure`. A module that uses it says
    ``pytestmark = pytest.mark.benchmark(timer=turns.clock)``.
    """

    def run(
        group: str,
        provider: str,
        make: dict[str, Callable[[], turns.Step]],
        check: Callable[[str, object], None],
        device: str,
        **facts: object,
    ) -> None:
        benchmark.group = group
        if benchmark.disabled:
            return check(provider, make[provider]()())
        if group not in _GROUPS:
            _GROUPS.clear()  # the groups come one after the other
            chosen = _selected(request, make)
            _GROUPS[group] = turns.measure(
                {name: make[name] for name in make if name in chosen},
                check,
                device,
                request.config.getoption("--seconds"),
            )
        recorded = _GROUPS[group][provider]
        if recorded.error is not None:
            raise recorded.error
        benchmark.extra_info.update(
            facts,
            provider=provider,
            device=device,
            device_name=torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),
            isa=sv.info()["cpu"]["isa"],
            scale=request.config.getoption("--scale"),
        )
        recorded.replay(benchmark)

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Bandwidth and GEMM rate of this machine, measured in this run: the floor of every result."""
    machine_info["sparsevae_ext"] = sv.info()
    if not config.getoption("--benchmark-only"):
        return  # the test suite passes through here too
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    machine_info["machine"] = {device: measure_machine(device) for device in devices}
    machine_info["cpu_name"] = _cpu_name()


def measure_machine(device: str) -> dict[str, float]:
    """Copy bandwidth (256 MB, read plus written) and the rate of a large float32 matrix product."""

    def best(call: Callable[[], object]) -> float:
        return min(turns.timed_call(call, device) for _ in range(6))

    source, target = (torch.ones(2**26, device=device) for _ in range(2))
    size = 2048 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device)
    return {
        "copy_gb_per_s": round(2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9, 2),
        "gemm_gflop_per_s": round(2 * size**3 / best(lambda: a @ a) / 1e9, 1),
    }


def _cpu_name() -> str:
    try:
        text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.processor()
    names = [
        line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Model name")
    ]
    return names[0] if names else platform.processor()
