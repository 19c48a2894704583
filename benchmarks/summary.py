"""The small JSON that is kept of a run: made from pytest-benchmark's, merged, read back.

A summary has `date`, `commit`, `cpu`, `python`, `threads`, `machine` (what each device copies and
multiplies a second) and `results`, one entry for each group and provider: medians and minima in ms, and
the entry's extra_info.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

Summary = dict[str, Any]
Entry = dict[str, Any]

OURS = "sparsevae_ext"


def compact(raw: dict[str, Any]) -> Summary:
    """What is worth keeping of pytest-benchmark's JSON."""
    info = raw["machine_info"]
    build = (info.get("sparsevae_ext") or {}).get("build") or {}
    results = []
    for entry in raw["benchmarks"]:
        stats = entry["stats"]
        results.append(
            {
                "group": entry["group"],
                "median_ms": round(stats["median"] * 1e3, 4),
                "min_ms": round(stats["min"] * 1e3, 4),
                "iqr_ms": round(stats["iqr"] * 1e3, 4),
                "rounds": stats["rounds"],
                **entry["extra_info"],
            }
        )
    return {
        "date": raw.get("datetime", "")[:10] or datetime.date.today().isoformat(),
        "commit": info.get("commit") or build.get("commit", "unknown"),
        "cpu": info.get("cpu_name"),
        "python": info.get("python_version"),
        "threads": info.get("threads"),
        "machine": info.get("machine", {}),
        "results": results,
    }


def read(path: Path) -> Summary:
    """A summary from a file: one that was kept, pytest-benchmark's own, or that of `make gpu-check`."""
    found = json.loads(path.read_text())
    if "benchmarks" in found:
        return compact(found)
    if "results" in found:
        return found
    for step in found.get("steps", []):
        if "results" in step:
            return step
    raise SystemExit(f"{path}: expected results of a benchmark run, but got {', '.join(found)}")


def write(path: Path, summary: Summary) -> None:
    """Keep a summary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n")


def groups(summary: Summary) -> dict[str, list[Entry]]:
    """Results by group, in the order in which they ran."""
    out: dict[str, list[Entry]] = {}
    for entry in summary["results"]:
        out.setdefault(entry["group"], []).append(entry)
    return out


def devices(summary: Summary) -> list[str]:
    """The kinds of device that were measured, in the order in which they ran."""
    return list(dict.fromkeys(entry["device"] for entry in summary["results"]))


def on(summary: Summary, device: str) -> Summary:
    """The part of a summary that was measured on one kind of device."""
    return summary | {
        "machine": {d: rates for d, rates in summary["machine"].items() if d == device},
        "results": [entry for entry in summary["results"] if entry["device"] == device],
    }


def merge(passes: list[Summary]) -> Summary:
    """One summary of several passes: each group whole, from the pass in which its medians' sum was least.

    A shared machine has slow minutes. The providers of a group are timed in turns, so a pass hits them
    alike; taking a group whole keeps every ratio from one run.
    """
    merged = passes[0] | {"passes": len(passes), "machine": _rates(passes)}
    by_group = [groups(p) for p in passes]
    merged["results"] = [
        entry
        for name in by_group[0]
        for entry in min(
            (g[name] for g in by_group), key=lambda group: sum(e["median_ms"] for e in group)
        )
    ]
    return merged


def join(parts: list[Summary]) -> Summary:
    """One summary of runs of different ops, which follow one another."""
    return parts[0] | {
        "machine": _rates(parts),
        "results": [entry for part in parts for entry in part["results"]],
    }


def _rates(parts: list[Summary]) -> dict[str, dict[str, float]]:
    """What each device showed in the best of these runs."""
    found: dict[str, dict[str, float]] = {}
    for part in parts:
        for device, rates in part["machine"].items():
            best = found.setdefault(device, {})
            for rate, value in rates.items():
                best[rate] = max(best.get(rate, value), value)
    return found


def update(old: Summary, new: Summary) -> Summary:
    """`old` with the groups that `new` measured again; their date and commit are the new ones.

    For a run of some of the ops. Rates are the best of both, because a floor must not rise with a busy
    minute; entries carry their commit.
    """
    again = groups(new)
    then = {"commit": old["commit"], "date": old["date"]}
    kept = [then | entry for entry in old["results"] if entry["group"] not in again]
    return {**old, **new, "machine": _rates([old, new]), "results": kept + new["results"]}


def floor_ms(entry: Entry, summary: Summary) -> float | None:
    """The least time the device allows for what must be moved and multiplied, in ms.

    `floor_bytes` and `floor_flops` come with the measurement (see each setup file: every input read once,
    every output written once); the rates are those that the same kind of device showed in the same run, and
    without them there is no floor. Caches are not assumed, so what fits into them can be faster than it.
    """
    rates = summary["machine"].get(entry["device"])
    if not rates or "floor_bytes" not in entry:
        return None
    if "floor_flops" in entry and entry.get("dtype") != "float32":
        return None  # the measured rate is that of float32
    by_bytes = entry["floor_bytes"] / (rates["copy_gb_per_s"] * 1e9)
    by_flops = entry.get("floor_flops", 0) / (rates["gemm_gflop_per_s"] * 1e9)
    return 1e3 * max(by_bytes, by_flops)


def best_peer(entries: list[Entry], ours: Entry) -> Entry | None:
    """The fastest that is not ours; of those with a dense gradient if that is what ours gives.

    A CUDA graph is compared with CUDA graphs, and what is launched with what is launched.
    """
    graph = ours["provider"].endswith("CUDA graph")
    peers = [
        e
        for e in entries
        if not e["provider"].startswith(OURS) and e["provider"].endswith("CUDA graph") == graph
    ]
    if "dense" in ours["provider"]:
        peers = [e for e in peers if "sparse=True" not in e["provider"]]
    return min(peers, key=lambda e: e["median_ms"]) if peers else None
