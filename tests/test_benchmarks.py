"""The benchmark suite's own promises: wrong numbers are not timed, CPU and GPU are kept apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
if not (ROOT / "benchmarks" / "conftest.py").exists():
    pytest.skip("not a source tree", allow_module_level=True)

from benchmarks import conftest, memory, report, summary, tables, turns, variants  # noqa: E402

WRONG = """
import pytest, torch
from benchmarks import turns

pytestmark = pytest.mark.benchmark(timer=turns.clock)
x = torch.ones(1000)
MAKE = {"sparsevae_ext": lambda: lambda: x.sum(), "wrong": lambda: lambda: x.sum() + 1}

def check(_, out):
    assert out == 1000

@pytest.mark.parametrize("provider", MAKE)
def test_sum(timed, provider):
    timed("l1_activity-forward-cpu", provider, MAKE, check, "cpu", shape="1000", dtype="float32")
"""


def test_a_wrong_provider_fails_the_run_and_has_no_time(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # a run of its own, not a worker's
    (tmp_path / "test_wrong.py").write_text(WRONG)
    raw = tmp_path / "raw.json"
    command = [str(tmp_path), f"--rootdir={tmp_path}", "-q", "-p", "benchmarks.conftest"]
    command += ["-p", "no:cacheprovider", "-p", "no:warnings", "--benchmark-only", "--no-rates"]
    status = pytest.main([*command, "--seconds=0.01", f"--benchmark-json={raw}"])
    text = capsys.readouterr().out
    assert status == 1 and "1 failed, 1 passed" in text, text
    (entry,) = summary.compact(json.loads(raw.read_text()))["results"]
    assert entry["provider"] == "sparsevae_ext" and entry["group"] == "l1_activity-forward-cpu"
    assert entry["median_ms"] > 0 and entry["threads"] == torch.get_num_threads()
    assert entry["shape"] == "1000" and entry["nnz"] is None and entry["index_dtype"] is None
    assert entry["torch"] == torch.__version__ and entry["device_name"] and entry["commit"]
    assert entry["implementation"].startswith(("kernel", "plain torch"))


def test_the_providers_of_a_group_run_one_after_the_other() -> None:
    def item(provider: str, shape: str) -> Any:
        return SimpleNamespace(
            path="test_x.py",
            originalname="test",
            fixturenames=["timed"],
            callspec=SimpleNamespace(params={"provider": provider, "shape": shape}),
        )

    other: Any = SimpleNamespace(fixturenames=[])
    # pytest's order: the uppermost parameter varies fastest.
    items = [other, *(item(provider, shape) for provider in "ab" for shape in "xyz"), other]
    conftest.pytest_collection_modifyitems(items)
    assert items[0] is other and items[-1] is other
    seen = [tuple(i.callspec.params.values()) for i in items[1:-1]]
    assert seen == [("a", "x"), ("b", "x"), ("a", "y"), ("b", "y"), ("a", "z"), ("b", "z")]


def test_a_step_that_raises_is_reported_by_its_own_provider() -> None:
    def broken() -> turns.Step:
        raise RuntimeError("no such kernel")

    make = {"broken": broken, "good": lambda: lambda: 1}
    recorded = turns.measure(make, lambda provider, out: None, "cpu", 0.001)
    assert isinstance(recorded["broken"].error, RuntimeError) and not recorded["broken"].durations
    assert recorded["good"].error is None and len(recorded["good"].durations) >= 5


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_is_what_a_provider_needs_on_the_way() -> None:
    """In a process of its own, as the runner does it: here the allocator has a past."""
    code = """
import torch
from benchmarks import memory
def make():
    kept = torch.ones(2**22)  # 16 MiB
    return lambda: (kept + 1).sum()  # 16 more for a moment
print(memory.measure(make, "cpu")["peak_mib"])
print(memory.measure(lambda: lambda: None, "cpu")["peak_mib"])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=memory.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    used, empty = done.stdout.split()
    if used == "None":
        pytest.skip("this system does not let a process reset its peak")
    assert 30 < float(used) < 56  # glibc now and then takes a third block for the second
    assert float(empty) < 8


# ---- the report -----------------------------------------------------------------------------------


def entry(group: str, provider: str, ms: float, **more: object) -> summary.Entry:
    device = group.split("-")[2]
    facts: dict[str, Any] = dict(
        device=device, device_name=f"the {device}", shape="ml20m", rows=500
    )
    facts |= dict(dtype="float32", threads=2, isa="avx2", torch="2.13.0", floor_bytes=10**9)
    facts |= dict(group=group, provider=provider, median_ms=ms, min_ms=ms, rounds=5)
    return facts | more


def made_up(device: str, rates: dict[str, Any]) -> summary.Summary:
    """A step and an op on one device, each against one peer."""
    step, op = f"vae-step-{device}-ml20m", f"csr_linear-forward+backward-{device}-ml20m"
    results = [
        entry(step, "sparsevae_ext", 100.0, peak_mib=50.0),
        entry(step, "torch assembled", 250.0, peak_mib=80.0),
        entry(step, "torch dense", 400.0),
        entry(op, "sparsevae_ext rows, prepared", 2.0),
        entry(op, "embedding_bag", 3.0),
    ]
    head = {"date": "2026-01-01", "commit": "abc", "cpu": "a CPU", "python": "3.11"}
    return {**head, "machine": rates, "results": results}


CPU = {"copy_gb_per_s": 40.0, "gemm_gflop_per_s": 200.0}
CUDA = {"copy_gb_per_s": 2000.0, "gemm_gflop_per_s": 50000.0}


def test_headline_table() -> None:
    text = report.text(made_up("cpu", {"cpu": CPU}), detail=False)
    assert "a CPU, 2 threads" in text and "40.0 GB/s" in text
    assert (
        "| VAE (Bernoulli), a training step (ml20m) | 100 ms, 5,000 rows/s "
        "| torch assembled 250 ms | **2.50x** | 50 against 80 MiB |" in text
    )
    assert "embedding_bag 3 ms | **1.50x** | - |" in text


def test_full_table_has_floors_and_memory() -> None:
    text = report.text(made_up("cpu", {"cpu": CPU}), detail=True)
    assert "| **2.50x** | 25.00 | 50 | 80 |" in text  # 1 GB at 40 GB/s
    assert "| torch dense | 400.000 | 400.000 | 5 | 1,250 | - |" in text


def test_a_gpu_never_gets_the_cpus_floor() -> None:
    gpu = made_up("cuda", {"cpu": CPU})  # a run that could not measure the GPU's own rates
    assert all(summary.floor_ms(e, gpu) is None for e in gpu["results"])
    assert "GB/s" not in report.text(gpu, detail=True)
    both = made_up("cuda", {"cpu": CPU, "cuda": CUDA})
    assert summary.floor_ms(both["results"][0], both) == pytest.approx(0.5)
    text = report.text(both, detail=True)
    assert "2,000.0 GB/s" in text and "40.0 GB/s" not in text and "threads" not in text


def test_cpu_and_gpu_results_of_one_file_are_told_apart() -> None:
    mixed = made_up("cpu", {"cpu": CPU, "cuda": CUDA})
    mixed["results"] = mixed["results"] + made_up("cuda", {})["results"]
    assert summary.devices(mixed) == ["cpu", "cuda"]
    for device, rates in (("cpu", CPU), ("cuda", CUDA)):
        part = summary.on(mixed, device)
        assert part["machine"] == {device: rates}
        assert {e["device"] for e in part["results"]} == {device}
        assert [line.ours["device"] for line in tables.headlines(part, device)] == [device] * 2


def test_report_writes_markdown_and_pictures(tmp_path: Path) -> None:
    kept = tmp_path / "cpu.json"
    summary.write(kept, made_up("cpu", {"cpu": CPU}))
    out = report.write_report(summary.read(kept), tmp_path / "out")
    names = {path.name for path in out.parent.iterdir()}
    assert names == {"report.md", "speed.svg", "speed.png", "ratios.svg", "ratios.png"}
    assert "![speed](speed.svg)" in out.read_text()
    assert "embedding_bag" in out.read_text()


def test_a_gpu_checks_file_is_read(tmp_path: Path) -> None:
    steps = [{"name": "build"}, {"name": "benchmarks", **made_up("cuda", {"cuda": CUDA})}]
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"machine": {"device": "H100"}, "steps": steps}))
    assert summary.devices(summary.read(path)) == ["cuda"]
    path.write_text(json.dumps({"steps": [{"name": "build"}]}))
    with pytest.raises(SystemExit, match="expected results of a benchmark run"):
        summary.read(path)


def test_best_peer_compares_like_with_like() -> None:
    group = "csr_linear-forward+backward-cuda-ml20m"
    names = ("sparsevae_ext dense grad", "embedding_bag", "embedding_bag sparse=True")
    launched = [entry(group, name, ms) for name, ms in zip(names, (3.0, 5.0, 4.0), strict=True)]
    graphs = [entry(group, f"{e['provider']}, CUDA graph", e["median_ms"] / 10) for e in launched]
    for entries, ms in ((launched, 5.0), (graphs, 0.5)):
        peer = summary.best_peer(launched + graphs, entries[0])
        assert peer is not None and peer["median_ms"] == ms and "sparse" not in peer["provider"]


def test_merge_takes_a_group_whole_and_update_keeps_the_others() -> None:
    first, second = (made_up("cpu", {"cpu": CPU}) for _ in range(2))
    for result in second["results"][:3]:
        result["median_ms"] /= 2
    merged = summary.merge([first, second])
    assert [e["median_ms"] for e in merged["results"]] == [50.0, 125.0, 200.0, 2.0, 3.0]
    again = {**second, "results": second["results"][:3], "commit": "new"}
    updated = summary.update(first, again)
    assert updated["commit"] == "new" and len(updated["results"]) == 5
    assert sum(e["median_ms"] for e in updated["results"]) == 380.0
    assert [e.get("commit") for e in updated["results"][:2]] == [first["commit"]] * 2
    assert f"not measured again are of commit {first['commit']}." in tables.heading(updated, "cpu")


def test_join_puts_ops_behind_one_another_with_the_best_rates() -> None:
    first, second = made_up("cpu", {"cpu": CPU}), made_up("cpu", {"cpu": CPU})
    second["machine"]["cpu"] = {rate: 2 * value for rate, value in CPU.items()}
    second["results"] = [e | {"group": "other"} for e in second["results"]]
    joined = summary.join([first, second])
    assert joined["results"] == first["results"] + second["results"]
    assert joined["machine"] == second["machine"]


def test_memory_goes_to_the_same_group_and_provider() -> None:
    found = made_up("cpu", {"cpu": CPU})
    used = [{"group": "vae-step-cpu-ml20m", "provider": "torch dense", "peak_mib": 123.0}]
    memory.add(found, used)
    assert [e.get("peak_mib") for e in found["results"]] == [50.0, 80.0, 123.0, None, None]


def test_only_unknown_op_names_the_known_ones() -> None:
    with pytest.raises(
        SystemExit, match=r"expected some of activity, .*csr_linear.*, but got nope"
    ):
        memory.files(["nope"])


@pytest.mark.parametrize(
    "name, dtype, index_dtype, label",
    [
        ("ml20m", torch.float32, torch.int32, "ml20m"),
        ("ml20m-int64", torch.float32, torch.int64, "ml20m, int64"),
        ("scrna-bfloat16", torch.bfloat16, torch.int32, "scrna, bf16"),
    ],
)
def test_variants(name: str, dtype: torch.dtype, index_dtype: torch.dtype, label: str) -> None:
    variant = variants.parse(name)
    assert (variant.dtype, variant.index_dtype, variant.label) == (dtype, index_dtype, label)
    with pytest.raises(ValueError, match="expected int64 or bfloat16"):
        variants.parse("ml20m-float8")
