"""``pyjepa demo``: the shipped agent plays Two Rooms."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from pyjepa.cli.options import ResultFile
from pyjepa.configurator import ALGORITHMS

if TYPE_CHECKING:
    from rich.table import Table

    from pyjepa.agent import Precision
    from pyjepa.bench.episodes import Record


@click.command()
@click.option("--episodes", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Episodes to play.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of episodes and planner.")
@click.option(
    "--env",
    "world",
    type=click.Choice(["two-rooms", "two-rooms-discrete"]),
    default="two-rooms",
    show_default=True,
    help="The world to play in; the discrete one has eight moves.",
)
@click.option(
    "--planner",
    type=click.Choice(list(ALGORITHMS)),
    help="Planning algorithm.  [default: the agent's]",
)
@click.option("--mode", type=click.Choice(["1", "2"]), default="2", show_default=True, help="1: act; 2: plan.")
@click.option("--no-critic", is_flag=True, help="Plan without the critic's foresight.")
@click.option("--horizon", type=int, metavar="H", help="Environment steps to look ahead.  [default: the agent's]")
@click.option("--deadline", type=click.FloatRange(0, min_open=True), metavar="MS", help="Milliseconds per plan.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Planning threads.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the weights that planning runs.",
)
@click.option("--agent", "agent_file", type=click.Path(), metavar="FILE", help="An agent file of yours.")
@click.option("--json", "json_file", type=ResultFile(), metavar="FILE", help="Write the result here (- = stdout).")
@click.option("--gif", "gif_file", type=click.Path(), metavar="FILE", help="Draw the first episodes (extra: gif).")
def command(
    episodes: int,
    seed: int,
    world: str,
    planner: str | None,
    mode: str,
    no_critic: bool,
    horizon: int | None,
    deadline: float | None,
    threads: int,
    precision: Precision,
    agent_file: str | None,
    json_file: str | None,
    gif_file: str | None,
) -> None:
    """Play Two Rooms with a trained agent: it sees pixels, plans in latent space and walks to the goal it was shown.

    Every other episode has its goal in the other room, and no door stands where one stood in training.
    """
    import pyjepa
    from pyjepa import agents
    from pyjepa.atomic import write_text
    from pyjepa.bench.episodes import play, summary
    from pyjepa.bench.machine import describe
    from pyjepa.envs import TwoRooms, TwoRoomsDiscrete, evaluation_episodes

    for option, file in (("--json", json_file), ("--gif", gif_file)):
        if file not in (None, "-") and not Path(str(file)).absolute().parent.is_dir():
            raise click.BadParameter(f"there is no folder {Path(str(file)).parent}", param_hint=option)
    discrete = world == "two-rooms-discrete"
    if agent_file is not None:
        agent = pyjepa.load(agent_file, threads=threads, precision=precision)
        if agent.spec.actions.kind != ("discrete" if discrete else "box"):
            known = {"discrete": "discrete actions", "box": "a box of actions"}
            needed = known["discrete" if discrete else "box"]
            raise click.BadParameter(
                f"{world} takes {needed}, this agent has {known[agent.spec.actions.kind]}", param_hint="--agent"
            )
    elif discrete:
        agent = pyjepa.Agent(agents.two_rooms_discrete(precision=precision), threads=threads)
    else:
        agent = pyjepa.load(agents.path("two_rooms"), threads=threads, precision=precision)
    film = None
    if gif_file is not None:
        from pyjepa.cli.film import Film

        film = Film(agent.model)
    task: dict[str, Any] = {"planner": planner, "horizon": horizon, "seed": seed}
    if no_critic:
        critics = [term.label for term in agent.spec.cost if term.kind == "critic"]
        if not critics:
            raise click.UsageError("--no-critic: this agent has none")
        task["weights"] = dict.fromkeys(critics, 0.0)
    if mode == "1":
        given = [
            name for name, value in (("--planner", planner), ("--horizon", horizon), ("--deadline", deadline)) if value
        ]
        if given or gif_file is not None:
            raise click.UsageError(f"--mode 1 does not plan: {', '.join(given) or '--gif'} is for --mode 2")
    drawn = evaluation_episodes(episodes, seed=seed)
    records: list[Record] = []
    with _Scoreboard(episodes, sys.stderr if json_file == "-" else sys.stdout) as board:
        seconds = None if deadline is None else deadline / 1e3
        watch = None if film is None else film.shoot
        played_in = TwoRoomsDiscrete if discrete else TwoRooms
        played_mode: Literal[1, 2] = 1 if mode == "1" else 2
        for record in play(agent, drawn, task, mode=played_mode, deadline=seconds, watch=watch, world_type=played_in):
            records.append(record)
            board.show(records)

    result = {
        **summary(records),
        "settings": {
            **agent.settings,
            "seed": seed,
            "mode": int(mode),
            "critic": not no_critic,
            "precision": agent.model.precision,
            "deadline_ms": deadline,
        },
        "agent": {"name": agent.spec.name, "provenance": dict(agent.spec.provenance)},
        "machine": describe(),
    }
    if film is not None and gif_file is not None:
        film.save(gif_file)
    if json_file == "-":
        click.echo(json.dumps(result, indent=2))
    elif json_file is not None:
        write_text(json_file, json.dumps(result, indent=2) + "\n")


class _Scoreboard:
    """The live table: the last few episodes and the running totals. Where there is no terminal, it is printed once."""

    ROWS = 8

    def __init__(self, episodes: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._episodes = episodes
        self._console = Console(file=stream)
        self._live = Live(console=self._console, refresh_per_second=8, transient=False)

    def __enter__(self) -> _Scoreboard:
        if self._console.is_terminal:
            self._live.start()
        return self

    def show(self, records: list[Record]) -> None:
        """Refreshes with the episodes so far."""
        if self._console.is_terminal:
            self._live.update(self._table(records))
        elif len(records) == self._episodes:
            self._console.print(self._table(records))

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def _table(self, records: list[Record]) -> Table:
        from rich.table import Table

        from pyjepa.bench.episodes import summary
        from pyjepa.bench.percentiles import milliseconds

        total = summary(records)
        table = Table(title=f"Two Rooms: {len(records)} of {self._episodes} episodes")
        for heading in ("episode", "goal", "reached", "steps", "perceive p50", "plan p50", "plan p99"):
            table.add_column(heading, justify="right")

        def times(*durations: tuple[list[float], int]) -> list[str]:
            values = [milliseconds(seconds, percentile) for seconds, percentile in durations]
            return ["-" if value is None else f"{value:.2f} ms" for value in values]

        first = max(0, len(records) - self.ROWS)
        for i, r in enumerate(records[first:], first):
            table.add_row(
                str(i),
                "other room" if r.cross_room else "same room",
                "yes" if r.success else f"no, {r.distance:.0f} px off",
                str(r.steps),
                *times((r.perceive, 50), (r.plan, 50), (r.plan, 99)),
            )
        table.add_section()

        def percent(fraction: float | None) -> str:
            return "-" if fraction is None else f"{100 * fraction:.1f} %"

        perceive, plan = ([t for r in records for t in getattr(r, name)] for name in ("perceive", "plan"))
        steps = total["steps_to_goal_median"]
        table.add_row(
            "all",
            "",
            percent(total["success"]),
            "-" if steps is None else f"{steps:.0f}",
            *times((perceive, 50), (plan, 50), (plan, 99)),
        )
        table.add_row("", "other room", percent(total["success_cross_room"]))
        return table
