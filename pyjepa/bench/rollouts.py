"""Plans over batched rollouts, one way of computing them beside another.

A plan is five iterations of CEM in the C++ planner, whose candidates go to a rollout on a device and come back as
costs: every provider is asked the same through the same interface, arrays on the host in and out. Times are
interleaved, one plan of each provider in turn.

===============  ======================================================================================================
fused            the whole horizon in one launch, captured in a CUDA graph
stepwise         a few launches a step, captured in a CUDA graph
torch            the statement in plain torch, eager
torch compiled   the same through torch.compile, which fuses what lies between products and captures a graph
engine           the C++ engine, one thread of the CPU
===============  ======================================================================================================

Weights are random and seeded: time depends on shapes alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyjepa import agent_file
from pyjepa.agent import Agent, Model
from pyjepa.bench.percentiles import milliseconds
from pyjepa.kernels.rollout import Mlp, Term
from pyjepa.kernels.rollout.description import Program
from pyjepa.kernels.rollout.estimate import WORKLOADS
from pyjepa.kernels.rollout.prepared import Prepared
from pyjepa.kernels.rollout.reference import rollout_reference
from pyjepa.spec import Actions, CostTerm, Layer, Level, Module, Observation, Planner, Spec
from pyjepa.spec import Gru as SpecGru
from pyjepa.spec import Mlp as SpecMlp

FloatArray = npt.NDArray[np.float32]
Row = dict[str, Any]
"""One provider on one workload: ``workload``, ``candidates``, ``horizon`` in predictor steps, ``provider``,
``repeats``, ``p50_ms``, ``p99_ms``."""
PROVIDERS = ("fused", "stepwise", "torch", "torch compiled", "engine")
ITERATIONS = 5
TERMS = (Term("goal_distance", metric="squared_l2"),)


def parameters_of(program: Program) -> list[Tensor]:
    """Random weights, small enough that states stay finite over a horizon."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in program.dynamics.shapes():
        values = torch.randn(shape, generator=generator)
        made.append(values * 0.5 / shape[-1] ** 0.5 if len(shape) == 2 else 0.1 * values)
    return made


def spec_of(program: Program, steps: int, candidates: int) -> Spec:
    """An agent whose states are its observations."""
    dynamics = program.dynamics
    if isinstance(dynamics, Mlp):
        layers = tuple(Layer(out=x.out, norm=x.norm, activation=x.activation) for x in dynamics.layers)  # type: ignore[arg-type]
        predictor = Module(inputs=("state", "action"), residual=dynamics.residual, blocks=(SpecMlp(layers=layers),))
    else:
        gru = SpecGru(hidden=dynamics.state, norm="layer" if dynamics.normalise else "none")
        predictor = Module(inputs=("state", "action"), combine="cell", blocks=(gru,))
    return Spec(
        observation=Observation(shape=(dynamics.state,)),
        actions=Actions(low=(-1.0,) * dynamics.side, high=(1.0,) * dynamics.side),
        modules={"dynamics": predictor},
        levels=(Level(predictor="dynamics"),),
        cost=(CostTerm(kind="goal_distance", metric="squared_l2"),),
        planner=Planner(horizon=steps, candidates=candidates, iterations=ITERATIONS, elites=max(2, candidates // 8)),
    )


def _model(program: Program, spec: Spec, parameters: Sequence[Tensor]) -> Model:
    if isinstance(program.dynamics, Mlp):
        names = []
        for j, layer in enumerate(program.dynamics.layers):
            names += [f"linear{j}.weight", f"linear{j}.bias"] + [f"norm{j}.weight", f"norm{j}.bias"] * layer.normed
    else:
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
        names += ["norm.weight", "norm.bias"] * program.dynamics.normalise
    tensors = {f"dynamics.0.{name}": p.numpy() for name, p in zip(names, parameters, strict=True)}
    return Model.from_bytes(agent_file.to_bytes(spec, tensors))


def rollout_of(name: str, program: Program, parameters: Sequence[Tensor], device: str) -> Callable[..., FloatArray]:
    """A provider as a rollout callback: states (E, L), goals (E, L), actions (E, N, S, A) -> costs (E, N).

    Raises ValueError where the provider cannot take the program, saying why.
    """
    there = [p.to(device) for p in parameters]
    if name in ("fused", "stepwise"):
        ready: Callable[..., Tensor] = Prepared(program.dynamics, there, terms=TERMS, backend=name)  # type: ignore[arg-type]
    else:

        def ready(start: Tensor, actions: Tensor, goal: Tensor) -> Tensor:
            with torch.no_grad():
                return rollout_reference(program.dynamics, there, start, actions, terms=TERMS, goal=goal).cost

        if name == "torch compiled":
            ready = torch.compile(ready, mode="max-autotune-no-cudagraphs" if device == "cpu" else "max-autotune")
    captured: dict[tuple[int, ...], Any] = {}

    def call(states: FloatArray, goals: FloatArray | None, actions: FloatArray) -> FloatArray:
        assert goals is not None
        cost = np.empty(actions.shape[:2], np.float32)
        if device != "cpu" and name in ("fused", "stepwise"):
            if actions.shape not in captured:
                from pyjepa.kernels.rollout.graph import Captured

                captured[actions.shape] = Captured(
                    lambda *tensors: [ready(*tensors)],
                    [states.shape, actions.shape, goals.shape],
                    torch.device(device, torch.cuda.current_device()),
                )
            captured[actions.shape]([states, actions, goals], [cost])
            return cost
        cost[...] = ready(*(torch.from_numpy(x).to(device) for x in (states, actions, goals))).cpu().numpy()
        return cost

    return call


def agents(
    program: Program, steps: int, candidates: int, device: str, names: Sequence[str]
) -> tuple[dict[str, Agent], dict[str, str]]:
    """An agent ready to plan for each provider that can take the program, and the others with the reason."""
    parameters = parameters_of(program)
    spec = spec_of(program, steps, candidates)
    model = _model(program, spec, parameters)
    made, refused = {}, {}
    for name in names:
        agent = Agent(model)
        goal = np.random.default_rng(1).standard_normal(program.dynamics.state, dtype=np.float32)
        if name == "engine":
            agent.configure(goal=goal)
        else:
            try:
                agent.configure(goal=goal, rollout=rollout_of(name, program, parameters, device))
            except ValueError as error:
                refused[name] = str(error)
                continue
        agent.observe(np.random.default_rng(2).standard_normal(program.dynamics.state, dtype=np.float32))
        made[name] = agent
    return made, refused


def compare(
    names: Sequence[str],
    candidates: Sequence[int],
    *,
    device: str,
    providers: Sequence[str] = PROVIDERS,
    horizon: int | None = None,
    seconds: float = 2.0,
    least: int = 3,
    programs: dict[str, tuple[Program, int]] = WORKLOADS,
    progress: Callable[[str], None] = lambda done: None,
) -> list[Row]:
    """Plans of every workload, over ``horizon`` predictor steps or its own, with every number of candidates.

    A refused provider's row holds the ``reason``. The first plan of each, which compiles and captures, is not counted.
    """
    rows: list[Row] = []
    for name in names:
        program, steps = programs[name]
        steps = steps if horizon is None else horizon
        for count in candidates:
            made, refused = agents(program, steps, count, device, providers)
            for agent in made.values():
                agent.plan()
            taken: dict[str, list[float]] = {provider: [] for provider in made}
            begin = time.perf_counter()
            while time.perf_counter() - begin < seconds or any(len(values) < least for values in taken.values()):
                for provider, agent in made.items():
                    start = time.perf_counter()
                    agent.plan()
                    taken[provider].append(time.perf_counter() - start)
            for provider in providers:
                row: Row = {"workload": name, "candidates": count, "horizon": steps, "provider": provider}
                if provider in refused:
                    rows.append(row | {"reason": refused[provider]})
                    continue
                values = taken[provider]
                rows.append(
                    row
                    | {"repeats": len(values), "p50_ms": milliseconds(values, 50), "p99_ms": milliseconds(values, 99)}
                )
            progress(f"{name}, {count} candidates")
    return rows
