"""W3: LeWM's dynamics and its planner.

z 192; the predictor looks back on 3 states: 6 AdaLN-zero layers of 16 heads of 64 and an MLP of 2048, actions in blocks
of 5 x 2 numbers (10 → 768 → 192), a projector 192 → 2048 → 192 whose batch norm is folded into its weights. CEM, 300
candidates, 10 iterations, 30 elites, horizon 5 blocks, standard deviation 1 and no less spread kept; the cost is the
squared distance of the last latent to the goal's. The observation is the latent: encoding is not part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyjepa.agent import Agent
from pyjepa.bench.workloads import FloatArray, PlanningProblem, Workload
from pyjepa.spec import (
    Actions,
    AdalnTransformer,
    CostTerm,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Spec,
)

TRANSFORMER = AdalnTransformer(window=3, depth=6, width=192, heads=16, head_dim=64, hidden=2048, embedding=768)
REACH = 3.0
"""Of the actions: where LeWM's planner draws from a normal distribution without bounds, this is three of its
deviations."""


def lewm(
    name: str,
    *,
    transformer: AdalnTransformer = TRANSFORMER,
    projector: int = 2048,
    block: int = 5,
    planner: Planner | None = None,
) -> Workload:
    """The workload, or a smaller one like it; the state is as wide as the transformer."""
    latent = transformer.width
    spec = Spec(
        name=name,
        observation=Observation(shape=(latent,)),
        actions=Actions(low=(-REACH, -REACH), high=(REACH, REACH), center=(0.0, 0.0), scale=(1.0, 1.0)),
        modules={
            "predictor": Module(
                inputs=("state", "action"),
                combine="adaln",
                blocks=(transformer, Mlp(layers=(Layer(out=projector, activation="gelu"), Layer(out=latent)))),
            )
        },
        levels=(Level(predictor="predictor", action_block=block),),
        cost=(CostTerm(kind="goal_distance", metric="squared_l2", stage=0.0, terminal=1.0),),
        planner=planner
        or Planner(
            algorithm="cem", horizon=5 * block, candidates=300, iterations=10, elites=30, std=1 / REACH, min_std=0.0
        ),
    )
    rng = np.random.default_rng(0)
    tensors = {}
    for tensor, shape in _shapes(transformer, latent, 2 * block, projector).items():
        drawn = rng.standard_normal(shape)
        if ".norm" in tensor:  # around the identity
            drawn = (1.0 if tensor.endswith("weight") else 0.0) + 0.1 * drawn
        elif tensor.endswith("bias"):
            drawn *= 0.1
        elif not tensor.endswith("position"):
            drawn *= shape[1] ** -0.5
        tensors[f"predictor.{tensor}"] = drawn.astype(np.float32)
    start, goal = rng.standard_normal((2, latent)).astype(np.float32)
    return Workload(name, spec, tensors, start, goal)


def _shapes(block: AdalnTransformer, latent: int, inputs: int, projector: int) -> dict[str, tuple[int, ...]]:
    width, inner = block.width, block.heads * block.head_dim
    shapes: dict[str, tuple[int, ...]] = {"0.position": (block.window, width)}

    def add(name: str, out: int, *in_: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, *in_), (out,)

    add("0.action0", block.embedding, inputs)
    add("0.action1", width, block.embedding)
    for d in range(block.depth):
        layer = f"0.layer{d}"
        add(f"{layer}.modulation", 6 * width, width)
        add(f"{layer}.norm0", width)
        shapes[f"{layer}.qkv.weight"] = (3 * inner, width)
        add(f"{layer}.out", width, inner)
        add(f"{layer}.norm1", width)
        add(f"{layer}.linear0", block.hidden, width)
        add(f"{layer}.linear1", width, block.hidden)
    add("0.norm", width)
    add("1.linear0", projector, width)
    add("1.linear1", latent, projector)
    return shapes


@dataclass(frozen=True, kw_only=True)
class AdalnProblem(PlanningProblem):
    """The same in plain arrays; a plan holds blocks of actions, (S, A')."""

    transformer: AdalnTransformer
    weights: Mapping[str, FloatArray]
    """As the agent file names them, from the block's number on: ``0.layer0.qkv.weight``, ``1.linear0.weight``."""
    goal: FloatArray
    """(L,)."""

    @staticmethod
    def of(workload: Workload) -> AdalnProblem:
        """Raises ValueError if the workload is not one of `lewm`."""
        spec = workload.spec
        transformer, projector = spec.modules["predictor"].blocks
        if not isinstance(transformer, AdalnTransformer) or not isinstance(projector, Mlp):
            raise ValueError(f"{workload.name}: the predictor is no transformer with a projector")
        block = spec.levels[0].action_block
        twin = lewm(
            spec.name, transformer=transformer, projector=projector.layers[0].out, block=block, planner=spec.planner
        ).spec
        plain = dataclasses.replace(spec.modules["predictor"], quantisation=None)
        if dataclasses.replace(spec, modules={"predictor": plain}) != twin:
            raise ValueError(f"{workload.name}: a predictor or cost that peers do not state")
        assert workload.goal is not None
        center, scale, low, high = (
            np.tile(np.asarray(getattr(spec.actions, name), np.float32), block)
            for name in ("center", "scale", "low", "high")
        )
        return AdalnProblem(
            center=center,
            scale=scale,
            low=low,
            high=high,
            start=workload.observation,
            steps=spec.planner.horizon // block,
            planner=spec.planner,
            engine=workload.model(),
            transformer=transformer,
            weights={k.removeprefix("predictor."): v for k, v in workload.tensors.items()},
            goal=workload.goal,
        )

    @property
    def algorithm(self) -> str:
        """The planner's, over this model."""
        return f"{self.planner.algorithm}-adaln"

    @property
    def flops(self) -> int:
        """Of one plan as the engine carries it out: two per multiply-add, without what its exact savings spare."""
        block = self.transformer
        sizes = {name: value.size for name, value in self.weights.items() if value.ndim == 2}
        keys = 2 * block.heads * block.head_dim
        action = sum(size for name, size in sizes.items() if ".action" in name or ".modulation." in name)
        projector = sum(size for name, size in sizes.items() if name.startswith("1."))
        key_values = block.width * keys
        layer = sum(size for name, size in sizes.items() if ".layer0." in name and ".modulation." not in name)
        total = 0
        for step in range(self.steps):
            length, fresh = min(step + 1, block.window), 1 if step < block.window else block.window
            total += action + projector + block.depth * fresh * key_values
            total += ((block.depth - 1) * fresh + 1) * (layer - key_values)
            pairs = sum(length - i for i in range(fresh))
            total += keys * ((block.depth - 1) * pairs + length)  # scores, and sums of values
        return 2 * total * self.planner.candidates * self.planner.iterations

    def costs(self, plans: npt.ArrayLike) -> FloatArray:
        """See `PlanningProblem`."""
        agent = Agent(self.engine)
        agent.configure(goal=self.goal, prune=False)
        agent.observe(self.start)
        return np.asarray(agent.evaluate(np.asarray(plans, np.float32)), np.float32)
