"""``pyjepa import FILE``: an agent file from another library's weights."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyjepa.cli.train import require_training

if TYPE_CHECKING:
    from pyjepa.spec import Actions


def _numbers(context: click.Context, option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """``1`` or ``1,2.5``."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise click.BadParameter(f"{text!r}: numbers between commas are expected")
    return numbers


TAKES = {
    "LeWM and PLDM": {"action_block", "low", "high", "action_mean", "action_std", "pixels", "heads", "encoder_heads",
                      "window"},
    "TD-MPC2": {"value_range", "image_size"},
    "EB-JEPA": {"low", "high", "action_mean", "action_std", "image_size"},
}  # fmt: skip
"""Which options say something of a model."""


@click.command(short_help="Write an agent file from another library's weights.")
@click.argument("source", metavar="FILE", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="AGENT", required=True, help="The file to write."
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What the model was built from.  [default: config.json beside FILE, if there is one]",
)
@click.option("--name", default="", help="The agent's.  [default: the model's kind]")
@click.option("--action-block", type=click.IntRange(1), help="Environment steps of one of the model's actions.  [1]")
@click.option(
    "--low", callback=_numbers, metavar="L[,L…]", help="Least actions of the environment.  [-1; EB-JEPA's: -2.45]"
)
@click.option(
    "--high", callback=_numbers, metavar="H[,H…]", help="Largest actions of the environment.  [1; EB-JEPA's: 2.45]"
)
@click.option("--action-mean", callback=_numbers, metavar="M[,M…]", help="What training took from actions.  [0]")
@click.option("--action-std", callback=_numbers, metavar="S[,S…]", help="What training divided actions by.  [1]")
@click.option(
    "--pixels",
    type=click.Choice(["unit", "imagenet"]),
    help="How training normalised pictures: to [0, 1], or by ImageNet's means and deviations after that.  [unit]",
)
@click.option("--heads", type=click.IntRange(1), help="Of the predictor, where no config says it.")
@click.option("--encoder-heads", type=click.IntRange(1), help="Of the encoder, where no config says it.")
@click.option("--window", type=click.IntRange(1), help="States to look back on.  [all that have a position]")
@click.option("--value-range", callback=_numbers, metavar="MIN,MAX", help="TD-MPC2's vmin and vmax without a config.")
@click.option(
    "--image-size", type=click.IntRange(1), help="Side of the pictures of TD-MPC2 or EB-JEPA.  [EB-JEPA's: 65]"
)
def command(source: Path, out: Path, config_file: Path | None, name: str, **given: Any) -> None:
    """Make an agent file of FILE: a state dict of stable-worldmodel's LeWM, PLDM or TD-MPC2, or of EB-JEPA's
    action-conditioned two rooms.

    FILE is a weights.pt or a checkpoint of training, or the folder that holds one (EB-JEPA's latest.pth.tar) and its
    config.json. Nothing in it is executed: a pickled model is refused, and what lies beside the weights is passed over.
    A tensor that is missing, unknown or of another shape is named; half precision is widened to float32. What neither
    weights nor config say has to be told: how actions and pictures were normalised, and over how many steps one action
    goes.

    Of the options after --name, TD-MPC2 takes --value-range and --image-size, EB-JEPA --image-size and those of actions
    but --action-block, LeWM and PLDM all others. An agent of EB-JEPA perceives pictures as
    pyjepa.adapters.eb_jepa.normalised leaves them.
    """
    require_training("torch")
    from pyjepa import agent_file
    from pyjepa.adapters import eb_jepa, swm_lewm
    from pyjepa.adapters.stable_worldmodel import lift, load_weights
    from pyjepa.agent import Model

    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    source = _weights(source)
    config = _config(config_file or source.parent / "config.json", needed=config_file is not None)
    state = load_weights(source)
    options = {key: value for key, value in given.items() if value is not None}
    names = list(state)
    kind = "LeWM and PLDM" if swm_lewm.is_one(names) else "EB-JEPA" if eb_jepa.is_one(names) else "TD-MPC2"
    for option in sorted(set(options) - TAKES[kind]):
        takers = [other for other, taken in TAKES.items() if option in taken]
        raise click.UsageError(f"--{option.replace('_', '-')}: {kind} has no such option, but {', '.join(takers)}")
    if kind == "EB-JEPA":
        actions = _actions(options, eb_jepa.action_size(state), eb_jepa.STEP)
        spec, tensors = eb_jepa.lift(state, actions=actions, **options)
    elif kind == "TD-MPC2":
        spec, tensors = _td_mpc2(state, config, options, lift)
    else:
        if options.pop("pixels", "unit") == "imagenet":
            options["pixels"] = swm_lewm.IMAGENET
        block = options.setdefault("action_block", 1)
        actions = _actions(options, swm_lewm.action_size(state) // block, 1.0)
        spec, tensors = lift(state, config=config, actions=actions, **options)
    if name:
        spec = dataclasses.replace(spec, name=name)
    agent_file.save(out, spec, tensors)
    model = Model.load(out)
    count = sum(tensor.size for tensor in tensors.values())
    click.echo(f"{out}: {model.spec.name}, latent {model.latent_dim}, {count:,} weights")


def _actions(options: dict[str, Any], size: int, reach: float) -> Actions:
    """What the options say of actions of ``size`` numbers, and takes them out; bounds left out are ``reach`` from 0."""
    from pyjepa.spec import Actions

    limits = {key: options.pop(key, (default,)) for key, default in
              (("low", -reach), ("high", reach), ("action_mean", 0.0), ("action_std", 1.0))}  # fmt: skip
    for key, value in limits.items():
        if len(value) not in (1, size):
            raise click.BadParameter(
                f"{len(value)} numbers, an action has {size}", param_hint=f"--{key.replace('_', '-')}"
            )
    low, high, center, scale = (value * size if len(value) == 1 else value for value in limits.values())
    return Actions(low=low, high=high, center=center, scale=scale)


def _weights(source: Path) -> Path:
    if not source.is_dir():
        return source
    found = sorted([*source.glob("*.pt"), *source.glob("latest.pth.tar")])
    if len(found) != 1:
        what = f"{source} holds {len(found)} files of weights (*.pt, latest.pth.tar): name one"
        raise click.BadParameter(what, param_hint="FILE")
    return found[0]


def _config(file: Path, *, needed: bool) -> Mapping[str, Any] | None:
    if not needed and not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{file}: no JSON ({error})", param_hint="--config") from error
    if not isinstance(config, dict):
        raise click.BadParameter(f"{file}: expected an object", param_hint="--config")
    return config


def _td_mpc2(state: Mapping[str, Any], config: Mapping[str, Any] | None, options: dict[str, Any], lift: Any) -> Any:
    if "value_range" in options and len(options["value_range"]) != 2:
        raise click.BadParameter("two numbers are expected", param_hint="--value-range")
    stated = (config or {}).get("cfg", config)
    wm = stated.get("wm") if isinstance(stated, Mapping) else None
    if isinstance(wm, Mapping):
        settings = types.SimpleNamespace(wm=_Wm(wm), image_size=stated.get("image_size"))
        model = types.SimpleNamespace(cfg=settings, state_dict=lambda: state)
        return lift(model, **options)
    return lift(state, **options)


class _Wm(dict[str, Any]):
    """A section of a configuration, whose keys are attributes."""

    def __getattr__(self, key: str) -> Any:
        if key not in self:
            raise click.UsageError(f"the config lacks wm.{key}")
        return self[key]
