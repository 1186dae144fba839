"""``pyjepa distil``: practice - from an agent that plans, one with a critic and a policy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pyjepa.cli.train import require_training


@click.command()
@click.argument("agent_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The agent file to write.")
@click.option(
    "--memory",
    "memory_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What was remembered before, instead of playing.",
)
@click.option(
    "--save-memory", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Keep what is remembered."
)
@click.option("--episodes", type=click.IntRange(4), help="Episodes that the planner plays.  [1500]")
@click.option("--plans", type=click.IntRange(16), help="Plans that the policy learns from at first.  [20000]")
@click.option("--rounds", type=click.IntRange(0), help="In which the policy plays and the planner corrects it.  [2]")
@click.option("--steps", type=click.IntRange(10), help="Training steps of critic and policy.  [8000]")
@click.option(
    "--window", type=click.IntRange(1), help="Of the critic's targets; 1: TD, over an episode: Monte-Carlo.  [1000]"
)
@click.option("--horizon", type=click.IntRange(1), help="Environment steps that the new agent plans ahead.  [24]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="torch's threads.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything.")
def command(
    agent_file: Path | None,
    out: Path,
    memory_file: Path | None,
    save_memory: Path | None,
    threads: int,
    **given: int | None,
) -> None:
    """Practise: Mode-2 into Mode-1.

    The agent (default: the shipped one that only plans) plays Two Rooms' training worlds by planning and remembers.
    From its memory a critic learns what a state will still cost, so that short plans suffice; from plans over
    remembered states a policy learns to act at once, then plays itself and is corrected where it went.
    """
    require_training("torch")
    import torch

    from pyjepa import agents
    from pyjepa.memory import Memory
    from pyjepa.training.practice import Settings, practise

    for option, file in (("--out", out), ("--save-memory", save_memory)):
        if file is not None and not file.absolute().parent.is_dir():
            raise click.BadParameter(f"there is no folder {file.parent}", param_hint=option)
    torch.set_num_threads(threads)
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with _Display() as display:
        spec, memory = practise(
            agents.path("two_rooms") if agent_file is None else agent_file,
            out,
            settings=dataclasses.replace(Settings(), **changes),
            memory=None if memory_file is None else Memory.load(memory_file),
            reporter=display,
            command=f"pyjepa distil --out {out.name}",
        )
    if save_memory is not None:
        memory.save(save_memory)
    click.echo(f"{out}: {spec.name} with critic and policy, from {len(memory)} remembered states")


class _Display:
    """A progress bar for every stage, on standard error."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._bar.stop()

    def stage(self, name: str, total: int) -> None:
        self._task = self._bar.add_task(name, total=total)

    def advance(self, count: int) -> None:
        assert self._task is not None
        self._bar.advance(self._task, count)

    def note(self, message: str) -> None:
        self._bar.console.print(message, highlight=False)
