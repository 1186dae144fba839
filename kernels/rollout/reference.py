"""A batched latent rollout in plain torch: what the kernels are tested against, and the eager way to run one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .description import Dynamics, Gru, Mlp, Term

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "mish": functional.mish,
    "tanh": torch.tanh,
}


class Rollout(NamedTuple):
    """What a rollout leads to."""

    cost: Tensor
    """(E, N): the cost of each candidate."""
    states: Tensor | None
    """(E, N, S, L): the predicted states, where asked for."""


def network(described: Dynamics, parameters: Sequence[Tensor], state: Tensor, side: Tensor | None) -> Tensor:
    """One network's output (B, out) for states (B, L) and a side input (B, D) or None.

    16-bit weights: inputs of a product are rounded to their dtype, the product is summed and everything else computed
    in the dtype of the state.
    """

    def product(x: Tensor, weight: Tensor) -> Tensor:
        if weight.dtype in (torch.float16, torch.bfloat16):
            return x.to(weight.dtype).to(x.dtype) @ weight.to(x.dtype).t()
        return x @ weight.t()

    if isinstance(described, Gru):
        assert side is not None
        w_ih, w_hh, b_ih, b_hh, *norm = parameters
        of_action = (product(side, w_ih) + b_ih).chunk(3, dim=1)
        of_state = (product(state, w_hh) + b_hh).chunk(3, dim=1)
        reset, update = (torch.sigmoid(of_action[i] + of_state[i]) for i in (0, 1))
        new = torch.tanh(of_action[2] + reset * of_state[2])
        hidden = (1.0 - update) * new + update * state
        return (
            functional.layer_norm(hidden, hidden.shape[1:], norm[0].to(hidden), norm[1].to(hidden)) if norm else hidden
        )
    x = state
    if side is not None and described.side:
        x = torch.cat([side, state] if described.side_first else [state, side], dim=1)
    left = iter(parameters)
    for layer in described.layers:
        x = product(x, next(left)) + next(left)
        if layer.normed:
            x = functional.layer_norm(x, x.shape[1:], next(left).to(x), next(left).to(x))
        if layer.grouped:
            x = functional.softmax(x.reshape(len(x), -1, layer.group), dim=-1).flatten(1)
        x = ACTIVATIONS[layer.activation](x)
    return x + state if described.residual else x


def distance(metric: str, a: Tensor, b: Tensor) -> Tensor:
    """Distances (B,) between the rows of a and b, as the engine takes them."""
    if metric == "l1":
        return (a - b).abs().sum(dim=-1)
    if metric == "cosine":
        norms = a.square().sum(dim=-1).sqrt() * b.square().sum(dim=-1).sqrt()
        return 1.0 - (a * b).sum(dim=-1) / norms.clamp_min(1e-8)
    if metric == "l2":
        norm: Tensor = torch.linalg.vector_norm(a - b, dim=-1)  # has a slope of 0 at the goal
        return norm
    return (a - b).square().sum(dim=-1)


def rollout_reference(
    dynamics: Dynamics,
    parameters: Sequence[Tensor],
    start: Tensor,
    actions: Tensor,
    *,
    terms: Sequence[Term] = (),
    goal: Tensor | None = None,
    previous: Tensor | None = None,
    critic: Mlp | None = None,
    critic_parameters: Sequence[Tensor] = (),
    center: Tensor | None = None,
    scale: Tensor | None = None,
    discount: float = 1.0,
    upcast: bool = True,
) -> Rollout:
    """Roll N candidates out in each of E environments; see `pyjepa.kernels.rollout` for arguments and shapes.

    ``upcast`` widens 16-bit states and actions to fp32; the weights stay what they are.
    """
    environments, candidates, steps, size = actions.shape
    wide = torch.float32 if upcast and actions.dtype in (torch.float16, torch.bfloat16) else actions.dtype
    rows = environments * candidates

    def each(x: Tensor) -> Tensor:
        return x.to(wide)[:, None].expand(environments, candidates, -1).reshape(rows, -1)

    normal = actions.reshape(rows, steps, size).to(wide)
    before = None if previous is None else each(previous)
    if center is not None:
        normal = normal - center.to(wide)
        before = None if before is None else before - center.to(wide)
    if scale is not None:
        normal = normal / scale.to(wide)
        before = None if before is None else before / scale.to(wide)
    aim = None if goal is None else each(goal)
    z = each(start)
    cost = z.new_zeros(rows)
    states = []
    for t in range(steps):
        a = normal[:, t]
        z = network(dynamics, parameters, z, a)
        states.append(z)
        for term in terms:
            weight = (term.terminal if t + 1 == steps else term.stage) * discount**t
            if weight == 0.0:
                continue
            if term.kind == "goal_distance":
                assert aim is not None
                value = distance(term.metric, z, aim)
                if term.reach > 0.0:
                    value = torch.where(value < term.reach, value / term.reach, 1.0)
            elif term.kind == "action_size":
                value = a.square().sum(dim=-1)
            elif term.kind == "action_change":
                if before is None:
                    continue
                value = torch.where(before.isnan(), 0.0, a - before.nan_to_num()).square().sum(dim=-1)
            else:
                assert critic is not None
                value = network(critic, critic_parameters, z, aim if critic.side else None)[:, 0]
            cost = cost + weight * value
        before = a
    return Rollout(
        cost.reshape(environments, candidates), torch.stack(states, 1).reshape(environments, candidates, steps, -1)
    )
