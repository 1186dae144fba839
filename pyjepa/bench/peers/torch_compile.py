"""torch.compile (inductor) over a whole iteration: sampling, rollout, costs and refit in one graph, weights frozen.

Linear layers are left whole: frozen, inductor packs their weights, which gains more than splitting the first one as the
eager planner does (W0s 2.3 ms against 3.6, Zen 5).
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.peers.torch import ACTIVATIONS, Planner
from pyjepa.bench.tdmpc2 import TdMpc2Problem
from pyjepa.bench.workloads import PlanningProblem, Problem

ALGORITHMS = {"cem": ("",), "mppi": ("",), "td-mpc2": ("",)}


class Costs(nn.Module):
    """Plans (N, S, A) -> costs (N,)."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.layers = nn.ModuleList(nn.Linear(*layer.weight.shape[::-1]) for layer in problem.layers)
        for module, layer in zip(self.layers, problem.layers, strict=True):
            module.load_state_dict({"weight": torch.tensor(layer.weight), "bias": torch.tensor(layer.bias)})
        for name in ("start", "goal", "center", "scale"):
            self.register_buffer(name, torch.tensor(getattr(problem, name)))

    def forward(self, plans: Tensor) -> Tensor:
        """All steps unrolled."""
        problem = self.problem
        actions = ((plans - self.get_buffer("center")) / self.get_buffer("scale")).transpose(0, 1)
        state = self.get_buffer("start").expand(len(plans), -1)
        total = torch.zeros(len(plans))
        for t in range(problem.steps):
            h = torch.cat([state, actions[t]], dim=1)
            for module, layer in zip(self.layers, problem.layers, strict=True):
                h = ACTIVATIONS[layer.activation](module(h))
            state = state + h if problem.residual else h
            distance = (state - self.get_buffer("goal")).square().sum(-1)
            weight = problem.terminal if t + 1 == problem.steps else problem.stage
            total = total + weight * (distance if problem.squared else distance.sqrt())
        return total


class Iteration(nn.Module):
    """Mean and std (S, A) -> mean and std (S, A)."""

    def __init__(self, planner: Planner, costs: Costs) -> None:
        super().__init__()
        self.planner, self.costs = planner, costs

    def forward(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration."""
        return self.planner.iterate(mean, std)


def prepare(problem: PlanningProblem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    torch.set_num_threads(threads)
    settings: Any = importlib.import_module("torch._inductor.config")
    settings.freezing = True
    if isinstance(problem, TdMpc2Problem):
        from pyjepa.bench.peers import torch_tdmpc2

        return torch_tdmpc2.prepare_compiled(problem)
    assert isinstance(problem, Problem)
    model = Costs(problem).eval()
    planner = Planner(problem, model)
    iterate = torch.compile(Iteration(planner, model).eval(), dynamic=False)
    compiled_costs = torch.compile(model, dynamic=False)

    def plan() -> FloatArray:
        return planner.plan(iterate)

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        found: Tensor = compiled_costs(torch.from_numpy(plans))
        result: FloatArray = found.numpy()
        return result

    plan()  # compiles
    return Prepared(f"torch {torch.__version__} (compile)", plan, costs)
