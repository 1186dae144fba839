"""Planners: what benchmarks/ablation.py and `pyjepa bench quality` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tables.planning import load, markdown, milliseconds

Row = dict[str, Any]


def percent(fraction: float) -> str:
    """Whole percents."""
    return f"{fraction:.0%}".replace("%", " %")


def ablation(results: Path) -> str:
    """Success and p99 of a decision by planner, variant and deadline."""
    document = load(results, "ablation")
    rows = [row for row in document["rows"] if "deadline_ms" in row]
    deadlines = sorted({row["deadline_ms"] for row in rows})
    found = {(row["planner"], row["variant"], row["deadline_ms"]): row for row in rows}
    lines = []
    for planner, variant in dict.fromkeys((row["planner"], row["variant"]) for row in rows):
        cells = []
        for deadline in deadlines:
            row = found[planner, variant, deadline]
            cells.append(f"{percent(row['success'])} ({milliseconds(row['decision_ms_p99'])})")
        lines.append([planner, variant, *cells])
    alone = {row["planner"]: row for row in document["rows"] if "deadline_ms" not in row}
    machine = document["machine"]
    act, random = alone["the policy alone"], alone["random"]
    about = (
        f"Success of {document['episodes']} episodes, half of them across the wall, and p99 of a decision in ms "
        f"({machine['cpu']}, one thread, {machine['isa']}). Random actions reach {percent(random['success'])}; the "
        f"policy alone {percent(act['success'])} in {milliseconds(act['decision_ms_p99'])} ms.\n"
    )
    return about + "\n" + markdown(["planner", "with", *(f"{d} ms" for d in deadlines)], lines, left=2)


def times(value: float | None) -> str:
    """How many times as fast, or nothing where it never was as good."""
    return "" if value is None else f"{value:.0f}x" if value >= 10 else f"{value:.1f}x"


def quality(results: Path) -> str:
    """Time to the final cost of stable-worldmodel's CEM, by planner: cold and warm."""
    document = load(results, "quality")
    rows = [row for row in document["rows"] if row["start"] in ("cold", "warm")]
    found = {(row["workload"], row["start"], row["planner"]): row for row in rows}
    columns = list(dict.fromkeys((row["workload"], row["start"]) for row in rows))
    lines = []
    for planner in dict.fromkeys(row["planner"] for row in rows):
        cells = []
        for column in columns:
            row = found[(*column, planner)]
            cells.append(f"{times(row['strict']['ratio'])} ({times(row['equal']['ratio'])})".replace(" ()", " (-)"))
        lines.append([planner, *(cell if cell[0] != " " else "-" + cell for cell in cells)])
    theirs = {row["workload"]: row["peer_ms"] for row in rows if row["start"] == "cold"}
    machine = document["machine"]
    about = (
        f"How many times as fast as {document['peer']} a plan is that costs no more (in brackets: at most "
        f"{100 * document['tolerance']:g} % more); -: in half of the {document['states']} states or more none does "
        f"within 64 iterations. Median over the states of the ratio of CPU times, one thread each ({machine['cpu']}, "
        f"{machine['isa']}); the peer takes "
        + ", ".join(f"{milliseconds(ms)} ms ({name})" for name, ms in theirs.items())
        + f". Warm: from the shifted plan, after one executed step whose result was disturbed by normal noise of "
        f"{document['disturbance']:g} times the size of its change.\n"
    )
    headings = ["planner", *(f"{workload}, {start}" for workload, start in columns)]
    return about + "\n" + markdown(headings, lines)


def practice(results: Path) -> str:
    """Time that the shipped agent's policy and critic save."""
    document = load(results, "quality")
    rows = [row for row in document["rows"] if row["workload"] == "practice"]
    found = {(row["start"], row["planner"]): row for row in rows}
    starts = {row["start"]: row["peer_ms"] for row in rows}
    lines = []
    for planner in dict.fromkeys(row["planner"] for row in rows):
        cells = [found[start, planner]["strict"] for start in starts]
        lines.append(
            [planner, *(f"{milliseconds(c['ms'])} ms, {times(c['ratio'])}" if c["ms"] else "-" for c in cells)]
        )
    return markdown(["planner", *(f"{start} ({milliseconds(ms)} ms)" for start, ms in starts.items())], lines)


def replans(results: Path) -> str:
    """Planners in closed loop beside a cold CEM: least time to its cost, and what a tenth of a second buys."""
    document = load(results, "lewm-replan")
    found = {(row["start"], row["planner"]): row for row in document["rows"] if "refused" not in row}
    lines = []
    for planner in dict.fromkeys(planner for _, planner in found):
        cells = []
        for start in ("cold", "warm"):
            strict = found[start, planner]["strict"]
            cells.append("-" if strict["ms"] is None else f"{milliseconds(strict['ms'])} ({strict['iterations']})")
        loop = found["warm", planner]["closed_loop"]
        cells += [f"{milliseconds(loop['ms'])} ({loop['iterations']})", milliseconds(loop["ms_p99"])]
        cells += [f"{loop['cost']:.3f}", percent(loop["reached"]), percent(loop["success"])]
        lines.append([planner, *cells])
    refused = {row["planner"]: row["refused"] for row in document["rows"] if "refused" in row}
    first = next(iter(found.values()))
    machine = document["machine"]
    about = (
        f"ms of CPU time on one thread ({machine['cpu']}, {machine['isa']}; in brackets, iterations), median over "
        f"{document['states']} states and over the replans of {document['states']} episodes. The cold plan "
        f"({document['cold']}) takes {milliseconds(first['peer_ms'])} ms.\n"
    )
    missing = "".join(f"\n`{planner}` is left out: {reason}.\n" for planner, reason in refused.items())
    headings = ["planner", "cold: ms to its cost", "warm: ms to its cost", "in closed loop: ms", "p99"]
    headings += ["cost, over the cold plan's", "replans that cost no more", "success"]
    return about + "\n" + markdown(headings, lines) + missing


def plot(results: Path, path: Path) -> None:
    """Final cost over time, by planner, cold and warm."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in load(results, "lewm-replan")["rows"] if "refused" not in row]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharex=True, sharey=True)
    for side, start in zip(axes, ("cold", "warm"), strict=True):
        for row in (row for row in rows if row["start"] == start):
            points = [(point["ms"], point["cost"]) for point in row["curve"]]
            side.plot(*zip(*points, strict=True), "o-", ms=3, label=row["planner"])
        side.plot(rows[0]["peer_ms"], 1.0, "k*", ms=10, label="the cold plan")
        side.axhline(1.0, color="black", lw=0.8, ls="--")
        side.axvline(100.0, color="grey", lw=0.8, ls=":")
        side.set(title=start, xlabel="ms (CPU time, one thread)", xscale="log", ylim=(0.9, 1.8))
    axes[0].set(ylabel="cost, over the cold plan's")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


TABLES = {"ablation": ablation, "quality": quality, "practice": practice, "replans": replans}
PLOTS = {"docs/results/replans.png": plot}
