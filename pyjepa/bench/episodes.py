"""Closed-loop episodes of Two Rooms: perceive, plan, execute one block of actions, again - with the clock running."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyjepa.agent import Agent, Plan
from pyjepa.bench.percentiles import milliseconds
from pyjepa.envs.two_rooms import Episodes, TwoRooms

Watch = Callable[[TwoRooms, Plan], None]
"""Called after every plan, before it is executed."""


@dataclass
class Record:
    """One episode: how it went and how long its decisions took (seconds)."""

    success: bool
    steps: int
    cross_room: bool
    distance: float
    """To the goal at the end, in pixels."""
    perceive: list[float] = field(default_factory=list)
    plan: list[float] = field(default_factory=list)
    decision: list[float] = field(default_factory=list)
    """Perception and planning together."""


def play(
    agent: Agent,
    episodes: Episodes,
    task: dict[str, Any],
    *,
    mode: Literal[1, 2] = 2,
    deadline: float | None = None,
    watch: Watch | None = None,
    world_type: type[TwoRooms] = TwoRooms,
) -> Iterator[Record]:
    """Plays every episode of ``episodes`` in turn with ``agent`` (configured by ``task``), one record each.

    In mode 2 it plans, ``deadline`` seconds at most, and executes the plan's first block of actions before it looks
    again; in mode 1 it looks before every action, which is its policy's. ``world_type``: the world they are played in.
    """
    block = agent.model.action_block
    for i in range(len(episodes)):
        world = world_type(1)
        world.begin(episodes[i : i + 1])
        agent.configure(goal=world.goal_observation[0], **task)
        record = Record(False, 0, bool(episodes.cross_room[i]), 0.0)
        while not (world.success[0] or world.truncated[0]):
            observation = world.observation[0]
            started = time.perf_counter()
            agent.observe(observation, steps=block if mode == 2 else 1)
            perceived = time.perf_counter()
            if mode == 1:
                actions = np.asarray(agent.act())[None]
            else:
                plan = agent.plan(deadline=deadline)
                actions = plan.actions[:block]
            decided = time.perf_counter()
            record.perceive.append(perceived - started)
            if mode == 2:
                record.plan.append(decided - perceived)
                if watch is not None:
                    watch(world, plan)
            record.decision.append(decided - started)
            execute(world, actions)
        record.success, record.steps = bool(world.success[0]), int(world.steps[0])
        record.distance = float(world.distance[0])
        yield record


def execute(world: TwoRooms, actions: npt.NDArray[np.float32] | npt.NDArray[np.int64]) -> None:
    """Carries out actions (n, 2), or indices (n,), until they end or the episode does."""
    for action in actions:
        if world.success[0] or world.truncated[0]:
            return
        world.step(action[None])


def summary(records: list[Record]) -> dict[str, Any]:
    """Success rates (fractions; None without such episodes), steps, and percentiles in milliseconds."""

    def rate(chosen: list[Record]) -> float | None:
        return round(sum(r.success for r in chosen) / len(chosen), 6) if chosen else None

    reached = [r.steps for r in records if r.success]
    result: dict[str, Any] = {
        "episodes": len(records),
        "success": rate(records),
        "success_cross_room": rate([r for r in records if r.cross_room]),
        "success_same_room": rate([r for r in records if not r.cross_room]),
        "steps_to_goal_median": float(np.median(reached)) if reached else None,
    }
    for name in ("perceive", "plan", "decision"):
        times = [seconds for r in records for seconds in getattr(r, name)]
        for percentile in (50, 99):
            result[f"{name}_ms_p{percentile}"] = milliseconds(times, percentile)
    result["decisions"] = sum(len(r.decision) for r in records)
    return result
