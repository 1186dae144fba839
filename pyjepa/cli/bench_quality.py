"""``pyjepa bench quality``: time to another planner's final cost."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from pyjepa.cli.options import ResultFile

WORKLOADS = ("W0L", "two-rooms", "practice", "replan")
PLANNERS = ("cem", "icem", "mppi", "predictive-sampling", "gradient", "hybrid")


@click.command("quality")
@click.argument("workloads", nargs=-1, type=click.Choice(WORKLOADS), metavar="[WORKLOAD]...")
@click.option("--planner", "planners", multiple=True, type=click.Choice(PLANNERS), help="Again for more. [all]")
@click.option("--states", type=click.IntRange(1, 10_000), default=50, show_default=True, help="States to plan from.")
@click.option("--agent", type=click.Path(exists=True, dir_okay=False), help="The Two Rooms agent that replans.")
@click.option("--json", "path", type=ResultFile(), metavar="FILE", help="Write the results to FILE.")
def quality(
    workloads: tuple[str, ...], planners: tuple[str, ...], states: int, agent: str | None, path: str | None
) -> None:
    """Measure how long each planner takes to reach the final cost of stable-worldmodel's CEM (300 x 30).

    WORKLOADS: W0L, two-rooms, practice (by default), replan. Same weights, one thread, CPU time, median over states;
    cold, and warm from the shifted plan of the step before. Takes minutes, and needs stable-worldmodel. `practice`
    compares the shipped agent, which plans from its policy's rollout and with its critic, with itself without them;
    --planner does not apply to it. `replan` plays Two Rooms with the agent file --agent, and compares planners, cold
    and warm, with CEM from scratch, 300 x 10. These two need nothing else.
    """
    from pyjepa.agent import Model
    from pyjepa.atomic import write_text
    from pyjepa.bench import quality as bench
    from pyjepa.bench.machine import describe

    console = Console()
    notes = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    if (agent is not None) != ("replan" in workloads):
        raise click.UsageError("replan needs --agent, and --agent is for replan alone")
    for name in workloads or WORKLOADS[:-1]:
        try:
            if name == "practice":
                rows += bench.measure_practice(states, report=lambda row: notes.print(_line(row)))
            elif agent is not None and name == "replan":
                model = Model.load(agent)
                rows += bench.measure_replans(
                    model, states, planners or PLANNERS, report=lambda r: notes.print(_line(r))
                )
            else:
                rows += bench.measure(name, states, planners or PLANNERS, report=lambda row: notes.print(_line(row)))
        except ImportError as error:
            raise click.ClickException(f"the planner to compare with is not installed: {error}") from error
    table = Table("workload", "start", "planner", "reached", "ms", "faster", "strictly", "ms", "faster", "peer ms")
    for row in rows:
        if "refused" in row:
            continue
        cells = [row["workload"], row["start"], row["planner"]]
        for kind in ("equal", "strict"):
            found = row[kind]
            cells.append(f"{found['reached']:.0%}")
            cells += ["-" if found[key] is None else f"{found[key]:.4g}" for key in ("ms", "ratio")]
        table.add_row(*cells, f"{row['peer_ms']:.4g}")
    console.print(table)
    if path is not None:
        result = {
            "machine": describe(),
            "states": states,
            "peer": "stable-worldmodel CEM, 300 candidates, 30 iterations, 30 elites",
            "tolerance": bench.TOLERANCE,
            "disturbance": bench.DISTURBANCE,
            "rows": rows,
        }
        if agent is not None:
            planner = bench.COLD_CEM
            result["cold"] = f"CEM, {planner['candidates']} candidates, {planner['iterations']} iterations"
            result["agent"] = {"name": model.spec.name, "provenance": dict(model.spec.provenance)}
        write_text(path, json.dumps(result, indent=1) + "\n")


def _line(row: dict[str, Any]) -> str:
    if "refused" in row:
        return f"{row['workload']} {row['start']} {row['planner']}: {row['refused']}"
    equal, strict = row["equal"], row["strict"]
    return (
        f"{row['workload']} {row['start']} {row['planner']}: {equal['ratio']} times as fast ({equal['reached']:.0%} "
        f"of states), strictly {strict['ratio']} ({strict['reached']:.0%})"
    )
