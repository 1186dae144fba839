"""pytorch-icem: its iCEM (coloured noise, elites kept between iterations) steps a torch model.

It knows no bounds, so dynamics and costs clamp what they are asked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from typing import Any

import torch
from torch import Tensor

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.peers.torch import Model
from pyjepa.bench.workloads import Problem

ALGORITHMS = {"cem": ("",)}


def prepare(problem: Problem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    library: Any = importlib.import_module("pytorch_icem")
    torch.set_num_threads(threads)
    settings = problem.planner
    model = Model(problem)
    low, high = torch.tensor(problem.low), torch.tensor(problem.high)
    sigma = settings.std * (high - low) / 2

    def step(state: Tensor, action: Tensor) -> Tensor:
        return model.step(state, action.clamp(low, high))

    def trajectory_cost(states: Tensor, actions: Tensor) -> Tensor:
        return (model.weights[:, 0] * model.distance(states)).sum(-1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Its constructor takes one action only (0.1.0 compares the wrong length): the others are set afterwards.
        icem = library.iCEM(
            step,
            trajectory_cost,
            problem.latent_dim,
            1,
            sigma=sigma[:1],
            num_samples=settings.candidates,
            num_elites=settings.elites,
            horizon=problem.steps,
            alpha=settings.momentum,
            warmup_iters=settings.iterations,
            online_iters=settings.iterations,
        )
    icem.nu, icem.sigma = problem.action_dim, sigma

    @torch.inference_mode()
    def plan() -> FloatArray:
        icem.reset()
        icem.command(model.start, shift_nominal_trajectory=False)
        result: FloatArray = icem.kept_elites[0].clamp(low, high).numpy()  # the best first
        return result

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        actions = torch.from_numpy(plans)
        result: FloatArray = icem._cost(icem._rollout_dynamics(model.start, actions), actions).numpy()
        return result

    icem.mean = torch.zeros(problem.steps, problem.action_dim)
    return Prepared(f"pytorch-icem {importlib.metadata.version('pytorch-icem')}", plan, costs)
