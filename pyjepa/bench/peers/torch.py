"""Plain torch, eager: what a careful user writes. Costs of all candidates, one operator after another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.bench.eb_jepa import GruProblem
from pyjepa.bench.lewm import AdalnProblem
from pyjepa.bench.peers import FloatArray, Prepared
from pyjepa.bench.tdmpc2 import TdMpc2Problem
from pyjepa.bench.workloads import Perception, PlanningProblem, Problem
from pyjepa.blocks import Network

ALGORITHMS = {"cem": ("",), "mppi": ("",), "td-mpc2": ("",), "cem-gru": ("",), "cem-adaln": ("",)}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "gelu": functional.gelu,
    "silu": lambda x: functional.silu(x, inplace=True),
    "mish": lambda x: functional.mish(x, inplace=True),
    "tanh": torch.tanh_,
}


class Model:
    """A `Problem` in torch. Symbols as there: N candidates, S steps, A actions, L latent."""

    def __init__(self, problem: Problem, dtype: torch.dtype = torch.float32) -> None:
        """``dtype``: of weights and activations; the latent state stays in float32."""
        first, *rest = problem.layers
        latent = problem.latent_dim
        self.dtype, self.steps = dtype, problem.steps
        # The first layer split into what reads the state and what reads the action: the latter is computed for all
        # steps at once, and nothing is concatenated.
        self.from_state = torch.tensor(first.weight[:, :latent].T.copy()).to(dtype)
        self.from_action = torch.tensor(first.weight[:, latent:].T.copy()).to(dtype)
        self.first_bias = torch.tensor(first.bias).to(dtype)
        self.first_activation = ACTIVATIONS[first.activation]
        self.layers = [
            (torch.tensor(x.weight.T.copy()).to(dtype), torch.tensor(x.bias).to(dtype), ACTIVATIONS[x.activation])
            for x in rest
        ]
        self.residual, self.squared = problem.residual, problem.squared
        self.center, self.scale = torch.tensor(problem.center), torch.tensor(problem.scale)
        self.start, self.goal = torch.tensor(problem.start), torch.tensor(problem.goal)
        self.weights = torch.full((problem.steps, 1), problem.stage)
        self.weights[-1] = problem.terminal

    def advance(self, state: Tensor, drive: Tensor) -> Tensor:
        """States (N, L) and the action's share of the first layer (N, hidden) -> states (N, L)."""
        h = self.first_activation(torch.addmm(drive, state.to(self.dtype), self.from_state))
        for weight, bias, activation in self.layers:
            h = activation(torch.addmm(bias, h, weight))
        return state + h if self.residual else h.float()

    def drive(self, plans: Tensor) -> Tensor:
        """Plans (N, S, A) -> the actions' share of the first layer (S, N, hidden)."""
        actions = ((plans - self.center) / self.scale).transpose(0, 1).to(self.dtype)
        return torch.addmm(self.first_bias, actions.flatten(0, 1), self.from_action).view(self.steps, len(plans), -1)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """States (N, L) and actions (N, A) -> states (N, L): for planners that step by themselves."""
        normalised = ((action - self.center) / self.scale).to(self.dtype)
        return self.advance(state, torch.addmm(self.first_bias, normalised, self.from_action))

    def distance(self, states: Tensor) -> Tensor:
        """States (..., L) -> distances to the goal (...)."""
        squared = (states - self.goal).square().sum(-1)
        return squared if self.squared else squared.sqrt()

    def costs(self, plans: Tensor) -> Tensor:
        """Plans (N, S, A) -> costs (N,)."""
        state, states = self.start.expand(len(plans), -1), []
        for drive in self.drive(plans):
            state = self.advance(state, drive)
            states.append(state)
        return (self.weights * self.distance(torch.stack(states))).sum(0)


class GruModel:
    """A `GruProblem` in torch. Symbols as there."""

    def __init__(self, problem: GruProblem, dtype: torch.dtype = torch.float32) -> None:
        """``dtype``: of weights and activations; the latent state stays in float32."""
        weights = {name: torch.tensor(value) for name, value in problem.weights.items()}
        self.dtype, self.steps, self.weight = dtype, problem.steps, problem.weight
        self.from_action, self.from_state = (
            weights[name].T.contiguous().to(dtype) for name in ("weight_ih", "weight_hh")
        )
        self.action_bias, self.state_bias = (weights[name].to(dtype) for name in ("bias_ih", "bias_hh"))
        self.norm_weight, self.norm_bias = weights["norm.weight"], weights["norm.bias"]
        self.center, self.scale = torch.tensor(problem.center), torch.tensor(problem.scale)
        self.start, self.goal = torch.tensor(problem.start), torch.tensor(problem.goal)

    def advance(self, state: Tensor, drive: Tensor) -> Tensor:
        """States (N, L) and the action's share of the gates (N, 3 L) -> states (N, L)."""
        reset, update, new = drive.chunk(3, dim=1)
        r, z, n = torch.addmm(self.state_bias, state.to(self.dtype), self.from_state).chunk(3, dim=1)
        r, z = r.add_(reset).sigmoid_(), z.add_(update).sigmoid_()
        n = torch.addcmul(new, r, n).tanh_()
        mixed = torch.lerp(n.float(), state, z.float())
        return functional.layer_norm(mixed, mixed.shape[-1:], self.norm_weight, self.norm_bias)

    def costs(self, plans: Tensor) -> Tensor:
        """Plans (N, S, A) -> costs (N,)."""
        actions = ((plans - self.center) / self.scale).transpose(0, 1).to(self.dtype)
        drives = torch.addmm(self.action_bias, actions.flatten(0, 1), self.from_action)
        state, total = self.start.expand(len(plans), -1), torch.zeros(len(plans))
        for drive in drives.view(self.steps, len(plans), -1):
            state = self.advance(state, drive)
            total += (state - self.goal).square_().sum(-1)
        return self.weight * total


class AdalnModel:
    """An `AdalnProblem` in torch, as LeWM's own code rolls it out: all states of the window anew at every step. The
    actions are embedded once, and the projector sees the last token alone.
    """

    def __init__(self, problem: AdalnProblem, dtype: torch.dtype = torch.float32) -> None:
        """``dtype``: of weights and activations; latent states, norms and attention stay in float32."""
        self.dtype, self.block, self.steps = dtype, problem.transformer, problem.steps
        self.weights = {
            name: torch.tensor(value).to(torch.float32 if ".norm" in name or "position" in name else dtype)
            for name, value in problem.weights.items()
        }
        self.center, self.scale = torch.tensor(problem.center), torch.tensor(problem.scale)
        self.start, self.goal = torch.tensor(problem.start), torch.tensor(problem.goal)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """``x W^T + b`` by the name of the weights."""
        rows = x.to(self.dtype).reshape(-1, x.shape[-1])  # one product: what attention leaves would be many small ones
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return functional.linear(rows, weight, bias).view(*x.shape[:-1], -1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """LayerNorm by the name of its parameters."""
        return functional.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def layer(self, name: str, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (N, T, W) -> (N, T, W), modulated by conditions (N, T, W)."""
        shift, scale, gate, shift1, scale1, gate1 = self.linear(f"{name}.modulation", condition).chunk(6, dim=-1)
        h = torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)
        # In float32 whatever the dtype: over three tokens, torch's attention in bf16 takes three times as long.
        qkv = self.linear(f"{name}.qkv", self.norm(f"{name}.norm0", h.float())).float()
        q, k, v = qkv.view(*qkv.shape[:-1], 3, self.block.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = torch.addcmul(x, gate.float(), self.linear(f"{name}.out", mixed.transpose(1, 2).flatten(2)).float())
        h = torch.addcmul(shift1, functional.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale1)
        h = functional.gelu(self.linear(f"{name}.linear0", self.norm(f"{name}.norm1", h.float())))
        return torch.addcmul(x, gate1.float(), self.linear(f"{name}.linear1", h).float())

    def predict(self, states: Tensor, conditions: Tensor) -> Tensor:
        """States (N, T, W) and conditions (N, T, W) -> the next state (N, W)."""
        x = states + self.weights["0.position"][: states.shape[1]]
        for d in range(self.block.depth):
            x = self.layer(f"0.layer{d}", x, conditions)
        last = functional.gelu(self.linear("1.linear0", self.norm("0.norm", x[:, -1])))
        return self.linear("1.linear1", last).float()

    def costs(self, plans: Tensor) -> Tensor:
        """Plans (N, S, A') -> costs (N,)."""
        actions = (plans - self.center) / self.scale
        embedded = self.linear("0.action1", functional.silu(self.linear("0.action0", actions)))
        conditions = functional.silu(embedded)
        states = [self.start.expand(len(plans), -1)]
        for t in range(self.steps):
            first = max(0, t + 1 - self.block.window)
            states.append(self.predict(torch.stack(states[first:], dim=1), conditions[:, first : t + 1]))
        return (states[-1] - self.goal).square().sum(-1)


class Encoder:
    """A `Perception` in torch."""

    def __init__(self, perception: Perception, dtype: torch.dtype = torch.float32) -> None:
        """``dtype``: of weights and activations."""
        self.perception, self.dtype = perception, dtype
        self.network = Network(perception.encoder, {"observation": perception.observation.shape}).to(dtype).eval()
        self.network.load_state_dict({name: torch.tensor(value) for name, value in perception.weights.items()})

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> latents (B, L) in float32."""
        latents: Tensor = self.network({"observation": images.to(self.dtype)})
        return latents.float()

    def encode(self) -> Tensor:
        """The problem's observation and goal, (2, L)."""
        return self(torch.from_numpy(self.perception.images()))


class Planner:
    """CEM or MPPI as `pyjepa.spec.Planner` describes them, over any function of plans (N, S, A) -> costs (N,)."""

    def __init__(self, problem: PlanningProblem, costs: Callable[[Tensor], Tensor], *, seed: int = 0) -> None:
        """``seed``: of torch's global generator."""
        self.costs, self.settings = costs, problem.planner
        self.low, self.high = torch.tensor(problem.low), torch.tensor(problem.high)
        half = (self.high - self.low) / 2
        shape = (problem.steps, problem.action_dim)
        self.mean = ((self.low + self.high) / 2).expand(shape).contiguous()
        self.std = (self.settings.std * half).expand(shape).contiguous()
        self.least = self.settings.min_std * half
        self.shape = (self.settings.candidates, *shape)
        self.refit = self.fit_elites if self.settings.algorithm == "cem" else self.weigh_all
        torch.manual_seed(seed)

    def fit_elites(self, samples: Tensor, cost: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """CEM: mean and standard deviation of the elites."""
        elites = samples[cost.topk(self.settings.elites, largest=False, sorted=False).indices]
        variance, center = torch.var_mean(elites, dim=0, correction=0)
        spread = variance.sqrt()
        keep = self.settings.momentum
        if keep:
            center, spread = torch.lerp(center, mean, keep), torch.lerp(spread, std, keep)
        return center, torch.maximum(spread, self.least)

    def weigh_all(self, samples: Tensor, cost: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """MPPI: all candidates, weighted; the temperature is in standard deviations of the costs."""
        weights = torch.softmax(-cost / (self.settings.temperature * cost.std(correction=0)), dim=0)
        return torch.tensordot(weights, samples, dims=1), std

    def iterate(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration: mean and std (S, A) -> mean and std (S, A). Candidate 0 is the mean."""
        noise = torch.randn(self.shape)
        noise[0] = 0.0
        samples = torch.addcmul(mean, std, noise).clamp_(self.low, self.high)
        return self.refit(samples, self.costs(samples), mean, std)

    @torch.inference_mode()
    def plan(self, iterate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None) -> FloatArray:
        """The last mean (S, A), from scratch. ``iterate`` replaces the method, e.g. by its compiled form."""
        iterate = self.iterate if iterate is None else iterate
        mean, std = self.mean, self.std
        for _ in range(self.settings.iterations):
            mean, std = iterate(mean, std)
        result: FloatArray = mean.numpy().copy()
        return result


def prepare_with(
    problem: PlanningProblem, threads: int, dtype: torch.dtype, precision: str, tolerance: float
) -> Prepared:
    """The eager planner in one precision."""
    torch.set_num_threads(threads)
    if isinstance(problem, TdMpc2Problem):
        from pyjepa.bench.peers import torch_tdmpc2

        return torch_tdmpc2.prepare_with(problem, dtype, precision, tolerance)
    model: Model | GruModel | AdalnModel
    if isinstance(problem, GruProblem):
        model = GruModel(problem, dtype)
    elif isinstance(problem, AdalnProblem):
        model = AdalnModel(problem, dtype)
    else:
        assert isinstance(problem, Problem)
        model = Model(problem, dtype)
    planner = Planner(problem, model.costs)

    @torch.inference_mode()
    def costs(plans: FloatArray) -> FloatArray:
        result: FloatArray = model.costs(torch.from_numpy(plans)).numpy()
        return result

    prepared = Prepared(f"torch {torch.__version__}", planner.plan, costs, precision, tolerance)
    if problem.perception is None:
        return prepared
    encoder = Encoder(problem.perception, dtype)

    @torch.inference_mode()
    def encode() -> FloatArray:
        result: FloatArray = encoder.encode().numpy()
        return result

    @torch.inference_mode()
    def encode_and_plan() -> FloatArray:
        model.start, model.goal = encoder.encode()
        return planner.plan()

    return dataclasses.replace(prepared, encode=encode, encode_and_plan=encode_and_plan)


def prepare(problem: PlanningProblem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    return prepare_with(problem, threads, torch.float32, "fp32", 1e-4)


def tolerance_of_bf16(problem: PlanningProblem) -> float:
    """bf16 keeps 8 bits, and errors of the steps add up like a random walk."""
    return 0.05 * math.sqrt(problem.steps)
