"""The whole horizon in one launch.

roll       a block of rows goes through the whole horizon, its latents never leave the registers; weights stream
           from the second-level cache; one cost per row is written at the end
reverse    the same backwards: reads each step's latents from what `roll` left, recomputes the step, and writes
           the gradient of its action and the adjoint of its state
"""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import layer_norm, layer_norm_backward, load_actions, load_rows, store_rows
from .cost import action_slopes, state_slopes, step_cost
from .gru import backward_gates, gates
from .launch import Given
from .mlp import forward_mlp, through_mlp


@triton.jit
def step_forward(
    z, a, weights, vectors, zero, GRU: tl.constexpr, RESIDUAL: tl.constexpr, NET: tl.constexpr, BK: tl.constexpr,
    WIDEN: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One step of the dynamics."""
    if GRU:
        LP: tl.constexpr = NET[0][3]
        V: tl.constexpr = NET[0][10]
        _, u, new, _ = gates(z, a, weights, vectors, zero, NET, BK, WIDEN, IP, ACC)
        z = (1.0 - u) * new + u * z
        if NET[0][6]:
            z, _, _ = layer_norm(z, vectors, V + 4 * LP, NET[0][0], LP)
    else:
        y = forward_mlp(z, a, weights, vectors, zero, NET, BK, WIDEN, IP, ACC)
        z = y + z if RESIDUAL else y
    return z


@triton.jit
def step_backward(
    d, z, a, weights, transposed, vectors, zero, GRU: tl.constexpr, RESIDUAL: tl.constexpr, NET: tl.constexpr,
    BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Derivatives with respect to the state that one step leads to -> to the state before and the action."""
    if GRU:
        LP: tl.constexpr = NET[0][3]
        V: tl.constexpr = NET[0][10]
        r, u, new, hidden = gates(z, a, weights, vectors, zero, NET, BK, WIDEN, IP, ACC)
        if NET[0][6]:
            _, hat, rstd = layer_norm((1.0 - u) * new + u * z, vectors, V + 4 * LP, NET[0][0], LP)
            d = layer_norm_backward(d, hat, rstd, vectors, V + 4 * LP, NET[0][0], LP)
        back, side = backward_gates(d, z, r, u, new, hidden, transposed, zero, NET, BK, IP, ACC)
    else:
        back, side = through_mlp(d, z, a, weights, transposed, vectors, zero, NET, BK, WIDEN, IP, ACC)
        back = back + d if RESIDUAL else back
    return back, side


@triton.jit(do_not_specialize=["N", "per", "S", "zero"])
def roll(
    start, actions, goal, previous, center, scale, weights, vectors, coefficients, cost, path, N, per, S, zero,
    discount, L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GRU: tl.constexpr,
    RESIDUAL: tl.constexpr, NET: tl.constexpr, CRITIC: tl.constexpr, TERMS: tl.constexpr, GOAL: tl.constexpr,
    PATH: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """start, goal: (E, L), previous: (E, D), actions: (N, S, D), center, scale: (D,), coefficients: (T, 3) -> cost:
    (N,), and path: (N, S + 1, L), the states from the start on, where PATH.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rows < N
    environment = rows // per
    z = load_rows(start, environment, inside, L, LP, ACC)
    target = z
    if GOAL:
        target = load_rows(goal, environment, inside, L, LP, ACC)
    before = load_actions(previous, center, scale, environment, inside, D, DP, ACC)
    total = tl.zeros((BM,), ACC)
    factor = tl.full((), 1.0, ACC)
    row = rows.to(tl.int64)
    if PATH:
        store_rows(path, z, row * (S + 1), inside, L, LP)
    for t in range(0, S):
        a = load_actions(actions, center, scale, row * S + t, inside, D, DP, ACC)
        z = step_forward(z, a, weights, vectors, zero, GRU, RESIDUAL, NET, BK, WIDEN, IP, ACC)
        last = tl.where(t == S - 1, 1, 0)
        total = step_cost(
            total, z, a, before, target, weights, vectors, coefficients, last, factor, zero, TERMS, CRITIC, BK, WIDEN,
            IP, ACC,
        )  # fmt: skip
        if PATH:
            store_rows(path, z, row * (S + 1) + t + 1, inside, L, LP)
        before = a
        factor = factor * discount
    tl.store(cost + rows, total, mask=inside)


@triton.jit(do_not_specialize=["N", "per", "S", "zero"])
def reverse(
    path, actions, goal, previous, center, scale, weights, transposed, vectors, coefficients, of_cost, of_path,
    of_actions, adjoints, of_start, N, per, S, zero, discount, L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, GRU: tl.constexpr, RESIDUAL: tl.constexpr, NET: tl.constexpr, CRITIC: tl.constexpr,
    TERMS: tl.constexpr, GOAL: tl.constexpr, PATH: tl.constexpr, ADJOINTS: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """of_cost: (N,) and, where PATH, of_path: (N, S + 1, L), derivatives of a loss with respect to what `roll` put out
    -> with respect to the actions (N, S, D) and the start (N, L); and, where ADJOINTS, to every state reached
    (N, S, L), through all that follows.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rows < N
    environment = rows // per
    row = rows.to(tl.int64)
    g = tl.load(of_cost + rows, mask=inside, other=0.0).to(ACC)
    z = load_rows(path, row * (S + 1) + S, inside, L, LP, ACC)
    target = z
    if GOAL:
        target = load_rows(goal, environment, inside, L, LP, ACC)
    first = load_actions(previous, center, scale, environment, inside, D, DP, ACC)
    factor = tl.full((), 1.0, ACC)
    for _ in range(1, S):
        factor = factor * discount
    d = tl.zeros((BM, LP), ACC)
    columns = tl.arange(0, DP)
    s = tl.load(scale + columns, mask=columns < D, other=1.0)
    after = tl.zeros((BM, DP), ACC)
    for back in range(0, S):
        t = S - 1 - back
        last = tl.where(back == 0, 1, 0)
        d += state_slopes(
            z, target, g, weights, transposed, vectors, coefficients, last, factor, zero, TERMS, CRITIC, BK, WIDEN, IP,
            ACC,
        )  # fmt: skip
        if PATH:
            d += load_rows(of_path, row * (S + 1) + t + 1, inside, L, LP, ACC)
        if ADJOINTS:
            store_rows(adjoints, d, row * S + t, inside, L, LP)
        z = load_rows(path, row * (S + 1) + t, inside, L, LP, ACC)
        a = load_actions(actions, center, scale, row * S + t, inside, D, DP, ACC)
        before = load_actions(actions, center, scale, row * S + t - 1, inside & (t > 0), D, DP, ACC)
        before = tl.where(t > 0, before, first)
        d, side = step_backward(
            d, z, a, weights, transposed, vectors, zero, GRU, RESIDUAL, NET, BK, WIDEN, IP, ACC
        )  # fmt: skip
        side += action_slopes(
            a, before, after, g, coefficients, last, tl.where(back == 1, 1, 0), back == 0, factor, discount, TERMS
        )
        store_rows(of_actions, side / s[None, :], row * S + t, inside, D, DP)
        after = a
        # Not divided back: a discount of 0 has no inverse.
        factor = tl.full((), 1.0, ACC)
        for _ in range(1, t):
            factor = factor * discount
    if PATH:
        d += load_rows(of_path, row * (S + 1), inside, L, LP, ACC)
    store_rows(of_start, d, rows, inside, L, LP)


def forward(given: Given, start: Tensor, cost: Tensor, path: Tensor) -> None:
    """Fill `cost` and, unless it is empty, `path`; see `roll` for shapes."""
    rows, steps, _ = given.actions.shape
    options, packed = given.config("roll"), given.packed
    roll[(triton.cdiv(rows, options["BM"]),)](
        start, given.actions, start if given.goal is None else given.goal, given.previous, given.center, given.scale,
        packed.weights, packed.vectors, given.coefficients, cost, path, rows, given.per, steps, 0, given.discount,
        **given.constants, GOAL=given.goal is not None, PATH=path.numel() > 0, **given.arithmetic, **options,
    )  # fmt: skip


def backward(
    given: Given, path: Tensor, of_cost: Tensor, of_path: Tensor | None, of_actions: Tensor, of_start: Tensor,
    adjoints: Tensor,
) -> None:  # fmt: skip
    """Fill `of_actions`, `of_start` and, unless it is empty, `adjoints`; see `reverse` for shapes."""
    rows, steps, _ = given.actions.shape
    options, packed = given.config("reverse"), given.packed
    reverse[(triton.cdiv(rows, options["BM"]),)](
        path, given.actions, path if given.goal is None else given.goal, given.previous, given.center, given.scale,
        packed.weights, packed.transposed, packed.vectors, given.coefficients, of_cost,
        path if of_path is None else of_path, of_actions, adjoints, of_start, rows, given.per, steps, 0,
        given.discount, **given.constants, GOAL=given.goal is not None, PATH=of_path is not None,
        ADJOINTS=adjoints.numel() > 0, **given.arithmetic, **options,
    )  # fmt: skip
