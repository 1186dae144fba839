"""``pyjepa train two-rooms``: train a world model and write an agent file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def require_training(*packages: str) -> None:
    """Say how to install what training needs where it is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise click.UsageError(f"{', '.join(missing)} is missing: pip install 'pyjepa-engine[train]'")


@click.group(short_help="Train a world model and write an agent file.")
def command() -> None:
    """Train a world model and write an agent file."""


@command.command("two-rooms")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The agent file to write.")
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML; default: the shipped one."
)
@click.option(
    "--data", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Episodes; default: collected first."
)
@click.option(
    "--run",
    "run_directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/two-rooms"),
    show_default=True,
    help="Where checkpoint, metrics, TensorBoard events and collected data go.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the run directory.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps (optimiser.steps).")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of data, weights and batches (seed).")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads (threads).")
def two_rooms(
    out: Path,
    config: Path | None,
    data: Path | None,
    run_directory: Path,
    resume: bool,
    steps: int | None,
    seed: int | None,
    threads: int | None,
) -> None:
    """Train the Two Rooms agent; the shipped configuration takes two CPU cores well under 20 minutes."""
    require_training("torch", "h5py", "pydantic", "tensorboard")
    from pyjepa.training.config import default_config, load_config
    from pyjepa.training.two_rooms import train_two_rooms

    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    given = {"optimiser.steps": steps, "seed": seed, "threads": threads}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = load_config(config or default_config(), overrides)
    with _Display(settings.data.episodes, settings.optimiser.steps) as display:
        trainer = train_two_rooms(
            settings,
            out,
            run_directory=run_directory,
            data=data,
            resume=resume,
            command=_command_line(out, config, steps, seed, threads),
            reporter=display,
            collected=display.collected,
        )
    found = trainer.diagnostics
    assert found is not None
    click.echo(
        f"{out}: {trainer.step} steps in {trainer.seconds / 60:.1f} minutes; position probe {found.probe_px:.2f} px "
        f"(R2 {found.probe_r2:.3f}), effective rank {found.effective_rank:.1f}, inverse dynamics at "
        f"{found.inverse_dynamics_relative:.2f} of chance, {len(trainer.alarms)} alarms"
    )


class _Display:
    """Progress bars on standard error: collection, then training with its losses; alarms stay on the screen."""

    def __init__(self, episodes: int, steps: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self._collecting = self._bar.add_task("collecting", total=episodes, visible=False, figures="")
        self._training = self._bar.add_task("training", total=steps, start=False, figures="")
        self._started = False
        self._probe = ""

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._bar.stop()

    def collected(self, count: int) -> None:
        self._bar.update(self._collecting, advance=count, visible=True)

    def progress(self, step: int, losses: dict[str, float]) -> None:
        if not self._started:  # a resumed run does not begin at 0; its speed is measured from here
            self._started = True
            self._bar.update(self._training, completed=step - 1)
            self._bar.start_task(self._training)
        shown = f"loss {losses['total']:.2f} prediction {losses['prediction']:.3f}{self._probe}"
        self._bar.update(self._training, completed=step, figures=shown)

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        self._probe = f" probe {figures['probe_px']:.1f} px"

    def alarm(self, step: int, message: str) -> None:
        self._bar.console.print(f"[bold red]collapse alarm[/] at step {step}: {escape(message)}")


def _command_line(out: Path, config: Path | None, steps: int | None, seed: int | None, threads: int | None) -> str:
    """The command as it goes into the agent file: file names without their folders."""
    words = ["pyjepa train two-rooms", f"--out {out.name}"]
    if config is not None:
        words.append(f"--config {config.name}")
    for name, value in (("steps", steps), ("seed", seed), ("threads", threads)):
        if value is not None:
            words.append(f"--{name} {value}")
    return " ".join(words)
