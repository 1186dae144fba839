"""A step in a few launches: one per layer, and one for the costs.

dense      a layer of an mlp
cell       a GRU step but for its norm
norm       a GRU's LayerNorm
charge     what a step costs
"""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..layout import NETWORK
from .arithmetic import (
    activate,
    hyperbolic_tangent,
    layer_norm,
    load_actions,
    load_rows,
    partial,
    sigmoid,
    simnorm,
)
from .cost import judged, weighted
from .launch import Given


@triton.jit(do_not_specialize=["N", "per", "zero"])
def dense(
    x, stride, side, side_stride, center, scale, weights, vectors, residual, residual_stride, out, out_stride, products,
    N, per, zero, NET: tl.constexpr, j: tl.constexpr, BY_ENVIRONMENT: tl.constexpr, RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Layer j: rows of x and, of the first layer, the side input (normalised) -> rows of out, plus the residual's; and,
    where KEEP, W x + b -> `products` (N, OUT).

    Strides are those of a row. A side input, or the rows of x, is BY_ENVIRONMENT one for `per` rows. A normed row is
    one program's: BN is the whole width.
    """
    STATE: tl.constexpr = NET[j][0]
    SIDE: tl.constexpr = NET[j][1]
    OUT: tl.constexpr = NET[j][2]
    KP: tl.constexpr = NET[j][3]
    NP: tl.constexpr = NET[j][5]
    GROUP: tl.constexpr = NET[j][7]
    W: tl.constexpr = NET[j][9]
    V: tl.constexpr = NET[j][10]
    pid = tl.program_id(0)
    rows = (pid // (NP // BN)) * BM + tl.arange(0, BM)
    n = (pid % (NP // BN)) * BN + tl.arange(0, BN)
    inside = rows < N
    row = rows.to(tl.int64)
    u = tl.zeros((BM, BN), ACC) + tl.load(vectors + V + n)[None, :]
    for start in range(0, STATE + zero, BK):
        k = start + tl.arange(0, BK)
        part = tl.load(
            x + row[:, None] * stride + k[None, :], mask=inside[:, None] & (k < STATE)[None, :], other=0.0
        ).to(ACC)  # fmt: skip
        u = partial(u, part, weights + W, k, n, NP, STATE, WIDEN, IP, ACC)
    if SIDE:
        which = (rows // per).to(tl.int64) if BY_ENVIRONMENT else row
        for start in range(0, SIDE + zero, BK):
            k = start + tl.arange(0, BK)
            part = tl.load(
                side + which[:, None] * side_stride + k[None, :], mask=inside[:, None] & (k < SIDE)[None, :], other=0.0
            ).to(ACC)  # fmt: skip
            if not BY_ENVIRONMENT:
                c = tl.load(center + k, mask=k < SIDE, other=0.0)
                s = tl.load(scale + k, mask=k < SIDE, other=1.0)
                part = (part - c[None, :]) / s[None, :]
            u = partial(u, part, weights + W + KP * NP, k, n, NP, SIDE, WIDEN, IP, ACC)
    keep = inside[:, None] & (n < OUT)[None, :]
    if KEEP:
        tl.store(products + row[:, None] * OUT + n[None, :], u, mask=keep)
    if NET[j][6]:
        u, _, _ = layer_norm(u, vectors, V + NP, OUT, NP)
    if GROUP:
        u = simnorm(u, BN, GROUP)
    u = activate(u, NET[j][8])
    if RESIDUAL:
        u += tl.load(residual + row[:, None] * residual_stride + n[None, :], mask=keep, other=0.0)
    tl.store(out + row[:, None] * out_stride + n[None, :], u, mask=keep)


@triton.jit(do_not_specialize=["N", "zero"])
def cell(
    x, stride, action, action_stride, center, scale, weights, vectors, out, out_stride, gates, N, zero,
    NET: tl.constexpr, KEEP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr,
    IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A GRU step but for its norm: BN columns of the new state of BM rows, all three gates at once; or, where KEEP, not
    the state but reset and update gate, new state and the products with the old one behind that -> `gates` (N, 4, L).
    """
    L: tl.constexpr = NET[0][0]
    D: tl.constexpr = NET[0][1]
    LP: tl.constexpr = NET[0][3]
    DP: tl.constexpr = NET[0][4]
    W: tl.constexpr = NET[0][9]
    V: tl.constexpr = NET[0][10]
    A: tl.constexpr = W + 3 * LP * LP
    pid = tl.program_id(0)
    rows = (pid // (LP // BN)) * BM + tl.arange(0, BM)
    n = (pid % (LP // BN)) * BN + tl.arange(0, BN)
    inside = rows < N
    row = rows.to(tl.int64)
    empty = tl.zeros((BM, BN), ACC)
    r = empty + tl.load(vectors + V + n)[None, :]
    u = empty + tl.load(vectors + V + LP + n)[None, :]
    new = empty + tl.load(vectors + V + 2 * LP + n)[None, :]
    hidden = empty + tl.load(vectors + V + 3 * LP + n)[None, :]
    for start in range(0, L + zero, BK):
        k = start + tl.arange(0, BK)
        part = tl.load(
            x + row[:, None] * stride + k[None, :], mask=inside[:, None] & (k < L)[None, :], other=0.0
        ).to(ACC)  # fmt: skip
        r = partial(r, part, weights + W, k, n, LP, L, WIDEN, IP, ACC)
        u = partial(u, part, weights + W + LP * LP, k, n, LP, L, WIDEN, IP, ACC)
        hidden = partial(hidden, part, weights + W + 2 * LP * LP, k, n, LP, L, WIDEN, IP, ACC)
    for start in range(0, D + zero, BK):
        k = start + tl.arange(0, BK)
        part = tl.load(
            action + row[:, None] * action_stride + k[None, :], mask=inside[:, None] & (k < D)[None, :], other=0.0
        ).to(ACC)  # fmt: skip
        c = tl.load(center + k, mask=k < D, other=0.0)
        s = tl.load(scale + k, mask=k < D, other=1.0)
        part = (part - c[None, :]) / s[None, :]
        r = partial(r, part, weights + A, k, n, LP, D, WIDEN, IP, ACC)
        u = partial(u, part, weights + A + DP * LP, k, n, LP, D, WIDEN, IP, ACC)
        new = partial(new, part, weights + A + 2 * DP * LP, k, n, LP, D, WIDEN, IP, ACC)
    r = sigmoid(r)
    u = sigmoid(u)
    new = hyperbolic_tangent(new + r * hidden)
    keep = inside[:, None] & (n < L)[None, :]
    if KEEP:
        at = gates + row[:, None] * (4 * L) + n[None, :]
        tl.store(at, r, mask=keep)
        tl.store(at + L, u, mask=keep)
        tl.store(at + 2 * L, new, mask=keep)
        tl.store(at + 3 * L, hidden, mask=keep)
    else:
        old = tl.load(x + row[:, None] * stride + n[None, :], mask=keep, other=0.0).to(ACC)
        tl.store(out + row[:, None] * out_stride + n[None, :], (1.0 - u) * new + u * old, mask=keep)


@triton.jit(do_not_specialize=["N"])
def norm(
    x, vectors, out, out_stride, N, L: tl.constexpr, LP: tl.constexpr, V: tl.constexpr, BM: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """A GRU's LayerNorm: rows of x (N, L) -> rows of out."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rows < N
    y, _, _ = layer_norm(load_rows(x, rows, inside, L, LP, ACC), vectors, V, L, LP)
    n = tl.arange(0, LP)
    tl.store(
        out + rows[:, None].to(tl.int64) * out_stride + n[None, :], y, mask=inside[:, None] & (n < L)[None, :]
    )  # fmt: skip


@triton.jit(do_not_specialize=["N", "per", "S", "t"])
def charge(
    z, stride, actions, goal, previous, center, scale, values, coefficients, cost, N, per, S, t, factor,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TERMS: tl.constexpr, GOAL: tl.constexpr,
    BM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """cost (N,) += what step t costs (= at the first), `values` (N,) being the critic's of the states reached."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rows < N
    environment = rows // per
    row = rows.to(tl.int64)
    n = tl.arange(0, LP)
    state = tl.load(
        z + row[:, None] * stride + n[None, :], mask=inside[:, None] & (n < L)[None, :], other=0.0
    ).to(ACC)  # fmt: skip
    target = state
    if GOAL:
        target = load_rows(goal, environment, inside, L, LP, ACC)
    a = load_actions(actions, center, scale, row * S + t, inside, D, DP, ACC)
    before = load_actions(actions, center, scale, row * S + t - 1, inside & (t > 0), D, DP, ACC)
    first = load_actions(previous, center, scale, environment, inside & (t == 0), D, DP, ACC)
    before = tl.where(t > 0, before, first)
    total = tl.load(cost + rows, mask=inside & (t > 0), other=0.0).to(ACC)
    last = tl.where(t == S - 1, 1, 0)
    for k in tl.static_range(len(TERMS)):
        weight = factor * tl.load(coefficients + 3 * k + last)
        if TERMS[k][0] == 3:
            total = weighted(total, tl.load(values + rows, mask=inside, other=0.0).to(ACC), weight)
        else:
            total = judged(total, state, a, before, target, coefficients, weight, TERMS, k)
    tl.store(cost + rows, total, mask=inside)


def run_network(
    given: Given, network: NETWORK, x: Tensor, side: Tensor, out: Tensor, work: Sequence[Tensor], *,
    critic: bool = False, residual: bool = False, products: Sequence[Tensor | None] = (),
) -> None:  # fmt: skip
    """All layers of a network for states x (N, L), and what the side holds of each row (or, of a critic, environment).

    Where there are `products`, each layer's are kept; layers from the first None on do not run at all.
    """
    z = x
    packed, rows = given.packed, given.actions.shape[0]
    for j, row in enumerate(network):
        kept = products[j] if products else None
        if products and kept is None:
            return
        to = out if j + 1 == len(network) else work[j % 2]
        normed = row[6] or row[7]
        chosen = given.config("dense_normed" if normed else "dense")
        chosen["BN"] = row[5] if normed else min(chosen["BN"], row[5])
        dense[(triton.cdiv(rows, chosen["BM"]) * (row[5] // chosen["BN"]),)](
            x, x.stride(0), side, side.stride(0), given.center, given.scale, packed.weights, packed.vectors, z,
            z.stride(0), to, to.stride(0), to if kept is None else kept, rows, given.per, 0, NET=network, j=j,
            BY_ENVIRONMENT=critic, RESIDUAL=residual and j + 1 == len(network), KEEP=kept is not None,
            **given.arithmetic, **chosen,
        )  # fmt: skip
        x = to


def run_cell(given: Given, z: Tensor, action: Tensor, out: Tensor, gates: Tensor | None = None) -> None:
    """A GRU step but for its norm; or, where there is room for them, its gates."""
    packed, rows, width = given.packed, given.actions.shape[0], given.constants["LP"]
    chosen = given.config("cell")
    chosen["BN"] = min(chosen["BN"], width)
    cell[(triton.cdiv(rows, chosen["BM"]) * (width // chosen["BN"]),)](
        z, z.stride(0), action, action.stride(0), given.center, given.scale, packed.weights, packed.vectors, out,
        out.stride(0), out if gates is None else gates, rows, 0, NET=packed.layout.dynamics, KEEP=gates is not None,
        **given.arithmetic, **chosen,
    )  # fmt: skip


def forward(given: Given, start: Tensor, cost: Tensor, path: Tensor) -> None:
    """Fill `cost` (N,) and, unless it is empty, `path` (N, S + 1, L)."""
    rows, steps, size = given.actions.shape
    constants, packed, accumulate = given.constants, given.packed, given.arithmetic["ACC"]
    latent, dynamics, critic = constants["L"], packed.layout.dynamics, packed.layout.critic
    widest = max(row[2] for row in (*dynamics, *critic))
    work = [given.new(rows, widest), given.new(rows, widest)]
    states = [path[:, t] for t in range(steps + 1)] if path.numel() else [given.new(rows, latent) for _ in range(2)]
    values, hidden = given.new(rows, 1), given.new(rows, latent)
    goal = start if given.goal is None else given.goal
    states[0].copy_(start.repeat_interleave(given.per, 0))
    for t in range(steps):
        z, then = states[t % len(states)], states[(t + 1) % len(states)]
        action = given.actions[:, t]
        if constants["GRU"]:
            normed = dynamics[0][6]
            run_cell(given, z, action, hidden if normed else then)
            if normed:
                chosen = given.config("norm")
                norm[(triton.cdiv(rows, chosen["BM"]),)](
                    hidden, packed.vectors, then, then.stride(0), rows, L=latent, LP=constants["LP"],
                    V=dynamics[0][10] + 4 * constants["LP"], ACC=accumulate, **chosen,
                )  # fmt: skip
        else:
            run_network(given, dynamics, z, action, then, work, residual=constants["RESIDUAL"])
        if critic:
            run_network(given, critic, then, goal, values, work, critic=True)
        chosen = given.config("charge")
        charge[(triton.cdiv(rows, chosen["BM"]),)](
            then, then.stride(0), given.actions, goal, given.previous, given.center, given.scale, values,
            given.coefficients, cost, rows, given.per, steps, t, given.discount**t, L=latent, LP=constants["LP"],
            D=size, DP=constants["DP"], TERMS=constants["TERMS"], GOAL=given.aims, ACC=accumulate, **chosen,
        )  # fmt: skip
