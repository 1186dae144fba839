"""What is measured: planning problems of known size, each with a spec, weights, a start and a goal.

Weights are random and seeded: time depends on shapes alone. Everything here is data that can be sent to another
process; `Problem` is the same for implementations that know nothing of this package.

===========  =============================================  ==========================================================
W0s          z 64, a 2, MLP 66-64-64-64, residual           CEM, 64 candidates, horizon 10, 5 iterations, 8 elites
W0           z 32, a 2, MLP 34-128-128-32, residual         CEM, 256 candidates, horizon 10, 5 iterations, 32 elites
W0L          z 64, a 2, MLP 66-256-256-64, residual         CEM, 512 candidates, horizon 10, 5 iterations, 64 elites
W0s-mppi     as W0s                                         MPPI, one iteration
W0L-mppi     as W0L                                         MPPI, one iteration
W1           TD-MPC2's 5M model: z 512, a 6, five Q heads    MPPI on elites, 512 candidates of which 24 from the
             (`pyjepa.bench.tdmpc2`)                        policy, horizon 3, 6 iterations, 64 elites
W2           EB-JEPA's two rooms: IMPALA, z 512, GRU    CEM, 200 candidates, horizon 90, 20 iterations,
             (`pyjepa.bench.eb_jepa`)                       20 elites
W3           LeWM: ViT-Ti/14 at 224, z 192, transformer     CEM, 300 candidates, horizon 5 blocks, 10
             over 3 states (`pyjepa.bench.lewm`)            iterations, 30 elites
two-rooms    the shipped agent's, one held-out episode      CEM, 128 candidates, horizon 80 in blocks of 4
mode1        policy 128-128-128-2, encoder of 64x64 images  no plan: `Agent.act`, `Agent.observe` (see `mode1`)
===========  =============================================  ==========================================================
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pyjepa import agent_file, agents
from pyjepa.agent import Model, Precision
from pyjepa.errors import UnsupportedError
from pyjepa.quantise import Situation, calibrate
from pyjepa.spec import (
    Actions,
    Activation,
    Conv,
    ConvLayer,
    CostTerm,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Spec,
)

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Workload:
    """An agent and a task for it."""

    name: str
    spec: Spec
    tensors: Mapping[str, FloatArray]
    observation: npt.NDArray[Any]
    goal: npt.NDArray[Any] | None

    def model(self, precision: Precision = "fp32") -> Model:
        """The agent in the engine."""
        return Model.from_bytes(agent_file.to_bytes(self.spec, self.tensors), precision=precision)

    def calibrated(self) -> Workload:
        """The same with int8 scales for the predictor in the file, found along plans of this task."""
        if self.goal is None:
            raise UnsupportedError(f"{self.name} has no goal to calibrate for")
        spec = calibrate(self.model(), self.tensors, [Situation(self.observation, self.goal)])
        return dataclasses.replace(self, spec=spec)


@dataclass(frozen=True)
class Dense:
    """``activation(x W^T + b)``."""

    weight: FloatArray
    """(out, in)."""
    bias: FloatArray
    """(out,)."""
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class Perception:
    """What a problem's start and goal are encoded from, where encoding is measured too."""

    encoder: Module
    weights: Mapping[str, FloatArray]
    """As the agent file names them, from the block's number on: ``0.patch.weight``, ``1.linear0.bias``."""
    observation: npt.NDArray[Any]
    """(C, H, W), in the spec's dtype."""
    goal: npt.NDArray[Any]
    """The same."""
    scale: float
    """What both are multiplied by."""
    flops: int
    """Of one observation: two per multiply-add."""

    @staticmethod
    def of(workload: Workload, flops: int) -> Perception | None:
        """None for a workload without an encoder."""
        spec = workload.spec
        name = spec.levels[0].encoder
        if name is None or workload.goal is None:
            return None
        return Perception(
            encoder=spec.modules[name],
            weights={k.removeprefix(f"{name}."): v for k, v in workload.tensors.items() if k.startswith(f"{name}.")},
            observation=workload.observation,
            goal=workload.goal,
            scale=spec.observation.scale,
            flops=flops,
        )

    def images(self) -> FloatArray:
        """Observation and goal as they enter the network, (2, C, H, W)."""
        return np.stack([self.observation, self.goal]).astype(np.float32) * np.float32(self.scale)


@dataclass(frozen=True, kw_only=True)
class PlanningProblem(ABC):
    """What implementations are given to solve. Symbols: N candidates, S predictor steps, A action dimension, L latent
    dimension. Actions are in the environment's units; a plan has shape (S, A).
    """

    center: FloatArray
    scale: FloatArray
    low: FloatArray
    high: FloatArray
    start: FloatArray
    """(L,), the current latent state."""
    steps: int
    planner: Planner
    engine: Model = field(compare=False, repr=False)
    perception: Perception | None = None
    """Where encoding is measured too."""

    @property
    def algorithm(self) -> str:
        """What peers must be able to run: the planner's algorithm, or a name for all that belongs to it."""
        return self.planner.algorithm

    @property
    def latent_dim(self) -> int:
        """L."""
        return len(self.start)

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.low)

    @property
    @abstractmethod
    def flops(self) -> int:
        """Of one plan: two per multiply-add of all that is evaluated."""

    @abstractmethod
    def costs(self, plans: npt.ArrayLike) -> FloatArray:
        """What the engine's fp32 model says plans (N, S, A) cost; (N,). The yardstick for every implementation."""

    def sample(self, count: int, seed: int) -> FloatArray:
        """Plans (count, S, A) drawn uniformly within the bounds."""
        drawn = np.random.default_rng(seed).random((count, self.steps, self.action_dim), dtype=np.float32)
        return np.asarray(self.low + (self.high - self.low) * drawn, np.float32)


def problem_of(workload: Workload) -> PlanningProblem:
    """The problem behind a workload. Raises ValueError if it has more in it than plain arrays can say."""
    predictor = workload.spec.modules.get(workload.spec.levels[0].predictor or "")
    if predictor is not None and predictor.combine == "cell":
        from pyjepa.bench.eb_jepa import GruProblem

        return GruProblem.of(workload)
    if predictor is not None and predictor.combine == "adaln":
        from pyjepa.bench.lewm import AdalnProblem

        return AdalnProblem.of(workload)
    if workload.spec.critic is None:
        return Problem.of(workload)
    from pyjepa.bench.tdmpc2 import TdMpc2Problem

    return TdMpc2Problem.of(workload)


@dataclass(frozen=True, kw_only=True)
class Problem(PlanningProblem):
    """A planning problem in plain arrays: z[t+1] = z[t] + MLP(z[t], normalised a[t]), cost = distances to a goal."""

    layers: tuple[Dense, ...]
    residual: bool
    goal: FloatArray
    """(L,)."""
    squared: bool
    """Squared distances (else plain ones)."""
    stage: float
    terminal: float
    predictor: str = ""

    @staticmethod
    def of(workload: Workload) -> Problem:
        """Raises ValueError if the workload has more in it than these arrays can say."""
        spec, model = workload.spec, workload.model()
        level = spec.levels[0]
        module = spec.modules[level.predictor or ""]
        (term,) = spec.cost
        (block,) = module.blocks
        planner = spec.planner
        if not isinstance(block, Mlp) or module.ensemble > 1 or any(layer.norm != "none" for layer in block.layers):
            raise ValueError(f"{workload.name}: the predictor is no plain MLP")
        if module.inputs != ("state", "action") or term.kind != "goal_distance" or planner.knots:
            raise ValueError(f"{workload.name}: inputs, cost or knots that peers do not state")
        if level.action_block > 1 and not level.hold:
            raise ValueError(f"{workload.name}: actions are not held")
        layers = tuple(
            Dense(
                np.asarray(workload.tensors[f"{level.predictor}.0.linear{j}.weight"], np.float32),
                np.asarray(workload.tensors[f"{level.predictor}.0.linear{j}.bias"], np.float32),
                layer.activation,
            )
            for j, layer in enumerate(block.layers)
        )
        if workload.goal is None:
            raise ValueError(f"{workload.name}: a distance to no goal")
        start, goal = model.encode(np.stack([workload.observation, workload.goal]))
        center, scale, low, high = (
            np.asarray(getattr(spec.actions, name), np.float32) for name in ("center", "scale", "low", "high")
        )
        return Problem(
            layers=layers,
            residual=module.residual,
            center=center,
            scale=scale,
            low=low,
            high=high,
            start=start,
            goal=goal,
            squared=term.metric == "squared_l2",
            stage=term.stage,
            terminal=term.terminal,
            steps=planner.horizon // level.action_block,
            planner=planner,
            engine=model,
            predictor=level.predictor or "",
        )

    @property
    def flops(self) -> int:
        """Of one plan: two per multiply-add of the predictor, for every candidate, step and iteration."""
        multiply_adds = sum(layer.weight.size for layer in self.layers)
        return 2 * multiply_adds * self.steps * self.planner.candidates * self.planner.iterations

    def costs(self, plans: npt.ArrayLike) -> FloatArray:
        """See `PlanningProblem`."""
        actions = np.asarray(plans, np.float32)
        normalised = (actions - self.center) / self.scale
        state = np.repeat(self.start[None], len(actions), axis=0)
        total = np.zeros(len(actions), np.float32)
        for t in range(self.steps):
            state = self.engine.forward(self.predictor, np.concatenate([state, normalised[:, t]], axis=1))
            distance = np.square(state - self.goal).sum(axis=1)
            if not self.squared:
                distance = np.sqrt(distance)
            total += np.float32(self.terminal if t + 1 == self.steps else self.stage) * distance
        return total


def random_tensors(shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, FloatArray]:
    """Weights (out, in, ...) from N(0, 2 / fan-in) (He et al. 2015) and biases from N(0, 0.01)."""
    tensors = {}
    for name, shape in shapes.items():
        std = 0.1 if len(shape) == 1 else np.sqrt(2.0 / np.prod(shape[1:]))
        tensors[name] = (std * rng.standard_normal(shape)).astype(np.float32)
    return tensors


def _mlp(name: str, block: int, inputs: int, outs: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for j, out in enumerate(outs):
        shapes[f"{name}.{block}.linear{j}.weight"] = (out, inputs)
        shapes[f"{name}.{block}.linear{j}.bias"] = (out,)
        inputs = out
    return shapes


def residual_mlp(name: str, *, latent: int, hidden: tuple[int, ...], planner: Planner) -> Workload:
    """A state-based agent: z' = z + MLP(z, a) with two actions in [-1, 1], squared distances to a goal."""
    spec = Spec(
        name=name,
        observation=Observation(shape=(latent,)),
        actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0)),
        modules={
            "predictor": Module(
                inputs=("state", "action"),
                residual=True,
                blocks=(Mlp(layers=(*(Layer(out=out, activation="relu") for out in hidden), Layer(out=latent))),),
            )
        },
        levels=(Level(predictor="predictor"),),
        cost=(CostTerm(kind="goal_distance", metric="squared_l2"),),
        planner=planner,
    )
    rng = np.random.default_rng(0)
    tensors = random_tensors(_mlp("predictor", 0, latent + 2, (*hidden, latent)), rng)
    tensors[f"predictor.0.linear{len(hidden)}.weight"] *= np.float32(0.1)  # a state that moves without exploding
    tensors["predictor.0.linear0.weight"][:, latent:] *= np.float32(3.0)  # and that actions move
    start, goal = rng.standard_normal((2, latent)).astype(np.float32)
    return Workload(name, spec, tensors, start, goal)


def _cem(candidates: int, elites: int) -> Planner:
    return Planner(algorithm="cem", horizon=10, candidates=candidates, iterations=5, elites=elites)


def _mppi(candidates: int) -> Planner:
    return Planner(algorithm="mppi", horizon=10, candidates=candidates, iterations=1)


def two_rooms() -> Workload:
    """The shipped world model in an episode across the wall, with a door it was not trained on.

    Without what it learned by practice: distances to the goal are summed over a long horizon, which peers can state.
    """
    from pyjepa.envs.two_rooms import TwoRooms, evaluation_episodes

    path = agents.path("two_rooms")
    world = TwoRooms(1)
    world.begin(evaluation_episodes(1))
    whole = agent_file.validate(path)
    spec = dataclasses.replace(
        whole,
        modules={name: whole.modules[name] for name in ("encoder", "predictor")},
        policy=None,
        policy_head="deterministic",
        critic=None,
        cost=(CostTerm(kind="goal_distance"),),
        planner=dataclasses.replace(whole.planner, horizon=80, policy_candidates=0),
    )
    tensors = {k: v for k, v in safetensors.numpy.load_file(path).items() if k.split(".")[0] in spec.modules}
    return Workload("two-rooms", spec, tensors, world.observation[0], world.goal_observation[0])


def mode1() -> Workload:
    """An agent that acts: encoder of Two Rooms' pictures (2 x 64 x 64 -> 64), policy (z, goal) 128-128-128-2."""
    spec = Spec(
        name="mode1",
        observation=Observation(shape=(2, 64, 64), dtype="uint8", scale=1 / 255),
        actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0)),
        modules={
            "encoder": Module(
                inputs=("observation",),
                blocks=(
                    Conv(
                        layers=(
                            ConvLayer(out=32, kernel=8, stride=4, padding=2, activation="relu"),
                            ConvLayer(out=32, kernel=3, stride=2, padding=1, activation="relu"),
                            ConvLayer(out=64, kernel=3, stride=2, padding=1, activation="relu"),
                        )
                    ),
                    Mlp(layers=(Layer(out=256, activation="relu"), Layer(out=64))),
                ),
            ),
            "predictor": Module(inputs=("state", "action"), blocks=(Mlp(layers=(Layer(out=64),)),), residual=True),
            "policy": Module(
                inputs=("state", "goal"),
                blocks=(
                    Mlp(
                        layers=(
                            Layer(out=128, activation="relu"),
                            Layer(out=128, activation="relu"),
                            Layer(out=2, activation="tanh"),
                        )
                    ),
                ),
            ),
        },
        levels=(Level(encoder="encoder", predictor="predictor"),),
        policy="policy",
        cost=(CostTerm(kind="goal_distance"),),
    )
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 2
    for j, (out, kernel) in enumerate(((32, 8), (32, 3), (64, 3))):
        shapes[f"encoder.0.conv{j}.weight"] = (out, channels, kernel, kernel)
        shapes[f"encoder.0.conv{j}.bias"] = (out,)
        channels = out
    shapes |= _mlp("encoder", 1, 64 * 4 * 4, (256, 64))
    shapes |= _mlp("predictor", 0, 66, (64,))
    shapes |= _mlp("policy", 0, 128, (128, 128, 2))
    rng = np.random.default_rng(0)
    observation, goal = rng.integers(0, 256, (2, 2, 64, 64), dtype=np.uint8)
    return Workload("mode1", spec, random_tensors(shapes, rng), observation, goal)


def tdmpc2() -> Workload:
    """See `pyjepa.bench.tdmpc2`."""
    from pyjepa.bench.tdmpc2 import tdmpc2 as made

    return made("W1")


def eb_jepa() -> Workload:
    """See `pyjepa.bench.eb_jepa`."""
    from pyjepa.bench.eb_jepa import eb_jepa as made

    return made("W2")


def lewm() -> Workload:
    """See `pyjepa.bench.lewm`."""
    from pyjepa.bench.lewm import VIT
    from pyjepa.bench.lewm import lewm as made

    return made("W3", vit=VIT)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "W0s": lambda: residual_mlp("W0s", latent=64, hidden=(64, 64), planner=_cem(64, 8)),
    "W0": lambda: residual_mlp("W0", latent=32, hidden=(128, 128), planner=_cem(256, 32)),
    "W0L": lambda: residual_mlp("W0L", latent=64, hidden=(256, 256), planner=_cem(512, 64)),
    "W0s-mppi": lambda: residual_mlp("W0s-mppi", latent=64, hidden=(64, 64), planner=_mppi(64)),
    "W0L-mppi": lambda: residual_mlp("W0L-mppi", latent=64, hidden=(256, 256), planner=_mppi(512)),
    "W1": tdmpc2,
    "W2": eb_jepa,
    "W3": lewm,
    "two-rooms": two_rooms,
    "mode1": mode1,
}
