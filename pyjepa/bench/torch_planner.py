"""The cross-entropy method in plain torch: what a user would write, and what the engine is measured against.

It plans with a `pyjepa.world_model.WorldModel` and the spec's cost and planner settings, for several environments at
once. It states the same algorithm as the engine does, with torch's random numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyjepa.cost import plan_cost
from pyjepa.spec import Planner
from pyjepa.world_model import WorldModel


class CrossEntropyPlanner:
    """CEM over held or concatenated actions, warm-started from the plan before.

    Symbols: E environments, N candidates, S predictor steps (``horizon / action_block``), A' what the predictor reads.
    Candidate 0 is the mean; samples are clamped to the bounds; mean and standard deviation are refitted to the elites;
    the cheapest plan ever scored, means included, is returned and is the next warm start.
    """

    def __init__(self, model: WorldModel, planner: Planner | None = None, *, seed: int = 0) -> None:
        """``planner`` replaces the spec's settings. Raises ValueError if the horizon is no multiple of the block."""
        self.model = model
        self.planner = model.spec.planner if planner is None else planner
        if self.planner.algorithm != "cem" or self.planner.knots:
            raise ValueError("this planner knows cem with one knot per predictor step")
        block = model.spec.levels[0].action_block
        if self.planner.horizon % block:
            raise ValueError(f"horizon {self.planner.horizon} is no multiple of the action_block {block}")
        self.steps = self.planner.horizon // block
        actions = model.spec.actions
        repeats = model.plan_dim // model.action_dim
        self._low, self._high = torch.tensor(actions.low * repeats), torch.tensor(actions.high * repeats)
        self._half = (self._high - self._low) / 2
        self._generator = torch.Generator().manual_seed(seed)
        self._mean: Tensor | None = None

    def reset(self) -> None:
        """Forget the plan before: the next one starts from the middle of the action range."""
        self._mean = None

    @torch.no_grad()
    def plan(self, state: Tensor, goal: Tensor) -> Tensor:
        """The planned actions (E, S, A') from latents ``state`` and ``goal`` (E, L), in the environment's units.

        Call `advance` for every predictor step executed before the next plan.
        """
        settings, environments = self.planner, len(state)
        mean = self._mean
        if mean is None:
            mean = ((self._low + self._high) / 2).expand(environments, self.steps, -1)
        std = (settings.std * self._half).expand_as(mean)
        best, best_cost = mean, self._score(mean[:, None], state, goal)[:, 0]
        for _ in range(settings.iterations):
            noise = torch.randn(environments, settings.candidates, *mean.shape[1:], generator=self._generator)
            noise[:, 0] = 0.0
            samples = (mean[:, None] + std[:, None] * noise).clamp(self._low, self._high)
            cost = self._score(samples, state, goal)
            elite_cost, index = cost.topk(settings.elites, dim=1, largest=False)
            elites = samples[torch.arange(environments)[:, None], index]
            best, best_cost = _cheaper(best, best_cost, elites[:, 0], elite_cost[:, 0])
            momentum = settings.momentum
            mean = momentum * mean + (1 - momentum) * elites.mean(dim=1)
            std = momentum * std + (1 - momentum) * elites.std(dim=1, correction=0)
            std = torch.maximum(std, settings.min_std * self._half)
        best, _ = _cheaper(best, best_cost, mean, self._score(mean[:, None], state, goal)[:, 0])
        self._mean = best
        return best

    def advance(self, steps: int = 1) -> None:
        """Shift the warm start by ``steps`` executed predictor steps; the last action is repeated."""
        if self._mean is not None:
            tail = self._mean[:, -1:].expand(-1, steps, -1)
            self._mean = torch.cat([self._mean[:, steps:], tail], dim=1)

    def select(self, keep: Tensor) -> None:
        """Go on with the environments where ``keep`` (E,) is true."""
        if self._mean is not None:
            self._mean = self._mean[keep]

    def _score(self, samples: Tensor, state: Tensor, goal: Tensor) -> Tensor:
        """Plans (E, N, S, A') from states (E, L) towards goals (E, L) -> costs (E, N)."""
        candidates, plans = samples.shape[1], samples.flatten(0, 1)
        start, target = (x.repeat_interleave(candidates, dim=0) for x in (state, goal))
        return plan_cost(self.model, self.model.rollout(start, plans), plans, target).view(-1, candidates)


def _cheaper(plan: Tensor, cost: Tensor, other: Tensor, other_cost: Tensor) -> tuple[Tensor, Tensor]:
    better = other_cost < cost
    return torch.where(better[:, None, None], other, plan), torch.where(better, other_cost, cost)


def plan_flops(model: WorldModel, planner: Planner | None = None) -> int:
    """Floating-point operations of one plan's predictor: two per multiply-add of its dense layers."""
    settings = model.spec.planner if planner is None else planner
    predictor = model.get_submodule(model.predictor_name)
    multiply_adds = sum(weight.numel() for weight in predictor.parameters() if weight.dim() == 2)
    steps = settings.horizon // model.spec.levels[0].action_block
    return 2 * multiply_adds * steps * settings.candidates * settings.iterations
