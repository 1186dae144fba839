"""W2: EB-JEPA's action-conditioned model of two rooms and its planner.

Observations 2 x 65 x 65 → IMPALA (16, 32, 32) whose residual blocks end in their ReLU → Linear 2592-512 → LayerNorm;
the predictor is one GRU cell (input: the two actions, hidden state: the latent, 512) and the same LayerNorm. CEM, 200
candidates, 20 iterations, 20 elites, horizon 90; the cost is the sum over the steps of mean squared distances to the
goal's latent.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyjepa.bench.workloads import FloatArray, Perception, PlanningProblem, Workload, random_tensors
from pyjepa.spec import Actions, CostTerm, Gru, Impala, Layer, Level, Mlp, Module, Observation, Planner, Spec

RESIDUAL_CONVOLUTIONS = tuple(f"res{r}.conv{c}" for r in range(2) for c in range(2))


def eb_jepa(
    name: str,
    *,
    pixels: int = 65,
    channels: tuple[int, ...] = (16, 32, 32),
    latent: int = 512,
    planner: Planner | None = None,
) -> Workload:
    """The workload, or a smaller one like it."""
    spec = Spec(
        name=name,
        observation=Observation(shape=(2, pixels, pixels)),
        actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0)),
        modules={
            "encoder": Module(
                inputs=("observation",),
                blocks=(Impala(channels=channels, preactivation=False), Mlp(layers=(Layer(out=latent, norm="layer"),))),
            ),
            "predictor": Module(inputs=("state", "action"), combine="cell", blocks=(Gru(hidden=latent, norm="tied"),)),
        },
        levels=(Level(encoder="encoder", predictor="predictor"),),
        cost=(CostTerm(kind="goal_distance", metric="squared_l2", stage=1 / latent, terminal=1 / latent),),
        planner=planner or Planner(algorithm="cem", horizon=90, candidates=200, iterations=20, elites=20),
    )
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 2
    for s, out in enumerate(channels):
        shapes[f"encoder.0.stage{s}.conv.weight"] = (out, inputs, 3, 3)
        shapes[f"encoder.0.stage{s}.conv.bias"] = (out,)
        for convolution in RESIDUAL_CONVOLUTIONS:
            shapes[f"encoder.0.stage{s}.{convolution}.weight"] = (out, out, 3, 3)
            shapes[f"encoder.0.stage{s}.{convolution}.bias"] = (out,)
        inputs = out
    shapes["encoder.1.linear0.weight"] = (latent, inputs * stages(pixels, len(channels))[-1][1] ** 2)
    shapes["encoder.1.linear0.bias"] = (latent,)
    rng = np.random.default_rng(0)
    tensors = random_tensors(shapes, rng)
    reach = latent**-0.5  # torch's initial weights; those of the actions larger, so that these move
    for tensor, shape in (
        ("weight_ih", (3 * latent, 2)),
        ("weight_hh", (3 * latent, latent)),
        ("bias_ih", (3 * latent,)),
        ("bias_hh", (3 * latent,)),
    ):
        drawn = rng.uniform(-reach, reach, shape) * (10.0 if tensor == "weight_ih" else 1.0)
        tensors[f"predictor.0.{tensor}"] = drawn.astype(np.float32)
    for part, offset in (("weight", 1.0), ("bias", 0.0)):
        norm = (offset + 0.1 * rng.standard_normal(latent)).astype(np.float32)
        tensors[f"encoder.1.norm0.{part}"] = tensors[f"predictor.0.norm.{part}"] = norm
    observation, goal = rng.random((2, 2, pixels, pixels), dtype=np.float32)
    return Workload(name, spec, tensors, observation, goal)


def stages(pixels: int, count: int) -> list[tuple[int, int]]:
    """For each stage of an IMPALA encoder, the image's side before and after pooling."""
    sides = [pixels]
    for _ in range(count):
        sides.append((sides[-1] + 1) // 2)
    return list(itertools.pairwise(sides))


def encoder_flops(workload: Workload) -> int:
    """Of one observation: two per multiply-add."""
    impala = workload.spec.modules["encoder"].blocks[0]
    assert isinstance(impala, Impala)
    total = workload.tensors["encoder.1.linear0.weight"].size
    for s, (side, pooled) in enumerate(stages(workload.spec.observation.shape[1], len(impala.channels))):
        stage = f"encoder.0.stage{s}"
        total += workload.tensors[f"{stage}.conv.weight"].size * side**2
        total += sum(workload.tensors[f"{stage}.{c}.weight"].size for c in RESIDUAL_CONVOLUTIONS) * pooled**2
    return 2 * total


@dataclass(frozen=True, kw_only=True)
class GruProblem(PlanningProblem):
    """The same in plain arrays: z[t+1] = LayerNorm(GRU(z[t], normalised a[t])), cost = weighted squared distances."""

    weights: Mapping[str, FloatArray]
    """As `torch.nn.GRUCell` names them, and ``norm.weight`` and ``norm.bias``."""
    goal: FloatArray
    """(L,)."""
    weight: float
    """Of each step's squared distance."""

    @staticmethod
    def of(workload: Workload) -> GruProblem:
        """Raises ValueError if the workload is not one of `eb_jepa`."""
        spec = workload.spec
        (term,) = spec.cost
        twin = eb_jepa(spec.name, latent=_hidden(spec), planner=spec.planner)
        if (
            dataclasses.replace(spec, modules={}, observation=twin.spec.observation)
            != dataclasses.replace(twin.spec, modules={})
            or dataclasses.replace(spec.modules["predictor"], quantisation=None) != twin.spec.modules["predictor"]
        ):
            raise ValueError(f"{workload.name}: a predictor or cost that peers do not state")
        model = workload.model()
        assert workload.goal is not None
        start, goal = model.encode(np.stack([workload.observation, workload.goal]))
        center, scale, low, high = (
            np.asarray(getattr(spec.actions, name), np.float32) for name in ("center", "scale", "low", "high")
        )
        prefix = "predictor.0."
        return GruProblem(
            center=center,
            scale=scale,
            low=low,
            high=high,
            start=start,
            steps=spec.planner.horizon,
            planner=spec.planner,
            engine=model,
            weights={k.removeprefix(prefix): v for k, v in workload.tensors.items() if k.startswith(prefix)},
            goal=goal,
            weight=term.stage,
            perception=Perception.of(workload, encoder_flops(workload)),
        )

    @property
    def algorithm(self) -> str:
        """The planner's, over this model."""
        return f"{self.planner.algorithm}-gru"

    @property
    def flops(self) -> int:
        """Of one plan: two per multiply-add of the cell, for every candidate, step and iteration."""
        multiply_adds = self.weights["weight_ih"].size + self.weights["weight_hh"].size
        return 2 * multiply_adds * self.steps * self.planner.candidates * self.planner.iterations

    def costs(self, plans: npt.ArrayLike) -> FloatArray:
        """See `PlanningProblem`."""
        actions = (np.asarray(plans, np.float32) - self.center) / self.scale
        state = np.repeat(self.start[None], len(actions), axis=0)
        total = np.zeros(len(actions), np.float32)
        for t in range(self.steps):
            state = self.engine.forward("predictor", np.concatenate([state, actions[:, t]], axis=1))
            total += np.float32(self.weight) * np.square(state - self.goal).sum(axis=1)
        return total


def _hidden(spec: Spec) -> int:
    (cell,) = spec.modules["predictor"].blocks
    if not isinstance(cell, Gru):
        raise ValueError(f"{spec.name}: the predictor is no GRU cell")
    return cell.hidden
