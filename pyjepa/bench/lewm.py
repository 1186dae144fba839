"""W3: LeWM's dynamics and its planner.

z 192; the predictor looks back on 3 states: 6 AdaLN-zero layers of 16 heads of 64 and an MLP of 2048, actions in blocks
of 5 x 2 numbers (10 → 768 → 192), a projector 192 → 2048 → 192 whose batch norm is folded into its weights. CEM, 300
candidates, 10 iterations, 30 elites, horizon 5 blocks, standard deviation 1 and no less spread kept; the cost is the
squared distance of the last latent to the goal's. Observations are pictures of 224 x 224 that a ViT-Ti/14 and another
such projector encode; what is planned with starts behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyjepa.agent import Agent
from pyjepa.bench.workloads import FloatArray, Perception, PlanningProblem, Workload
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
    Vit,
)

TRANSFORMER = AdalnTransformer(window=3, depth=6, width=192, heads=16, head_dim=64, hidden=2048, embedding=768)
VIT = Vit(patch=14, width=192, depth=12, heads=3, hidden=768, norm_eps=1e-12)
SIDE = 224
REACH = 3.0
"""Of the actions: where LeWM's planner draws from a normal distribution without bounds, this is three of its
deviations."""


def lewm(
    name: str,
    *,
    vit: Vit | None = None,
    side: int = SIDE,
    transformer: AdalnTransformer = TRANSFORMER,
    projector: int = 2048,
    block: int = 5,
    planner: Planner | None = None,
) -> Workload:
    """The workload, or a smaller one like it; the state is as wide as the transformer. Without a ``vit``, it is what is
    observed; with one, pictures of ``side`` x ``side`` are.
    """
    latent = transformer.width
    projection = Mlp(layers=(Layer(out=projector, activation="gelu"), Layer(out=latent)))
    encoder = None if vit is None else Module(inputs=("observation",), blocks=(vit, projection))
    spec = Spec(
        name=name,
        observation=Observation(shape=(latent,))
        if encoder is None
        else Observation(shape=(3, side, side), dtype="uint8", scale=1 / 255),
        actions=Actions(low=(-REACH, -REACH), high=(REACH, REACH), center=(0.0, 0.0), scale=(1.0, 1.0)),
        modules={
            "predictor": Module(inputs=("state", "action"), combine="adaln", blocks=(transformer, projection)),
            **({} if encoder is None else {"encoder": encoder}),
        },
        levels=(Level(encoder=None if encoder is None else "encoder", predictor="predictor", action_block=block),),
        cost=(CostTerm(kind="goal_distance", metric="squared_l2", stage=0.0, terminal=1.0),),
        planner=planner
        or Planner(
            algorithm="cem", horizon=5 * block, candidates=300, iterations=10, elites=30, std=1 / REACH, min_std=0.0
        ),
    )
    rng = np.random.default_rng(0)
    tensors = _drawn(rng, "predictor", _shapes(transformer, latent, 2 * block, projector))
    if vit is None:
        start, goal = rng.standard_normal((2, latent)).astype(np.float32)
        return Workload(name, spec, tensors, start, goal)
    tensors |= _drawn(rng, "encoder", _vit_shapes(vit, side, latent, projector))
    for d in range(vit.depth):  # sharp attention: of averages over all patches, pictures would differ little
        tensors[f"encoder.0.layer{d}.qkv.weight"][: 2 * vit.width] *= np.float32(2.0)
    # Patches of one colour each: of noise in every pixel, a random network sees but the mean.
    coarse = rng.integers(0, 256, (2, 3, side // vit.patch, side // vit.patch), dtype=np.uint8)
    observation, goal_seen = coarse.repeat(vit.patch, axis=2).repeat(vit.patch, axis=3)
    return Workload(name, spec, tensors, observation, goal_seen)


def _drawn(rng: np.random.Generator, module: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, FloatArray]:
    tensors = {}
    for tensor, shape in shapes.items():
        drawn = rng.standard_normal(shape)
        if ".norm" in tensor:  # around the identity
            drawn = (1.0 if tensor.endswith("weight") else 0.0) + 0.1 * drawn
        elif tensor.endswith("bias"):
            drawn *= 0.1
        elif tensor.endswith("weight"):
            drawn *= np.prod(shape[1:]) ** -0.5
        tensors[f"{module}.{tensor}"] = drawn.astype(np.float32)
    return tensors


class _Shapes(dict[str, tuple[int, ...]]):
    """Of tensors, by name."""

    def add(self, name: str, out: int, *in_: int) -> None:
        """A layer's weight (a norm's, without ``in_``) and bias."""
        self[f"{name}.weight"], self[f"{name}.bias"] = (out, *in_), (out,)


def _vit_shapes(vit: Vit, side: int, latent: int, projector: int) -> _Shapes:
    """Of the encoder: the transformer and its projector."""
    width = vit.width
    shapes = _Shapes({"0.cls": (width,), "0.position": (1 + (side // vit.patch) ** 2, width)})
    shapes.add("0.patch", width, 3, vit.patch, vit.patch)
    for d in range(vit.depth):
        layer = f"0.layer{d}"
        shapes.add(f"{layer}.norm0", width)
        shapes.add(f"{layer}.qkv", 3 * width, width)
        shapes.add(f"{layer}.out", width, width)
        shapes.add(f"{layer}.norm1", width)
        shapes.add(f"{layer}.linear0", vit.hidden, width)
        shapes.add(f"{layer}.linear1", width, vit.hidden)
    shapes.add("0.norm", width)
    shapes.add("1.linear0", projector, width)
    shapes.add("1.linear1", latent, projector)
    return shapes


def encoder_flops(workload: Workload) -> int:
    """Of one picture: two per multiply-add of all layers and of attention; the last layer's, of all tokens."""
    vit = workload.spec.modules["encoder"].blocks[0]
    assert isinstance(vit, Vit)
    sizes = {name: value.size for name, value in workload.tensors.items() if value.ndim > 1}
    patches = len(workload.tensors["encoder.0.position"]) - 1
    total = patches * sizes["encoder.0.patch.weight"]
    for name, size in sizes.items():
        if name.startswith("encoder.0.layer"):
            total += (patches + 1) * size
        elif name.startswith("encoder.1."):
            total += size
    return 2 * (total + vit.depth * 2 * (patches + 1) ** 2 * vit.width)


def _shapes(block: AdalnTransformer, latent: int, inputs: int, projector: int) -> _Shapes:
    width, inner = block.width, block.heads * block.head_dim
    shapes = _Shapes({"0.position": (block.window, width)})
    add = shapes.add
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
        vit = spec.modules["encoder"].blocks[0] if "encoder" in spec.modules else None
        if vit is not None and not isinstance(vit, Vit):
            raise ValueError(f"{workload.name}: the encoder is no vision transformer")
        twin = lewm(
            spec.name,
            vit=vit,
            side=spec.observation.shape[-1],
            transformer=transformer,
            projector=projector.layers[0].out,
            block=block,
            planner=spec.planner,
        ).spec
        plain = {name: dataclasses.replace(module, quantisation=None) for name, module in spec.modules.items()}
        if dataclasses.replace(spec, modules=plain) != twin:
            raise ValueError(f"{workload.name}: an encoder, predictor or cost that peers do not state")
        assert workload.goal is not None
        model = workload.model()
        start, goal = model.encode(np.stack([workload.observation, workload.goal]))
        center, scale, low, high = (
            np.tile(np.asarray(getattr(spec.actions, name), np.float32), block)
            for name in ("center", "scale", "low", "high")
        )
        return AdalnProblem(
            center=center,
            scale=scale,
            low=low,
            high=high,
            start=start,
            steps=spec.planner.horizon // block,
            planner=spec.planner,
            engine=model,
            perception=None if vit is None else Perception.of(workload, encoder_flops(workload)),
            transformer=transformer,
            weights={
                k.removeprefix("predictor."): v for k, v in workload.tensors.items() if k.startswith("predictor.")
            },
            goal=goal,
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
        agent, seen = Agent(self.engine), self.perception
        agent.configure(goal=self.goal if seen is None else seen.goal, prune=False)
        agent.observe(self.start if seen is None else seen.observation)
        return np.asarray(agent.evaluate(np.asarray(plans, np.float32)), np.float32)
