"""W1: a model of TD-MPC2's size (Hansen et al. 2024, 5 million parameters) and its planner.

Every hidden layer is Linear → LayerNorm → Mish, 512 wide. Dynamics (z, a) → 512 → 512 → z, which ends in LayerNorm →
SimNorm(8); reward and five Q heads (z, a) → 512 → 512 → 101 two-hot bins; policy z → 512 → 512 → 2 A. The cost of a
plan is minus the discounted rewards and, at its end, minus the mean of two of the five Q heads at the policy's action,
drawn for each plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyjepa.bench.workloads import FloatArray, PlanningProblem, Workload
from pyjepa.spec import Actions, CostTerm, Layer, Level, Mlp, Module, Observation, Planner, Spec, TwoHot

Hidden = tuple[Layer, ...]


def tdmpc2(
    name: str,
    *,
    latent: int = 512,
    actions: int = 6,
    hidden: int = 512,
    bins: int = 101,
    planner: Planner | None = None,
) -> Workload:
    """The workload, or a smaller one like it. Its observation is its state; there is no goal."""
    layers = (Layer(out=hidden, norm="layer", activation="mish"),) * 2
    two_hot = (Mlp(layers=(*layers, Layer(out=bins))), TwoHot(bins=bins, low=-10.0, high=10.0))
    spec = Spec(
        name=name,
        observation=Observation(shape=(latent,)),
        actions=Actions(low=(-1.0,) * actions, high=(1.0,) * actions),
        modules={
            "dynamics": Module(
                inputs=("state", "action"),
                blocks=(Mlp(layers=(*layers, Layer(out=latent, norm="layer+simnorm")), simnorm_group=8),),
            ),
            "reward": Module(inputs=("state", "action"), blocks=two_hot),
            "policy": Module(inputs=("state",), blocks=(Mlp(layers=(*layers, Layer(out=2 * actions))),)),
            "q": Module(inputs=("state", "action"), blocks=two_hot, ensemble=5),
        },
        levels=(Level(predictor="dynamics"),),
        policy="policy",
        policy_head="gaussian_tanh",
        critic="q",
        discount=0.99,
        cost=(CostTerm(kind="reward", module="reward"), CostTerm(kind="critic", stage=0.0, members=2)),
        planner=planner
        or Planner(
            algorithm="mppi",
            horizon=3,
            candidates=512,
            iterations=6,
            elites=64,
            elite_refit=True,
            temperature=2.0,  # TD-MPC2's 0.5 multiplies
            temperature_scale="absolute",
            std=2.0,
            min_std=0.05,
            max_std=2.0,
            policy_candidates=24,
        ),
    )
    rng = np.random.default_rng(0)
    tensors: dict[str, FloatArray] = {}
    for module, outs in (("dynamics", latent), ("reward", bins), ("policy", 2 * actions), ("q", bins)):
        lead = (5,) if module == "q" else ()
        inputs = latent if module == "policy" else latent + actions
        for j, out in enumerate((hidden, hidden, outs)):
            layer = f"{module}.0.linear{j}"
            tensors[f"{layer}.weight"] = _normal(rng, (*lead, out, inputs), np.sqrt(2.0 / inputs))
            if j == 0:  # a SimNorm state is small, and actions are few: let both count
                tensors[f"{layer}.weight"][..., :latent] *= np.float32(4.0)
                tensors[f"{layer}.weight"][..., latent:] *= np.float32(8.0)
            tensors[f"{layer}.bias"] = _normal(rng, (*lead, out), 0.1)
            if j < 2 or module == "dynamics":
                tensors[f"{module}.0.norm{j}.weight"] = 1 + _normal(rng, (*lead, out), 0.1)
                tensors[f"{module}.0.norm{j}.bias"] = _normal(rng, (*lead, out), 0.1)
            inputs = out
    logits = np.exp(rng.standard_normal((latent // 8, 8)))
    state = (logits / logits.sum(axis=1, keepdims=True)).ravel().astype(np.float32)
    return Workload(name, spec, tensors, state, None)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> FloatArray:
    return (std * rng.standard_normal(shape)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class TdMpc2Problem(PlanningProblem):
    """The same in plain arrays, by the names of the agent file's tensors."""

    tensors: Mapping[str, FloatArray]
    bins: TwoHot
    discount: float
    heads: int
    members: int

    @staticmethod
    def of(workload: Workload) -> TdMpc2Problem:
        """Raises ValueError if the workload is not one of `tdmpc2`."""
        spec = workload.spec
        reward, critic = spec.cost
        bins = spec.modules["reward"].blocks[-1]
        twin = tdmpc2(spec.name, latent=len(workload.observation), actions=len(spec.actions.low), planner=spec.planner)
        if spec.cost != twin.spec.cost or tuple(spec.modules) != tuple(twin.spec.modules) or reward.module is None:
            raise ValueError(f"{workload.name}: a cost or modules that peers do not state")
        assert isinstance(bins, TwoHot)
        center, scale, low, high = (
            np.asarray(getattr(spec.actions, name), np.float32) for name in ("center", "scale", "low", "high")
        )
        return TdMpc2Problem(
            center=center,
            scale=scale,
            low=low,
            high=high,
            start=np.asarray(workload.observation, np.float32),
            steps=spec.planner.horizon,
            planner=spec.planner,
            engine=workload.model(),
            tensors=workload.tensors,
            bins=bins,
            discount=spec.discount,
            heads=spec.modules["q"].ensemble,
            members=critic.members,
        )

    @property
    def algorithm(self) -> str:
        """The whole of it."""
        return "td-mpc2"

    @property
    def flops(self) -> int:
        """Of one plan: dynamics and reward at every step, then the policy and the drawn Q heads, for every candidate
        and iteration; and the policy's proposals, once.
        """

        def multiply_adds(module: str) -> int:
            found = sum(
                t.size
                for name, t in self.tensors.items()
                if name.startswith(f"{module}.0.linear") and name.endswith(".weight")
            )
            return found // (self.heads if module == "q" else 1)

        dynamics, reward, policy, q = map(multiply_adds, ("dynamics", "reward", "policy", "q"))
        candidate = self.steps * (dynamics + reward) + policy + self.members * q
        proposal = self.steps * policy + (self.steps - 1) * dynamics
        planner = self.planner
        return 2 * (candidate * planner.candidates * planner.iterations + proposal * planner.policy_candidates)

    def costs(self, plans: npt.ArrayLike) -> FloatArray:
        """See `PlanningProblem`; with the mean of all Q heads, so that every plan is judged alike."""
        actions = (np.asarray(plans, np.float32) - self.center) / self.scale
        state = np.repeat(self.start[None], len(actions), axis=0)
        total = np.zeros(len(actions), np.float32)
        for t in range(self.steps):
            taken = np.concatenate([state, actions[:, t]], axis=1)
            total -= np.float32(self.discount**t) * self.engine.forward("reward", taken)[:, 0]
            state = self.engine.forward("dynamics", taken)
        mean = np.tanh(self.engine.forward("policy", state)[:, : self.action_dim])
        chosen = (self.low + self.high) / 2 + (self.high - self.low) / 2 * mean
        values = self.engine.forward("q", np.concatenate([state, (chosen - self.center) / self.scale], axis=1))
        return np.asarray(total - np.float32(self.discount**self.steps) * values.mean(axis=1), np.float32)
