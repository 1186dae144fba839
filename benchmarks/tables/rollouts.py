"""Rollouts on a GPU: what was estimated and compiled without one, and what `pyjepa bench rollouts` wrote."""

from __future__ import annotations

from pathlib import Path

from pyjepa.kernels import aot

from tables.planning import load, markdown, milliseconds


def roofline(results: Path) -> str:
    """Every workload at every number of candidates, on the part of every target."""
    del results  # counted, not measured
    targets = list(aot.TARGETS)
    rows = aot.rollout_estimates()
    found = {(row.workload, row.candidates, row.target): row for row in rows}
    lines = []
    for name, count in dict.fromkeys((row.workload, row.candidates) for row in rows):
        first = found[name, count, targets[0]]
        times = [f"{found[name, count, target].roofline_us:#.3g}" for target in targets]
        lines.append([name, first.way, str(count), f"{first.bytes / 1e6:.2f}", f"{first.flops / 1e9:.3g}", *times])
    headings = ["workload", "way", "candidates", "MB", "GFLOP", *(f"{aot.TARGETS[t].part}, µs" for t in targets)]
    return markdown(headings, lines, left=2)


def resources(results: Path) -> str:
    """What the compiler says of every rollout kernel."""
    del results  # committed with the kernels
    rows = [row for row in aot.committed()["rows"] if row["kernel"].startswith("rollout.")]
    targets = list(dict.fromkeys(row["target"] for row in rows))

    def kind(row: aot.Row) -> tuple[str, str, str]:  # the number of warps is the target's
        return row["kernel"], row["dtype"], row["config"].split()[0]

    found = {(kind(row), row["target"]): row for row in rows}
    lines = []
    for which in dict.fromkeys(map(kind, rows)):
        cells = []
        for target in targets:
            row = found[which, target]
            matrix = f", {row['matrix_count']} {row['matrix_instruction']}" if row["matrix_instruction"] else ""
            cells.append(f"{row['registers']}, {row['shared_bytes'] / 1024:.0f} KiB{matrix}")
        lines.append([which[0].removeprefix("rollout."), *which[1:], *cells])
    return markdown(["kernel", "weights", "rows", *targets], lines, left=3)


def gpus(results: Path) -> str:
    """Plans on every GPU that a result was sent of."""
    files = sorted(file.stem for file in results.glob("rollouts-*.json"))
    if not files:
        return "No GPU has been measured yet.\n"
    parts = []
    for file in files:
        document = load(results, file)
        providers = list(dict.fromkeys(row["provider"] for row in document["results"]))
        found = {(row["workload"], row["candidates"], row["provider"]): row for row in document["results"]}
        lines = []
        for name, count in dict.fromkeys((row["workload"], row["candidates"]) for row in document["results"]):
            rows = [found[name, count, provider] for provider in providers]
            cells = [
                f"{milliseconds(row['p50_ms'])} ({milliseconds(row['p99_ms'])})" if "p50_ms" in row else "–"
                for row in rows
            ]
            lines.append([name, str(count), *cells])
        machine = document["machine"]
        about = f"**{machine['device']}**, torch {machine['torch']}: median (p99) of a plan in ms"
        parts.append(f"{about}\n\n{markdown(['workload', 'candidates', *providers], lines, left=1)}")
    return "\n".join(parts)


TABLES = {"rollout-roofline": roofline, "rollout-resources": resources, "rollout-gpus": gpus}
