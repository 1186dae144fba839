"""Planning: what `pyjepa bench` and `pyjepa demo` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Row = dict[str, Any]

TITLES = {
    "two-rooms": "Two Rooms (the shipped world model)",
    "W0s": "small (z 64, 64 candidates)",
    "W0": "compact (z 32, 256 candidates)",
    "W0L": "large (z 64, 512 candidates)",
}


def load(results: Path, name: str) -> Any:
    """A result file."""
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table whose first `left` columns are text and the others numbers."""
    rules = ["---"] * left + ["---:"] * (len(headings) - left)
    lines = [headings, rules, *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def milliseconds(value: float | None) -> str:
    """Three digits."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def source(document: Any, peers: Sequence[str] | None = None) -> str:
    """What a measurement was taken on, with the versions of some or all of its implementations."""
    machine = document["machine"]
    peak = machine["peak_gflops"]["fp32"]
    impls = dict.fromkeys(row["impl"] for row in document["rows"] if peers is None or row["peer"] in ("pyjepa", *peers))
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}"
        + (f", at most {peak:.0f} GFLOP/s fp32 a core" if peak else ""),
        ", ".join(impls),
        f"load average before {machine['load_before']:g}, after {machine['load_after']:g}",
        document["date"],
    ]
    return "; ".join(parts) + ".\n"


def name_of(row: Row) -> str:
    """An implementation without its version."""
    label = f"{row['peer']} {row['variant']}" if row.get("variant") else row["peer"]
    return f"{label} {row['precision']}" if row["peer"] == "pyjepa" else label


def fraction(row: Row) -> str:
    """Of the machine's peak."""
    return "" if row["fraction_of_peak"] is None else f"{row['fraction_of_peak']:.0%}".replace("%", " %")


def plan(results: Path) -> str:
    """The README's: the engine beside the usual ways to write the same planner, one thread."""
    document = load(results, "planning-1")
    peers = ("torch", "torch-compile", "onnxruntime", "jax")
    lines = []
    for workload, title in TITLES.items():
        rows = {name_of(row): row for row in document["rows"] if row["workload"] == workload and row["threads"] == 1}
        ours = rows["pyjepa fp32"]
        cells = [title, f"**{milliseconds(ours['plan_ms_p50'])} ms**"]
        cells.append(f"{milliseconds(rows['pyjepa bf16']['plan_ms_p50'])} ms")
        for peer in peers:
            times = rows[peer]["plan_ms_p50"] / ours["plan_ms_p50"]
            cells.append(f"{milliseconds(rows[peer]['plan_ms_p50'])} ms ({times:.1f}×)")
        lines.append([*cells, fraction(ours)])
    headings = ["one plan, one thread (median)", "pyjepa", "in bf16", *peers, "pyjepa, of the core's peak"]
    return markdown(headings, lines) + "\n" + source(document, peers)


def peers(results: Path, threads: int) -> str:
    """Median milliseconds of every implementation on every workload."""
    document = load(results, f"planning-{threads}")
    found = {(name_of(row), row["workload"]): row for row in document["rows"]}
    names = list(dict.fromkeys(name for name, _ in found))

    def cells(name: str) -> Iterable[str]:
        yield name
        for workload in TITLES:
            row = found.get((name, workload))
            yield "" if row is None else milliseconds(row["plan_ms_p50"])
            yield "" if row is None or row["final_cost"] is None else f"{row['final_cost']:.4g}"

    headings = ["ms a plan (median), and its cost"]
    for workload in TITLES:
        headings += [workload, "cost"]
    return markdown(headings, (list(cells(name)) for name in names)) + "\n" + source(document)


def engine(results: Path) -> str:
    """The engine's own rows: percentiles, speed, fraction of peak."""
    document = load(results, "engine")
    lines = [
        [
            row["workload"],
            " ".join([row["precision"], row.get("variant", "")]).strip(),
            str(row["threads"]),
            milliseconds(row["plan_ms_p50"]),
            milliseconds(row["plan_ms_p99"]),
            milliseconds(row["plan_ms_p99_9"]),
            milliseconds(row["undisturbed"]["plan_ms_p99_9"]),
            "" if row["gflops"] is None else f"{row['gflops']:.0f}",
            fraction(row),
        ]
        for row in document["rows"]
        if row["peer"] == "pyjepa" and "operation" not in row
    ]
    headings = ["workload", "precision", "threads", "p50 ms", "p99", "p99.9", "p99.9 undisturbed", "GFLOP/s", "of peak"]
    return markdown(headings, lines, left=2) + "\n" + source(document)


def against_torch(results: Path, *, name: str) -> str:
    """Models of others in the engine and in torch, at the same thread counts."""
    document = load(results, name)

    def task(row: Row) -> tuple[str, int, str]:
        return row["workload"], row["threads"], row.get("operation", "")

    base = {task(row): row["plan_ms_p50"] for row in document["rows"] if row["peer"] == "torch"}
    lines = [
        [
            row["workload"],
            ", ".join([name_of(row), *([row["operation"]] if "operation" in row else [])]),
            str(row["threads"]),
            milliseconds(row["plan_ms_p50"]),
            milliseconds(row["plan_ms_p99"]),
            "" if row["gflops"] is None else f"{row['gflops']:.0f}",
            "" if row["final_cost"] is None else f"{row['final_cost']:.4g}",
            f"{base[task(row)] / row['plan_ms_p50']:.2f}×" if task(row) in base else "",
        ]
        for row in document["rows"]
    ]
    headings = ["workload", "", "threads", "p50 ms", "p99", "GFLOP/s", "cost", "times as fast as torch"]
    return markdown(headings, lines, left=2) + "\n" + source(document)


def memory(results: Path) -> str:
    """What loading a file and planning with it takes."""
    document = load(results, "memory")
    size = document["file_bytes"]
    lines = [
        [
            row["precision"],
            *(f"{row[key] / 1e6:.0f}" for key in ("before", "loaded", "peak")),
            f"{row['peak'] / size:.2f}×",
            milliseconds(row["load_ms"]),
            milliseconds(row["load_cpu_ms"]),
        ]
        for row in document["rows"]
    ]
    headings = [
        f"`{document['agent']}`, a file of {size / 1e6:.0f} MB", "MB before", "loaded", "at the peak", "of the file",
        "load, ms", "CPU time of it",
    ]  # fmt: skip
    machine = document["machine"]
    return markdown(headings, lines) + f"\n{machine['cpu']}, pyjepa {machine['pyjepa']}; {document['date']}.\n"


def neighbour(results: Path) -> str:
    """Planning while another process keeps one of the cores busy: one thread and two."""
    document = load(results, "neighbour")
    found = {(row["workload"], name_of(row), row["threads"]): row for row in document["rows"]}
    lines = []
    for workload, name in dict.fromkeys(key[:2] for key in found):
        one, two = (found[workload, name, n]["plan_ms_p50"] for n in (1, 2))
        tail = (milliseconds(found[workload, name, n]["plan_ms_p99"]) for n in (1, 2))
        lines.append([workload, name, milliseconds(one), milliseconds(two), *tail, f"{two / one:.2f}×"])
    headings = ["workload", "", "1 thread, p50 ms", "2 threads", "1 thread, p99", "2 threads", "2 against 1"]
    return markdown(headings, lines, left=2) + "\n" + source(document)


def paced(results: Path) -> str:
    """A plan on every tick of a clock."""
    document = load(results, "paced")
    lines = [
        [
            f"{row['workload']}, {row['pace_hz']:g} Hz",
            str(row["threads"]),
            *(milliseconds(row[f"tick_ms_{key}"]) for key in ("p50", "p99", "p99_9", "max")),
            f"{row['missed']} of {row['ticks']}",
        ]
        for row in document["rows"]
    ]
    return (
        markdown(["loop", "threads", "p50 ms", "p99", "p99.9", "max", "ticks missed"], lines) + "\n" + source(document)
    )


def mode1(results: Path) -> str:
    """Acting without planning."""
    document = load(results, "mode1")
    lines = [
        [f"`{row['operation']}`", *(f"{row[key] * 1e3:.3g}" for key in ("plan_ms_p50", "plan_ms_p99"))]
        for row in document["rows"]
    ]
    return markdown(["call from Python", "p50 µs", "p99 µs"], lines) + "\n" + source(document)


def demo(results: Path) -> str:
    """The shipped agent's figures in Two Rooms."""
    found = load(results, "demo")
    machine = found["machine"]
    settings = found["settings"]
    return (
        f"Over {found['episodes']} episodes it reaches the goal in {found['success']:.1%}, "
        f"{found['success_cross_room']:.1%} of those with the goal in the other room. "
        f"A plan takes {milliseconds(found['plan_ms_p50'])} ms (p99 {milliseconds(found['plan_ms_p99'])}), perceiving "
        f"included {milliseconds(found['decision_ms_p50'])} ms (p99 {milliseconds(found['decision_ms_p99'])}), "
        f"on {settings['threads']} thread{'s' if settings['threads'] > 1 else ''} of {machine['cpu']} "
        f"({machine['isa']}).\n"
    )


def precision(results: Path, *, name: str, label: str) -> str:
    """What planning in bf16 and int8 changes for an agent."""
    document = load(results, name)
    states = all("state_error" in row for row in document["rows"])
    lines = []
    for row in document["rows"]:
        low, high = row["success_change_95"]
        lines.append(
            [
                row["precision"],
                f"{row['spearman']:.4f}",
                f"{row['spearman_least']:.3f}",
                *([f"{row['state_error']:.1%}"] if states else []),
                f"{row['final_cost_change']:+.2%}",
                f"{row['success']:.1%}",
                f"{100 * row['success_change']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            ]
        )
    headings = [
        "precision",
        "Spearman (mean)",
        "least",
        *(["error of states"] if states else []),
        "plan's cost",
        "success",
        "points against fp32 (95 %)",
    ]
    first = document["rows"][0]
    about = (
        f"\n{label} `{document['agent']}`, {document['states']} states, {first['episodes']} paired episodes, of which "
        f"fp32 reaches {first['reference_success']:.1%}"
    )
    if any("static" in row["precision"] for row in document["rows"]):
        about += f"; scales calibrated on {document['calibrated_on']} other plans"
    return markdown(headings, lines) + about + f"; {document['machine']['cpu']}.\n"


def trained(results: Path) -> str:
    """What training the LeWM-shaped agent gave."""
    document = load(results, "lewm_training")
    last = {k.removeprefix("diagnostics/"): v for k, v in document["history"][-1].items()}
    machine, alarms = document["machine"], document["alarms"]
    return (
        f"{last['step']:,} steps; a linear probe finds the position within {last['probe_px']:.2f} px "
        f"(R² {last['probe_r2']:.3f}), the latents have effective rank {last['effective_rank']:.1f}, inverse dynamics "
        f"is at {last['inverse_dynamics_relative']:.2f} of chance, predicting at {last['prediction_relative']:.3f} of "
        f"predicting no change; {len(alarms) or 'no'} collapse alarms ({machine['cpu']}, one thread).\n"
    )


TABLES = {
    "plan": plan,
    "peers-1": partial(peers, threads=1),
    "peers-2": partial(peers, threads=2),
    "engine": engine,
    "w1": partial(against_torch, name="w1"),
    "large": partial(against_torch, name="large"),
    "memory": memory,
    "neighbour": neighbour,
    "paced": paced,
    "mode1": mode1,
    "demo": demo,
    "precision": partial(precision, name="precision", label="Shipped agent"),
    "lewm-precision": partial(precision, name="lewm-precision", label="LeWM-shaped agent"),
    "lewm-training": trained,
}
