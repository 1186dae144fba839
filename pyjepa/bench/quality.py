"""Time to equal quality: how long each planner takes to reach the final cost of another planner, on the same weights.

The other one is stable-worldmodel's CEM, 300 candidates and 30 iterations. For every state it plans once; each of our
planners is then given growing budgets of iterations, from scratch every time, until the plan it returns costs no more
(strict), or at most `TOLERANCE` more (equal: what two runs of the other differ by) - the costs of both by the engine's
fp32 model. What counts is the time of that plan: CPU time of the planning thread, so
that neighbours do not matter; both use one thread.

*Warm* is one step later: the planner's own plan (its largest budget) has been executed for one predictor step, the
model says where that led, and every element of that state has been disturbed by normal noise of `DISTURBANCE` times the
root mean square of the step's change. Then the shifted plan is where ours starts; the other plans from scratch, as it
does.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyjepa import agent_file
from pyjepa.agent import Agent, Model
from pyjepa.bench.peers import FloatArray
from pyjepa.bench.workloads import WORKLOADS, Problem, Workload
from pyjepa.spec import Observation, Planner, Spec

PEER = Planner(algorithm="cem", candidates=300, iterations=30, elites=30, std=1.0)
"""stable-worldmodel's defaults."""
DISTURBANCE = 0.3
TOLERANCE = 1e-3
BUDGETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 64)
REPEATS = 3
"""Of every timed plan here; the fastest counts. The peer's, which take a hundred times as long, run once."""


@dataclass(frozen=True)
class Entrant:
    """A planner with its settings; ``extra``: iterations beside those of the budget."""

    name: str
    task: dict[str, Any]
    polish: bool = False
    """The budget is of iterations that descend, after `task`'s that sample."""

    def settings(self, budget: int) -> dict[str, Any]:
        """The task with so many iterations."""
        if not self.polish:
            return {**self.task, "iterations": budget}
        return {**self.task, "polish": budget, "iterations": self.task["iterations"] + budget}


_SAMPLING = {"candidates": 128, "elites": 16, "std": 1.0, "min_std": 0.02}
_NEARBY = {"candidates": 64, "elites": 8, "std": 0.2, "min_std": 0.02}
COLD = (
    Entrant("cem", {"planner": "cem", **_SAMPLING}),
    Entrant("icem", {"planner": "icem", **_SAMPLING, "decay": 1.1}),
    Entrant("mppi", {"planner": "mppi", "candidates": 128, "std": 0.3, "temperature": 0.1}),
    Entrant("predictive-sampling", {"planner": "predictive-sampling", "candidates": 128, "std": 0.2}),
    Entrant("gradient", {"planner": "gradient", "restarts": 16, "std": 1.0}),
    Entrant("hybrid", {"planner": "hybrid", **_SAMPLING, "iterations": 3, "restarts": 12}, polish=True),
)
WARM = (
    Entrant("cem", {"planner": "cem", **_NEARBY}),
    Entrant("icem", {"planner": "icem", **_NEARBY}),
    Entrant("mppi", {"planner": "mppi", "candidates": 64, "std": 0.1, "temperature": 0.1}),
    Entrant("predictive-sampling", {"planner": "predictive-sampling", "candidates": 64, "std": 0.1}),
    Entrant("gradient", {"planner": "gradient", "restarts": 4, "std": 0.2, "learning_rate": 0.1}),
    Entrant(
        "hybrid", {"planner": "hybrid", **_NEARBY, "iterations": 1, "restarts": 4, "learning_rate": 0.1}, polish=True
    ),
)
PLANNERS = tuple(entrant.name for entrant in COLD)


@dataclass(frozen=True)
class Case:
    """A state to plan from."""

    start: FloatArray
    goal: FloatArray
    before: FloatArray | None = None
    """Warm: the state one predictor step earlier."""


class World:
    """A workload's predictor and cost, with the latent state as the observation."""

    def __init__(self, workload: Workload) -> None:
        problem = Problem.of(workload)
        predictor = problem.predictor
        spec: Spec = dataclasses.replace(
            workload.spec,
            observation=Observation(shape=(problem.latent_dim,)),
            modules={predictor: workload.spec.modules[predictor]},
            levels=(dataclasses.replace(workload.spec.levels[0], encoder=None),),
            policy=None,
        )
        tensors = {name: value for name, value in workload.tensors.items() if name.startswith(f"{predictor}.")}
        self.problem = dataclasses.replace(problem, planner=dataclasses.replace(PEER, horizon=spec.planner.horizon))
        self.agent = Agent(Model.from_bytes(agent_file.to_bytes(spec, tensors)))
        self.block = spec.levels[0].action_block

    def cost(self, case: Case, plan: FloatArray) -> float:
        """What a plan (S, A) costs, by the engine's fp32 model."""
        return float(dataclasses.replace(self.problem, start=case.start, goal=case.goal).costs(plan[None])[0])

    def plan(self, entrant: Entrant, budget: int, case: Case) -> tuple[FloatArray, float]:
        """A plan (S, A) and its CPU seconds. Warm: after plans one step earlier that make up the largest budget."""
        agent = self.agent
        agent.configure(goal=case.goal, **entrant.settings(budget))
        if case.before is not None:
            for _ in range(-(-BUDGETS[-1] // budget)):
                agent.observe(case.before, steps=0)
                agent.plan()
        agent.observe(case.start)
        started = time.thread_time()
        plan = agent.plan()
        return plan.actions[:: self.block], time.thread_time() - started

    def peer(self, case: Case) -> tuple[float, float]:
        """The cost of the other planner's plan, and its CPU seconds. Raises ImportError where it is not installed."""
        from pyjepa.bench.peers import stable_worldmodel

        problem = dataclasses.replace(self.problem, start=case.start, goal=case.goal)
        prepared = stable_worldmodel.prepare(problem, 1, "CEM")
        started = time.thread_time()
        plan = prepared.plan()
        seconds = time.thread_time() - started
        within = np.asarray(np.clip(np.asarray(plan), problem.low, problem.high), np.float32)
        return self.cost(case, within), seconds

    def disturbed(self, entrant: Entrant, case: Case, seed: int) -> Case:
        """The case one step on: the entrant's plan executed for one predictor step, and the state disturbed."""
        plan, _ = self.plan(entrant, BUDGETS[-1], case)
        normalised = (plan[:1] - self.problem.center) / self.problem.scale
        state = np.concatenate([case.start[None], normalised], axis=1)
        after = self.problem.engine.forward(self.problem.predictor, state)[0]
        size = DISTURBANCE * np.sqrt(np.mean(np.square(after - case.start)))
        noise = np.random.default_rng(seed).standard_normal(after.shape)
        return Case((after + size * noise).astype(np.float32), case.goal, case.start)

    def times_to(self, entrant: Entrant, case: Case, targets: tuple[float, ...]) -> list[tuple[float, int] | None]:
        """Seconds and budget of the first plan that costs no more, for each target, the loosest first; None: not within
        the largest budget.
        """
        found: list[tuple[float, int] | None] = []
        for budget in BUDGETS:
            plan, seconds = self.plan(entrant, budget, case)
            cost = self.cost(case, plan)
            if cost > targets[len(found)]:
                continue
            again = [self.plan(entrant, budget, case)[1] for _ in range(REPEATS - 1)]
            while len(found) < len(targets) and cost <= targets[len(found)]:
                found.append((min(seconds, *again), budget))
            if len(found) == len(targets):
                return found
        return [*found, *[None] * (len(targets) - len(found))]


def cases(name: str, workload: Workload, count: int) -> list[Case]:
    """Starts and goals: normal ones, as the workload's own; of two-rooms, held-out episodes."""
    if name == "two-rooms":
        from pyjepa.envs.two_rooms import TwoRooms, evaluation_episodes

        world = TwoRooms(count)
        world.begin(evaluation_episodes(count))
        model = workload.model()
        starts, goals = model.encode(world.observation), model.encode(world.goal_observation)
    else:
        starts, goals = np.random.default_rng(1).standard_normal((2, count, len(workload.observation)))
    return [Case(s.astype(np.float32), g.astype(np.float32)) for s, g in zip(starts, goals, strict=True)]


def measure(
    name: str,
    states: int = 50,
    planners: Sequence[str] = PLANNERS,
    *,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """One row for each planner, cold and warm; ``report`` gets each as it is done."""
    workload = WORKLOADS[name]()
    world = World(workload)
    starts = cases(name, workload, states)
    gc.disable()
    try:
        peers = [world.peer(case) for case in starts]
        rows: list[dict[str, Any]] = []

        def enter(start: str, entrant: Entrant, states: list[Case], peers: list[tuple[float, float]]) -> None:
            found = [
                world.times_to(entrant, case, (cost + TOLERANCE * abs(cost), cost))
                for case, (cost, _) in zip(states, peers, strict=True)
            ]
            rows.append(_row(name, start, entrant, peers, found))
            report(rows[-1])

        for entrant in (e for e in COLD if e.name in planners):
            enter("cold", entrant, starts, peers)
        for entrant in (e for e in WARM if e.name in planners):
            later = [world.disturbed(entrant, case, seed) for seed, case in enumerate(starts)]
            enter("warm", entrant, later, [world.peer(case) for case in later])
    finally:
        gc.enable()
    return rows


def _row(
    workload: str,
    start: str,
    entrant: Entrant,
    peers: list[tuple[float, float]],
    found: list[list[tuple[float, int] | None]],
) -> dict[str, Any]:
    """Medians over states; a state in which the target was not reached counts as infinitely long."""
    theirs = statistics.median(seconds for _, seconds in peers)
    row: dict[str, Any] = {
        "workload": workload,
        "start": start,
        "planner": entrant.name,
        "settings": entrant.task,
        "states": len(found),
        "peer_ms": round(1e3 * theirs, 4),
        "peer_cost": statistics.median(cost for cost, _ in peers),
    }
    for i, quality in enumerate(("equal", "strict")):
        ours = statistics.median(float("inf") if f[i] is None else f[i][0] for f in found)  # type: ignore[index]
        reached = [f[i][1] for f in found if f[i] is not None]  # type: ignore[index]
        row[quality] = {
            "reached": round(len(reached) / len(found), 6),
            "iterations": statistics.median(reached) if reached else None,
            "ms": round(1e3 * ours, 4) if ours < float("inf") else None,
            "ratio": round(theirs / ours, 3) if ours < float("inf") else None,
        }
    return row
