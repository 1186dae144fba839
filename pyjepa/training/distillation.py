"""Mode-2 into Mode-1 (paper section 3.1.3): a policy that does at once what the planner found by search."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.spec import Spec
from pyjepa.training.experience import Plans
from pyjepa.training.fit import Progress, fit
from pyjepa.world_model import WorldModel


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
    also learns how far the planner's actions scatter around it (the Gaussian's negative log likelihood before tanh). A
    ``categorical`` head learns how often the planner takes which action: the loss is their negative log likelihood.

    Raises ValueError for a model without a policy.
    """
    spec = model.spec
    if spec.policy is None:
        raise ValueError("the spec names no policy")
    depth = min(depth, plans.actions.shape[1])
    states = torch.from_numpy(plans.states[:, :depth]).flatten(0, 1)
    goals = torch.from_numpy(plans.goals)[:, None].expand(-1, depth, -1).flatten(0, 1)
    wanted = _normalised(spec, torch.from_numpy(plans.actions[:, :depth]).flatten(0, 1))
    network = model.get_submodule(spec.policy)
    inputs = {name: {"state": states, "goal": goals}[name] for name in spec.modules[spec.policy].inputs}

    def loss(chosen: Tensor) -> Tensor:
        out: Tensor = network({name: values[chosen] for name, values in inputs.items()})
        if spec.policy_head == "categorical":
            return functional.cross_entropy(out, wanted[chosen])
        actions = wanted.shape[1]
        off = functional.mse_loss(torch.tanh(out[:, :actions]), wanted[chosen])
        if spec.policy_head == "gaussian_tanh":
            off = off + 0.1 * _scatter_loss(out[:, :actions].detach(), out[:, actions:], wanted[chosen])
        return off

    return fit(
        network, loss, len(wanted), steps=steps, batch=batch, learning_rate=learning_rate, seed=seed, progress=progress
    )


def _normalised(spec: Spec, actions: Tensor) -> Tensor:
    """Actions (Q, A) as the policy puts them out, between -1 and 1; of discrete ones the indices (Q,)."""
    if spec.actions.kind == "discrete":
        return actions.long()
    low, high = (torch.tensor(bound) for bound in (spec.actions.low, spec.actions.high))
    return (actions - (low + high) / 2) / ((high - low) / 2)


def _scatter_loss(mean: Tensor, head: Tensor, wanted: Tensor) -> Tensor:
    """Negative log likelihood, up to a constant, of what goes into tanh; the spread is bounded as in the engine."""
    log_std = -10.0 + 6.0 * (torch.tanh(head) + 1.0)
    off = torch.atanh(wanted.clamp(-0.995, 0.995)) - mean.clamp(-3.0, 3.0)
    return (0.5 * (off * torch.exp(-log_std)).square() + log_std).mean()
