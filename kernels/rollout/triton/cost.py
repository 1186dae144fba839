"""What a step costs, and the slopes of that."""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from .mlp import forward_mlp, through_mlp


@triton.jit
def distance(z, goal, METRIC: tl.constexpr):
    """Between rows: l2, squared_l2, l1, cosine."""
    if METRIC == 3:
        norms = tl.sqrt(tl.sum(z * z, 1)) * tl.sqrt(tl.sum(goal * goal, 1))
        d = 1.0 - tl.sum(z * goal, 1) / tl.where(norms < 1e-8, 1e-8, norms)
    elif METRIC == 2:
        d = tl.sum(tl.abs(z - goal), 1)
    else:
        d = tl.sum((z - goal) * (z - goal), 1)
        d = tl.sqrt(d) if METRIC == 0 else d
    return d


@triton.jit
def distance_slope(z, goal, d, METRIC: tl.constexpr):
    """The derivative of distance `d` with respect to z; 0 where l2 and l1 have none."""
    if METRIC == 3:
        own = tl.sum(z * z, 1)
        norms = tl.sqrt(own) * tl.sqrt(tl.sum(goal * goal, 1))
        tiny = norms < 1e-8
        along = tl.where(tiny, 0.0, (1.0 - d) / tl.where(tiny, 1.0, own))
        g = along[:, None] * z - goal / tl.where(tiny, 1e-8, norms)[:, None]
    elif METRIC == 2:
        g = tl.where(z > goal, 1.0, 0.0) - tl.where(z < goal, 1.0, 0.0)
    elif METRIC == 0:
        g = (z - goal) * tl.where(d > 0.0, 1.0 / tl.where(d > 0.0, d, 1.0), 0.0)[:, None]
    else:
        g = 2.0 * (z - goal)
    return g


@triton.jit
def difference(a, before):
    """Of two actions; 0 where there was none before (NaN)."""
    return tl.where(before == before, a - before, 0.0)


@triton.jit
def weighted(total, value, weight):
    """total + weight * value; a weight of 0 switches a term off, whatever its value."""
    return total + tl.where(weight != 0.0, weight * value, 0.0)


@triton.jit
def judged(total, z, a, before, goal, coefficients, weight, TERMS: tl.constexpr, k: tl.constexpr):
    """total + the weighted term k of a step, for terms that ask no network."""
    if TERMS[k][0] == 0:
        d = distance(z, goal, TERMS[k][1])
        if TERMS[k][2]:
            reach = tl.load(coefficients + 3 * k + 2)
            d = tl.where(d < reach, d / reach, 1.0)
        total = weighted(total, d, weight)
    elif TERMS[k][0] == 1:
        total = weighted(total, tl.sum(a * a, 1), weight)
    else:
        d = difference(a, before)
        total = weighted(total, tl.sum(d * d, 1), weight)
    return total


@triton.jit
def step_cost(
    total, z, a, before, goal, weights, vectors, coefficients, last, factor, zero, TERMS: tl.constexpr,
    CRITIC: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """total + what one step costs: `a` was taken after `before` and led to `z`."""
    for k in tl.static_range(len(TERMS)):
        weight = factor * tl.load(coefficients + 3 * k + last)
        if TERMS[k][0] == 3:
            value = forward_mlp(z, goal, weights, vectors, zero, CRITIC, BK, WIDEN, IP, ACC)
            total = weighted(total, tl.sum(value, 1), weight)  # its other columns are padding, and 0
        else:
            total = judged(total, z, a, before, goal, coefficients, weight, TERMS, k)
    return total


@triton.jit
def goal_slopes(z, goal, coefficients, TERMS: tl.constexpr, k: tl.constexpr):
    """The derivative of term k, a distance to the goal, with respect to the state."""
    d = distance(z, goal, TERMS[k][1])
    slopes = distance_slope(z, goal, d, TERMS[k][1])
    if TERMS[k][2]:
        reach = tl.load(coefficients + 3 * k + 2)
        slopes = tl.where((d < reach)[:, None], slopes / reach, 0.0)
    return slopes


@triton.jit
def state_slopes(
    z, goal, g, weights, transposed, vectors, coefficients, last, factor, zero, TERMS: tl.constexpr,
    CRITIC: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The derivative of g times a step's cost with respect to the state it leads to."""
    total = z * 0.0
    for k in tl.static_range(len(TERMS)):
        weight = factor * tl.load(coefficients + 3 * k + last)
        if TERMS[k][0] == 0:
            total = weighted(total, g[:, None] * goal_slopes(z, goal, coefficients, TERMS, k), weight)
        elif TERMS[k][0] == 3:
            LAST: tl.constexpr = CRITIC[len(CRITIC) - 1][5]
            d = tl.where((tl.arange(0, LAST) == 0)[None, :], g[:, None], 0.0)
            slopes, _ = through_mlp(d, z, goal, weights, transposed, vectors, zero, CRITIC, BK, WIDEN, IP, ACC)
            total = weighted(total, slopes, weight)
    return total


@triton.jit
def action_slopes(
    a, before, after, g, coefficients, last, later, final, factor, discount, TERMS: tl.constexpr,
):  # fmt: skip
    """The derivative of g times the cost with respect to action `a`: what its own step costs, and the change to the
    action `after` it. `last`, `later`: which weight this step and the next take; `final`: there is no next.
    """
    total = a * 0.0
    for k in tl.static_range(len(TERMS)):
        weight = factor * tl.load(coefficients + 3 * k + last)
        if TERMS[k][0] == 1:
            total = weighted(total, 2.0 * g[:, None] * a, weight)
        elif TERMS[k][0] == 2:
            total = weighted(total, 2.0 * g[:, None] * difference(a, before), weight)
            weight = tl.where(final, 0.0, factor * discount * tl.load(coefficients + 3 * k + later))
            total = weighted(total, 2.0 * g[:, None] * (a - after), weight)
    return total
