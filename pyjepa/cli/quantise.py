"""``pyjepa quantise FILE``: activation scales for int8, a precision for every layer, and what they cost in planning."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from pyjepa.agent import Model
    from pyjepa.mixed_precision import Choice
    from pyjepa.quantise import Situation


def _percentage(context: click.Context, option: click.Parameter, text: str) -> float:
    """``2%`` or ``0.02``."""
    try:
        number = float(text.strip().removesuffix("%")) / (100.0 if text.strip().endswith("%") else 1.0)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise click.BadParameter(f"{text!r} is no percentage like 2% (or 0.02)")
    return number


@click.command(short_help="Calibrate int8, choose layers' precisions, say what they cost.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT", help="The file to write.")
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="EPISODES",
    help="Observations to plan from, as `pyjepa collect` writes them.  [default, for Two Rooms: drawn from the world]",
)
@click.option(
    "--target",
    callback=_percentage,
    default="2%",
    show_default=True,
    metavar="P%",
    help="How much more int8's plans may cost than fp32's, as fp32 judges them: mean over --choose states.",
)
@click.option(
    "--encoder/--no-encoder", default=False, show_default=True, help="Let the encoder's layers go lower than fp32, too."
)
@click.option("--calibrate", type=click.IntRange(1), default=50, show_default=True, help="Plans to calibrate on.")
@click.option("--choose", type=click.IntRange(1), default=100, show_default=True, help="Plans to choose on, others.")
@click.option("--states", type=click.IntRange(1), default=200, show_default=True, help="Plans to compare on, others.")
@click.option(
    "--episodes", type=click.IntRange(0), default=0, show_default=True, help="Two Rooms episodes to play in each."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of situations and planner.")
@click.option("--json", "json_file", type=click.Path(), metavar="FILE", help="Write the figures here (- = stdout).")
def command(
    file: Path,
    output: Path | None,
    data: Path | None,
    target: float,
    encoder: bool,
    calibrate: int,
    choose: int,
    states: int,
    episodes: int,
    seed: int,
    json_file: str | None,
) -> None:
    """Find how the agent FILE runs in int8: activation scales, and which layers had better stay in a higher precision.

    The agent plans in float32 from stored observations, and the scales fit what its predictor's layers read along the
    candidates that the planner tried. Then each layer alone runs in int8, and those that disturb candidates' costs most
    stay in bf16, if need be in fp32: as few as it takes for plans to cost at most --target more than fp32's, judged in
    fp32. The encoder stays in fp32, unless its layers are chosen for as well (--encoder). OUT is FILE with both added,
    and the evidence in its provenance; its weights stay float32, and every precision can still be chosen when it is
    loaded. Without --output nothing is written.

    The table says what planning in each precision costs, on other situations than those calibrated on: how alike the
    same candidates are ranked (Spearman), and how much more the plans cost that are found, as float32 judges them.
    """
    import safetensors.numpy
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pyjepa import agent_file
    from pyjepa.agent import Model
    from pyjepa.atomic import write_text
    from pyjepa.bench.machine import describe
    from pyjepa.errors import UnsupportedError
    from pyjepa.mixed_precision import choose as choose_precisions
    from pyjepa.mixed_precision import without_precisions
    from pyjepa.quantise import calibrate as find_scales
    from pyjepa.quantise import compare

    for option, written in (("--output", output), ("--json", json_file)):
        if written is not None and str(written) != "-" and not Path(written).absolute().parent.is_dir():
            raise click.BadParameter(f"there is no folder {Path(written).parent}", param_hint=option)
    model = Model.load(file)
    if episodes and not _is_two_rooms(model):
        raise click.UsageError("--episodes: this agent was not made for Two Rooms")
    tensors = safetensors.numpy.load_file(file)
    unlimited = agent_file.to_bytes(without_precisions(model.spec), tensors)
    model = Model.from_bytes(unlimited)
    situations = _situations(model, data, calibrate + choose + states, seed)

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("calibrating", total=calibrate)
        try:
            spec = find_scales(model, tensors, situations[:calibrate], seed=seed, progress=lambda: bar.advance(task))
        except UnsupportedError as error:
            console.print(f"no activation scales: {error}", style="yellow")
            spec = model.spec
        models = _precisions(unlimited, agent_file.to_bytes(spec, tensors))
        tasks: dict[str, Any] = {}

        def advance(doing: str, of: int) -> None:
            if doing not in tasks:
                tasks[doing] = bar.add_task(doing, total=of)
            bar.advance(tasks[doing])

        chosen = None
        try:
            own = situations[calibrate : calibrate + choose]
            chosen = choose_precisions(spec, tensors, own, target=target, encoder=encoder, seed=seed, progress=advance)
        except UnsupportedError as error:
            console.print(f"no precisions chosen: {error}", style="yellow")
        if chosen is not None:
            spec = chosen.spec
            if "int8 dynamic" in models and (encoder or set(chosen.precisions) != {"int8"}):
                models["int8 mixed"] = Model.from_bytes(agent_file.to_bytes(spec, tensors), precision="int8")
        task = bar.add_task("comparing", total=states)
        compared = situations[calibrate + choose :]
        rows = compare(model, models, compared, seed=seed, progress=lambda: bar.advance(task)) if models else {}
        task = bar.add_task("playing", total=episodes * (len(models) + 1), visible=episodes > 0)
        played: dict[str, list[bool]] = {}
        for name, each in {"fp32": model, **models}.items() if episodes else ():
            played[name] = []
            for success in _play(each, episodes, seed):
                played[name].append(success)
                bar.advance(task)
    if output is not None:
        agent_file.save(output, spec, tensors)

    result: dict[str, Any] = {
        "agent": spec.name,
        "calibrated_on": calibrate,
        "choice": None if chosen is None else json.loads(chosen.evidence()),
        "states": states,
        "seed": seed,
        "rows": [
            {"precision": name, **row, **(_success(played["fp32"], played[name]) if episodes else {})}
            for name, row in rows.items()
        ],
        "machine": describe(),
    }
    out = Console(file=sys.stderr if json_file == "-" else sys.stdout)
    if chosen is not None:
        out.print(_chosen(chosen))
    out.print(_table(result))
    if not models:
        console.print("this machine has no bf16 or int8 instructions: nothing to compare", style="yellow")
    if json_file == "-":
        click.echo(json.dumps(result, indent=1))
    elif json_file is not None:
        write_text(json_file, json.dumps(result, indent=1) + "\n")


def _is_two_rooms(model: Model) -> bool:
    from pyjepa.envs.two_rooms import TwoRooms

    seen = model.spec.observation
    return seen.shape == TwoRooms().observation.shape[1:] and seen.dtype == "uint8" and len(model.spec.actions.low) == 2


def _situations(model: Model, data: Path | None, count: int, seed: int) -> list[Situation]:
    """Where to plan from: pairs of observations from episodes, or for Two Rooms drawn from the training doors."""
    import numpy as np

    from pyjepa.quantise import Situation

    if data is None:
        if not _is_two_rooms(model):
            raise click.UsageError("--data is needed: this agent was not made for Two Rooms, whose states can be drawn")
        from pyjepa.envs.two_rooms import TwoRooms, draw_episodes

        world = TwoRooms(count, split="train")
        world.begin(draw_episodes(count, seed=seed, split="train", cross_room=np.arange(count) % 2 == 0))
        return [Situation(*pair) for pair in zip(world.observation, world.goal_observation, strict=True)]

    from pyjepa.cli.train import require_training

    require_training("h5py")
    from pyjepa.training.dataset import EpisodeReader

    rng = np.random.default_rng(seed)
    with EpisodeReader(data) as reader:
        shape, dtype = reader.fields["observation"]
        if shape != model.spec.observation.shape or dtype != model.spec.observation.dtype:
            wanted = f"{model.spec.observation.dtype} {model.spec.observation.shape}"
            raise click.BadParameter(f"observations are {dtype} {shape}, the agent sees {wanted}", param_hint="--data")
        if not len(reader):
            raise click.BadParameter("no episodes", param_hint="--data")
        drawn = []
        for episode in rng.integers(len(reader), size=count):
            observations = reader.read(int(episode), "observation")
            first, goal = np.sort(rng.integers(len(observations), size=2))
            drawn.append(Situation(observations[first], observations[goal]))
    return drawn


def _precisions(file: bytes, calibrated: bytes) -> dict[str, Model]:
    """The lower precisions that this machine has, int8 both ways."""
    import dataclasses
    import warnings

    import safetensors.numpy

    from pyjepa import agent_file
    from pyjepa.agent import Model

    tensors = safetensors.numpy.load(calibrated)
    spec = Model.from_bytes(calibrated).spec
    bare = {name: dataclasses.replace(module, quantisation=None) for name, module in spec.modules.items()}
    dynamic = agent_file.to_bytes(dataclasses.replace(spec, modules=bare), tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that the machine lacks one: it is left out
        models = {
            "bf16": Model.from_bytes(file, precision="bf16"),
            "int8 dynamic": Model.from_bytes(dynamic, precision="int8"),
        }
        if any(module.quantisation is not None for module in spec.modules.values()):
            models["int8 static"] = Model.from_bytes(calibrated, precision="int8")
    return {name: model for name, model in models.items() if model.precision == name.split()[0]}


def _play(model: Model, episodes: int, seed: int) -> Iterator[bool]:
    from pyjepa.agent import Agent
    from pyjepa.bench.episodes import play
    from pyjepa.envs.two_rooms import evaluation_episodes

    for record in play(Agent(model), evaluation_episodes(episodes, seed=seed), {"seed": seed}):
        yield record.success


def _success(reference: list[bool], other: list[bool]) -> dict[str, Any]:
    """Success of paired episodes, and its difference with a 95 % interval (normal; by the rule of three where the two
    never differ).
    """
    import numpy as np

    differences = np.subtract(other, reference, dtype=np.float64)
    count, change = len(differences), float(differences.mean())
    half = 1.96 * float(differences.std(ddof=1)) / math.sqrt(count) if differences.any() and count > 1 else 3.0 / count
    return {
        "episodes": count,
        "reference_success": float(np.mean(reference)),
        "success": float(np.mean(other)),
        "success_change": change,
        "success_change_95": [max(-1.0, change - half), min(1.0, change + half)],
    }


def _chosen(choice: Choice) -> Table:
    from rich.table import Table

    title = f"int8's plans cost {choice.rise:+.2%} ± {choice.rise_95:.2%}, all layers in int8 {choice.rise_int8:+.2%}"
    table = Table(title=title, caption=f"{choice.states} states, target {choice.target:.2%}")
    table.add_column("layer", no_wrap=True)
    table.add_column("runs in")
    for tried in choice.errors:
        table.add_column(f"error alone in {tried}", justify="right")
    for i, (layer, precision) in enumerate(zip(choice.layers, choice.precisions, strict=True)):
        table.add_row(layer.name, precision, *(f"{errors[i]:.2%}" for errors in choice.errors.values()))
    return table


def _table(result: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=f"{result['agent']}: planning beside fp32, {result['states']} states")
    played = any("episodes" in row for row in result["rows"])
    table.add_column("precision", no_wrap=True)
    for heading in ["Spearman", "plan's cost", *(["success", "change (95 %)"] if played else ["state error"])]:
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        cells = [row["precision"], f"{row['spearman']:.4f}", f"{row['final_cost_change']:+.2%}"]
        if played:
            low, high = row["success_change_95"]
            cells += [f"{row['success']:.1%}", f"{row['success_change']:+.1%} ({low:+.1%} to {high:+.1%})"]
        else:
            cells.append(f"{row['state_error']:.1%}" if "state_error" in row else "-")
        table.add_row(*cells)
    return table
