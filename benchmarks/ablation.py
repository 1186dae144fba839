"""What each part of the agent is worth: success and p99 of every planner at several deadlines, with and without critic
and policy, beside random actions and the policy alone.

Run: python benchmarks/ablation.py [--episodes 20] [--seed 0] [--json benchmarks/results/ablation.json]

The shipped agent plays Two Rooms' held-out episodes, half of them across the wall, on one thread; the planners of
discrete actions play the world of eight moves, where it has no policy. Every planner gets as many iterations as fit
into its deadline on this machine, found beforehand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

import pyjepa
from pyjepa import agents
from pyjepa.bench.episodes import play, summary
from pyjepa.bench.machine import describe
from pyjepa.envs.two_rooms import STEP, TwoRooms, evaluation_episodes
from pyjepa.envs.two_rooms_discrete import TwoRoomsDiscrete

ROOT = Path(__file__).resolve().parents[1]
PLANNERS = ("cem", "icem", "mppi", "predictive-sampling", "gradient", "hybrid")
DISCRETE = ("categorical-cem", "tree")
HASTY_TREE = 16  # simulations of an iteration, which must fit into the shortest deadline; more share out better
DEADLINES = (1, 5, 20, 50)
MOST_ITERATIONS = 500
VARIANTS: dict[str, dict[str, Any]] = {
    "critic and policy": {},
    "critic": {"policy_candidates": 0},
    "policy": {"weights": {"critic": 0.0}},
    "neither": {"policy_candidates": 0, "weights": {"critic": 0.0}},
}


def at_random(episodes: int, seed: int) -> float:
    """The share of goals that random actions, held for a block as the planner's are, reach."""
    world, rng = TwoRooms(episodes), np.random.default_rng(seed)
    world.begin(evaluation_episodes(episodes, seed=seed))
    while not (world.success | world.truncated).all():
        action = rng.uniform(-STEP, STEP, (episodes, 2))
        for _ in range(4):
            world.step(action)
    return float(world.success.mean())


def changes(planner: str, variant: str, milliseconds: int) -> dict[str, Any]:
    """What a variant changes in a planner's task; where there is no policy, nothing about it."""
    task = {k: v for k, v in VARIANTS[variant].items() if k != "policy_candidates" or planner not in DISCRETE}
    return task | ({"candidates": HASTY_TREE} if planner == "tree" and milliseconds == 1 else {})


def iterations(agent: pyjepa.Agent, task: dict[str, Any], milliseconds: float) -> int:
    """How many iterations of a planner fit into a deadline: the fastest of a few plans tells."""
    world = TwoRooms(1)
    world.begin(evaluation_episodes(1))
    agent.configure(goal=world.goal_observation[0], **task)
    plans = [agent.plan(world.observation[0]) for _ in range(5)]
    each = min(plan.elapsed / plan.iterations for plan in plans)
    return int(np.clip(milliseconds * 1e-3 / each, 2, MOST_ITERATIONS))


def conditions() -> Iterator[tuple[str, str, int]]:
    """Planner, variant, deadline."""
    for planner in (*PLANNERS, *DISCRETE):
        for variant in VARIANTS if planner not in DISCRETE else ("critic", "neither"):
            for milliseconds in DEADLINES:
                yield planner, variant, milliseconds


def row(found: dict[str, Any], **labels: Any) -> dict[str, Any]:
    """One condition's figures."""
    kept = ("success", "success_cross_room", "decision_ms_p50", "decision_ms_p99", "decisions")
    return labels | {name: found[name] for name in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "ablation.json")
    options = parser.parse_args()
    agent, discrete = pyjepa.load(agents.path("two_rooms")), pyjepa.Agent(agents.two_rooms_discrete())
    episodes = evaluation_episodes(options.episodes, seed=options.seed)
    rows = [{"planner": "random", "success": at_random(options.episodes, options.seed)}]
    rows.append(row(summary(list(play(agent, episodes, {}, mode=1))), planner="the policy alone"))
    for planner, variant, milliseconds in track(list(conditions()), "playing"):
        player, world = (discrete, TwoRoomsDiscrete) if planner in DISCRETE else (agent, TwoRooms)
        task = {"planner": planner, "seed": options.seed, **changes(planner, variant, milliseconds)}
        task["iterations"] = iterations(player, task, milliseconds)
        if planner == "hybrid":
            task["polish"] = task["iterations"] // 2
        found = summary(list(play(player, episodes, task, deadline=milliseconds / 1e3, world_type=world)))
        rows.append(
            row(found, planner=planner, variant=variant, deadline_ms=milliseconds, iterations=task["iterations"])
        )
    document = {"episodes": options.episodes, "seed": options.seed, "machine": describe(), "rows": rows}
    options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
