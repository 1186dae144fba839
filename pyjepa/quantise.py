"""Static int8: scales for the inputs of the predictor's dense layers, found where plans go, and what a precision costs.

`calibrate` plans in fp32 from stored observations, follows every candidate that the planner tries and picks for each
layer the scale with the least squared error over the inputs seen there. `compare` says what planning in bf16 or int8
changes: the order of the candidates, and the cost of the plan found as fp32 judges it. The engine predicts throughout.

Symbols: ``N`` candidates, ``S`` predictor steps, ``L`` latent dimension, ``D`` what the predictor reads as an action.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyjepa import agent_file
from pyjepa.agent import Agent, Model
from pyjepa.errors import UnsupportedError
from pyjepa.spec import (
    Actions,
    ActivationScale,
    Gru,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Quantisation,
    Spec,
)

FloatArray = npt.NDArray[np.float32]
Tensors = Mapping[str, FloatArray]
Progress = Callable[[], None]
"""Called after every situation."""

SAMPLES = 8192
"""Input vectors kept per layer to choose its scale from."""
CLIPS = np.geomspace(0.2, 1.0, 33)
"""Ranges tried, as fractions of the largest one seen."""

LEAST_REACH = 0.01
"""The least range of one input, as a fraction of the largest among them."""


@dataclass(frozen=True)
class Situation:
    """Where an agent is and where it is to go: two observations, in the file's shape and dtype."""

    observation: npt.NDArray[Any]
    goal: npt.NDArray[Any]


class Predictor:
    """What a model's predictor reads of plans, and what it says state by state."""

    def __init__(self, model: Model) -> None:
        """Raises `UnsupportedError` where there is none."""
        spec = model.spec
        name = spec.levels[0].predictor
        if name is None:
            raise UnsupportedError("this agent file has no predictor to quantise")
        self.model, self.name = model, name
        self.action_first = spec.modules[name].inputs == ("action", "state")
        self.looks_back = spec.modules[name].combine == "adaln"
        """Its outputs depend on more than one state."""

    def blocks(self, plans: npt.ArrayLike) -> FloatArray:
        """(N, S, D): plans (N, H, A), one row per predictor step, as `Agent.evaluate` takes them."""
        level = self.model.spec.levels[0]
        array = np.asarray(plans, np.float32)
        count, horizon, size = array.shape
        array = array.reshape(count, horizon // level.action_block, level.action_block, size)
        return array[:, :, 0] if level.hold else array.reshape(count, horizon // level.action_block, -1)

    def actions(self, plans: npt.ArrayLike) -> FloatArray:
        """(N, S, D): what the predictor reads of plans (N, H, A) in the environment's units."""
        center, scale = (np.asarray(getattr(self.model.spec.actions, x), np.float32) for x in ("center", "scale"))
        return self.blocks((np.asarray(plans, np.float32) - center) / scale)

    def inputs(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """States (N, L) and actions (N, D) as the network takes them."""
        return np.concatenate([actions, states] if self.action_first else [states, actions], axis=1)

    def roll_out(
        self, state: FloatArray, actions: FloatArray, watch: Callable[[FloatArray], None] | None = None
    ) -> Any:
        """States (N, S + 1, L) from one state (L,) under actions (N, S, D); ``watch`` sees every input (N, L + D)."""
        states = np.empty((len(actions), actions.shape[1] + 1, len(state)), np.float32)
        states[:, 0] = state
        for step in range(actions.shape[1]):
            inputs = self.inputs(states[:, step], actions[:, step])
            if watch is not None:
                watch(inputs)
            states[:, step + 1] = self.model.forward(self.name, inputs)
        return states


def layer_inputs(spec: Spec, tensors: Tensors) -> list[Callable[[FloatArray], FloatArray]]:
    """For each dense layer of the predictor's mlp blocks, and a gru's hidden state, a function from the predictor's
    inputs to that layer's.

    Raises `UnsupportedError` for a predictor of other blocks.
    """
    name = spec.levels[0].predictor
    if name is None:
        raise UnsupportedError("this agent file has no predictor to quantise")
    module = spec.modules[name]
    if module.ensemble != 1:
        raise UnsupportedError(f"module {name!r}: an ensemble cannot be quantised with static scales")
    functions: list[Callable[[FloatArray], FloatArray]] = []
    for i, block in enumerate(module.blocks):
        if isinstance(block, Gru):  # the first
            functions.append(_state_of(module, block.hidden))
        elif isinstance(block, Mlp):
            for j in range(len(block.layers)):
                cut = [*module.blocks[:i], *([dataclasses.replace(block, layers=block.layers[:j])] if j else [])]
                functions.append(_network(module, name, tuple(cut), tensors) if cut else lambda inputs: inputs)
        else:
            raise UnsupportedError(f"module {name!r}: block {block.kind!r} cannot be quantised")
    return functions


def _state_of(module: Module, size: int) -> Callable[[FloatArray], FloatArray]:
    """The state among the inputs of a cell."""
    first = module.inputs[0] == "state"
    return lambda inputs: inputs[:, :size] if first else inputs[:, -size:]


def _network(
    module: Module, name: str, blocks: tuple[Any, ...], tensors: Tensors
) -> Callable[[FloatArray], FloatArray]:
    """The first blocks of a module as a network of their own, run by the engine."""
    if not isinstance(blocks[0], Gru):
        return _mlps(name, 0, blocks, tensors)
    cell = _cell(module, name, blocks[0], tensors)
    if len(blocks) == 1:
        return cell
    rest = _mlps(name, 1, blocks[1:], tensors)
    return lambda inputs: rest(cell(inputs))


def _cell(module: Module, name: str, gru: Gru, tensors: Tensors) -> Callable[[FloatArray], FloatArray]:
    """A cell alone: the predictor of an agent of its own."""
    own = {key.replace(name, "cell", 1): value for key, value in tensors.items() if key.startswith(f"{name}.0.")}
    norm: Literal["none", "layer"] = "none" if gru.norm == "none" else "layer"
    block = dataclasses.replace(gru, norm=norm)
    actions = own["cell.0.weight_ih"].shape[1]
    spec = Spec(
        observation=Observation(shape=(gru.hidden,)),
        actions=Actions(low=(-1.0,) * actions, high=(1.0,) * actions),
        modules={"cell": Module(inputs=module.inputs, combine="cell", blocks=(block,))},
        levels=(Level(predictor="cell"),),
        planner=Planner(candidates=1, horizon=1, elites=1),
    )
    model = Model.from_bytes(agent_file.to_bytes(spec, own))
    return lambda inputs: model.forward("cell", inputs)


def _mlps(name: str, first: int, blocks: tuple[Any, ...], tensors: Tensors) -> Callable[[FloatArray], FloatArray]:
    """Blocks from ``first`` on, all mlp: the encoder of an agent of its own."""
    parameters: dict[str, FloatArray] = {}
    for i, block in enumerate(blocks):
        for j in range(len(block.layers)):
            for part in (f"linear{j}.", f"norm{j}."):
                begins = f"{name}.{first + i}.{part}"
                parameters |= {
                    f"prefix.{i}.{part}{key.removeprefix(begins)}": value
                    for key, value in tensors.items()
                    if key.startswith(begins)
                }
    spec = Spec(
        observation=Observation(shape=(tensors[f"{name}.{first}.linear0.weight"].shape[1],)),
        actions=Actions(low=(-1.0,), high=(1.0,)),
        modules={"prefix": Module(inputs=("observation",), blocks=blocks)},
        levels=(Level(encoder="prefix"),),
    )
    model = Model.from_bytes(agent_file.to_bytes(spec, parameters))
    return lambda inputs: model.forward("prefix", inputs)


class _Reservoir:
    """A uniform sample of at most `SAMPLES` of the rows it is shown, and the range of all of them."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._keys: npt.NDArray[np.float64] = np.empty(0)
        self._rows: FloatArray | None = None

    def add(self, rows: FloatArray) -> None:
        rows = rows[np.isfinite(rows).all(axis=1)]
        keys = self._rng.random(len(rows))
        self._rows = rows if self._rows is None else np.concatenate([self._rows, rows])
        self._keys = np.concatenate([self._keys, keys])
        if len(self._keys) > 2 * SAMPLES:
            self._cut()

    def _cut(self) -> None:
        assert self._rows is not None
        kept = np.argsort(self._keys)[:SAMPLES]
        self._keys, self._rows = self._keys[kept], self._rows[kept]

    def rows(self) -> FloatArray:
        if self._rows is None or not len(self._rows):
            raise ValueError("no candidate was predicted to a finite state: nothing to calibrate on")
        self._cut()
        return self._rows


def best_scale(values: npt.ArrayLike) -> ActivationScale:
    """The scales and zero for a layer's inputs ``values`` (rows, inputs).

    Each input is scaled to fill the same range: inputs that vary little, like actions beside latents, have large
    weights, which would leave the weights of the others few of int8's steps. Then that range is clipped where the
    inputs, so scaled, lose least in squared error as unsigned bytes: the upper end first, then the lower one.
    """
    x = np.asarray(values, np.float64)
    reach = np.quantile(np.abs(x), 0.999, axis=0)
    if not reach.max() > 1e-30:
        return ActivationScale(scale=(1.0,), zero=0)
    reach = np.maximum(reach, reach.max() * LEAST_REACH)
    x = x / reach
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)

    def step(least: float, most: float) -> tuple[float, int]:
        size = (most - least) / 255
        return size, min(255, round(-least / size))

    def error(size: float, zero: int) -> float:
        return float(np.square((np.clip(np.rint(x / size) + zero, 0, 255) - zero) * size - x).sum())

    most = min(high * CLIPS, key=lambda end: error(*step(low, end)))
    least = min(low * CLIPS, key=lambda end: error(*step(end, most))) if low < 0.0 else 0.0
    size, zero = step(least, most)
    return ActivationScale(scale=tuple(float(np.float32(size * each)) for each in reach), zero=zero)


def calibrate(
    model: Model, tensors: Tensors, situations: Iterable[Situation], *, seed: int = 0, progress: Progress | None = None
) -> Spec:
    """The spec of ``model`` (fp32, with the file's tensors) with activation scales for its predictor.

    From each situation the file's planner plans once; every candidate of every iteration counts.

    Raises `UnsupportedError` where the predictor is of a kind that this cannot follow.
    """
    spec = model.spec
    predictor, taps = Predictor(model), layer_inputs(spec, tensors)
    seen = [_Reservoir(seed + i) for i in range(len(taps))]
    rng = np.random.default_rng(seed)

    def see(inputs: FloatArray) -> None:
        few = inputs[rng.permutation(len(inputs))[:32]]
        for tap, reservoir in zip(taps, seen, strict=True):
            reservoir.add(tap(few))

    for i, situation in enumerate(situations):
        _tried(predictor, situation, seed + i, see)
        if progress is not None:
            progress()
    scales = tuple(best_scale(reservoir.rows()) for reservoir in seen)
    quantised = dataclasses.replace(
        spec.modules[predictor.name], quantisation=Quantisation(weights="int8", activations=scales)
    )
    return dataclasses.replace(spec, modules={**spec.modules, predictor.name: quantised})


def compare(
    reference: Model,
    others: Mapping[str, Model],
    situations: Iterable[Situation],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """What planning with each of ``others`` instead of ``reference`` changes. Per name:

    - ``spearman``, ``spearman_least``: rank correlation of the costs of the same candidates, mean and least over the
      situations. The candidates are those of the reference's first and last iterations.
    - ``state_error``: root mean square difference of predicted states, over theirs from the present state; not of a
      predictor that looks back.
    - ``final_cost``: mean cost of the plans found, judged by the reference; ``reference_cost``: of its own plans.
    - ``final_cost_change``: how much more that is, as a fraction.
    """
    judge, agents = Agent(reference), {name: Agent(model) for name, model in others.items()}
    predictor, predictors = Predictor(reference), {name: Predictor(model) for name, model in others.items()}
    spearmans: dict[str, list[float]] = {name: [] for name in others}
    errors: dict[str, list[float]] = {name: [] for name in others}
    finals: dict[str, list[float]] = {name: [] for name in ["", *others]}
    for i, situation in enumerate(situations):
        tried = _tried(predictor, situation, seed + i)
        for agent in (judge, *agents.values()):
            agent.configure(goal=situation.goal, seed=seed + i)
            agent.observe(situation.observation)
        for plans in (tried[0], tried[-1]):
            costs = judge.evaluate(predictor.blocks(plans))
            for name, agent in agents.items():
                spearmans[name].append(spearman(costs, agent.evaluate(predictor.blocks(plans))))
            if predictor.looks_back:
                continue
            state, actions = judge.state, predictor.actions(plans)
            states = predictor.roll_out(state, actions)
            moved = np.square(states[:, 1:] - state).mean()
            for name, other in predictors.items():
                rolled = other.roll_out(state, actions)
                errors[name].append(float(np.sqrt(np.square(rolled - states).mean() / max(moved, 1e-30))))
        for name, agent in [("", judge), *agents.items()]:
            found = agent.plan().actions[None]
            finals[name].append(float(judge.evaluate(predictor.blocks(found))[0]))
        if progress is not None:
            progress()
    if not finals[""]:
        raise ValueError("no situations to compare in")
    own = float(np.mean(finals[""]))
    return {
        name: {
            "spearman": float(np.mean(spearmans[name])),
            "spearman_least": float(np.min(spearmans[name])),
            **({"state_error": float(np.mean(errors[name]))} if errors[name] else {}),
            "reference_cost": own,
            "final_cost": float(np.mean(finals[name])),
            "final_cost_change": float(np.mean(finals[name])) / own - 1.0,
        }
        for name in others
    }


def _tried(
    predictor: Predictor, situation: Situation, seed: int, watch: Callable[[FloatArray], None] | None = None
) -> list[FloatArray]:
    """The candidates (N, H, A) of every iteration of one plan. ``watch`` sees what the predictor reads along them."""
    tried: list[FloatArray] = []
    judge = Agent(predictor.model)
    judge.configure(goal=situation.goal)
    judge.observe(situation.observation)

    def rollout(states: FloatArray, goals: FloatArray | None, plans: FloatArray) -> FloatArray:
        if len(plans[0]) > 1:  # not the one plan that is evaluated alone
            tried.append(plans[0].copy())
        if watch is not None:
            predictor.roll_out(states[0], predictor.actions(plans[0]), watch)
        return judge.evaluate(predictor.blocks(plans[0]))[None]

    agent = Agent(predictor.model)
    agent.configure(goal=situation.goal, rollout=rollout, seed=seed)
    agent.plan(situation.observation)
    if not tried:
        raise ValueError("a planner with one candidate ranks nothing")
    return tried


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """The rank correlation of two lists; equal numbers share their mean rank. 1 where either is constant."""
    ranks = []
    for values in (np.asarray(a), np.asarray(b)):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    x, y = (r - r.mean() for r in ranks)
    size = float(np.sqrt(np.square(x).sum() * np.square(y).sum()))
    return float((x * y).sum()) / size if size > 0 else 1.0
