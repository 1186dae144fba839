"""``pyjepa bench``: planning time, beside other implementations; with a name, other things (`OTHERS`)."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pyjepa.bench import engine
from pyjepa.bench.peers import PEERS
from pyjepa.bench.workloads import WORKLOADS
from pyjepa.cli.options import Positive, ResultFile

DEFAULT = ("W0s", "W0", "W0L")
PRECISIONS = (*engine.PRECISIONS, f"int8-{engine.STATIC}")
OTHERS = {"vicreg": "bench_losses", "sigreg": "bench_losses", "quality": "bench_quality", "rollouts": "bench_rollouts",
          "memory": "bench_memory"}  # fmt: skip
"""Benchmarks with a command line of their own: click commands of that name in a module of pyjepa.cli."""


class _Command(click.Command):
    """Options that take several values (``--threads 1 2``), and other benchmarks by name."""

    several = ("--threads", "--precision", "--peers")

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        if args and args[0] in OTHERS:
            other: click.Command = getattr(importlib.import_module(f"pyjepa.cli.{OTHERS[args[0]]}"), args[0])
            return other.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, self._spread(list(args)), parent, **extra)

    def _spread(self, args: list[str]) -> list[str]:
        """``--threads 1 2`` -> ``--threads 1 --threads 2``: values go on for as long as the option takes them."""
        values = {"--precision": PRECISIONS, "--peers": tuple(PEERS)}
        spread: list[str] = []
        option, first = "", False
        for argument in args:
            if argument in self.several:
                option, first = argument, True
                continue
            belongs = argument.isdigit() if option == "--threads" else argument in values.get(option, ())
            if option and (first or belongs) and not argument.startswith("-"):
                spread += [option, argument]
                first = False
                continue
            if first:
                spread.append(option)  # without a value: click says so
            option, first = "", False
            spread.append(argument)
        return [*spread, option] if first else spread


@click.command(
    cls=_Command,
    epilog="`pyjepa bench vicreg` and `sigreg` measure the losses, `pyjepa bench rollouts` plans on a GPU, `pyjepa "
    "bench memory` says how much memory an agent takes; they have options of their own.",
)
@click.argument("workloads", nargs=-1, type=click.Choice(tuple(WORKLOADS)), metavar="[WORKLOAD]...")
@click.option(
    "--threads", type=click.IntRange(1, 1024), multiple=True, default=(1,), help="Thread counts.  [default: 1]"
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    multiple=True,
    default=("fp32",),
    help="The engine's; int8-static: with scales found beforehand.  [default: fp32]",
)
@click.option("--peers", type=click.Choice(tuple(PEERS)), multiple=True, help="Other implementations to run as well.")
@click.option("--seconds", type=Positive(), default=2.0, show_default=True, help="Time for each row.")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Turns that it is split into.")
@click.option(
    "--cost-plans",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Plans from scratch whose median cost is a row's.",
)
@click.option("--paced", type=Positive(), metavar="HZ", help="One plan on every tick; count those missed.")
@click.option("--deadline", type=Positive(), metavar="MS", help="Milliseconds per plan of the engine's.")
@click.option("--neighbour", is_flag=True, help="Beside a process that keeps one processor busy.")
@click.option("--json", "json_file", type=ResultFile(), metavar="FILE", help="Write the result here (- = stdout).")
def command(
    workloads: tuple[str, ...],
    threads: tuple[int, ...],
    precision: tuple[str, ...],
    peers: tuple[str, ...],
    seconds: float,
    rounds: int,
    cost_plans: int,
    paced: float | None,
    deadline: float | None,
    neighbour: bool,
    json_file: str | None,
) -> None:
    """Measure how long planning takes, and how long other implementations take for the same.

    WORKLOADS: W0s, W0 and W0L (CEM on small to large state-based models; the default), W0s-mppi, W0L-mppi (one
    iteration of MPPI), W1 (TD-MPC2's model and planner), W2 (EB-JEPA's recurrent model: a plan takes seconds), W3
    (LeWM's transformer: seconds, too; both with their encoders and without), two-rooms (the shipped agent) and
    mode1 (acting without planning). Implementations take turns in processes of their own; peers run only when named,
    and only if the costs they compute are the engine's.
    """
    from pyjepa.atomic import write_text
    from pyjepa.bench.comparison import Settings, measure

    chosen = [WORKLOADS[name]() for name in dict.fromkeys(workloads or DEFAULT)]
    if paced and any(w.name == "mode1" for w in chosen):
        raise click.UsageError("--paced plans: mode1 does not")
    settings = Settings(
        seconds=seconds,
        rounds=rounds,
        plans_for_cost=cost_plans,
        pace=paced,
        deadline=None if deadline is None else deadline / 1e3,
        neighbour=neighbour,
    )
    notes = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=notes, transient=True
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        result = measure(
            chosen,
            threads=tuple(dict.fromkeys(threads)),
            precisions=tuple(dict.fromkeys(precision)),
            chosen_peers=tuple(dict.fromkeys(peers)),
            settings=settings,
            progress=lambda what, done: bar.update(task, description=what, completed=done),
            problem_found=lambda message: notes.print(message, style="yellow", markup=False, highlight=False),
        )
    if not result["rows"]:
        raise click.ClickException("nothing could be measured")
    Console(file=sys.stderr if json_file == "-" else sys.stdout).print(_table(result))
    if json_file == "-":
        click.echo(json.dumps(result, indent=1))
    elif json_file is not None:
        write_text(json_file, json.dumps(result, indent=1) + "\n")


def _table(result: dict[str, Any]) -> Table:
    machine = result["machine"]
    peak = machine["peak_gflops"]["fp32"]
    table = Table(
        title=f"{machine['cpu']}, {machine['isa']}"
        + (f", fp32 peak {peak:g} GFLOP/s a thread" if peak else "")
        + f", load {machine['load_before']:g} before, {machine['load_after']:g} after"
    )
    columns: dict[str, tuple[str, str]] = {
        "plan_ms_p50": ("p50 ms", ".4g"),
        "plan_ms_p99": ("p99 ms", ".4g"),
        "gflops": ("GFLOP/s", ".1f"),
        "fraction_of_peak": ("of peak", ".0%"),
        "final_cost": ("cost", ".5g"),
        "tile_us": ("tile us", ".0f"),
        "overrun_us_p50": ("overrun p50", ".0f"),
        "overrun_us_p99_9": ("p99.9", ".0f"),
        "undisturbed_overrun_us_p99_9": ("undisturbed", ".0f"),
        "tick_ms_p50": ("tick p50", ".4g"),
        "tick_ms_p99": ("p99", ".4g"),
        "tick_ms_p99_9": ("p99.9", ".4g"),
        "tick_ms_max": ("max", ".4g"),
        "missed": ("missed", "d"),
        "ticks": ("of", "d"),
    }
    if any("missed" in row for row in result["rows"]):
        columns = {key: how for key, how in columns.items() if not key.startswith("plan_")}
    rows = [
        row | {f"undisturbed_{key}": value for key, value in row.get("undisturbed", {}).items()}
        for row in result["rows"]
    ]
    used = {key: how for key, how in columns.items() if any(row.get(key) is not None for row in rows)}
    for heading in ("workload", "implementation", "threads"):
        # Where the terminal is narrow, numbers are cut before names are.
        table.add_column(
            heading, no_wrap=heading != "implementation", min_width=18 if heading == "implementation" else 0
        )
    for heading, _ in used.values():
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        group = (row["workload"], row["threads"])
        if previous not in (None, group):
            table.add_section()
        previous = group
        name = " ".join(filter(None, (row["impl"], row.get("variant"), row["precision"])))
        if "operation" in row:
            name += f", {row['operation']}"
        table.add_row(
            row["workload"],
            name,
            str(row["threads"]),
            *("" if row.get(key) is None else format(row[key], form) for key, (_, form) in used.items()),
        )
    return table
