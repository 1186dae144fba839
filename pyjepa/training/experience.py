"""Experience to practise on: what an agent perceived, decided and expected while it planned (Mode-2).

Symbols: ``E`` environments side by side, ``M`` records, ``P`` plans, ``S`` predictor steps, ``L`` latent, ``A`` action
dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pyjepa import agent_file
from pyjepa.agent import Agent, Model
from pyjepa.envs.two_rooms import TwoRooms, draw_episodes
from pyjepa.memory import Memory
from pyjepa.spec import Observation, Spec

FloatArray = npt.NDArray[np.float32]
Progress = Callable[[int], None]
"""Told how many more are done."""


@dataclass(frozen=True)
class Plans:
    """What was decided in P situations, and what it was expected to lead to."""

    states: FloatArray
    """(P, S + 1, L): the present state, then the predicted ones."""
    goals: FloatArray
    """(P, L)."""
    actions: npt.NDArray[Any]
    """(P, S, A), in the environment's units, or indices (P, S): one action for each predictor step."""

    def __len__(self) -> int:
        """P."""
        return len(self.goals)

    def __getitem__(self, chosen: slice) -> Plans:
        """Some of them."""
        return Plans(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))

    def as_memory(self) -> Memory:
        """What was expected, as if it had been perceived: every plan an episode, its predictor steps counted."""
        count, length, latent = self.states.shape
        return Memory(
            episodes=np.repeat(np.arange(count), length),
            steps=np.tile(np.arange(length), count),
            environments=np.zeros(count * length, np.int32),
            states=self.states.reshape(-1, latent),
            goals=np.repeat(self.goals, length, axis=0),
            costs=np.zeros(count * length, np.float32),
        )

    @staticmethod
    def joined(parts: list[Plans]) -> Plans:
        """Several as one."""
        return Plans(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Plans)))


def walk(
    agent: Agent,
    *,
    episodes: int,
    mode: Literal[1, 2] = 2,
    seed: int = 0,
    environments: int = 16,
    steps: int = 30,
    world_type: type[TwoRooms] = TwoRooms,
    progress: Progress = lambda done: None,
) -> tuple[Memory, float]:
    """Sends an agent through Two Rooms' training episodes, three in four across the wall, and returns what it remembers
    and the share of goals it reached.

    ``mode`` 2 plans, 1 acts by the policy; ``world_type``: where they are walked. An episode ends after ``steps``
    decisions at most. The agent's memory and task are replaced.
    """
    block = agent.model.action_block
    agent.remember(episodes * (steps + 1))
    reached = 0
    for first in range(0, episodes, environments):
        count = min(environments, episodes - first)
        world = world_type(count, split="train")
        crossing = (first + np.arange(count)) % 4 != 0
        world.begin(draw_episodes(count, seed=seed, split="train", cross_room=crossing, first=first))
        agent.configure(goal=world.goal_observation, seed=seed + first)
        for _ in range(steps):
            agent.observe(world.observation, steps=block)
            if world.success.all():
                break
            if mode == 2:
                held = agent.plan().actions[:, :block].swapaxes(0, 1)
            else:
                held = np.repeat(agent.act()[None], block, axis=0)
            for action in held:
                world.step(action)
        reached += int(world.success.sum())
        progress(count)
    return agent.memory, reached / episodes


def latent_model(spec: Spec, tensors: Mapping[str, FloatArray]) -> Model:
    """The agent that begins at its latent state: without its encoder, so that stored states can be planned from."""
    (level,) = spec.levels
    if level.encoder is None:
        latent = int(np.prod(spec.observation.shape))
    else:
        latent = Model.from_bytes(agent_file.to_bytes(spec, tensors)).latent_dim
    bare = dataclasses.replace(
        spec,
        observation=Observation(shape=(latent,)),
        modules={name: module for name, module in spec.modules.items() if name != level.encoder},
        levels=(dataclasses.replace(level, encoder=None),),
    )
    kept = {name: value for name, value in tensors.items() if name.split(".")[0] != level.encoder}
    return Model.from_bytes(agent_file.to_bytes(bare, kept))


def plan_from(
    model: Model,
    states: FloatArray,
    goals: FloatArray,
    *,
    environments: int = 16,
    seed: int = 0,
    progress: Progress = lambda done: None,
    **task: object,
) -> Plans:
    """Plans from stored states (P, L) to goals (P, L) with a `latent_model`; ``task``: see `Agent.configure`."""
    agent = Agent(model)
    block, plans = model.action_block, []
    for first in range(0, len(states), environments):
        chosen = slice(first, first + environments)
        agent.configure(goal=goals[chosen], seed=seed + first, **task)  # type: ignore[arg-type]
        agent.observe(states[chosen])
        plan = agent.plan()
        assert plan.states is not None
        plans.append(Plans(plan.states, goals[chosen], plan.actions[:, ::block]))
        progress(len(plan.actions))
    return Plans.joined(plans)


def load_tensors(path: str) -> dict[str, FloatArray]:
    """An agent file's weights by name; the file has been validated by whoever loaded it."""
    return dict(safetensors.numpy.load_file(path))
