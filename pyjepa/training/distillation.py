"""Mode-2 into Mode-1 (paper section 3.1.3): a policy that does at once what the planner found by search."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.training.experience import Plans
from pyjepa.world_model import WorldModel

Progress = Callable[[int, float], None]
"""Told the number of steps and the last one's loss."""


def train_policy(
    model: WorldModel,
    plans: Plans,
    *,
    steps: int = 3000,
    batch: int = 512,
    learning_rate: float = 2e-3,
    depth: int = 3,
    seed: int = 0,
    progress: Progress = lambda step, loss: None,
) -> float:
    """Fits the policy of ``model`` to plans; returns the last loss.

    The first ``depth`` actions of every plan teach, each in the state that the plan expects it to be taken in: later
    ones were refined less. The loss is the mean squared error of the normalised mean action; a ``gaussian_tanh`` head
    also learns how far the planner's actions scatter around it (the Gaussian's negative log likelihood before tanh).

    Raises ValueError for a model without a policy and for discrete actions.
    """
    spec = model.spec
    if spec.policy is None:
        raise ValueError("the spec names no policy")
    if spec.actions.kind != "box":
        raise ValueError("the policy is fitted to continuous actions, this agent's are discrete")
    depth = min(depth, plans.actions.shape[1])
    states = torch.from_numpy(plans.states[:, :depth]).flatten(0, 1)
    goals = torch.from_numpy(plans.goals)[:, None].expand(-1, depth, -1).flatten(0, 1)
    low, high = (torch.tensor(bound) for bound in (spec.actions.low, spec.actions.high))
    wanted = (torch.from_numpy(plans.actions[:, :depth]).flatten(0, 1) - (low + high) / 2) / ((high - low) / 2)
    network = model.get_submodule(spec.policy)
    reads = spec.modules[spec.policy].inputs
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    draw = torch.Generator().manual_seed(seed)
    actions = wanted.shape[1]
    last = float("nan")
    for step in range(steps):
        chosen = torch.randint(len(wanted), (batch,), generator=draw)
        inputs = {name: {"state": states, "goal": goals}[name][chosen] for name in reads}
        out = network(inputs)
        loss = functional.mse_loss(torch.tanh(out[:, :actions]), wanted[chosen])
        if spec.policy_head == "gaussian_tanh":
            loss = loss + 0.1 * _scatter_loss(out[:, :actions].detach(), out[:, actions:], wanted[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        last = loss.item()
        progress(step + 1, last)
    return last


def _scatter_loss(mean: Tensor, head: Tensor, wanted: Tensor) -> Tensor:
    """Negative log likelihood, up to a constant, of what goes into tanh; the spread is bounded as in the engine."""
    log_std = -10.0 + 6.0 * (torch.tanh(head) + 1.0)
    off = torch.atanh(wanted.clamp(-0.995, 0.995)) - mean.clamp(-3.0, 3.0)
    return (0.5 * (off * torch.exp(-log_std)).square() + log_std).mean()
