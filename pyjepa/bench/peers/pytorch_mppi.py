"""pytorch-mppi: its MPPI steps a torch model. Its temperature is absolute, so it is set from the spread of costs."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.peers.torch import Model
from pyjepa.bench.workloads import Problem

ALGORITHMS = {"mppi": ("",)}


def prepare(problem: Problem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`. One command is one iteration."""
    library: Any = importlib.import_module("pytorch_mppi")
    torch.set_num_threads(threads)
    settings = problem.planner
    model = Model(problem)
    half = torch.tensor((problem.high - problem.low) / 2)
    spread = float(np.std(problem.costs(problem.sample(settings.candidates, seed=2))))
    extra = problem.terminal - problem.stage

    def running_cost(state: Tensor, action: Tensor) -> Tensor:
        return problem.stage * model.distance(state)

    def terminal_cost(states: Tensor, actions: Tensor) -> Tensor:
        return extra * model.distance(states[..., -1, :])

    mppi = library.MPPI(
        model.step,
        running_cost,
        problem.latent_dim,
        noise_sigma=torch.diag((settings.std * half) ** 2),
        num_samples=settings.candidates,
        horizon=problem.steps,
        terminal_state_cost=terminal_cost if extra else None,
        lambda_=settings.temperature * spread,
        u_min=torch.tensor(problem.low),
        u_max=torch.tensor(problem.high),
        U_init=torch.zeros(problem.steps, problem.action_dim),
    )
    torch.manual_seed(0)
    middle = (torch.tensor(problem.low) + torch.tensor(problem.high)) / 2

    @torch.inference_mode()
    def plan() -> FloatArray:
        mppi.U = middle.expand(problem.steps, -1)
        for _ in range(settings.iterations):
            mppi.command(model.start, shift_nominal_trajectory=False)
        result: FloatArray = mppi.U.numpy().copy()
        return result

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        mppi.state = model.start
        result: FloatArray = mppi._compute_rollout_costs(torch.from_numpy(plans))[0].numpy()
        return result

    return Prepared(f"pytorch-mppi {importlib.metadata.version('pytorch-mppi')}", plan, costs)
