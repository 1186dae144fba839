"""Time to equal quality: how long each planner takes to reach the final cost of another planner, on the same weights.

The other one is stable-worldmodel's CEM, 300 candidates and 30 iterations. For every state it plans once; each of our
planners is then given growing budgets of iterations, the same for all states and from scratch every time, until in more
than half of the states the plan it returns costs no more (strict), or at most `TOLERANCE` more (equal: what two runs of
the other differ by) - the costs of both by the engine's fp32 model. A state in which the plan costs more counts as
infinitely long. What counts is the time of those plans: CPU time of the planning thread, so that neighbours do not
matter; both use one thread. The time on the wall is noted beside it.

*Warm* is one step later: the planner's own plan (its largest budget) has been executed for one predictor step, the
model says where that led, and every element of that state has been disturbed by normal noise of `DISTURBANCE` times the
root mean square of the step's change. Then the shifted plan is where ours starts; the other plans from scratch, as it
does.

`measure_practice` asks the same of practice: the shipped agent, whose planner starts from the policy's rollout, against
the agent without. Its cost is that of the shipped agent for both: goal distance over the horizon, and the critic's
estimate of what comes after.

`measure_replans` asks it of replanning, of any agent for Two Rooms: the other planner is the engine's own CEM from
scratch, `COLD_CEM`. The states are those that playing so leads to; warm is one executed block later, in the world.
Every budget of `REPLANS` is tried, which gives a curve of cost over time. Every planner then plays episodes of its own,
warm, with the largest budget that takes at most `CYCLE`, each of its replans beside a cold one from the same picture.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa import agent_file, agents
from pyjepa.agent import Agent, Model, Plan
from pyjepa.bench.peers import FloatArray
from pyjepa.bench.workloads import WORKLOADS, Problem, Workload
from pyjepa.errors import UnsupportedError
from pyjepa.spec import Observation, Planner, Spec

PEER = Planner(algorithm="cem", candidates=300, iterations=30, elites=30, std=1.0)
"""stable-worldmodel's defaults."""
DISTURBANCE = 0.3
TOLERANCE = 1e-3
BUDGETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 64)
COLD_CEM: dict[str, Any] = {
    "planner": "cem", "candidates": 300, "iterations": 10, "elites": 30, "std": 1.0, "min_std": 0.0,
}  # fmt: skip
"""What LeWM plans by, with the fewer of its iterations."""
REPLANS = (1, 2, 3, 4, 6, 8, 12, 16)
CYCLE = 0.1
"""Seconds between replans at 10 Hz."""
REPEATS = 3
"""Of every timed plan here; the fastest counts. The peer's, which take a hundred times as long, run once."""


@dataclass(frozen=True)
class Entrant:
    """A planner with its settings."""

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
    Entrant("gradient", {"planner": "gradient", "restarts": 16, "std": 0.5}),
    Entrant(
        "hybrid", {"planner": "hybrid", **_NEARBY, "iterations": 1, "restarts": 4, "learning_rate": 0.1}, polish=True
    ),
)
_WIDE = {"candidates": 64, "elites": 8, "std": 0.5, "min_std": 0.02}
AGAIN = (
    Entrant("cem", {"planner": "cem", **_WIDE}),
    Entrant("icem", {"planner": "icem", **_WIDE, "decay": 1.05}),
    Entrant("mppi", {"planner": "mppi", "candidates": 64, "std": 0.3, "temperature": 0.1}),
    Entrant("predictive-sampling", {"planner": "predictive-sampling", "candidates": 64, "std": 0.3}),
    *(entrant for entrant in WARM if entrant.name in ("gradient", "hybrid")),
)
"""Warm in the world, block after block: wider than `WARM`, or a plan that led into a wall stays there."""
PLANNERS = tuple(entrant.name for entrant in COLD)
_AROUND_POLICY = {"planner": "gradient", "restarts": 2, "std": 0.1, "learning_rate": 0.1}
PRACTISED = (
    Entrant("cem", {"planner": "cem", "policy_candidates": 1}),
    Entrant("mppi", {"planner": "mppi", "std": 0.2, "temperature": 0.1, "policy_candidates": 1}),
    Entrant("gradient", {**_AROUND_POLICY, "policy_candidates": 1}),
    Entrant("gradient, no policy", {**_AROUND_POLICY, "std": 1.0, "policy_candidates": 0}),
)
UNPRACTISED: dict[str, dict[str, Any]] = {
    "without policy": {"policy_candidates": 0},
    "with neither": {"policy_candidates": 0, "weights": {"critic": 0.0}, "horizon": 80},
}
"""What the shipped agent's own planner goes without, cold: see `measure_practice`."""


@dataclass(frozen=True)
class Case:
    """A state to plan from."""

    start: npt.NDArray[Any]
    goal: npt.NDArray[Any]
    before: npt.NDArray[Any] | None = None
    """Warm: the state one predictor step earlier."""


@dataclass(frozen=True)
class Found:
    """A plan's cost and how long it took, in seconds."""

    cost: float
    cpu: float
    wall: float


@dataclass(frozen=True)
class _Clock:
    """Both clocks, from when it was made."""

    cpu: float
    wall: float

    @staticmethod
    def start() -> _Clock:
        return _Clock(time.thread_time(), time.perf_counter())

    def stop(self, cost: Callable[[], float]) -> Found:
        """What has passed; the cost is found out afterwards."""
        cpu, wall = time.thread_time() - self.cpu, time.perf_counter() - self.wall
        return Found(cost(), cpu, wall)


class Planning(ABC):
    """An agent that is given cases to plan for."""

    agent: Agent
    block: int
    budgets: Sequence[int] = BUDGETS

    @abstractmethod
    def cost(self, case: Case, plan: FloatArray) -> float:
        """What a plan (S, A) costs, by the engine's fp32 model."""

    def actions(self, entrant: Entrant, budget: int, case: Case) -> tuple[FloatArray, _Clock]:
        """A plan (S, A), and a clock that was started with it. Warm: after plans one step earlier that make up the
        largest budget.
        """
        agent = self.agent
        agent.configure(goal=case.goal, **entrant.settings(budget))
        if case.before is not None:
            self._settle(case.before, budget)
        agent.observe(case.start)
        clock = _Clock.start()
        return agent.plan().actions[:: self.block], clock

    def plan(self, entrant: Entrant, budget: int, case: Case) -> Found:
        """One plan; see `actions`."""
        plan, clock = self.actions(entrant, budget, case)
        return clock.stop(lambda: self.cost(case, plan))

    def _settle(self, observation: npt.NDArray[Any], budget: int) -> Plan:
        """Plans from one observation until they make up the largest budget; the last one."""
        for _ in range(-(-self.budgets[-1] // budget)):
            self.agent.observe(observation, steps=0)
            plan = self.agent.plan()
        return plan


class World(Planning):
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
        """See `Planning`."""
        return float(dataclasses.replace(self.problem, start=case.start, goal=case.goal).costs(plan[None])[0])

    def peer(self, case: Case) -> Found:
        """The other planner's plan. Raises ImportError where it is not installed."""
        from pyjepa.bench.peers import stable_worldmodel

        problem = dataclasses.replace(self.problem, start=case.start, goal=case.goal)
        prepared = stable_worldmodel.prepare(problem, 1, "CEM")
        clock = _Clock.start()
        plan = prepared.plan()
        within = np.asarray(np.clip(np.asarray(plan), problem.low, problem.high), np.float32)
        return clock.stop(lambda: self.cost(case, within))

    def disturbed(self, entrant: Entrant, case: Case, seed: int) -> Case:
        """The case one step on: the entrant's plan executed for one predictor step, and the state disturbed."""
        plan, _ = self.actions(entrant, BUDGETS[-1], case)
        normalised = (plan[:1] - self.problem.center) / self.problem.scale
        state = np.concatenate([case.start[None], normalised], axis=1)
        after = self.problem.engine.forward(self.problem.predictor, state)[0]
        size = DISTURBANCE * np.sqrt(np.mean(np.square(after - case.start)))
        noise = np.random.default_rng(seed).standard_normal(after.shape)
        return Case((after + size * noise).astype(np.float32), case.goal, case.start)


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
    rows: list[dict[str, Any]] = []

    def enter(start: str, entrant: Entrant, cases: list[Case], peers: list[Found]) -> None:
        labels = {"workload": name, "start": start, "planner": entrant.name, "settings": entrant.task}
        rows.append(labels | race(lambda budget, case: world.plan(entrant, budget, case), cases, peers))
        report(rows[-1])

    with _without_collection():
        peers = [world.peer(case) for case in starts]
        for entrant in (e for e in COLD if e.name in planners):
            enter("cold", entrant, starts, peers)
        for entrant in (e for e in WARM if e.name in planners):
            later = [world.disturbed(entrant, case, seed) for seed, case in enumerate(starts)]
            enter("warm", entrant, later, [world.peer(case) for case in later])
    return rows


def measure_practice(
    states: int = 50, *, report: Callable[[dict[str, Any]], None] = lambda row: None
) -> list[dict[str, Any]]:
    """What practice saves the shipped agent: one row for each planner of `PRACTISED` against each of `UNPRACTISED`.

    Those are the agent file's own planner and its settings, once without the policy's rollout among the candidates, and
    once without the critic as well, which then has to look as far ahead as the agent had to before it practised. Every
    plan is judged by the shipped agent's cost: of a longer one, its first part.
    """
    from pyjepa.envs.two_rooms import TwoRooms, evaluation_episodes

    world = TwoRooms(states)
    world.begin(evaluation_episodes(states))
    agent, judge = (Agent(Model.load(agents.path("two_rooms"))) for _ in range(2))
    starts = [Case(s, g) for s, g in zip(world.observation, world.goal_observation, strict=True)]
    block, horizon = agent.model.action_block, agent.model.spec.planner.horizon
    rows: list[dict[str, Any]] = []

    def plan(task: dict[str, Any], case: Case) -> Found:
        agent.configure(goal=case.goal, **task)
        agent.observe(case.start)
        clock = _Clock.start()
        actions = agent.plan().actions

        def cost() -> float:
            judge.configure(goal=case.goal)
            judge.observe(case.start)
            return float(judge.evaluate(actions[None, :horizon:block])[0])

        return clock.stop(cost)

    with _without_collection():
        for missing, task in UNPRACTISED.items():
            cold = [_fastest([plan(task, case) for _ in range(REPEATS)]) for case in starts]
            for entrant in PRACTISED:
                labels = {"workload": "practice", "start": missing, "planner": entrant.name, "settings": entrant.task}
                found = race(lambda budget, case, e=entrant: plan(e.settings(budget), case), starts, cold)  # type: ignore[misc]
                rows.append(labels | found)
                report(rows[-1])
    return rows


class Replanning(Planning):
    """An agent for Two Rooms, which sees pictures and goals as pictures; `block` environment steps a predictor step."""

    budgets = REPLANS

    def __init__(self, model: Model) -> None:
        """``model``: whose plans cost what it says itself. Raises ValueError where it does not hold its actions."""
        if not model.spec.levels[0].hold:
            raise ValueError("replans are measured of agents that hold an action for a block of steps")
        self.agent, self._judge = Agent(model), Agent(model)
        self.block = model.action_block

    def cost(self, case: Case, plan: FloatArray) -> float:
        """See `Planning`."""
        self._judge.configure(goal=case.goal)
        self._judge.observe(case.start)
        return float(self._judge.evaluate(plan[None])[0])

    def cold(self, case: Case) -> Found:
        """`COLD_CEM`'s plan from where the case starts."""
        return self.plan(Entrant("cold", COLD_CEM), COLD_CEM["iterations"], Case(case.start, case.goal))

    def refuses(self, entrant: Entrant, case: Case) -> str | None:
        """Why this agent cannot plan so, if it cannot."""
        try:
            self.agent.configure(goal=case.goal, **entrant.settings(1))
        except UnsupportedError as error:
            return str(error)
        return None

    def cases(self, count: int) -> list[Case]:
        """Where playing held-out episodes with cold plans leads, after one to four blocks; before the goal."""
        from pyjepa.bench.episodes import execute
        from pyjepa.envs.two_rooms import TwoRooms, evaluation_episodes

        entrant, budget = Entrant("cold", COLD_CEM), COLD_CEM["iterations"]
        episodes = evaluation_episodes(2 * count)
        found: list[Case] = []
        for i in range(len(episodes)):
            if len(found) == count:
                break
            world = TwoRooms(1)
            world.begin(episodes[i : i + 1])
            case = Case(world.observation[0], world.goal_observation[0])
            for _ in range(1 + i // 2 % 4):  # episodes are across the wall and not, in turn
                plan, _ = self.actions(entrant, budget, Case(case.start, case.goal))
                execute(world, np.repeat(plan[:1], self.block, axis=0))
                if world.success[0]:
                    break
                case = Case(world.observation[0], case.goal, case.start)
            if case.before is not None:
                found.append(case)
        return found

    def play(self, entrant: Entrant, budget: int, episodes: int) -> dict[str, Any]:
        """Held-out episodes in closed loop: at first plans that make up the largest budget, then one a block.

        What counts are the replans: how many of them cost no more than a cold plan, how much more at the median, how
        long they take; and how many episodes reach their goal.
        """
        from pyjepa.bench.episodes import execute
        from pyjepa.envs.two_rooms import TwoRooms, evaluation_episodes

        drawn = evaluation_episodes(episodes)
        replans: list[Found] = []
        colds: list[Found] = []
        reached = 0
        for i in range(episodes):
            world = TwoRooms(1)
            world.begin(drawn[i : i + 1])
            goal = world.goal_observation[0]
            self.agent.configure(goal=goal, **entrant.settings(budget))
            plan = self._settle(world.observation[0], budget)
            cases: list[Case] = []
            execute(world, plan.actions[: self.block])
            while not (world.success[0] or world.truncated[0]):
                cases.append(Case(world.observation[0], goal))
                self.agent.observe(cases[-1].start)
                clock = _Clock.start()
                plan = self.agent.plan()
                replans.append(clock.stop(partial(self.cost, cases[-1], plan.actions[:: self.block])))
                execute(world, plan.actions[: self.block])
            reached += int(world.success[0])
            colds += [self.cold(case) for case in cases]
        pairs = list(zip(replans, colds, strict=True))
        return {
            "iterations": budget,
            "episodes": episodes,
            "success": round(reached / episodes, 6),
            "replans": len(replans),
            "reached": round(sum(own.cost <= cold.cost for own, cold in pairs) / len(replans), 6),
            "cost": round(statistics.median(own.cost / cold.cost for own, cold in pairs), 6),
            "ms": round(1e3 * statistics.median(own.cpu for own in replans), 4),
            "ms_p99": round(1e3 * float(np.quantile([own.cpu for own in replans], 0.99)), 4),
            "cold_ms": round(1e3 * statistics.median(cold.cpu for cold in colds), 4),
        }


def measure_replans(
    model: Model,
    states: int = 50,
    planners: Sequence[str] = PLANNERS,
    *,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """One row for each planner, cold and warm, with its curve; warm, it also plays.

    A planner that the agent cannot plan by has a row that says why: ``refused``.
    """
    world = Replanning(model)
    rows: list[dict[str, Any]] = []
    with _without_collection():
        warm = world.cases(states)
        cold = [Case(case.start, case.goal) for case in warm]
        others = [world.cold(case) for case in cold]
        for start, entrants, cases in (("cold", COLD, cold), ("warm", AGAIN, warm)):
            for entrant in (e for e in entrants if e.name in planners):
                row: dict[str, Any] = {"workload": "replan", "start": start, "planner": entrant.name}
                row["settings"] = entrant.task
                refused = world.refuses(entrant, cases[0])
                if refused is not None:
                    row["refused"] = refused
                else:
                    row |= race(partial(world.plan, entrant), cases, others, budgets=REPLANS, whole=True)
                    within = [point["iterations"] for point in row["curve"] if point["ms"] <= 1e3 * CYCLE]
                    if start == "warm" and within:
                        row["closed_loop"] = world.play(entrant, within[-1], states)
                rows.append(row)
                report(row)
    return rows


_TIMES = ("ms", "ratio", "wall_ratio")


def race(
    plan: Callable[[int, Case], Found],
    cases: list[Case],
    others: list[Found],
    *,
    budgets: Sequence[int] = BUDGETS,
    whole: bool = False,
) -> dict[str, Any]:
    """The least budget with which ``plan`` reaches what the ``others`` cost in more than half of the cases.

    And how long it takes: medians over the cases, in which one that was not reached counts as infinitely long. With
    ``whole`` all budgets are tried, and ``curve`` tells of each how much its plans cost, over the others' (median).
    """
    row: dict[str, Any] = {
        "states": len(cases),
        "peer_ms": round(1e3 * statistics.median(other.cpu for other in others), 4),
        "peer_wall_ms": round(1e3 * statistics.median(other.wall for other in others), 4),
        "peer_cost": statistics.median(other.cost for other in others),
    }
    tolerances = {"equal": TOLERANCE, "strict": 0.0}
    if whole:
        row["curve"] = []
    for budget in budgets:
        runs = [plan(budget, case) for case in cases]
        if whole:
            row["curve"].append(
                {
                    "iterations": budget,
                    "ms": round(1e3 * statistics.median(run.cpu for run in runs), 4),
                    "cost": round(statistics.median(r.cost / o.cost for r, o in zip(runs, others, strict=True)), 6),
                    "reached": round(sum(r.cost <= o.cost for r, o in zip(runs, others, strict=True)) / len(runs), 6),
                }
            )
        timed: list[Found] = []
        for quality in [name for name in tolerances if row.get(name, {}).get("ms") is None]:
            reached = [
                run.cost <= other.cost + tolerances[quality] * abs(other.cost)
                for run, other in zip(runs, others, strict=True)
            ]
            row[quality] = {"reached": round(sum(reached) / len(reached), 6), "iterations": budget} | dict.fromkeys(
                _TIMES
            )
            if sum(reached) <= len(reached) / 2:
                continue
            timed = timed or [
                _fastest([run, *(plan(budget, case) for _ in range(REPEATS - 1))])
                for run, case in zip(runs, cases, strict=True)
            ]
            seconds = [run.cpu if ok else math.inf for run, ok in zip(timed, reached, strict=True)]
            on_wall = [run.wall if ok else math.inf for run, ok in zip(timed, reached, strict=True)]
            row[quality] |= {
                "ms": round(1e3 * statistics.median(seconds), 4),
                "ratio": round(statistics.median(o.cpu / s for o, s in zip(others, seconds, strict=True)), 3),
                "wall_ratio": round(statistics.median(o.wall / s for o, s in zip(others, on_wall, strict=True)), 3),
            }
        if row["strict"]["ms"] is not None and not whole:
            break
    return row


def _fastest(runs: list[Found]) -> Found:
    return Found(runs[0].cost, min(run.cpu for run in runs), min(run.wall for run in runs))


@contextmanager
def _without_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
