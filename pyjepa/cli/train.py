"""``pyjepa train``: train a world model and write an agent file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyjepa.atomic import write_text
from pyjepa.cli.progress import Display


def require_training(*packages: str) -> None:
    """Say how to install what training needs where it is missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise click.UsageError(f"{', '.join(missing)} is missing: pip install 'pyjepa-engine[train]'")


def _arguments(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=JSON, several times, as a dictionary."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not NAME=JSON")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError as error:
            raise click.BadParameter(f"{name}: {value!r} is no JSON ({error})") from error
    return found


@click.group(short_help="Train a world model and write an agent file.", invoke_without_command=True)
@click.option("--env", "environment", metavar="ID", help="A Gymnasium environment that shows pictures.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The agent file to write.")
@click.option("--results", type=click.Path(dir_okay=False, path_type=Path), help="Where to write what was measured.")
@click.option("--episodes", type=click.IntRange(min=1), default=20, show_default=True, help="Played to judge it.")
@click.option(
    "--argument",
    "arguments",
    metavar="NAME=JSON",
    multiple=True,
    callback=_arguments,
    help="What the environment is made with; may be given several times.",
)
@click.option("--rounds", type=click.IntRange(min=1), help="Times to record and train; the first at random.")
@click.option("--collect", type=click.IntRange(min=1), help="Episodes to record, every round.")
@click.option("--collect-own", type=click.IntRange(min=1), help="The same of the rounds after the first.")
@click.option("--episode-steps", type=click.IntRange(min=2), help="Steps after which a recorded episode is left.")
@click.option(
    "--action-scale",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Share of a box of actions that is used, around its middle.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Training steps, every round.")
@click.option("--shift", type=click.IntRange(min=0, max=16), help="Pixels by which clips are moved in training.")
@click.option("--shift-sideways", type=click.IntRange(min=0, max=16), help="The same to the left or right.")
@click.option("--history", type=click.IntRange(min=1, max=16), help="Pictures that one observation stacks.")
@click.option("--grey", is_flag=True, default=None, help="Pictures of one channel.")
@click.option("--past-actions", is_flag=True, default=None, help="Each picture comes with the action that led to it.")
@click.option("--repeat", type=click.IntRange(min=1), help="Steps that the environment repeats an action for.")
@click.option("--action-block", type=click.IntRange(min=1), help="Steps for which an action is held.")
@click.option("--window", type=click.IntRange(min=2), help="Predicted steps per training clip.")
@click.option("--horizon", type=click.IntRange(min=1), help="Steps to plan ahead.")
@click.option(
    "--try-horizon",
    "try_horizons",
    type=click.IntRange(min=1),
    multiple=True,
    help="Another one, tried after training in games of its own: what earns most is kept. May be given several times.",
)
@click.option("--candidates", type=click.IntRange(min=2), help="Plans compared in every iteration of a search.")
@click.option("--iterations", type=click.IntRange(min=1), help="Of a search.")
@click.option("--channels", type=click.IntRange(min=1), nargs=3, default=None, help="Of the encoder's convolutions.")
@click.option("--inverse-dynamics", type=click.FloatRange(min=0.0), help="Weight of telling actions from states.")
@click.option("--temporal-variance", type=click.FloatRange(min=0.0), help="Weight of latents that vary within a clip.")
@click.option(
    "--discount",
    type=click.FloatRange(0.0, 1.0),
    help="Below 1, a critic of what is still to be earned, discounted so every block, closes each plan.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of data, weights and plans.")
@click.pass_context
def command(
    context: click.Context,
    environment: str | None,
    out: Path | None,
    results: Path | None,
    episodes: int,
    arguments: dict[str, Any],
    rounds: int | None,
    collect: int | None,
    collect_own: int | None,
    episode_steps: int | None,
    action_scale: float | None,
    steps: int | None,
    shift: int | None,
    shift_sideways: int | None,
    history: int | None,
    grey: bool | None,
    past_actions: bool | None,
    repeat: int | None,
    action_block: int | None,
    window: int | None,
    horizon: int | None,
    try_horizons: tuple[int, ...],
    candidates: int | None,
    iterations: int | None,
    channels: tuple[int, int, int] | None,
    inverse_dynamics: float | None,
    temporal_variance: float | None,
    discount: float | None,
    seed: int | None,
) -> None:
    """Train a world model and write an agent file.

    With --env: record a Gymnasium environment, learn from pictures, write the agent, and play.
    """
    if context.invoked_subcommand is not None:
        if environment is not None:
            raise click.UsageError("--env and a named task exclude each other")
        return
    if environment is None:
        raise click.UsageError("say what to train on: a task (pyjepa train --help lists them), or --env ID")
    if out is None:
        raise click.UsageError("--out FILE is needed with --env")
    require_training("torch")
    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    from pyjepa.training.environments import Settings, train_environment

    chosen: dict[str, Any] = {
        "rounds": rounds, "episodes": collect, "own_episodes": collect_own, "episode_steps": episode_steps,
        "action_scale": action_scale, "steps": steps, "shift": shift,
        "shift_sideways": shift_sideways, "history": history, "grey": grey,
        "past_actions": past_actions, "repeat": repeat, "action_block": action_block, "window": window,
        "horizon": horizon, "try_horizons": try_horizons, "candidates": candidates, "iterations": iterations,
        "channels": channels,
        "inverse_dynamics": inverse_dynamics, "temporal_variance": temporal_variance, "discount": discount,
        "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in chosen.items() if value is not None}
    with _stages() as (stage, advance):
        found = train_environment(
            environment, out, settings=Settings(**given), episodes=episodes, arguments=arguments,
            command=f"pyjepa train --env {environment} --out {out.name}", stage=stage, progress=advance,
        )  # fmt: skip
    if results is not None:
        write_text(results, json.dumps(found, indent=1) + "\n")
    others = ", ".join(f"{name} {found[name]['mean']:.1f}" for name in ("random", "still", "oracle") if name in found)
    click.echo(
        f"{out}: {found['agent']['mean']:.1f} a game over {episodes} ({others}); "
        f"a plan takes {found['plan_cpu_ms_p50']:.1f} ms of a core (p99 {found['plan_cpu_ms_p99']:.1f})"
    )


@contextmanager
def _stages() -> Iterator[tuple[Callable[[str, int], None], Callable[[int], None]]]:
    """A progress bar on standard error: a function that names a stage and its length, one that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("")
        yield (
            lambda name, total: bar.reset(task, description=name, total=total),
            lambda count: bar.advance(task, count),
        )


@command.command("two-rooms")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The agent file to write.")
@click.option(
    "--config", metavar="NAME|FILE", default="two_rooms", show_default=True, help="Shipped: two_rooms, lewm; or TOML."
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
    config: str,
    data: Path | None,
    run_directory: Path,
    resume: bool,
    steps: int | None,
    seed: int | None,
    threads: int | None,
) -> None:
    """Train the Two Rooms agent; the shipped configurations take two CPU cores well under 20 minutes.

    lewm is LeWM's way: a transformer that looks back on three states, SIGReg against collapse.
    """
    require_training("torch", "h5py", "pydantic", "tensorboard")
    from pyjepa.training.config import find_config, load_config
    from pyjepa.training.two_rooms import train_two_rooms

    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    given = {"optimiser.steps": steps, "seed": seed, "threads": threads}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = load_config(find_config(config), overrides)
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


@command.command("stable-worldmodel")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The agent file to write.")
@click.option("--results", type=click.Path(dir_okay=False, path_type=Path), help="Where to write what was measured.")
@click.option(
    "--run",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/swm-two-room"),
    show_default=True,
    help="Where recordings and checkpoints go; what is there is used again.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings to average over.")
@click.option("--collect", type=click.IntRange(min=1), default=1500, show_default=True, help="Episodes to learn from.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps.")
@click.option("--episodes", type=click.IntRange(min=1), default=50, show_default=True, help="Of an evaluation.")
@click.option("--compare", is_flag=True, help="Let stable-worldmodel's solvers plan on the same weights, too.")
def stable_worldmodel(
    out: Path,
    results: Path | None,
    folder: Path,
    seeds: int,
    collect: int,
    steps: int | None,
    episodes: int,
    compare: bool,
) -> None:
    """Train on swm/TwoRoom-v1 of stable-worldmodel, and let its own evaluation judge the planning.

    Needs stable-worldmodel 0.1.1 and what it needs: docs/environments.md says how to install it.
    """
    require_training("torch", "h5py", "pydantic", "tensorboard")
    from pyjepa.training.swm_two_room_run import train_two_room

    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    with _stages() as (stage, advance):
        found = train_two_room(
            out, folder=folder, results=results, seeds=seeds, collect=collect, steps=steps, episodes=episodes,
            compare=compare, stage=stage, progress=advance,
        )  # fmt: skip
    rates = ", ".join(f"{row['success']:.0f}" for row in found["seeds"])
    click.echo(
        f"{out}: {found['success']:.1f} % of goals over {seeds} seeds ({rates}); random {found['random']:.0f} %, "
        f"expert {found['expert']:.0f} %"
    )


@command.command("a320")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The agent file to write.")
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of the sample's form; default: the one in the package traffic.",
)
@click.option("--results", type=click.Path(dir_okay=False, path_type=Path), help="Where to write what was measured.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings to average over.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps.")
@click.option("--choose", is_flag=True, help="Choose the settings on the validation blocks again.")
def a320(out: Path, data: Path | None, results: Path | None, seeds: int, steps: int | None, choose: bool) -> None:
    """Train on a real flight, and say how well it predicts 30 s ahead, plans, and notices faulty sensors.

    The flight is that of the package traffic: pip install --no-deps traffic. docs/a320.md describes all of it.
    """
    require_training("torch")
    from pyjepa.training.a320_run import train_a320

    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    words = [f"pyjepa train a320 --out {out.name}", *([f"--steps {steps}"] if steps else [])]
    with _stages() as (stage, advance):
        found = train_a320(
            out, data=data, results=results, seeds=seeds, steps=steps, choose=choose, command=" ".join(words),
            stage=stage, progress=advance,
        )  # fmt: skip
    for name in ("persistence", "ridge", "model"):
        told = ", ".join(f"{sensor} {value:.3g} {found['units'][sensor]}" for sensor, value in found[name].items())
        click.echo(f"{name}: {told}")
    click.echo(f"{out}: {found['surprise']['false_alarms_per_hour']:.1f} false alarms an hour")


def _command_line(out: Path, config: str, steps: int | None, seed: int | None, threads: int | None) -> str:
    """The command as it goes into the agent file: file names without their folders."""
    words = ["pyjepa train two-rooms", f"--out {out.name}"]
    if config != "two_rooms":
        words.append(f"--config {Path(config).name}")
    for name, value in (("steps", steps), ("seed", seed), ("threads", threads)):
        if value is not None:
            words.append(f"--{name} {value}")
    return " ".join(words)
