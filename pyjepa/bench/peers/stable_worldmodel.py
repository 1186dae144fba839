"""stable-worldmodel's solvers (0.1.1) over a torch model. They know no bounds, so the cost clamps what it is asked."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.peers.torch import Model
from pyjepa.bench.workloads import Problem

ALGORITHMS = {"cem": ("CEM", "iCEM"), "mppi": ("MPPI",)}

_KEPT: list[Any] = []


class _Cost:
    """What its solvers call a model: anything with `get_cost`."""

    def __init__(self, problem: Problem) -> None:
        self.model = Model(problem)
        self.low, self.high = torch.tensor(problem.low), torch.tensor(problem.high)

    def get_cost(self, info: dict[str, Any], candidates: Tensor) -> Tensor:
        """Candidates (1, N, S, A) -> costs (1, N)."""
        return self.model.costs(candidates[0].clamp(self.low, self.high))[None]


def prepare(problem: Problem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    torch.set_num_threads(threads)
    solver_module = _import()
    settings = problem.planner
    cost = _Cost(problem)
    half = (problem.high - problem.low) / 2
    if not np.allclose(half, half[0]):
        raise NotImplementedError("its solvers take one spread for all actions")
    arguments = {
        "model": cost,
        "num_samples": settings.candidates,
        "var_scale": settings.std * float(half[0]),
        "n_steps": settings.iterations,
        "topk": settings.elites if variant != "MPPI" else settings.candidates,
        "device": "cpu",
        "seed": 0,
    }
    solver = getattr(solver_module, f"{variant.upper()}Solver")(**arguments)
    spaces: Any = importlib.import_module("gymnasium.spaces")
    solver.configure(
        action_space=spaces.Box(problem.low[None], problem.high[None], dtype=np.float32),
        n_envs=1,
        config=SimpleNamespace(
            horizon=problem.steps, receding_horizon=1, history_len=1, action_block=1, warm_start=False
        ),
    )
    info = {"state": torch.tensor(problem.start)[None]}
    silence = io.StringIO()

    def plan() -> FloatArray:
        with contextlib.redirect_stdout(silence):  # it prints its time
            found: Tensor = solver.solve(info)["actions"]
        silence.seek(0)
        silence.truncate()
        result: FloatArray = found[0].numpy()
        return result

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        result: FloatArray = cost.get_cost({}, torch.from_numpy(plans)[None])[0].numpy()
        return result

    version = importlib.metadata.version("stable-worldmodel")
    return Prepared(f"stable-worldmodel {version}", plan, costs)


def _import() -> Any:
    """Its solvers. torchvision's compiled operators, which it does not need here, may not load beside a CPU torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "torchvision" not in sys.modules and not _KEPT:
            operators: Any = torch.library
            library = operators.Library("torchvision", "DEF")
            _KEPT.append(library)  # or its operators go with it
            for operator in ("nms", "qnms"):
                with contextlib.suppress(RuntimeError):
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("stable_worldmodel.solver")
