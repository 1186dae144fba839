"""torchrl: its CEM planner over a model-based environment. It returns the first action only, so no plan to judge."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import torch

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.peers.torch import Model
from pyjepa.bench.workloads import Problem

ALGORITHMS = {"cem": ("",)}


def prepare(problem: Problem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`. It samples actions with a spread of 1, whatever the workload says."""
    envs: Any = importlib.import_module("torchrl.envs")
    data: Any = importlib.import_module("torchrl.data")
    planners: Any = importlib.import_module("torchrl.modules.planners")
    tensordict: Any = importlib.import_module("tensordict")
    torch.set_num_threads(threads)
    if problem.stage != problem.terminal:
        raise NotImplementedError("its rewards do not know which step is the last")
    model, settings = Model(problem), problem.planner

    class Environment(envs.EnvBase):  # type: ignore[misc]
        """The model as an environment whose reward is minus the cost."""

        def __init__(self) -> None:
            super().__init__(device="cpu", batch_size=[])
            self._batch_locked = False
            self.observation_spec = data.Composite(state=data.Unbounded((problem.latent_dim,)))
            self.state_spec = data.Composite(state=data.Unbounded((problem.latent_dim,)))
            self.action_spec = data.Bounded(
                torch.tensor(problem.low), torch.tensor(problem.high), (problem.action_dim,)
            )
            self.reward_spec = data.Unbounded((1,))

        def _reset(self, given: Any, **options: Any) -> Any:
            return tensordict.TensorDict({"state": model.start}, batch_size=[])

        def _step(self, given: Any) -> Any:
            state = model.step(given["state"].flatten(0, -2), given["action"].flatten(0, -2))
            shape = given.batch_size
            reward = -problem.stage * model.distance(state)
            return tensordict.TensorDict(
                {
                    "state": state.view(*shape, -1),
                    "reward": reward.view(*shape, 1),
                    "done": torch.zeros(*shape, 1, dtype=torch.bool),
                },
                batch_size=shape,
            )

        def _set_seed(self, seed: int | None) -> None:
            torch.manual_seed(0 if seed is None else seed)

    environment = Environment()
    planner = planners.CEMPlanner(environment, problem.steps, settings.iterations, settings.candidates, settings.elites)
    begin = tensordict.TensorDict({"state": model.start[None]}, batch_size=[1])
    torch.manual_seed(0)

    @torch.inference_mode()
    def plan() -> None:
        planner(begin.clone())

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        setter = importlib.import_module("torchrl.modules.planners.cem")._PrecomputedActionsSequentialSetter
        states = model.start.expand(1, len(plans), -1)
        found = environment.rollout(
            problem.steps,
            policy=setter(torch.from_numpy(plans)[None]),
            auto_reset=False,
            tensordict=tensordict.TensorDict({"state": states}, batch_size=[1, len(plans)]),
            break_when_any_done=False,
        )
        result: FloatArray = -found["next", "reward"].sum(-2)[0, :, 0].numpy()
        return result

    return Prepared(f"torchrl {importlib.metadata.version('torchrl')}", plan, costs)
