"""Implementations side by side: in turns, within one run, so that what disturbs one disturbs all."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyjepa.bench import engine, machine, peers
from pyjepa.bench.worker import Contestant, Samples, Worker, WorkerError
from pyjepa.bench.workloads import Workload, problem_of

Row = dict[str, Any]
Progress = Callable[[str, float], None]
"""Told what is going on and which fraction is done."""


WARM = 0.3
"""Seconds of work after which an implementation is warm."""


@dataclass(frozen=True)
class Settings:
    """How long to measure what, and under which conditions."""

    seconds: float = 2.0
    """Of calls per row, after warming up."""
    rounds: int = 10
    """That these are split into."""
    plans_for_cost: int = 5
    """Plans from scratch whose median cost is the row's ``final_cost``."""
    neighbour: bool = False
    """Beside a process that keeps one processor busy; then nothing is pinned."""
    pace: float | None = None
    """Calls per second, each on its tick; None: one after the other."""
    deadline: float | None = None
    """Seconds per plan, the engine's."""


@dataclass
class _Entry:
    worker: Worker
    facts: dict[str, Any]
    final_cost: float | None
    samples: dict[str, Samples] = field(default_factory=dict)
    ticks: list[tuple[float, float]] = field(default_factory=list)


def measure(
    workloads: Sequence[Workload],
    *,
    threads: Sequence[int],
    precisions: Sequence[str],
    chosen_peers: Sequence[str],
    settings: Settings,
    progress: Progress = lambda what, done: None,
    problem_found: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Runs every workload on every implementation; returns the result file's content.

    What cannot run (a peer that is not installed or disagrees on costs, a precision the engine lacks) is told to
    ``problem_found`` and left out.
    """
    began, before = time.time(), os.getloadavg()
    rows: list[Row] = []
    peaks: dict[str, float | None] = dict.fromkeys(engine.PRECISIONS)
    total = len(workloads) * len(threads)
    for i, (workload, count) in enumerate((w, n) for n in threads for w in workloads):
        if workload.name == "mode1" and count != threads[0]:
            continue  # one thread acts, however many plan
        with _neighbour(settings.neighbour):
            rows += _measure_one(
                workload,
                1 if workload.name == "mode1" else count,
                precisions,
                chosen_peers,
                settings,
                peaks,
                lambda what, done, i=i: progress(what, (i + done) / total),  # type: ignore[misc]
                problem_found,
            )
    for row in rows:
        peak = peaks.get(row["precision"])
        if row.get("gflops") and peak:
            row["fraction_of_peak"] = round(row["gflops"] / (peak * row["threads"]), 4)
    return {
        "machine": {
            **machine.describe(),
            "peak_gflops": peaks,
            "load_before": round(before[0], 2),
            "load_after": round(os.getloadavg()[0], 2),
        },
        "settings": {
            "seconds": settings.seconds,
            "rounds": settings.rounds,
            "plans_for_cost": settings.plans_for_cost,
            "pinned": not (settings.neighbour or settings.pace),
            "neighbour": settings.neighbour,
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
            "session_niceness": machine.session_niceness(),
            "pace_hz": settings.pace,
            "deadline_ms": None if settings.deadline is None else settings.deadline * 1e3,
        },
        "date": time.strftime("%Y-%m-%d", time.gmtime(began)),
        "rows": rows,
    }


def _contestants(
    workload: Workload, threads: int, precisions: Sequence[str], chosen: Sequence[str], deadline: float | None
) -> Iterator[Contestant]:
    if workload.name == "mode1":
        yield Contestant("", threads)
        return
    for name in precisions:
        precision, _, variant = name.partition("-")
        yield Contestant("", threads, precision, variant=variant, deadline=deadline)  # type: ignore[arg-type]
    if not chosen:
        return
    problem = problem_of(workload)
    for peer in chosen:
        for variant in peers.variants(peer, problem):
            yield Contestant(peer, threads, variant=variant)


def _measure_one(
    workload: Workload,
    threads: int,
    precisions: Sequence[str],
    chosen: Sequence[str],
    settings: Settings,
    peaks: dict[str, float | None],
    progress: Progress,
    problem_found: Callable[[str], None],
) -> list[Row]:
    title = f"{workload.name}, {threads} thread{'s' if threads > 1 else ''}"
    processors = None if settings.neighbour or settings.pace else sorted(os.sched_getaffinity(0))[:threads]
    with ExitStack() as stack:
        entries: list[_Entry] = []
        contestants = list(_contestants(workload, threads, precisions, chosen, settings.deadline))
        for contestant in contestants:
            progress(f"{title}: preparing {contestant.peer or 'pyjepa'}", 0.0)
            worker = Worker(contestant, processors=processors)
            stack.callback(worker.close)
            try:
                facts = dict(worker.prepare(workload))
                began = time.perf_counter()
                costs = None if workload.name == "mode1" else worker.final_costs(settings.plans_for_cost)
                if time.perf_counter() - began < WARM:
                    for operation in facts["flops"]:
                        worker.run(operation, min(WARM, settings.seconds / 4))
            except WorkerError as error:
                problem_found(f"{title}: {error}")
                continue
            entries.append(_Entry(worker, facts, None if costs is None else statistics.median(costs)))
        if settings.pace:
            for i, entry in enumerate(entries):
                progress(f"{title}: {entry.facts['impl']}", i / len(entries))
                entry.ticks = entry.worker.pace("plan", 1 / settings.pace, settings.seconds)
            return [_paced_row(workload, entry, settings) for entry in entries]
        for i in range(settings.rounds):
            for entry in entries[i % len(entries) :] + entries[: i % len(entries)] if entries else []:
                progress(f"{title}: {entry.facts['impl']}", i / settings.rounds)
                time.sleep(0.01)  # lets whoever spins after its work fall asleep
                if entry is entries[0] and not settings.neighbour:
                    _raise_peak(peaks, entry.worker)
                for operation in entry.facts["flops"]:
                    found = entry.worker.run(operation, settings.seconds / settings.rounds)
                    entry.samples.setdefault(operation, Samples()).extend(found)
        return [
            _row(workload, entry, operation, samples)
            for entry in entries
            for operation, samples in entry.samples.items()
        ]


def _raise_peak(peaks: dict[str, float | None], worker: Worker) -> None:
    for precision in peaks:
        found = worker.peak(precision, 0.02)
        if found is not None:
            peaks[precision] = round(max(found, peaks[precision] or 0.0), 1)


def _milliseconds(seconds: Sequence[float], percentile: float) -> float | None:
    """To four digits, whether the calls take microseconds or minutes; None without any."""
    return float(f"{np.percentile(seconds, percentile) * 1e3:.4g}") if len(seconds) else None


def _overrun(seconds: Sequence[float]) -> Row:
    shares = (("p50", 50), ("p99", 99), ("p99_9", 99.9), ("max", 100))
    return {f"overrun_us_{name}": round(np.percentile(seconds, q) * 1e6, 1) for name, q in shares if len(seconds)}


def _labels(workload: Workload, entry: _Entry) -> Row:
    contestant = entry.worker.contestant
    row = {"workload": workload.name, "impl": entry.facts["impl"], "peer": contestant.peer or "pyjepa"}
    if contestant.variant:
        row["variant"] = contestant.variant
    return row | {"threads": contestant.threads, "precision": entry.facts["precision"]}


def _row(workload: Workload, entry: _Entry, operation: str, samples: Samples) -> Row:
    row = _labels(workload, entry)
    if operation != "plan":
        row["operation"] = operation
    quiet = [t for t, disturbed in zip(samples.seconds, samples.disturbed, strict=True) if not disturbed]
    late = [t for t, disturbed in zip(samples.overrun, samples.disturbed, strict=False) if not disturbed]
    median = statistics.median(samples.seconds)
    flops = entry.facts["flops"][operation]
    return row | {
        "plan_ms_p50": _milliseconds(samples.seconds, 50),
        "plan_ms_p99": _milliseconds(samples.seconds, 99),
        "plan_ms_p99_9": _milliseconds(samples.seconds, 99.9),
        "n": len(samples.seconds),
        "undisturbed": {
            "n": len(quiet),
            "plan_ms_p50": _milliseconds(quiet, 50),
            "plan_ms_p99": _milliseconds(quiet, 99),
            "plan_ms_p99_9": _milliseconds(quiet, 99.9),
            **_overrun(late),
        },
        **_overrun(samples.overrun),
        **({"tile_us": round(entry.facts["tile_seconds"] * 1e6, 1)} if samples.overrun else {}),
        "involuntary_switches": sum(samples.switches),
        "stolen_ms": round(samples.stolen * 1e3, 1),
        "gflops": round(flops / median / 1e9, 2) if flops else None,
        "fraction_of_peak": None,
        "final_cost": None if entry.final_cost is None else float(f"{entry.final_cost:.6g}"),
    }


def _paced_row(workload: Workload, entry: _Entry, settings: Settings) -> Row:
    assert settings.pace is not None
    period, due = 1 / settings.pace, round(settings.seconds * settings.pace)
    decided = [end for _, end in entry.ticks]
    late = sum(end > period for end in decided)
    row = _labels(workload, entry) | {"pace_hz": settings.pace, "ticks": due, "n": len(decided)}
    row["missed"] = late + (due - len(decided))
    for name, values in (
        ("wake", [begun for begun, _ in entry.ticks]),
        ("plan", [end - begun for begun, end in entry.ticks]),
        ("tick", decided),
    ):
        for label, percentile in (("p50", 50), ("p99", 99), ("p99_9", 99.9), ("max", 100)):
            row[f"{name}_ms_{label}"] = _milliseconds(values, percentile)
    return row


@contextmanager
def _neighbour(wanted: bool) -> Iterator[subprocess.Popen[bytes] | None]:
    """A process that keeps the first usable processor busy while the block runs."""
    if not wanted:
        yield None
        return
    first = min(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, [{first}])\nwhile os.getppid() == {os.getpid()}: pass"
    spinning = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield spinning
    finally:
        spinning.kill()
        spinning.wait()
