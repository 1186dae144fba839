"""The cost of a plan in torch (paper section 3.2), as the engine computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from pyjepa.spec import CostTerm
from pyjepa.world_model import WorldModel


def plan_cost(
    model: WorldModel, states: Tensor, actions: Tensor, goal: Tensor, previous: Tensor | None = None
) -> Tensor:
    """The weighted sum of the spec's cost terms over plans; (B,).

    ``states`` (B, S, L) are predicted, ``actions`` (B, S, A') in the environment's units, ``goal`` (L,) or (B, L) is a
    latent, ``previous`` (A',) or (B, A') what was executed last; None: nothing was, so the first action is no change.
    """
    return term_costs(model, states, actions, goal, previous).sum(dim=-1)


def term_costs(
    model: WorldModel, states: Tensor, actions: Tensor, goal: Tensor, previous: Tensor | None = None
) -> Tensor:
    """The same, term by term: (B, T), weights included."""
    normalised = model.normalise(actions)
    before = normalised[:, 0] if previous is None else model.normalise(previous).expand(len(actions), -1)
    return torch.stack([_term(term, states, normalised, goal, before) for term in model.spec.cost], dim=-1)


def _term(term: CostTerm, states: Tensor, actions: Tensor, goal: Tensor, before: Tensor) -> Tensor:
    """One term: states (B, S, L), normalised actions (B, S, A'), goal, what came before the plan (B, A') -> (B,)."""
    if term.kind == "goal_distance":
        squared = (states - goal.unsqueeze(-2)).square().sum(dim=-1)
        distance = squared.sqrt() if term.metric == "l2" else squared
        return term.stage * distance[:, :-1].sum(dim=-1) + term.terminal * distance[:, -1]
    if term.kind == "action_size":
        return term.stage * actions.square().sum(dim=(-2, -1))
    return term.stage * torch.diff(actions, dim=1, prepend=before[:, None]).square().sum(dim=(-2, -1))
