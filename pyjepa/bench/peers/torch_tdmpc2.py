"""TD-MPC2's model and planner in torch, with the savings that the engine has: only the drawn Q heads are evaluated, the
policy's proposals are made once a plan, and the rewards of all steps are one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.tdmpc2 import TdMpc2Problem

Weights = Mapping[str, Tensor]
"""Of one network, by the names of the agent file's parameters."""


def weights_of(problem: TdMpc2Problem, name: str, dtype: torch.dtype, member: int | None = None) -> dict[str, Tensor]:
    """A module's, or one member's of its ensemble."""
    found = {}
    for tensor, value in problem.tensors.items():
        module, _, parameter = tensor.partition(".0.")
        if module == name:
            found[parameter] = torch.tensor(value if member is None else value[member]).to(dtype)
    return found


def mlp(weights: Weights, x: Tensor) -> Tensor:
    """(N, in) -> (N, out): Linear → LayerNorm → Mish twice, then Linear, or Linear → LayerNorm → SimNorm if it has the
    parameters.
    """
    for j in range(3):
        x = functional.linear(x, weights[f"linear{j}.weight"], weights[f"linear{j}.bias"])
        if f"norm{j}.weight" not in weights:
            return x
        x = functional.layer_norm(x, x.shape[-1:], weights[f"norm{j}.weight"], weights[f"norm{j}.bias"])
        if j < 2:
            x = functional.mish(x, inplace=True)
    return functional.softmax(x.view(len(x), -1, 8), dim=-1).view(len(x), -1)


class Model(nn.Module):
    """A `TdMpc2Problem` in torch. Symbols as there."""

    def __init__(self, problem: TdMpc2Problem, dtype: torch.dtype) -> None:
        """``dtype``: of weights and activations; numbers behind two-hot logits are taken in float32."""
        super().__init__()
        self.dtype, self.steps, self.discount = dtype, problem.steps, problem.discount
        self.actions = problem.action_dim
        self.dynamics, self.reward, self.policy = (
            weights_of(problem, name, dtype) for name in ("dynamics", "reward", "policy")
        )
        self.q = [weights_of(problem, "q", dtype, member) for member in range(problem.heads)]
        for name in ("start", "center", "scale", "low", "high"):
            self.register_buffer(name, torch.tensor(getattr(problem, name)))
        self.register_buffer("places", torch.linspace(problem.bins.low, problem.bins.high, problem.bins.bins))
        self.register_buffer("discounts", problem.discount ** torch.arange(problem.steps + 1))

    def number(self, logits: Tensor) -> Tensor:
        """(N, bins) -> (N,)."""
        mean = functional.softmax(logits.float(), dim=-1) @ self.get_buffer("places")
        return mean.sign() * mean.abs().expm1()

    def normalise(self, actions: Tensor) -> Tensor:
        """As the networks read them."""
        return ((actions - self.get_buffer("center")) / self.get_buffer("scale")).to(self.dtype)

    def act(self, u: Tensor) -> Tensor:
        """tanh(u) (N, A) of the way to the bounds."""
        low, high = self.get_buffer("low"), self.get_buffer("high")
        return (low + high) / 2 + (high - low) / 2 * torch.tanh(u.float())

    def propose(self, count: int) -> Tensor:
        """Rollouts of the policy (count, S, A), sampled."""
        state = self.get_buffer("start").to(self.dtype).expand(count, -1)
        plan = []
        for t in range(self.steps):
            mean, spread = mlp(self.policy, state).float().chunk(2, dim=-1)
            log_std = -10 + 6 * (torch.tanh(spread) + 1)
            plan.append(self.act(mean + log_std.exp() * torch.randn_like(mean)))
            if t + 1 < self.steps:
                state = mlp(self.dynamics, torch.cat([state, self.normalise(plan[-1])], dim=1))
        return torch.stack(plan, dim=1)

    def forward(self, plans: Tensor, heads: Sequence[Weights]) -> Tensor:
        """Plans (N, S, A) -> costs (N,), with the mean of these Q heads."""
        actions = self.normalise(plans).unbind(1)
        state = self.get_buffer("start").to(self.dtype).expand(len(plans), -1)
        taken = []
        for action in actions:
            taken.append(torch.cat([state, action], dim=1))
            state = mlp(self.dynamics, taken[-1])
        rewards = self.number(mlp(self.reward, torch.cat(taken))).view(self.steps, -1)
        chosen = self.act(mlp(self.policy, state)[:, : self.actions])
        ends = torch.cat([state, self.normalise(chosen)], dim=1)
        value = torch.stack([self.number(mlp(head, ends)) for head in heads]).mean(0)
        discounts = self.get_buffer("discounts")
        return -(discounts[:-1] @ rewards) - discounts[-1] * value


class Planner:
    """MPPI on elites, as `pyjepa.spec.Planner` describes it. Candidate 0 is the mean, then come the policy's."""

    def __init__(self, problem: TdMpc2Problem, model: Model) -> None:
        self.model, self.settings = model, problem.planner
        self.heads, self.members = problem.heads, problem.members
        self.low, self.high = torch.tensor(problem.low), torch.tensor(problem.high)
        self.half = (self.high - self.low) / 2
        self.shape = (problem.steps, problem.action_dim)
        torch.manual_seed(0)

    def refit(self, samples: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates (N, S, A), costs (N,) -> mean and std (S, A)."""
        settings = self.settings
        least, order = cost.topk(settings.elites, largest=False)
        elites = samples[order]
        weights = torch.softmax(-least / settings.temperature, dim=0)
        mean = torch.tensordot(weights, elites, dims=1)
        std = torch.tensordot(weights, (elites - mean).square(), dims=1).sqrt()
        return mean, std.clamp(settings.min_std * self.half, settings.max_std * self.half)

    @torch.inference_mode()
    def plan(self, costs: Callable[[Tensor, Sequence[Weights]], Tensor] | None = None) -> FloatArray:
        """The cheapest candidate (S, A), from scratch: TD-MPC2, too, acts on an elite rather than on the mean.

        ``costs`` replaces the model's, e.g. by its compiled form.
        """
        costs = self.model if costs is None else costs
        settings = self.settings
        heads = [self.model.q[k] for k in torch.randperm(self.heads)[: self.members]]
        proposals = self.model.propose(settings.policy_candidates)
        mean = ((self.low + self.high) / 2).expand(self.shape)
        std = (settings.std * self.half).expand(self.shape)
        drawn = settings.candidates - settings.policy_candidates
        least, best = torch.inf, mean
        for _ in range(settings.iterations):
            noise = torch.randn(drawn, *self.shape)
            noise[0] = 0.0
            samples = torch.cat([torch.addcmul(mean, std, noise).clamp_(self.low, self.high), proposals])
            cost = costs(samples, heads)
            mean, std = self.refit(samples, cost)
            index = int(cost.argmin())
            if float(cost[index]) < least:
                least, best = float(cost[index]), samples[index]
        result: FloatArray = best.numpy().copy()
        return result


def prepare_with(problem: TdMpc2Problem, dtype: torch.dtype, precision: str, tolerance: float) -> Prepared:
    """The eager planner in one precision."""
    model = Model(problem, dtype).eval()

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        result: FloatArray = model(torch.from_numpy(plans), model.q).numpy()
        return result

    return Prepared(f"torch {torch.__version__}", Planner(problem, model).plan, costs, precision, tolerance)


def prepare_compiled(problem: TdMpc2Problem) -> Prepared:
    """The costs compiled. The drawn heads' weights are inputs, so that one graph serves all draws."""
    model = Model(problem, torch.float32).eval()
    compiled = torch.compile(model, dynamic=False)
    planner = Planner(problem, model)

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        result: FloatArray = compiled(torch.from_numpy(plans), model.q).numpy()
        return result

    def plan() -> FloatArray:
        return planner.plan(compiled)

    plan()  # compiles
    return Prepared(f"torch {torch.__version__} (compile)", plan, costs)
