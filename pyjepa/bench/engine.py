"""The engine as a contestant: what is timed of pyjepa itself, through its Python API."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

import pyjepa
from pyjepa.agent import Agent, Precision
from pyjepa.bench.peers import FloatArray
from pyjepa.bench.workloads import PlanningProblem, Workload
from pyjepa.errors import UnsupportedError
from pyjepa.spec import Actions, Layer, Level, Mlp, Module, Observation, Spec

IMPL = f"pyjepa {pyjepa.__version__}"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
STATIC = "static"
"""The variant of int8 whose scales were found beforehand, as `pyjepa quantise` finds them."""


@dataclass(frozen=True)
class Operation:
    """A call to be timed."""

    call: Callable[[], object]
    flops: int = 0
    """Two per multiply-add; 0: unknown."""


class Planning:
    """An agent that plans a workload, deadline or not."""

    def __init__(
        self,
        workload: Workload,
        threads: int,
        *,
        precision: Precision = "fp32",
        static: bool = False,
        deadline: float | None = None,
    ) -> None:
        """``deadline``: seconds per plan; ``static``: with scales for int8 in the file.

        Raises `UnsupportedError` where the machine cannot plan in ``precision``.
        """
        if static:
            workload = workload.calibrated()
        self._workload, self._deadline = workload, deadline
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what is an error here
            model = workload.model(precision)
        if model.precision != precision:
            raise UnsupportedError(f"this machine has no {precision} instructions")
        self._agent = Agent(model, threads=threads)
        self._block, self._held = model.action_block, model.spec.levels[0].hold
        self.elapsed = 0.0
        """Seconds that the last plan took by the engine's own clock."""
        self.begin(seed=0)

    def begin(self, seed: int) -> None:
        """Forgets everything, and perceives the workload's observation."""
        self._agent.configure(goal=self._workload.goal, seed=seed, prune=False)  # as peers do: every candidate whole
        self._agent.observe(self._workload.observation)

    def perceive_and_plan(self) -> FloatArray:
        """The same from pictures: goal and observation are encoded first."""
        self.begin(seed=0)
        return self.plan()

    def plan(self) -> FloatArray:
        """The actions (S, A) of one plan, warm-started from the plan before; the same work whatever came before."""
        plan = self._agent.plan(deadline=self._deadline)
        self.elapsed = plan.elapsed
        actions = plan.actions
        if not self._held:  # a step reads them all
            return actions.reshape(len(actions) // self._block, -1)
        return actions[:: self._block]

    def tile_seconds(self, plans: int = 10) -> float:
        """How long a thread takes for the candidates it rolls out together, from the quickest of so many plans."""
        alone = Agent(self._agent.model)
        alone.configure(goal=self._workload.goal)
        alone.observe(self._workload.observation)
        settings = self._agent.settings
        share = settings["tile"] / (settings["candidates"] * settings["iterations"])
        return float(share * min(alone.plan().elapsed for _ in range(plans)))

    def final_costs(self, problem: PlanningProblem, plans: int) -> list[float]:
        """What plans from scratch cost, one for each of so many seeds."""
        found = []
        for seed in range(plans):
            self.begin(seed)
            found.append(self.plan())
        return [float(cost) for cost in problem.costs(np.stack(found))]


def reflex_operations(workload: Workload) -> Mapping[str, Operation]:
    """Mode-1's calls on the workload ``mode1``, and `Agent.act` with next to no network: what the call itself costs."""
    agent = Agent(workload.model())
    agent.configure(goal=workload.goal)
    agent.observe(workload.observation)
    out = agent.act()
    policy = workload.spec.modules["policy"]
    assert isinstance(policy.blocks[0], Mlp)
    sizes = [2 * agent.model.latent_dim, *(layer.out for layer in policy.blocks[0].layers)]
    small = _smallest_agent()
    small_out = small.act()
    return {
        "act": Operation(lambda: agent.act(out=out), 2 * sum(a * b for a, b in pairwise(sizes))),
        "act, 2-2 policy": Operation(lambda: small.act(out=small_out)),
        "observe": Operation(lambda: agent.observe(workload.observation)),
        "observe and act": Operation(lambda: agent.act(workload.observation, out=out)),
    }


def _smallest_agent() -> Agent:
    spec = Spec(
        observation=Observation(shape=(2,)),
        actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0)),
        modules={
            "predictor": Module(inputs=("state", "action"), blocks=(Mlp(layers=(Layer(out=2),)),)),
            "policy": Module(inputs=("state",), blocks=(Mlp(layers=(Layer(out=2),)),)),
        },
        levels=(Level(predictor="predictor"),),
        policy="policy",
    )
    tensors = {
        "predictor.0.linear0.weight": np.zeros((2, 4), np.float32),
        "predictor.0.linear0.bias": np.zeros(2, np.float32),
        "policy.0.linear0.weight": np.eye(2, dtype=np.float32),
        "policy.0.linear0.bias": np.zeros(2, np.float32),
    }
    observation = np.zeros(2, np.float32)
    agent = Agent(Workload("smallest", spec, tensors, observation, observation).model())
    agent.configure(goal=observation)
    agent.observe(observation)
    return agent
