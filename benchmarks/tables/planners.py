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


TABLES = {"ablation": ablation}
