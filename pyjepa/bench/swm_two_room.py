"""``swm/TwoRoom-v1``: how often policies reach the goal, and how long planners take, on the same weights."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa import agent_file
from pyjepa.adapters import needed
from pyjepa.adapters.stable_worldmodel import CostModel, Solver
from pyjepa.adapters.torchvision import import_stable_worldmodel
from pyjepa.agent import Model
from pyjepa.bench.percentiles import milliseconds
from pyjepa.spec import Spec
from pyjepa.training import swm_two_room

HORIZON = 10
"""Planner steps, of 5 environment steps each; the plan is made anew after every one."""
Recording = str | os.PathLike[str]


class _Held:
    """One of stable-worldmodel's solvers, timed per environment (of this thread, its only one), without what it prints.

    It searches what the engine searches, one action a step, which is held for the block that the policy asks for.
    """

    def __init__(self, solver: Any) -> None:
        self.inner = solver
        self.times: list[float] = []

    def __call__(self, info: dict[str, Any], init_action: Any = None) -> Any:
        return self.solve(info, init_action)

    def solve(self, info: dict[str, Any], init_action: Any = None) -> Any:
        count = len(next(iter(info.values())))
        rest = None if init_action is None else init_action[..., : self.inner.action_dim]
        began = time.thread_time()
        with contextlib.redirect_stdout(io.StringIO()):
            found = self.inner.solve(info, rest)
        self.times += [(time.thread_time() - began) / count] * count
        return {**found, "actions": found["actions"].repeat(1, 1, self._block)}

    @property
    def action_dim(self) -> int:
        return int(self.inner.action_dim) * self._block

    @property
    def n_envs(self) -> int:
        return int(self.inner.n_envs)

    @property
    def horizon(self) -> int:
        return int(self.inner.horizon)

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        self._block = int(config.action_block)
        self.inner.configure(action_space=action_space, n_envs=n_envs, config=replace(config, action_block=1))


def planned(solver: Any, recorded: Recording, *, episodes: int, seed: int) -> dict[str, Any]:
    """Success of a solver under stable-worldmodel's policy, and CPU milliseconds per environment and plan."""
    policy = import_stable_worldmodel("stable_worldmodel.policy")
    config = policy.PlanConfig(horizon=HORIZON, receding_horizon=1, action_block=swm_two_room.BLOCK, warm_start=True)
    made = policy.WorldModelPolicy(solver, config)
    found = swm_two_room.evaluate(made, recorded, episodes=episodes, seed=seed)
    times = solver.times
    return {
        "success": found["success"],
        "plan_cpu_ms_p50": milliseconds(times, 50),
        "plan_cpu_ms_p99": milliseconds(times, 99),
        "plans": len(times),
    }


def calibrated(
    spec: Spec,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    recorded: Recording,
    *,
    episodes: int,
    seed: int,
    told: Callable[[float], None] = lambda reach: None,
) -> tuple[Spec, list[dict[str, Any]]]:
    """The spec with that reach of its goal distance that reaches most goals of a recording kept for this.

    Of as many it is the one that gets there in fewer plans. Also returns what each reach gave.
    """
    rows = []
    for reach in swm_two_room.REACHES:
        model = Model.from_bytes(agent_file.to_bytes(swm_two_room.with_reach(spec, reach), tensors))
        found = planned(EngineSolver(model), recorded, episodes=episodes, seed=seed)
        rows.append({"reach": reach, "success": found["success"], "plans": found["plans"]})
        told(reach)
    best = max(rows, key=lambda row: (row["success"], -row["plans"]))
    return swm_two_room.with_reach(spec, best["reach"]), rows


def references(recorded: Recording, *, episodes: int, seed: int) -> dict[str, float]:
    """Success of stable-worldmodel's random policy and of its expert."""
    policy = import_stable_worldmodel("stable_worldmodel.policy")
    expert = needed("stable_worldmodel.envs.two_room.expert_policy", "stable-worldmodel", "its expert").ExpertPolicy
    return {
        name: float(swm_two_room.evaluate(made, recorded, episodes=episodes, seed=seed)["success"])
        for name, made in (("random", policy.RandomPolicy(seed)), ("expert", expert(seed=seed)))
    }


def compared(
    agent: str | os.PathLike[str],
    recorded: Recording,
    *,
    episodes: int,
    seed: int,
    told: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """CEM, iCEM and MPPI of stable-worldmodel and of the engine on the same weights.

    Both take as many candidates, iterations and elites, and the first spread, as the agent file says; what only one of
    them knows stays at its default.
    """
    settings = Model.load(agent).spec.planner
    candidates, iterations, elites = settings.candidates, settings.iterations, settings.elites
    solvers = import_stable_worldmodel("stable_worldmodel.solver")
    rows = []
    for name in ("cem", "icem", "mppi"):
        told(f"stable-worldmodel {name}")
        options: dict[str, Any] = {"num_samples": candidates, "n_steps": iterations, "topk": elites, "seed": seed}
        made = getattr(solvers, f"{name.upper()}Solver")(
            CostModel(agent), var_scale=settings.std, device="cpu", **options
        )
        rows.append({"impl": "stable-worldmodel", "planner": name,
                     **planned(_Held(made), recorded, episodes=episodes, seed=seed)})  # fmt: skip
        told(f"pyjepa {name}")
        ours = EngineSolver(agent, planner=name, seed=seed)
        rows.append({"impl": "pyjepa", "planner": name, **planned(ours, recorded, episodes=episodes, seed=seed)})
    return rows


class EngineSolver(Solver):
    """The engine's, its times those of this thread, its only one, per environment."""

    def solve(self, info_dict: Any, init_action: Any = None) -> dict[str, Any]:
        """See `Solver.solve`."""
        began = time.thread_time()
        found = super().solve(info_dict, init_action)
        count = len(found["costs"])
        self.times[-1:] = [(time.thread_time() - began) / count] * count
        return found


def by_rate(rows: list[dict[str, Any]]) -> float:
    """The mean success of rows."""
    return float(np.mean([row["success"] for row in rows]))
