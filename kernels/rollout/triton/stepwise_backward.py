"""The way back through a step in a few launches: recompute it, then a launch per layer (two where it norms).

    charge_backward    the slopes of a step's cost join the adjoint of the state reached
    through_layer      through a layer's activation and norms, whole rows at a time
    through_cell       through a GRU's norm and gates, whole rows at a time
    dense_backward     through a layer's products, and its activation where nothing norms
    action_gradient    the same to the action, and the slopes of what the action costs

States come from the path that the way forward left; a step's products are computed again, into buffers that all steps
share. A GRU's gates side by side are one layer of three times its width.
"""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..layout import NETWORK
from .arithmetic import layer_norm, layer_norm_backward, load_action_columns, load_rows, partial, slope, store_rows
from .cost import action_slopes, goal_slopes, weighted
from .launch import Given
from .mlp import through_norms
from .stepwise import run_cell, run_network


@triton.jit(do_not_specialize=["N", "per", "S", "t"])
def charge_backward(
    z, stride, goal, of_cost, of_value, d, of_path, coefficients, adjoints, out, N, per, S, t, factor,
    L: tl.constexpr, LP: tl.constexpr, TERMS: tl.constexpr, GOAL: tl.constexpr, PATH: tl.constexpr,
    ADJOINTS: tl.constexpr, BM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """d (N, L), the derivative with respect to the state z (N, L) that step t reached through all later steps (nothing
    at the last), plus what that step costs and, where PATH, of_path (N, S + 1, L) -> out and, where ADJOINTS, adjoints
    (N, S, L). of_value (N, L): of_cost times the critic's derivative.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rows < N
    row = rows.to(tl.int64)
    n = tl.arange(0, LP)
    state = tl.load(
        z + row[:, None] * stride + n[None, :], mask=inside[:, None] & (n < L)[None, :], other=0.0
    ).to(ACC)  # fmt: skip
    target = state
    if GOAL:
        target = load_rows(goal, rows // per, inside, L, LP, ACC)
    g = tl.load(of_cost + rows, mask=inside, other=0.0).to(ACC)
    last = tl.where(t == S - 1, 1, 0)
    total = load_rows(d, row, inside & (t < S - 1), L, LP, ACC)
    for k in tl.static_range(len(TERMS)):
        weight = factor * tl.load(coefficients + 3 * k + last)
        if TERMS[k][0] == 0:
            total = weighted(total, g[:, None] * goal_slopes(state, target, coefficients, TERMS, k), weight)
        elif TERMS[k][0] == 3:
            total = weighted(total, load_rows(of_value, row, inside, L, LP, ACC), weight)
    if PATH:
        total += load_rows(of_path, row * (S + 1) + t + 1, inside, L, LP, ACC)
    if ADJOINTS:
        store_rows(adjoints, total, row * S + t, inside, L, LP)
    store_rows(out, total, row, inside, L, LP)


@triton.jit(do_not_specialize=["N"])
def through_layer(
    d, d_stride, products, vectors, out, N, NET: tl.constexpr, j: tl.constexpr, BM: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Derivatives d (N, OUT) with respect to layer j's output -> out (N, OUT), to its products (N, OUT)."""
    OUT: tl.constexpr = NET[j][2]
    NP: tl.constexpr = NET[j][5]
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rows < N
    n = tl.arange(0, NP)
    there = inside[:, None] & (n < OUT)[None, :]
    given = tl.load(d + rows[:, None].to(tl.int64) * d_stride + n[None, :], mask=there, other=0.0).to(ACC)
    p = load_rows(products, rows, inside, OUT, NP, ACC)
    store_rows(out, through_norms(given, p, vectors, NET, j), rows, inside, OUT, NP)


@triton.jit(do_not_specialize=["N"])
def through_cell(
    d, z, stride, gates, vectors, to_action, to_state, out, N, NET: tl.constexpr, BM: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Derivatives d (N, L) with respect to the state that a GRU step leads to -> to what its gates r, u, n read of the
    action and of the state z, each (N, 3, LP) with zeros behind L, and the share that goes straight to z, out (N, L).
    """
    L: tl.constexpr = NET[0][0]
    LP: tl.constexpr = NET[0][3]
    V: tl.constexpr = NET[0][10]
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = rows < N
    row = rows.to(tl.int64)
    n = tl.arange(0, LP)
    d = load_rows(d, row, inside, L, LP, ACC)
    old = tl.load(
        z + row[:, None] * stride + n[None, :], mask=inside[:, None] & (n < L)[None, :], other=0.0
    ).to(ACC)  # fmt: skip
    r = load_rows(gates, row * 4, inside, L, LP, ACC)
    u = load_rows(gates, row * 4 + 1, inside, L, LP, ACC)
    new = load_rows(gates, row * 4 + 2, inside, L, LP, ACC)
    hidden = load_rows(gates, row * 4 + 3, inside, L, LP, ACC)
    if NET[0][6]:
        _, hat, rstd = layer_norm((1.0 - u) * new + u * old, vectors, V + 4 * LP, L, LP)
        d = layer_norm_backward(d, hat, rstd, vectors, V + 4 * LP, L, LP)
    store_rows(out, d * u, row, inside, L, LP)
    slopes = d * (old - new) * u * (1.0 - u)
    store_rows(to_action, slopes, row * 3 + 1, inside, LP, LP)
    store_rows(to_state, slopes, row * 3 + 1, inside, LP, LP)
    slopes = d * (1.0 - u) * (1.0 - new * new)
    store_rows(to_action, slopes, row * 3 + 2, inside, LP, LP)
    store_rows(to_state, slopes * r, row * 3 + 2, inside, LP, LP)
    slopes = slopes * hidden * r * (1.0 - r)
    store_rows(to_action, slopes, row * 3, inside, LP, LP)
    store_rows(to_state, slopes, row * 3, inside, LP, LP)


@triton.jit
def through_products(
    acc, d, d_stride, products, transposed, row, inside, n, zero, K: tl.constexpr, N: tl.constexpr, ACT: tl.constexpr,
    BK: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """acc + rows of d (…, K) and the slope of activation ACT at products (…, K) times columns n of a matrix (K, N)."""
    for start in range(0, K + zero, BK):
        k = start + tl.arange(0, BK)
        there = inside[:, None] & (k < K)[None, :]
        part = tl.load(d + row[:, None] * d_stride + k[None, :], mask=there, other=0.0).to(ACC)
        if ACT:
            p = tl.load(products + row[:, None] * K + k[None, :], mask=there, other=0.0).to(ACC)
            part = part * slope(p, ACT)
        acc = partial(acc, part, transposed, k, n, N, K, False, IP, ACC)
    return acc


@triton.jit(do_not_specialize=["N", "zero"])
def dense_backward(
    d, d_stride, products, transposed, shortcut, out, N, zero, K: tl.constexpr, OUT: tl.constexpr, NP: tl.constexpr,
    W: tl.constexpr, ACT: tl.constexpr, SHORTCUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """BN columns of the derivative (N, OUT) with respect to a layer's input, from d (N, K) with respect to its output,
    before an activation ACT or behind it; plus shortcut (N, OUT) where SHORTCUT.
    """
    pid = tl.program_id(0)
    rows = (pid // (NP // BN)) * BM + tl.arange(0, BM)
    n = (pid % (NP // BN)) * BN + tl.arange(0, BN)
    inside = rows < N
    row = rows.to(tl.int64)
    back = through_products(
        tl.zeros((BM, BN), ACC), d, d_stride, products, transposed + W, row, inside, n, zero, K, NP, ACT, BK, IP, ACC
    )
    keep = inside[:, None] & (n < OUT)[None, :]
    at = row[:, None] * OUT + n[None, :]
    if SHORTCUT:
        back += tl.load(shortcut + at, mask=keep, other=0.0).to(ACC)
    tl.store(out + at, back, mask=keep)


@triton.jit(do_not_specialize=["N", "per", "S", "t", "zero"])
def action_gradient(
    d, d_stride, products, transposed, actions, previous, center, scale, coefficients, of_cost, of_actions, N, per, S,
    t, zero, factor, discount, K: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, W: tl.constexpr, ACT: tl.constexpr,
    TERMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """BN columns of the gradient with respect to action t, of_actions (N, S, D): through the first layer as in
    `dense_backward`, and what the action costs by itself.
    """
    pid = tl.program_id(0)
    rows = (pid // (DP // BN)) * BM + tl.arange(0, BM)
    n = (pid % (DP // BN)) * BN + tl.arange(0, BN)
    inside = rows < N
    row = rows.to(tl.int64)
    side = through_products(
        tl.zeros((BM, BN), ACC), d, d_stride, products, transposed + W, row, inside, n, zero, K, DP, ACT, BK, IP, ACC
    )
    a = load_action_columns(actions, center, scale, row * S + t, inside, n, D, ACC)
    before = load_action_columns(actions, center, scale, row * S + t - 1, inside & (t > 0), n, D, ACC)
    first = load_action_columns(previous, center, scale, rows // per, inside & (t == 0), n, D, ACC)
    before = tl.where(t > 0, before, first)
    after = load_action_columns(actions, center, scale, row * S + t + 1, inside & (t < S - 1), n, D, ACC)
    g = tl.load(of_cost + rows, mask=inside, other=0.0).to(ACC)
    last = tl.where(t == S - 1, 1, 0)
    later = tl.where(t == S - 2, 1, 0)
    side += action_slopes(a, before, after, g, coefficients, last, later, t == S - 1, factor, discount, TERMS)
    s = tl.load(scale + n, mask=n < D, other=1.0)
    at = of_actions + (row * S + t)[:, None] * D + n[None, :]
    tl.store(at, side / s[None, :], mask=inside[:, None] & (n < D)[None, :])


class _Layers:
    """A network's way back: room for its products, and what a layer's launches share."""

    def __init__(self, given: Given, network: NETWORK) -> None:
        """Products that no slope and no norm reads, those of a linear last layer, are not computed again."""
        rows = given.actions.shape[0]
        self._given, self._network = given, network
        self._products = [given.new(rows, row[2]) if any(row[6:9]) else None for row in network]
        for j in range(len(network) - 1):  # but on the way to later ones
            if self._products[j] is None and any(p is not None for p in self._products[j + 1 :]):
                self._products[j] = given.new(rows, network[j][2])

    def recompute(self, z: Tensor, side: Tensor, work: Sequence[Tensor], *, critic: bool = False) -> None:
        """Products of every layer, at states z (N, L)."""
        run_network(self._given, self._network, z, side, work[0], work[1:], critic=critic, products=self._products)

    def output_slopes(self, j: int, d: Tensor, spare: Tensor) -> tuple[Tensor, Tensor, int]:
        """What `dense_backward` reads of layer j: derivatives, products, activation; `spare` holds whole rows."""
        given, row, products = self._given, self._network[j], self._products[j]
        if products is None:
            return d, d, 0
        if not (row[6] or row[7]):
            return d, products, row[8]
        rows, chosen = len(d), given.config("through_layer")
        out = spare.flatten()[: rows * row[2]].view(rows, row[2])
        through_layer[(triton.cdiv(rows, chosen["BM"]),)](
            d, d.stride(0), products, given.packed.vectors, out, rows, NET=self._network, j=j,
            ACC=given.arithmetic["ACC"], **chosen,
        )  # fmt: skip
        return out, out, 0

    def to_input(
        self, j: int, slopes: tuple[Tensor, Tensor, int], out: Tensor, shortcut: Tensor | None = None
    ) -> Tensor:
        """Derivatives with respect to layer j's input (its state's columns), in `out`."""
        row = self._network[j]
        to = out.flatten()[: len(slopes[0]) * row[0]].view(-1, row[0])
        _dense_backward(self._given, slopes, to, shortcut, row[2], row[3], row[9])
        return to


def _dense_backward(
    given: Given, slopes: tuple[Tensor, Tensor, int], out: Tensor, shortcut: Tensor | None, inner: int, width: int,
    at: int,
) -> None:  # fmt: skip
    d, products, activation = slopes
    rows, columns = out.shape
    chosen, arithmetic = given.config("dense_backward"), given.arithmetic
    chosen["BN"] = min(chosen["BN"], width)
    dense_backward[(triton.cdiv(rows, chosen["BM"]) * (width // chosen["BN"]),)](
        d, d.stride(0), products, given.packed.transposed, out if shortcut is None else shortcut, out, rows, 0, K=inner,
        OUT=columns, NP=width, W=at, ACT=activation, SHORTCUT=shortcut is not None, IP=arithmetic["IP"],
        ACC=arithmetic["ACC"], **chosen,
    )  # fmt: skip


def backward(
    given: Given, path: Tensor, of_cost: Tensor, of_path: Tensor | None, of_actions: Tensor, of_start: Tensor,
    adjoints: Tensor,
) -> None:  # fmt: skip
    """Fill `of_actions` (N, S, D), `of_start` (N, L) and, unless it is empty, `adjoints` (N, S, L)."""
    rows, steps, size = given.actions.shape
    constants, packed, arithmetic = given.constants, given.packed, given.arithmetic
    latent, width, gru = constants["L"], constants["LP"], constants["GRU"]
    critic = packed.layout.critic
    layers, judge = _Layers(given, () if gru else packed.layout.dynamics), _Layers(given, critic)
    widest = max(row[2] for row in (*packed.layout.dynamics, *critic))
    work = [given.new(rows * max(widest, latent)) for _ in range(3)]
    matrices = [x.view(rows, -1) for x in work]
    reached, before, of_value, straight = (given.new(rows, latent) for _ in range(4))
    gates = [given.new(rows, n) for n in ((4 * latent, 3 * width, 3 * width) if gru else ())]
    goal = path if given.goal is None else given.goal

    def through(network: _Layers, count: int, d: Tensor) -> tuple[Tensor, Tensor, int]:
        """Back through all layers but the first, of which the slopes are returned."""
        for j in reversed(range(count)):
            slopes = network.output_slopes(j, d, work[2])
            if j == 0:
                break
            d = network.to_input(j, slopes, work[j % 2])
        return slopes

    for t in reversed(range(steps)):
        z, then, action = path[:, t], path[:, t + 1], given.actions[:, t]
        if critic:
            judge.recompute(then, goal, matrices, critic=True)
            judge.to_input(0, through(judge, len(critic), of_cost[:, None]), of_value)
        chosen = given.config("charge_backward")
        charge_backward[(triton.cdiv(rows, chosen["BM"]),)](
            then, then.stride(0), goal, of_cost, of_value, before, path if of_path is None else of_path,
            given.coefficients, adjoints, reached, rows, given.per, steps, t, given.discount**t, L=latent, LP=width,
            TERMS=constants["TERMS"], GOAL=given.aims, PATH=of_path is not None, ADJOINTS=adjoints.numel() > 0,
            ACC=arithmetic["ACC"], **chosen,
        )  # fmt: skip
        if gru:
            kept, to_action, to_state = gates
            run_cell(given, z, action, before, kept)
            chosen = given.config("through_cell")
            through_cell[(triton.cdiv(rows, chosen["BM"]),)](
                reached, z, z.stride(0), kept, packed.vectors, to_action, to_state, straight, rows,
                NET=packed.layout.dynamics, ACC=arithmetic["ACC"], **chosen,
            )  # fmt: skip
            inner, at, slopes = 3 * width, packed.layout.dynamics[0][9], (to_action, to_action, 0)
            _dense_backward(given, (to_state, to_state, 0), before, straight, inner, width, at)
            at += 3 * width * width
        else:
            layers.recompute(z, action, matrices)
            first = packed.layout.dynamics[0]
            slopes = through(layers, len(packed.layout.dynamics), reached)
            layers.to_input(0, slopes, before, reached if constants["RESIDUAL"] else None)
            inner, at = first[2], first[9] + first[3] * first[5]
        chosen = given.config("action_gradient")
        chosen["BN"] = min(chosen["BN"], constants["DP"])
        action_gradient[(triton.cdiv(rows, chosen["BM"]) * (constants["DP"] // chosen["BN"]),)](
            slopes[0], slopes[0].stride(0), slopes[1], packed.transposed, given.actions, given.previous, given.center,
            given.scale, given.coefficients, of_cost, of_actions, rows, given.per, steps, t, 0, given.discount**t,
            given.discount, K=inner, D=size, DP=constants["DP"], W=at, ACT=slopes[2], TERMS=constants["TERMS"],
            IP=arithmetic["IP"], ACC=arithmetic["ACC"], **chosen,
        )  # fmt: skip
    if of_path is None:
        of_start.copy_(before)
    else:
        of_start.copy_(before + of_path[:, 0])
