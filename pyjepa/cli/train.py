"""``pyjepa train two-rooms``: train a world model and write an agent file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from pyjepa.cli.progress import Display


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
    shown = "probe {probe_px:.1f} px"
    with Display(settings.optimiser.steps, shown=shown, episodes=settings.data.episodes) as display:
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


@command.command("images")
@click.option("--data", required=True, metavar="digits|FOLDER", help="scikit-learn's digits, or a folder of images.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The agent file to write.")
@click.option(
    "--objective",
    type=click.Choice(["vicreg", "sigreg", "barlow_twins", "ema", "none"]),
    help="What prevents collapse (objective.kind).",
)
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML; default: a shipped one."
)
@click.option(
    "--run",
    "--run-directory",  # torchrun takes --run for an abbreviation of its own --run-path
    "run_directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/images"),
    show_default=True,
    help="Where checkpoint, metrics, evaluation and TensorBoard events go.",
)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in the run directory.")
@click.option("--size", type=click.IntRange(4, 1024), help="Of a folder's images, in pixels (data.size).")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps (optimiser.steps).")
@click.option("--batch", type=click.IntRange(min=2), help="Images a step (optimiser.batch).")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of split, weights, batches and views (seed).")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads (threads).")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where to train (device).")
def images(
    data: str, out: Path, config: Path | None, run_directory: Path, resume: bool, **given: int | str | None
) -> None:
    """Train a JEPA on images without labels, and say what its representation is worth.

    Where a folder has a folder for every class (or with the digits), a linear probe and nearest neighbours judge the
    held-out images, beside raw pixels, PCA and the same network with random weights. Under torchrun the processes share
    every batch.
    """
    require_training("torch", "sklearn", "PIL", "pydantic", "tensorboard")
    from pyjepa.cli.train_images import train

    names = {"objective": "objective.kind", "size": "data.size", "steps": "optimiser.steps", "batch": "optimiser.batch"}
    overrides = {names.get(name, name): value for name, value in given.items() if value is not None}
    train(data, out, config, run_directory, resume, overrides)


def _command_line(out: Path, config: Path | None, steps: int | None, seed: int | None, threads: int | None) -> str:
    """The command as it goes into the agent file: file names without their folders."""
    words = ["pyjepa train two-rooms", f"--out {out.name}"]
    if config is not None:
        words.append(f"--config {config.name}")
    for name, value in (("steps", steps), ("seed", seed), ("threads", threads)):
        if value is not None:
            words.append(f"--{name} {value}")
    return " ".join(words)
