"""The gradient of a rollout with respect to the weights, from the adjoints of its states.

Once d loss / d z_t is known at every step, through all that follows (the reverse kernel writes it), steps no longer
depend on each other: the weights' gradient is one ordinary backward pass of the network over all rows and steps at
once, matrix products of N S rows, in torch. Written out by hand, because an operator records no autograd graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .description import Dynamics, Gru, Program
from .reference import ACTIVATIONS

EPS = 1e-5


def parameter_gradients(
    program: Program,
    parameters: Sequence[Tensor],
    critic: Sequence[Tensor],
    path: Tensor,
    actions: Tensor,
    goal: Tensor | None,
    weights: Tensor,
    of_cost: Tensor,
    adjoints: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the parameters of the dynamics and of the critic.

    path: (N, S + 1, L); actions: (N, S, D), normalised; goal: (N, L); weights: (T, S), each term's at each step,
    discounted; of_cost: (N,); adjoints: (N, S, L).
    """
    rows, steps, latent = adjoints.shape
    before = path[:, :-1].reshape(-1, latent)
    own = network_gradients(
        program.dynamics, parameters, before, actions.reshape(rows * steps, -1), adjoints.reshape(-1, latent)
    )
    if program.critic is None:
        return own, []
    weight = sum(weights[k] for k, (kind, _, _) in enumerate(program.terms) if kind == "value")
    side = None
    if program.critic.side:
        assert goal is not None
        side = goal[:, None].expand(rows, steps, -1).reshape(rows * steps, -1)
    cotangent = (of_cost[:, None] * weight).reshape(-1, 1)
    return own, network_gradients(program.critic, critic, path[:, 1:].reshape(-1, latent), side, cotangent)


def network_gradients(
    described: Dynamics, parameters: Sequence[Tensor], state: Tensor, side: Tensor | None, d: Tensor
) -> list[Tensor]:
    """Gradients of a network's parameters for states (B, L), side inputs (B, D) and output derivatives (B, out)."""

    def rounded(x: Tensor, weight: Tensor) -> Tensor:
        return x.to(weight.dtype).to(x.dtype) if weight.dtype in (torch.float16, torch.bfloat16) else x

    wide = [p.to(d.dtype) for p in parameters]
    if isinstance(described, Gru):
        assert side is not None
        w_ih, w_hh, b_ih, b_hh, *norm = wide
        a, z = rounded(side, parameters[0]), rounded(state, parameters[1])
        ir, iu, new = (a @ w_ih.t() + b_ih).chunk(3, dim=1)
        hr, hu, hidden = (z @ w_hh.t() + b_hh).chunk(3, dim=1)
        r, u = torch.sigmoid(ir + hr), torch.sigmoid(iu + hu)
        new = torch.tanh(new + r * hidden)
        grads = []
        if norm:
            d, of_norm = _norm_backward(d, (1.0 - u) * new + u * state, norm[0])
            grads = list(of_norm)
        of_new = d * (1.0 - u) * (1.0 - new * new)
        of_update = d * (state - new) * u * (1.0 - u)
        of_reset = of_new * hidden * r * (1.0 - r)
        of_action = torch.cat([of_reset, of_update, of_new], dim=1)
        of_state = torch.cat([of_reset, of_update, of_new * r], dim=1)
        return [of_action.t() @ a, of_state.t() @ z, of_action.sum(0), of_state.sum(0), *grads]
    x = state
    if side is not None and described.side:
        x = torch.cat([side, state] if described.side_first else [state, side], dim=1)
    left = iter(range(len(wide)))
    seen = []
    for layer in described.layers:
        at = next(left)
        inputs = rounded(x, parameters[at])
        product = inputs @ wide[at].t() + wide[next(left)]
        u = product
        gain = None
        if layer.normed:
            gain = wide[next(left)]
            u = functional.layer_norm(product, product.shape[1:], gain, wide[next(left)], EPS)
        if layer.grouped:
            u = functional.softmax(u.reshape(len(u), -1, layer.group), dim=-1).flatten(1)
        seen.append((at, inputs, product, gain, u))
        x = ACTIVATIONS[layer.activation](u)
    grads = [torch.empty(0)] * len(wide)
    for layer, (at, inputs, product, gain, u) in zip(reversed(described.layers), reversed(seen), strict=True):
        d = d * _slope(layer.activation, u)
        if layer.grouped:
            along = (
                (d * u).reshape(len(u), -1, layer.group).sum(-1, keepdim=True).expand(-1, -1, layer.group).flatten(1)
            )
            d = u * (d - along)
        if gain is not None:
            d, of_norm = _norm_backward(d, product, gain)
            grads[at + 2], grads[at + 3] = of_norm
        grads[at], grads[at + 1] = d.t() @ inputs, d.sum(0)
        if at:
            d = d @ wide[at]
    return grads


def _norm_backward(d: Tensor, x: Tensor, gain: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Derivatives with respect to a LayerNorm's output -> to its input, and to its weight and bias."""
    mean = x.mean(1, keepdim=True)
    rstd = (x.var(1, correction=0, keepdim=True) + EPS).rsqrt()
    hat = (x - mean) * rstd
    inner = d * gain
    back = rstd * (inner - inner.mean(1, keepdim=True) - hat * (inner * hat).mean(1, keepdim=True))
    return back, ((d * hat).sum(0), d.sum(0))


def _slope(activation: str, u: Tensor) -> Tensor:
    if activation == "relu":
        return (u > 0).to(u)
    if activation == "gelu":
        return 0.5 * (1.0 + torch.erf(u * math.sqrt(0.5))) + u * torch.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi)
    if activation == "silu":
        s = torch.sigmoid(u)
        return s * (1.0 + u * (1.0 - s))
    if activation == "mish":
        t = torch.tanh(functional.softplus(u))
        return t + u * (1.0 - t * t) * torch.sigmoid(u)
    if activation == "tanh":
        return 1.0 - torch.tanh(u).square()
    return torch.ones_like(u)
