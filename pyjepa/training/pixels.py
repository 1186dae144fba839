"""A world model of any world seen as pictures: its spec, and a training run over episodes of whatever origin."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from pyjepa.spec import Actions, CostTerm, Level, Observation, Planner, Spec
from pyjepa.training.architecture import encoder, predictor, transformer
from pyjepa.training.config import Config, Planning
from pyjepa.training.dataset import EpisodeReader
from pyjepa.training.loop import Trainer
from pyjepa.training.run import Reporter


def planner_defaults(planning: Planning, algorithm: str = "cem") -> Planner:
    """The configured planner defaults, as the spec holds them."""
    return Planner(
        algorithm=algorithm,  # type: ignore[arg-type]  # from a closed set
        horizon=planning.horizon,
        candidates=planning.candidates,
        iterations=planning.iterations,
        elites=planning.elites,
        std=planning.std,
        min_std=planning.min_std,
        momentum=planning.momentum,
    )


def picture_spec(
    name: str,
    config: Config,
    *,
    shape: tuple[int, ...],
    actions: Actions,
    hold: bool,
    cost: Sequence[CostTerm] | None = None,
    algorithm: str = "cem",
) -> Spec:
    """A spec with the configured sizes; by default its cost is the distance to a goal picture."""
    sizes, planning = config.architecture, config.planning
    if sizes.transformer is None:
        prediction = predictor(sizes, ensemble=sizes.predictors)
    else:
        prediction = transformer(sizes, sizes.transformer)
    return Spec(
        name=name,
        observation=Observation(shape=shape, dtype="uint8", scale=1 / 255),
        actions=actions,
        modules={"encoder": encoder(sizes), "predictor": prediction},
        levels=(Level(encoder="encoder", predictor="predictor", action_block=config.data.action_block, hold=hold),),
        cost=tuple(cost or (CostTerm(kind="goal_distance", metric=planning.metric, terminal=planning.terminal),)),
        planner=planner_defaults(planning, algorithm),
    )


def train_on(
    spec: Spec,
    config: Config,
    data: str | os.PathLike[str],
    *,
    checkpoint: Path | None = None,
    reporter: Reporter | None = None,
) -> Trainer:
    """A finished run over a data set in pyjepa's format with a ``position`` to probe (`pyjepa.adapters.episodes`).

    Goes on from ``checkpoint`` where it exists. Raises `CheckpointError` if that is of another run.
    """
    with EpisodeReader(data) as episodes:
        trainer = Trainer(spec, config, episodes)
        if checkpoint is not None and checkpoint.exists():
            trainer.resume(checkpoint)
        trainer.run(checkpoint=checkpoint, reporter=reporter)
    return trainer


def provenance(trainer: Trainer, command: str) -> dict[str, str]:
    """Where the weights come from."""
    config = trainer.config
    found = {
        "command": command,
        "seed": str(config.seed),
        "config": json.dumps(config.model_dump(), sort_keys=True),
        "steps": str(trainer.step),
        "pyjepa": version("pyjepa-engine"),
        "torch": torch.__version__,
        "alarms": "; ".join(trainer.alarms) or "none",
    }
    if trainer.diagnostics is not None:
        found |= {name: f"{value:.6g}" for name, value in trainer.diagnostics.as_dict().items()}
    return found
