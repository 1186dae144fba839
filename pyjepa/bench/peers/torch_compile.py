"""torch.compile (inductor) over a whole iteration: sampling, rollout, costs and refit in one graph."""

from __future__ import annotations

import torch
from torch import Tensor

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.peers.torch import Model, Planner
from pyjepa.bench.workloads import Problem

ALGORITHMS = {"cem": ("",), "mppi": ("",)}


def prepare(problem: Problem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    model = Model(problem)
    planner = Planner(problem, model.costs)
    iterate = torch.compile(planner.iterate, dynamic=False, fullgraph=True)
    compiled_costs = torch.compile(model.costs, dynamic=False, fullgraph=True)

    def plan() -> FloatArray:
        return planner.plan(iterate)

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        found: Tensor = compiled_costs(torch.from_numpy(plans))
        result: FloatArray = found.numpy()
        return result

    plan()  # compiles
    return Prepared(f"torch {torch.__version__} (compile)", plan, costs)
