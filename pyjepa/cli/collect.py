"""``pyjepa collect two-rooms``: record episodes to train from."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyjepa.cli.train import require_training


@click.group(short_help="Record episodes to train from.")
def command() -> None:
    """Record episodes to train from (HDF5; docs/two-rooms.md describes the format)."""


@command.command("two-rooms")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The data set to write.")
@click.option("--episodes", type=click.IntRange(min=1), default=20_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=12, show_default=True, help="Actions per episode.")
@click.option(
    "--action-block",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Environment steps for which each action is held.",
)
def two_rooms(out: Path, episodes: int, seed: int, steps: int, action_block: int) -> None:
    """Record random walks in Two Rooms, behind training doors only."""
    require_training("h5py")
    from pyjepa.training.collection import collect_two_rooms

    console = Console(stderr=True)
    columns = (TextColumn("collecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("collecting", total=episodes)
        collect_two_rooms(
            out,
            episodes=episodes,
            seed=seed,
            steps=steps,
            action_block=action_block,
            progress=lambda count: bar.advance(task, count),
        )
    click.echo(f"{out}: {episodes} episodes of {steps} actions, {out.stat().st_size / 1e6:.1f} MB")
