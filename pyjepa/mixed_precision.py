"""Mixed precision: which layers stay above int8, chosen by what plans cost.

`choose` measures how much each layer alone disturbs the costs of candidates when it runs in int8, then keeps the most
disturbing layers in bf16, and where that is not enough in fp32: as few as it takes for the plans found to cost at most
a stated fraction more than those that fp32 finds, as fp32 judges them. Everything is measured by the engine itself, so
any dynamics, cost and planner can be judged so. The engine runs a layer in the higher of the precision it is loaded in
and its own (`pyjepa.spec.Quantisation.precisions`).
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa import agent_file
from pyjepa.agent import Agent, Model, Precision
from pyjepa.errors import UnsupportedError
from pyjepa.quantise import Predictor, Situation, Tensors
from pyjepa.spec import AdalnTransformer, Conv, Gru, Impala, LayerPrecision, Mlp, Quantisation, Spec, Vit

Progress = Callable[[str, int], None]
"""Called after every step with what is being done, and of how many such steps."""

CANDIDATES = 64
"""Plans around fp32's own whose costs say how much a layer disturbs."""


@dataclass(frozen=True)
class Layer:
    """One layer that lower precisions hold for: the ``index``-th of its ``module``.

    Its tensors begin with ``name``; those that make modulations are one, ``modulation``, for all layers.
    """

    module: str
    index: int
    name: str


@dataclass(frozen=True)
class Choice:
    """The precisions chosen, and why.

    ``rise``: how much more the plans cost, as a fraction, mean over ``states``; ``rise_95``: half its 95 % interval;
    ``rise_int8``: the same with every layer in int8. ``errors``: per precision tried, what each layer alone makes of
    candidates' costs (root mean square error, over their standard deviation).
    """

    spec: Spec
    layers: tuple[Layer, ...]
    precisions: tuple[LayerPrecision, ...]
    errors: Mapping[str, tuple[float, ...]]
    target: float
    rise: float
    rise_95: float
    rise_int8: float
    states: int
    seed: int

    def evidence(self) -> str:
        """All of it as JSON, which the file carries as ``provenance["quantisation"]``."""
        rows = [
            {"layer": layer.name, "precision": precision}
            | {f"error_{tried}": _short(errors[i]) for tried, errors in self.errors.items()}
            for i, (layer, precision) in enumerate(zip(self.layers, self.precisions, strict=True))
        ]
        figures = {key: _short(getattr(self, key)) for key in ("target", "rise", "rise_95", "rise_int8")}
        return json.dumps(figures | {"states": self.states, "seed": self.seed, "layers": rows})


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def layers(spec: Spec, *, encoder: bool = False) -> tuple[Layer, ...]:
    """The layers of all modules, in the order of a file's tensors; those of the encoder with ``encoder``.

    An encoder without precisions of its own stays in fp32.
    """
    found: list[Layer] = []
    for name, module in spec.modules.items():
        if name == spec.levels[0].encoder and not encoder:
            continue
        names: list[str] = []
        for i, block in enumerate(module.blocks):
            if isinstance(block, Mlp):
                names += [f"{name}.{i}.linear{j}" for j in range(len(block.layers))]
            elif isinstance(block, Gru):
                names.append(f"{name}.{i}.weight_hh")
            elif isinstance(block, Conv):
                names += [f"{name}.{i}.conv{j}" for j in range(len(block.layers))]
            elif isinstance(block, Impala):
                convs = ("conv", "res0.conv0", "res0.conv1", "res1.conv0", "res1.conv1")
                names += [f"{name}.{i}.stage{s}.{conv}" for s in range(len(block.channels)) for conv in convs]
            elif isinstance(block, (AdalnTransformer, Vit)):
                first = ("patch",) if isinstance(block, Vit) else ("action1", "modulation")
                names += [f"{name}.{i}.{part}" for part in first]
                inside = ("qkv", "out", "linear0", "linear1")
                names += [f"{name}.{i}.layer{d}.{part}" for d in range(block.depth) for part in inside]
        found += [Layer(name, index, each) for index, each in enumerate(names)]
    return tuple(found)


def with_precisions(spec: Spec, precisions: Sequence[LayerPrecision], *, encoder: bool = False) -> Spec:
    """The spec with one precision for each of `layers`, in their order; see there for ``encoder``."""
    own: dict[str, list[LayerPrecision]] = {}
    for layer, precision in zip(layers(spec, encoder=encoder), precisions, strict=True):
        own.setdefault(layer.module, []).append(precision)
    modules = dict(spec.modules)
    for name, each in own.items():
        stored = modules[name].quantisation or Quantisation(weights="int8")
        limited = dataclasses.replace(stored, precisions=tuple(each))
        modules[name] = dataclasses.replace(modules[name], quantisation=limited)
    return dataclasses.replace(spec, modules=modules)


def without_precisions(spec: Spec) -> Spec:
    """The spec with no precision chosen; activation scales stay."""
    modules = dict(spec.modules)
    for name, module in spec.modules.items():
        if module.quantisation is not None:
            free = dataclasses.replace(module.quantisation, precisions=())
            modules[name] = dataclasses.replace(module, quantisation=free if free.activations else None)
    return dataclasses.replace(spec, modules=modules)


def choose(
    spec: Spec,
    tensors: Tensors,
    situations: Sequence[Situation],
    *,
    target: float,
    encoder: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Choice:
    """The spec with a precision for every layer, such that planning in int8 costs at most ``target`` more.

    That is a fraction of what fp32's plans cost: 0.02 allows 2 %. Activation scales that ``spec`` has are used and
    kept. With ``encoder`` its layers are chosen for as well; without, it stays in fp32. Whatever is measured, the
    target can be met: with all layers in fp32 nothing changes.

    Raises `UnsupportedError` where the machine has no int8 instructions to measure with or nothing is quantised, and
    `ValueError` for a negative target, no situations, or plans that cost nothing, of which there is no fraction.
    """
    if not target >= 0:
        raise ValueError(f"target must be a fraction that is not negative, got {target}")
    if not situations:
        raise ValueError("no situations to choose in")
    measure = _Measure(spec, tensors, situations, encoder, seed, progress or (lambda doing, of: None))
    count = len(measure.layers)
    errors = {"int8": measure.errors("int8")}
    precisions: list[LayerPrecision] = ["int8"] * count
    rise, half = measure.rise(precisions)
    rise_int8 = rise
    for lifted in measure.above_int8:
        if rise <= target:
            break
        lower: LayerPrecision = "int8" if lifted == measure.above_int8[0] else "bf16"
        if lower not in errors:
            errors[lower] = measure.errors(lower)
        order = np.argsort(-np.array(errors[lower]), kind="stable")

        def lift(most: int, lower: LayerPrecision = lower, lifted: LayerPrecision = lifted, order: Any = order) -> Any:
            chosen = set(order[:most].tolist())
            return [lifted if i in chosen else lower for i in range(count)]

        # The fewest that meet the target, as far as more lifted layers cost less.
        least, most = 0, count  # missed with `least` layers, met with `most`
        precisions = lift(most)
        rise, half = measure.rise(precisions)
        while rise <= target and most - least > 1:
            middle = (least + most) // 2
            tried = lift(middle)
            tried_rise, tried_half = measure.rise(tried)
            if tried_rise <= target:
                most, precisions, rise, half = middle, tried, tried_rise, tried_half
            else:
                least = middle
    chosen = Choice(
        spec=with_precisions(spec, precisions, encoder=encoder),
        layers=measure.layers,
        precisions=tuple(precisions),
        errors=errors,
        target=target,
        rise=rise,
        rise_95=half,
        rise_int8=rise_int8,
        states=len(situations),
        seed=seed,
    )
    provenance = {**spec.provenance, "quantisation": chosen.evidence()}
    return dataclasses.replace(chosen, spec=dataclasses.replace(chosen.spec, provenance=provenance))


class _Measure:
    """What fp32 plans and judges, and how far lower precisions stray from that."""

    def __init__(
        self,
        spec: Spec,
        tensors: Tensors,
        situations: Sequence[Situation],
        encoder: bool,
        seed: int,
        progress: Progress,
    ) -> None:
        self.layers, self.encoder = layers(spec, encoder=encoder), encoder
        if not self.layers:
            raise UnsupportedError("no layer of this agent runs in a lower precision: nothing to choose")
        self.spec, self.tensors, self.situations, self.seed, self.progress = spec, tensors, situations, seed, progress
        self.above_int8: tuple[LayerPrecision, ...] = (
            ("bf16", "fp32") if self._model("bf16").precision == "bf16" else ("fp32",)
        )
        if self._model("int8").precision != "int8":
            raise UnsupportedError("this machine has no int8 instructions to measure mixed precision with")
        self.judge = Agent(self._model("fp32"))
        self.predictor = Predictor(self.judge.model)
        self.candidates: list[npt.NDArray[Any]] = []
        self.costs: list[npt.NDArray[np.float64]] = []  # of the candidates; the first is fp32's plan
        rng = np.random.default_rng(seed)
        for i in range(len(situations)):
            own = self._plan(self.judge, i)
            self.candidates.append(np.concatenate([own, self._around(own[0], rng)]))
            self.costs.append(self.judge.evaluate(self.candidates[-1]).astype(np.float64))
            progress("planning in fp32", len(situations))
        self.own = np.array([costs[0] for costs in self.costs])
        self.reachable = np.isfinite(self.own)
        if not self.reachable.any() or not np.abs(self.own[self.reachable]).mean() > 0:
            raise ValueError("plans cost nothing, or infinity, here: there is no fraction of that")

    def errors(self, precision: Precision) -> tuple[float, ...]:
        """Per layer: the error of candidates' costs with it alone in this precision, over their spread."""
        found = []
        for alone in range(len(self.layers)):
            agent = Agent(self._mixed(["int8" if i == alone else "fp32" for i in range(len(self.layers))], precision))
            squared, spread = 0.0, 0.0
            for i, reference in enumerate(self.costs):
                self._look(agent, i)
                costs = agent.evaluate(self.candidates[i]).astype(np.float64)
                known = np.isfinite(reference) & np.isfinite(costs)
                error = (costs - reference)[known]
                # What is added to all costs alike changes no plan.
                squared += float(np.square(error - error.mean()).sum()) if len(error) else 0.0
                own = reference[known]
                spread += float(np.square(own - own.mean()).sum()) if len(own) else 0.0
                self.progress(f"one layer at a time in {precision}", len(self.layers) * len(self.costs))
            found.append(float(np.sqrt(squared / spread)) if spread > 0 else 0.0)
        return tuple(found)

    def rise(self, precisions: Sequence[LayerPrecision]) -> tuple[float, float]:
        """How much more plans made so cost, as a fraction of fp32's, and half the 95 % interval of that."""
        agent = Agent(self._mixed(precisions, "int8"))
        higher = sum(each != "int8" for each in precisions)
        doing = f"planning with {higher} of {len(precisions)} layers above int8"
        if "fp32" in precisions:
            doing += f", {sum(each == 'fp32' for each in precisions)} in fp32"
        more = np.zeros(len(self.situations))
        for i in range(len(self.situations)):
            plan = self._plan(agent, i)
            self._look(self.judge, i)
            more[i] = float(self.judge.evaluate(plan)[0]) - self.own[i]
            self.progress(doing, len(self.situations))
        more = more[self.reachable] / np.abs(self.own[self.reachable]).mean()
        half = 1.96 * float(more.std(ddof=1)) / np.sqrt(len(more)) if len(more) > 1 else float("inf")
        return float(more.mean()), half

    def _model(self, precision: Precision, spec: Spec | None = None) -> Model:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that the machine lacks it: asked and said above
            return Model.from_bytes(agent_file.to_bytes(spec or self.spec, self.tensors), precision=precision)

    def _mixed(self, precisions: Sequence[LayerPrecision], precision: Precision) -> Model:
        return self._model(precision, with_precisions(self.spec, precisions, encoder=self.encoder))

    def _look(self, agent: Agent, i: int) -> None:
        agent.configure(goal=self.situations[i].goal, seed=self.seed + i)
        agent.observe(self.situations[i].observation)

    def _plan(self, agent: Agent, i: int) -> npt.NDArray[Any]:
        """(1, S, A'): the plan from one situation, a row per predictor step."""
        self._look(agent, i)
        actions = np.asarray(agent.plan().actions, np.float32)
        return self.predictor.blocks(actions.reshape(1, len(actions), -1))

    def _around(self, plan: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
        """Plans as a planner halfway through would draw them around its own."""
        actions, planner = self.spec.actions, self.spec.planner
        if actions.kind == "discrete":
            drawn = rng.integers(actions.count, size=(CANDIDATES, *plan.shape))
            return np.where(rng.random(drawn.shape) < 0.5, drawn, plan).astype(np.float32)
        repeats = plan.shape[1] // len(actions.low)
        low, high = (np.tile(np.asarray(bound, np.float32), repeats) for bound in (actions.low, actions.high))
        spread = np.sqrt(planner.std * max(planner.min_std, 0.01)) * (high - low) / 2
        drawn = plan + spread * rng.standard_normal((CANDIDATES, *plan.shape))
        clipped: npt.NDArray[Any] = np.clip(drawn, low, high).astype(np.float32)
        return clipped
