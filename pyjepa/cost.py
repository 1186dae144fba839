"""The cost of a plan in torch (paper section 3.2), as the engine computes it.

To add a term: a function here and its line in `TERMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyjepa.spec import CostKind, CostTerm, Metric, Spec
from pyjepa.world_model import WorldModel


def judges_action(spec: Spec, term: CostTerm) -> bool:
    """Whether a term judges an action in its state rather than the state it leads to."""
    if term.kind == "disagreement" and term.module is not None:
        return "action" in spec.modules[term.module].inputs
    return term.kind in ("action_size", "action_change", "reward")


@dataclass(frozen=True)
class Steps:
    """A batch of plans, step by step."""

    model: WorldModel
    before: Tensor
    """(B, S, L): the states that actions are taken in."""
    states: Tensor
    """(B, S, L): the states they lead to."""
    actions: Tensor
    """(B, S, A'), normalised."""
    previous: Tensor
    """(B, A'): the normalised action before the plan."""
    goal: Tensor | None
    """(L,) or (B, L)."""
    members: Mapping[str, Sequence[int]]
    """By a term's label: which networks of its ensemble are asked; all by default."""

    def head(self, term: CostTerm, name: str, state: Tensor, action: Tensor | None = None) -> Tensor:
        """A module's output (B, S, out) at states (B, S, L), its ensemble reduced as the term says."""
        inputs = self.model.spec.modules[name].inputs
        goal = None
        if "goal" in inputs:
            assert self.goal is not None
            goal = self.goal.unsqueeze(-2).expand_as(state).flatten(0, 1)
        asked = action.flatten(0, 1) if action is not None and "action" in inputs else None
        outputs = self.model.head(name, state.flatten(0, 1), asked, goal)
        if term.label in self.members:
            outputs = outputs[list(self.members[term.label])]
        if term.kind == "disagreement":
            outputs = outputs.var(dim=0, correction=0)
        elif term.reduce == "mean":
            outputs = outputs.mean(dim=0)
        else:
            outputs = outputs.amin(dim=0) if term.reduce == "min" else outputs.amax(dim=0)
        return outputs.reshape(*state.shape[:2], -1)


def plan_cost(
    model: WorldModel,
    states: Tensor,
    actions: Tensor,
    goal: Tensor | None,
    previous: Tensor | None = None,
    *,
    start: Tensor | None = None,
    members: Mapping[str, Sequence[int]] | None = None,
) -> Tensor:
    """The weighted sum of the spec's cost terms over plans; (B,).

    ``states`` (B, S, L) are predicted from ``start`` (L,) or (B, L) (needed by terms of kind reward), ``actions``
    (B, S, A') in the environment's units, ``goal`` (L,) or (B, L) is a latent, ``previous`` (A',) or (B, A') what was
    executed last; None: nothing was, so the first action is no change. ``members``: see `Steps`.
    """
    return term_costs(model, states, actions, goal, previous, start=start, members=members).sum(dim=-1)


def term_costs(
    model: WorldModel,
    states: Tensor,
    actions: Tensor,
    goal: Tensor | None,
    previous: Tensor | None = None,
    *,
    start: Tensor | None = None,
    members: Mapping[str, Sequence[int]] | None = None,
) -> Tensor:
    """The same, term by term: (B, T), weights included."""
    normalised = model.normalise(actions)
    first = states[:, :1] if start is None else start.unsqueeze(-2).expand_as(states[:, :1])
    before = ("reward", "disagreement")
    if start is None and any(t.kind in before and judges_action(model.spec, t) for t in model.spec.cost):
        raise ValueError("a term judges the state before each step: give the start")
    steps = Steps(
        model=model,
        before=torch.cat([first, states[:, :-1]], dim=1),
        states=states,
        actions=normalised,
        previous=normalised[:, 0] if previous is None else model.normalise(previous).expand(len(actions), -1),
        goal=goal,
        members=members or {},
    )
    return torch.stack([_weighted(term, steps) for term in model.spec.cost], dim=-1)


def intrinsic_cost(model: WorldModel, states: Tensor, goal: Tensor) -> Tensor:
    """IC(s), what states (B, L) cost by themselves beside goals (B, L): the terms of states but not the critic's,
    weighted as at a stage; (B,). The engine records the same in its memory.
    """
    nothing = states.new_zeros(len(states), 1, model.plan_dim)
    here = states[:, None]
    steps = Steps(model, here, here, nothing, nothing[:, 0], goal, {})
    total = states.new_zeros(len(states))
    for term in model.spec.cost:
        if not judges_action(model.spec, term) and term.kind != "critic" and term.stage != 0:
            total = total + term.stage * TERMS[term.kind](term, steps)[:, 0]
    return total


def _weighted(term: CostTerm, steps: Steps) -> Tensor:
    """One term's sum over the steps: (B,)."""
    count = steps.states.shape[1]
    weights = torch.full((count,), term.stage)
    if not judges_action(steps.model.spec, term):
        weights[-1] = term.terminal
    later = 1 if term.kind == "critic" else 0
    weights = weights * steps.model.spec.discount ** torch.arange(later, count + later)
    cost = TERMS[term.kind](term, steps)
    return torch.where(weights == 0, 0.0, weights * cost).sum(dim=-1)  # where, for a hard constraint is infinite


def _goal_distance(term: CostTerm, steps: Steps) -> Tensor:
    assert steps.goal is not None
    seen, goal = steps.states, steps.goal.unsqueeze(-2).expand_as(steps.states[:, :1])
    if term.module is not None:
        seen, goal = steps.head(term, term.module, seen), steps.head(term, term.module, goal)
    distance = _distance(term.metric, seen, goal)
    return (distance / term.reach).clamp_max(1.0) if term.reach > 0 else distance


def _distance(metric: Metric, a: Tensor, b: Tensor) -> Tensor:
    if metric == "l1":
        return (a - b).abs().sum(dim=-1)
    if metric == "cosine":
        norms = a.square().sum(dim=-1).sqrt() * b.square().sum(dim=-1).sqrt()
        return 1.0 - (a * b).sum(dim=-1) / norms.clamp_min(1e-8)
    squared = (a - b).square().sum(dim=-1)
    return squared.sqrt() if metric == "l2" else squared


def _action_size(term: CostTerm, steps: Steps) -> Tensor:
    return steps.actions.square().sum(dim=-1)


def _action_change(term: CostTerm, steps: Steps) -> Tensor:
    return torch.diff(steps.actions, dim=1, prepend=steps.previous[:, None]).square().sum(dim=-1)


def _reward(term: CostTerm, steps: Steps) -> Tensor:
    assert term.module is not None
    return -steps.head(term, term.module, steps.before, steps.actions)[..., 0]


def _hazard(term: CostTerm, steps: Steps) -> Tensor:
    assert term.module is not None
    hazard = steps.head(term, term.module, steps.states)[..., 0]
    return torch.sigmoid(hazard) if term.sigmoid else hazard


def _disagreement(term: CostTerm, steps: Steps) -> Tensor:
    assert term.module is not None
    before = judges_action(steps.model.spec, term)
    scatter = steps.head(term, term.module, steps.before if before else steps.states, steps.actions).sum(dim=-1)
    return -scatter if term.seek else scatter


def _constrained(term: CostTerm, steps: Steps) -> Tensor:
    return steps.states if term.module is None else steps.head(term, term.module, steps.states)


def _penalty(term: CostTerm, excess: Tensor) -> Tensor:
    """Excesses (..., n), positive where a constraint is violated -> (...)."""
    over = excess.clamp_min(0.0).square().sum(dim=-1)
    return torch.where(over > 0, torch.inf, over) if term.hard else over


def _box(term: CostTerm, steps: Steps) -> Tensor:
    seen = _constrained(term, steps)
    excesses = [torch.tensor(term.low) - seen] if term.low else []
    if term.high:
        excesses.append(seen - torch.tensor(term.high))
    return _penalty(term, torch.cat(excesses, dim=-1))


def _half_space(term: CostTerm, steps: Steps) -> Tensor:
    along = (_constrained(term, steps) * torch.tensor(term.normal)).sum(dim=-1, keepdim=True)
    return _penalty(term, along - term.offset)


def _critic(term: CostTerm, steps: Steps) -> Tensor:
    spec = steps.model.spec
    assert spec.critic is not None
    action = None
    if "action" in spec.modules[spec.critic].inputs:
        assert spec.policy is not None
        goal = None
        if "goal" in spec.modules[spec.policy].inputs:
            assert steps.goal is not None
            goal = steps.goal.unsqueeze(-2).expand_as(steps.states).flatten(0, 1)
        chosen = steps.model.act(steps.states.flatten(0, 1), goal)
        action = steps.model.normalise(chosen).reshape(*steps.states.shape[:2], -1)
    value = steps.head(term, spec.critic, steps.states, action)[..., 0]
    return -value if term.estimates == "reward" else value


TERMS: Mapping[CostKind, Callable[[CostTerm, Steps], Tensor]] = {
    "goal_distance": _goal_distance,
    "action_size": _action_size,
    "action_change": _action_change,
    "reward": _reward,
    "hazard": _hazard,
    "disagreement": _disagreement,
    "box": _box,
    "half_space": _half_space,
    "critic": _critic,
}
"""What each kind costs at every step, before weights: (B, S)."""
