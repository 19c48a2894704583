"""From pytest-benchmark's JSON to a small results file, and from that to the tables of README and docs.

    python -m benchmarks.report raw.json            compact it and print the tables
    python -m benchmarks.report --write             put the tables of benchmarks/results/ into the documents

Nothing in the documents between the `benchmarks:` markers is written by hand.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sparsevae_ext.train.demo import demo_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS = "sparsevae_ext"


def compact(raw: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping: medians and minima in ms, facts, machine."""
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
        "commit": build.get("commit", "unknown"),
        "cpu": info.get("cpu_name"),
        "python": info.get("python_version"),
        "machine": info.get("machine", {}),
        "results": results,
    }


def floor_ms(entry: dict[str, Any], summary: dict[str, Any]) -> float | None:
    """The least time the device allows for what must be moved and multiplied, in ms.

    `floor_bytes` and `floor_flops` come with the measurement (see each setup file: every input read once,
    every output written once); the rates are those that the device showed in the same run. Caches are not
    assumed, so what fits into them can be faster than its floor.
    """
    rates = summary["machine"].get(entry["device"])
    if not rates or "floor_bytes" not in entry:
        return None
    if "floor_flops" in entry and entry.get("dtype") != "float32":
        return None  # the measured rate is that of float32
    by_bytes = entry["floor_bytes"] / (rates["copy_gb_per_s"] * 1e9)
    by_flops = entry.get("floor_flops", 0) / (rates["gemm_gflop_per_s"] * 1e9)
    return 1e3 * max(by_bytes, by_flops)


def groups(summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Results by group, in the order in which they ran."""
    out: dict[str, list[dict[str, Any]]] = {}
    for entry in summary["results"]:
        out.setdefault(entry["group"], []).append(entry)
    return out


def merge(passes: list[dict[str, Any]]) -> dict[str, Any]:
    """One summary of several passes: each group whole, from the pass in which its medians' sum was least.

    A shared machine has slow minutes. The providers of a group are timed in turns, so a pass hits them
    alike; taking a group whole keeps every ratio from one run.
    """
    merged = dict(passes[0])
    merged["passes"] = len(passes)
    merged["machine"] = {
        device: {rate: max(p["machine"][device][rate] for p in passes) for rate in rates}
        for device, rates in passes[0]["machine"].items()
    }
    by_group = [groups(p) for p in passes]
    merged["results"] = [
        entry
        for name in by_group[0]
        for entry in min(
            (g[name] for g in by_group), key=lambda group: sum(e["median_ms"] for e in group)
        )
    ]
    return merged


def best_peer(entries: list[dict[str, Any]], dense_gradient: bool = False) -> dict[str, Any] | None:
    """The fastest that is not ours; of those with a dense gradient if that is what ours gives."""
    peers = [e for e in entries if not e["provider"].startswith(OURS)]
    if dense_gradient:
        peers = [e for e in peers if "sparse=True" not in e["provider"]]
    return min(peers, key=lambda e: e["median_ms"]) if peers else None


#: Group prefixes in the order of the report, with what they are called.
TITLES = {
    "mult_vae-step-": "Mult-VAE, a training step",
    "count_vae-step-": "CountVAE, a training step",
    "csr_linear-forward-": "csr_linear, forward",
    "csr_linear-forward+backward-": "csr_linear, forward and weight gradient",
    "row_adam-forward+backward-": "CSRLinear's forward, backward and optimizer step",
    "linear_multinomial_nll-forward+backward-": "linear_multinomial_nll, forward and backward",
    "linear_negative_binomial_nll-forward+backward-": "linear_negative_binomial_nll, the same",
    "linear_gaussian-forward+backward-": "linear_gaussian_nll, the same",
    "topic_multinomial-forward+backward-": "topic_multinomial_nll, the same",
    "multinomial_nll-forward+backward-": "multinomial_nll, forward and backward",
    "bernoulli_nll-forward+backward-": "bernoulli_nll, the same",
    "poisson_nll-forward+backward-": "poisson_nll, the same",
    "gaussian_nll-forward+backward-": "gaussian_nll, the same",
    "negative_binomial_nll-forward+backward-": "negative_binomial_nll, the same",
    "zero_inflated_negative_binomial_nll-forward+backward-": "its zero-inflated form",
    "reparameterize_kl-forward+backward-": "reparameterize_kl, forward and backward",
    "l1_activity-forward+backward-": "l1_activity with relu, forward and backward",
    "kl_sparsity-forward+backward-": "kl_sparsity, forward and backward",
    "topk-forward-": "topk, forward",
    "topk-forward+backward-": "topk, forward and backward",
    "batch_topk-forward-": "batch_topk, forward",
    "jumprelu-forward+backward-": "jumprelu, forward and backward",
    "loader-": "Loader, one epoch",
}
#: What stands in the README.
HEADLINES = (
    "mult_vae-step-",
    "count_vae-step-",
    "csr_linear-forward+backward-",
    "row_adam-forward+backward-",
    "linear_multinomial_nll-forward+backward-",
    "linear_negative_binomial_nll-forward+backward-",
    "linear_gaussian-forward+backward-",
    "multinomial_nll-forward+backward-",
    "negative_binomial_nll-forward+backward-",
    "zero_inflated_negative_binomial_nll-forward+backward-",
    "reparameterize_kl-forward+backward-",
    "topk-forward+backward-",
)


def table(summary: dict[str, Any], prefixes: dict[str, str]) -> str:
    """A Markdown table: one line per group and provider of ours, with the best peer of the group."""
    lines = [
        "| | shape | ours | ms | best peer | ms | **ratio** | floor ms |",
        "|---|---|---|---:|---|---:|---:|---:|",
    ]
    for prefix, title in prefixes.items():
        for group, entries in groups(summary).items():
            if not group.startswith(prefix):
                continue
            for entry in entries:
                peer = best_peer(entries, dense_gradient="dense" in entry["provider"])
                if not entry["provider"].startswith(OURS) or peer is None:
                    continue
                floor = floor_ms(entry, summary)
                shape = entry["shape"]
                if entry.get("dtype") == "bfloat16" and "bf16" not in shape:
                    shape += ", bf16 autocast"
                name = entry["provider"].removeprefix(OURS).strip(" ,+")
                lines.append(
                    f"| {title} | {shape} | {name} | {entry['median_ms']:.2f} "
                    f"| {peer['provider']} | {peer['median_ms']:.2f} "
                    f"| **{peer['median_ms'] / entry['median_ms']:.2f}x** "
                    f"| {f'{floor:.2f}' if floor else '-'} |"
                )
                title = ""
    return "\n".join(lines)


def full_table(summary: dict[str, Any]) -> str:
    """Every measurement: median and minimum."""
    lines = ["| group | provider | median ms | min ms | rounds |", "|---|---|---:|---:|---:|"]
    for group, entries in groups(summary).items():
        for e in sorted(entries, key=lambda e: e["median_ms"]):
            lines.append(
                f"| {group} | {e['provider']} | {e['median_ms']:.3f} | {e['min_ms']:.3f} "
                f"| {e['rounds']} |"
            )
    return "\n".join(lines)


def heading(summary: dict[str, Any]) -> str:
    """Where and when: one sentence per device."""
    some = summary["results"][0]
    passes = summary.get("passes", 1)
    best = f", each group from the best of {passes} passes" if passes > 1 else ""
    lines = [
        f"Measured on {summary['date']}: {summary['cpu'] or some['device_name']}, "
        f"{some['threads']} threads, {some['isa']}, torch {some['torch']}, commit {summary['commit']}; "
        f"medians of calls taken in turns{best}."
    ]
    names = {e["device"]: e["device_name"] for e in summary["results"]}
    for device, rates in summary["machine"].items():
        name = "The machine" if device == "cpu" else f"The {names.get(device, device)}"
        lines.append(
            f"{name} copies {rates['copy_gb_per_s']:.1f} GB/s (read plus written) and "
            f"multiplies float32 matrices at {rates['gemm_gflop_per_s']:.0f} GFLOP/s."
        )
    return " ".join(lines)


def text(summary: dict[str, Any], detail: bool) -> str:
    """The whole report as Markdown; without `detail`, what belongs on a first page."""
    if not detail:
        short = {prefix: TITLES[prefix] for prefix in HEADLINES}
        return f"{heading(summary)}\n\n{table(summary, short)}\n"
    parts = [heading(summary), "", table(summary, TITLES), ""]
    return "\n".join([*parts, "**Everything**", "", full_table(summary), ""])


def insert(document: Path, name: str, content: str) -> None:
    """Replace what stands between `<!-- benchmarks:NAME -->` and `<!-- benchmarks:end -->`."""
    old = document.read_text()
    pattern = re.compile(
        rf"(<!-- benchmarks:{re.escape(name)} -->\n).*?(<!-- benchmarks:end -->)", re.DOTALL
    )
    if not pattern.search(old):
        raise SystemExit(f"{document}: no <!-- benchmarks:{name} --> marker")
    document.write_text(pattern.sub(lambda m: m[1] + content.rstrip() + "\n" + m[2], old))


def keep_demo(run: Path) -> None:
    """Keep the numbers and the picture of a finished `make demo`."""
    shutil.copy(run / "metrics.json", RESULTS / "demo.json")
    shutil.copy(run / "demo.png", ROOT / "docs" / "demo.png")


def codes_table(results: dict[str, Any]) -> str:
    """What examples/spam_codes.py measured, as two Markdown tables."""
    lines = ["| logistic regression on | features | accuracy on test e-mails |", "|---|---:|---:|"]
    for name, probe in results["probes"].items():
        lines.append(f"| {name} | {probe['features']:,.0f} | {probe['accuracy']:.3f} |")
    lines += [
        "",
        "| λ of the L1 penalty | units that fire (L0) | never fire | nats per e-mail | accuracy |",
        "|---:|---:|---:|---:|---:|",
    ]
    for run in results["sparse_autoencoder"]:
        lines.append(
            f"| {run['lambda']:g} | {run['l0']:.1f} of {run['units']} | {run['dead_units']:.0f} "
            f"| {run['nll']:.0f} | {run['probe_accuracy']:.3f} |"
        )
    return "\n".join(lines)


def write_documents() -> None:
    """Fill README.md and docs/performance.md from benchmarks/results/."""
    metrics = json.loads((RESULTS / "demo.json").read_text())
    lines = demo_text(metrics, Path("runs/demo"), "demo.png").strip()
    insert(ROOT / "README.md", "demo", f"```\n{lines}\n```")
    codes = json.loads((RESULTS / "spam_codes.json").read_text())
    insert(ROOT / "README.md", "codes", codes_table(codes))
    summary = json.loads((RESULTS / "cpu.json").read_text())
    insert(ROOT / "README.md", "cpu", text(summary, detail=False))
    insert(ROOT / "docs" / "performance.md", "cpu", text(summary, detail=True))


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("raw", nargs="*", type=Path, help="files of --benchmark-json, one per pass")
    parser.add_argument("--save", type=Path, help="keep the compact results in this file")
    parser.add_argument("--demo", type=Path, help="keep the results of this run of `make demo`")
    parser.add_argument("--write", action="store_true", help="fill the documents")
    options = parser.parse_args(argv)
    if options.raw:
        summary = merge([compact(json.loads(path.read_text())) for path in options.raw])
        if options.save:
            options.save.parent.mkdir(parents=True, exist_ok=True)
            options.save.write_text(json.dumps(summary, indent=1) + "\n")
        print(text(summary, detail=True))
    if options.demo:
        keep_demo(options.demo)
    if options.write:
        write_documents()
    elif not options.raw and not options.demo:
        parser.error("nothing to do: give a raw.json or --write")
    return 0


if __name__ == "__main__":
    sys.exit(main())
