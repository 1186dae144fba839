"""``swm/TwoRoom-v1`` of stable-worldmodel: collect with its policies, train here, plan in C++; its `World` judges.

The world is a picture of two rooms, one door and a dot that moves at most 5 of 224 px a step; it is seen at 64 x 64.
A goal is a picture from a recorded episode, 25 steps after the one that the agent starts from; 50 steps to get within
16 px of it. That is how the figures published for this world were taken.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyjepa.adapters import needed
from pyjepa.adapters.episodes import StableWorldModelHdf5, in_blocks
from pyjepa.adapters.torchvision import import_stable_worldmodel
from pyjepa.spec import Actions, CostTerm, Spec
from pyjepa.training.config import Config
from pyjepa.training.pixels import picture_spec

ENVIRONMENT = "swm/TwoRoom-v1"
SIZE = 64
BLOCK = 5
"""Environment steps per predictor step."""
OFFSET, BUDGET, EPISODES = 25, 50, 50
"""Of an evaluation: steps to the goal in the recording, steps allowed, episodes."""
PUBLISHED = {"LeWM": 87.0, "PLDM": 97.0, "DINO-WM": 100.0}
"""Success in percent, as stable-worldmodel's authors report."""
REACHES = (1.5, 2.0, 3.0)
"""Of the goal distance, in latent units: beyond, every step costs the same, so that a plan is as short as it can be.
What a unit means differs between trainings, so each agent gets the one of these that serves it best on a recording."""

SETTINGS: dict[str, Any] = {
    "data": {"episodes": 1400, "steps": 12, "action_block": BLOCK, "holdout": 100, "window": 4},
    "architecture": {"channels": [16, 32, 64], "latent": 32, "encoder_hidden": 128, "predictor_hidden": [256, 256]},
    "objective": {"regularised_steps": [0, 2, 4], "temporal_variance_target": 0.5},
    "optimiser": {"steps": 4000, "batch": 64},
    "alarms": {"grace": 600, "inverse_dynamics": 0.9},
    "planning": {"horizon": 50, "candidates": 500, "iterations": 6, "elites": 30, "std": 1.0},
    "log": {"evaluate_every": 300, "checkpoint_every": 300},
}
"""What differs from the defaults of `pyjepa.training.config`."""


def config(seed: int = 0, steps: int | None = None) -> Config:
    """The configuration of a run."""
    optimiser = SETTINGS["optimiser"] | ({} if steps is None else {"steps": steps})
    return Config.model_validate({**SETTINGS, "optimiser": optimiser, "seed": seed})


def build_spec(settings: Config) -> Spec:
    """The spec of an agent of this world. It plans by MPPI: of three the best on recordings that no evaluation uses."""
    return picture_spec(
        "swm-two-room", settings, shape=(3, SIZE, SIZE), actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0)), hold=True,
        cost=_goal_within(REACHES[0]), algorithm="mppi",
    )  # fmt: skip


def with_reach(spec: Spec, reach: float) -> Spec:
    """The spec with another reach of its goal distance."""
    return dataclasses.replace(spec, cost=_goal_within(reach))


def _goal_within(reach: float) -> tuple[CostTerm, ...]:
    return (CostTerm(kind="goal_distance", reach=reach),)


def holding(expert: type, hold: int) -> type:
    """The policy class ``expert``, deciding at every ``hold``-th step and keeping to that in between.

    A block of a recording then has one action, as a plan's have, and some of these run into walls: actions disturbed
    anew at every step average out, and a model that has seen only their means plans through walls. (The expert's own
    ``action_repeat_prob`` does nothing in 0.1.1: it never keeps the action that it would repeat.)
    """

    class Holding(expert):  # type: ignore[misc]
        def get_action(self, info_dict: dict[str, Any], **rest: Any) -> Any:
            decided = super().get_action(info_dict, **rest)
            step = np.asarray(info_dict["step_idx"]).reshape(-1)
            # What is recorded of an episode begins after its first step, and so do its blocks.
            anew = (step == 0) | ((step - 1) % hold == 0)
            held = getattr(self, "held", decided)
            self.held = np.where(anew[:, None], decided, held)
            return self.held

    return Holding


def collect(
    path: str | os.PathLike[str], *, episodes: int, seed: int, noise: float = 1.5, hold: int = BLOCK, steps: int = 60
) -> None:
    """Record episodes of stable-worldmodel's expert, its actions disturbed by normal ``noise`` and held (`holding`)."""
    swm = import_stable_worldmodel()
    expert = needed("stable_worldmodel.envs.two_room.expert_policy", "stable-worldmodel", "its expert").ExpertPolicy
    Path(path).unlink(missing_ok=True)  # its writer appends
    world = swm.World(ENVIRONMENT, num_envs=8, image_shape=(SIZE, SIZE), max_episode_steps=steps)
    world.set_policy(holding(expert, hold)(action_noise=noise, seed=seed))
    world.collect(path, episodes=episodes, seed=seed, format="hdf5", progress=False)


def prepare(
    recorded: str | os.PathLike[str], path: str | os.PathLike[str], progress: Callable[[int], None] | None = None
) -> None:
    """From a recording of stable-worldmodel's to what training reads: blocks of 5 steps."""
    with StableWorldModelHdf5(Path(recorded), others=("state",), skip_short=True) as source:
        in_blocks(
            source, path, action_block=BLOCK, hold=True, fields=("state",), least=SETTINGS["data"]["window"],
            metadata={"environment": ENVIRONMENT}, progress=progress,
        )  # fmt: skip


def starts(recorded: str | os.PathLike[str], *, episodes: int = EPISODES, seed: int = 0) -> tuple[list[int], list[int]]:
    """Which recorded episodes, and which steps of them, an evaluation begins at: drawn by ``seed``.

    Raises ValueError where too few are long enough.
    """
    with StableWorldModelHdf5(Path(recorded), skip_short=True) as source:
        fits = np.flatnonzero(source.lengths >= OFFSET)
        if len(fits) < episodes:
            raise ValueError(f"{recorded}: {len(fits)} episodes of {OFFSET} steps, {episodes} are needed")
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(fits, episodes, replace=False))
        return [source.kept[e] for e in chosen], [int(rng.integers(source.lengths[e] - OFFSET + 1)) for e in chosen]


def evaluate(
    policy: Any, recorded: str | os.PathLike[str], *, episodes: int = EPISODES, seed: int = 0
) -> dict[str, Any]:
    """stable-worldmodel's own evaluation of a policy: ``success`` in percent, and which episodes."""
    swm = import_stable_worldmodel()
    dataset = needed("stable_worldmodel.data", "stable-worldmodel", "its data sets").HDF5Dataset(
        path=str(recorded), keys_to_load=["pixels", "state", "action"]
    )
    chosen, first = starts(recorded, episodes=episodes, seed=seed)
    world = swm.World(ENVIRONMENT, num_envs=episodes, image_shape=(SIZE, SIZE), max_episode_steps=BUDGET + 1)
    world.set_policy(policy)
    found = world.evaluate(
        dataset=dataset, episodes_idx=chosen, start_steps=first, goal_offset=OFFSET, eval_budget=BUDGET,
        callables=[
            {"method": "_set_state", "args": {"state": {"value": "state"}}},
            {"method": "_set_goal_state", "args": {"goal_state": {"value": "goal_state"}}},
        ],
    )  # fmt: skip
    return {"success": float(found["success_rate"]), "episodes": [bool(x) for x in found["episode_successes"]]}
