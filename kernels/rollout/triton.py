"""Latent rollouts in Triton: kernels, then the launchers that `op.py` calls.

    roll       a block of rows goes through the whole horizon, its latents never leave the registers; weights stream
               from the second-level cache; one cost per row is written at the end
    reverse    the same backwards: reads each step's latents from what `roll` left, recomputes the step, and writes
               the gradient of its action and the adjoint of its state

A row of an environment e reads start, goal and previous action of e = row // per. No atomics; a kernel never reads what
it wrote. Rows do not depend on each other. Every width is padded to a power of two (`layout.py`); padded columns are 0.
`zero` is 0 at run time: loops that the compiler cannot count stay loops, unrolled ones load all weights at once and
spill (measured ahead of time: W0L on sm_80, 8676 bytes).
"""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime import device_of, dot_precision, interpreted
from .layout import Packed

CONFIGS: dict[str, list[dict[str, Any]]] = json.loads((files(__package__) / "configs.json").read_text())


# ---- pieces ------------------------------------------------------------------------------------------------------


@triton.jit
def product(
    x, weights, acc, zero, K: tl.constexpr, KP: tl.constexpr, N: tl.constexpr, BK: tl.constexpr,
    WIDEN: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """acc (BM, N) + x (BM, KP) times a (KP, N) matrix whose first K rows are not padding, BK of them at a time.

    Registers cannot be indexed by a loop's counter, so a chunk of x is the sum over all chunks, the others masked.
    16-bit weights: x is rounded to their dtype, sums are ACC.
    """
    C: tl.constexpr = BK if BK < KP else KP
    n = tl.arange(0, N)
    parts = tl.reshape(x, (x.shape[0], KP // C, C))
    which = tl.arange(0, KP // C)[None, :, None]
    for k in range(0, (K + C - 1) // C + zero):
        part = tl.sum(tl.where(which == k, parts, 0.0), 1)
        w = tl.load(weights + (k * C + tl.arange(0, C))[:, None] * N + n[None, :])
        if w.dtype == ACC:
            acc = tl.dot(part, w, acc, input_precision=IP, out_dtype=ACC)
        elif WIDEN:  # the interpreter's own 16-bit dots are wrong
            acc = tl.dot(part.to(w.dtype).to(ACC), w.to(ACC), acc, input_precision=IP, out_dtype=ACC)
        else:
            acc = tl.dot(part.to(w.dtype), w, acc, out_dtype=ACC)
    return acc


@triton.jit
def sigmoid(u):
    """1 / (1 + exp(-u)), without overflow."""
    e = tl.exp(-tl.abs(u))
    return tl.where(u < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def hyperbolic_tangent(u):
    """Without overflow."""
    e = tl.exp(-2.0 * tl.abs(u))
    magnitude = (1.0 - e) / (1.0 + e)
    return tl.where(u < 0.0, -magnitude, magnitude)


@triton.jit
def activate(u, ACT: tl.constexpr):
    """The activation; NaN stays NaN."""
    if ACT == 1:
        u = tl.where(u < 0.0, 0.0, u)
    elif ACT == 2:
        u = 0.5 * u * (1.0 + tl.erf(u * 0.7071067811865476))
    elif ACT == 3:
        u = u * sigmoid(u)
    elif ACT == 4:  # u tanh(softplus u) = u n / (n + 2), n = e^u (e^u + 2); beyond 20 it is u
        e = tl.exp(tl.minimum(u, 20.0))
        n = e * (e + 2.0)
        u = u * (n / (n + 2.0))
    elif ACT == 5:
        u = hyperbolic_tangent(u)
    return u


@triton.jit
def slope(u, ACT: tl.constexpr):
    """The activation's derivative at u."""
    d = u * 0.0 + 1.0
    if ACT == 1:
        d = tl.where(u > 0.0, 1.0, 0.0)
    elif ACT == 2:
        d = 0.5 * (1.0 + tl.erf(u * 0.7071067811865476)) + u * 0.3989422804014327 * tl.exp(-0.5 * u * u)
    elif ACT == 3:
        s = sigmoid(u)
        d = s * (1.0 + u * (1.0 - s))
    elif ACT == 4:
        e = tl.exp(tl.minimum(u, 20.0))
        n = e * (e + 2.0)
        d = n / (n + 2.0) + u * (4.0 * e * (e + 1.0)) / ((n + 2.0) * (n + 2.0))
    elif ACT == 5:
        s = hyperbolic_tangent(u)
        d = 1.0 - s * s
    return d


@triton.jit
def load_rows(x, rows, inside, N: tl.constexpr, NP: tl.constexpr, ACC: tl.constexpr):
    """Rows of x (…, N); 0 where there is nothing."""
    n = tl.arange(0, NP)
    return tl.load(
        x + rows[:, None].to(tl.int64) * N + n[None, :], mask=inside[:, None] & (n < N)[None, :], other=0.0
    ).to(ACC)  # fmt: skip


@triton.jit
def store_rows(x, values, rows, inside, N: tl.constexpr, NP: tl.constexpr):
    """The reverse."""
    n = tl.arange(0, NP)
    tl.store(
        x + rows[:, None].to(tl.int64) * N + n[None, :], values.to(x.dtype.element_ty),
        mask=inside[:, None] & (n < N)[None, :],
    )  # fmt: skip


@triton.jit
def load_actions(
    actions, center, scale, rows, inside, D: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Rows of actions, normalised."""
    d = tl.arange(0, DP)
    a = load_rows(actions, rows, inside, D, DP, ACC)
    c = tl.load(center + d, mask=d < D, other=0.0)
    s = tl.load(scale + d, mask=d < D, other=1.0)
    return (a - c[None, :]) / s[None, :]


@triton.jit
def layer_norm(p, vectors, V: tl.constexpr, OUT: tl.constexpr, NP: tl.constexpr):
    """The norm's output, its rows before the affine part, and by how much they were scaled."""
    n = tl.arange(0, NP)
    mean = tl.sum(p, 1) / OUT
    hat = tl.where((n < OUT)[None, :], p - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(hat * hat, 1) / OUT + 1e-5)
    hat = hat * rstd[:, None]
    gain = tl.load(vectors + V + n)
    shift = tl.load(vectors + V + NP + n)
    return hat * gain[None, :] + shift[None, :], hat, rstd


@triton.jit
def layer_norm_backward(d, hat, rstd, vectors, V: tl.constexpr, OUT: tl.constexpr, NP: tl.constexpr):
    """The derivative with respect to the norm's input."""
    n = tl.arange(0, NP)
    d = d * tl.load(vectors + V + n)[None, :]
    mean = tl.sum(d, 1) / OUT
    along = tl.sum(d * hat, 1) / OUT
    return tl.where((n < OUT)[None, :], rstd[:, None] * (d - mean[:, None] - hat * along[:, None]), 0.0)


@triton.jit
def layer(
    x, side, weights, vectors, zero, NET: tl.constexpr, j: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr,
    IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The products of layer j: W x + b."""
    STATE: tl.constexpr = NET[j][0]
    SIDE: tl.constexpr = NET[j][1]
    KP: tl.constexpr = NET[j][3]
    SP: tl.constexpr = NET[j][4]
    NP: tl.constexpr = NET[j][5]
    W: tl.constexpr = NET[j][9]
    V: tl.constexpr = NET[j][10]
    n = tl.arange(0, NP)
    u = tl.zeros((x.shape[0], NP), ACC) + tl.load(vectors + V + n)[None, :]
    u = product(x, weights + W, u, zero, STATE, KP, NP, BK, WIDEN, IP, ACC)
    if SIDE:
        u = product(side, weights + W + KP * NP, u, zero, SIDE, SP, NP, BK, WIDEN, IP, ACC)
    return u


@triton.jit
def normalised(p, vectors, NET: tl.constexpr, j: tl.constexpr):
    """What layer j feeds its activation; and, of its LayerNorm, the rows before the affine part and their scale."""
    OUT: tl.constexpr = NET[j][2]
    NP: tl.constexpr = NET[j][5]
    GROUP: tl.constexpr = NET[j][7]
    u = p
    hat = p
    rstd = tl.sum(p, 1)
    if NET[j][6]:
        u, hat, rstd = layer_norm(p, vectors, NET[j][10] + NP, OUT, NP)
    if GROUP:
        u = tl.where((tl.arange(0, NP) < OUT)[None, :], simnorm(u, NP, GROUP), 0.0)
    return u, hat, rstd


@triton.jit
def simnorm(u, N: tl.constexpr, GROUP: tl.constexpr):
    """Softmax within groups of columns."""
    grouped = tl.reshape(u, (u.shape[0], N // GROUP, GROUP))
    e = tl.exp(grouped - tl.max(grouped, 2)[:, :, None])
    return tl.reshape(e / tl.sum(e, 2)[:, :, None], (u.shape[0], N))


@triton.jit
def forward_mlp(
    x, side, weights, vectors, zero, NET: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """All layers."""
    for j in tl.static_range(len(NET)):
        p = layer(x, side, weights, vectors, zero, NET, j, BK, WIDEN, IP, ACC)
        u, _, _ = normalised(p, vectors, NET, j)
        x = activate(u, NET[j][8])
    return x


@triton.jit
def backward_mlp(
    d, ps, transposed, vectors, zero, NET: tl.constexpr, BK: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Derivatives with respect to the output -> to the state and the side input. `ps`: every layer's products."""
    side = d
    for i in tl.static_range(len(NET)):
        d, side = backward_layer(
            d, ps[len(NET) - 1 - i], transposed, vectors, zero, NET, len(NET) - 1 - i, BK, IP, ACC
        )  # fmt: skip
    return d, side


@triton.jit
def backward_layer(
    d, p, transposed, vectors, zero, NET: tl.constexpr, j: tl.constexpr, BK: tl.constexpr, IP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The same for one layer. Norms are computed anew, behind an addition of 0 that the compiler cannot see through:
    else it keeps their results of the way forward, in three times the registers.
    """
    SIDE: tl.constexpr = NET[j][1]
    OUT: tl.constexpr = NET[j][2]
    KP: tl.constexpr = NET[j][3]
    SP: tl.constexpr = NET[j][4]
    NP: tl.constexpr = NET[j][5]
    GROUP: tl.constexpr = NET[j][7]
    W: tl.constexpr = NET[j][9]
    V: tl.constexpr = NET[j][10]
    u, hat, rstd = normalised(p + zero, vectors, NET, j)
    d = d * slope(u, NET[j][8])
    if GROUP:
        along = tl.reshape(d * u, (u.shape[0], NP // GROUP, GROUP))
        along = tl.sum(along, 2)[:, :, None] + tl.zeros((u.shape[0], NP // GROUP, GROUP), ACC)
        d = u * (d - tl.reshape(along, (u.shape[0], NP)))
    if NET[j][6]:
        d = layer_norm_backward(d, hat, rstd, vectors, V + NP, OUT, NP)
    x = product(
        d, transposed + W, tl.zeros((d.shape[0], KP), ACC), zero, OUT, NP, KP, BK, False, IP, ACC
    )  # fmt: skip
    side = x
    if SIDE:
        side = product(
            d, transposed + W + KP * NP, tl.zeros((d.shape[0], SP), ACC), zero, OUT, NP, SP, BK, False, IP, ACC
        )  # fmt: skip
    return x, side


@triton.jit
def gates(
    z, a, weights, vectors, zero, NET: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """A GRU's reset and update gates, its new state, and the products with the old state behind that."""
    L: tl.constexpr = NET[0][0]
    D: tl.constexpr = NET[0][1]
    LP: tl.constexpr = NET[0][3]
    DP: tl.constexpr = NET[0][4]
    W: tl.constexpr = NET[0][9]
    V: tl.constexpr = NET[0][10]
    A: tl.constexpr = W + 3 * LP * LP
    n = tl.arange(0, LP)
    empty = tl.zeros((z.shape[0], LP), ACC)
    r = empty + tl.load(vectors + V + n)[None, :]
    r = product(z, weights + W, r, zero, L, LP, LP, BK, WIDEN, IP, ACC)
    r = sigmoid(product(a, weights + A, r, zero, D, DP, LP, BK, WIDEN, IP, ACC))
    hidden = empty + tl.load(vectors + V + 3 * LP + n)[None, :]
    hidden = product(z, weights + W + 2 * LP * LP, hidden, zero, L, LP, LP, BK, WIDEN, IP, ACC)
    new = empty + tl.load(vectors + V + 2 * LP + n)[None, :]
    new = product(a, weights + A + 2 * DP * LP, new, zero, D, DP, LP, BK, WIDEN, IP, ACC)
    new = hyperbolic_tangent(new + r * hidden)
    u = empty + tl.load(vectors + V + LP + n)[None, :]
    u = product(z, weights + W + LP * LP, u, zero, L, LP, LP, BK, WIDEN, IP, ACC)
    u = sigmoid(product(a, weights + A + DP * LP, u, zero, D, DP, LP, BK, WIDEN, IP, ACC))
    return r, u, new, hidden


@triton.jit
def backward_gates(
    d, z, r, u, new, hidden, transposed, zero, NET: tl.constexpr, BK: tl.constexpr, IP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Derivatives with respect to a GRU's (1 - u) new + u z -> to z and the action."""
    L: tl.constexpr = NET[0][0]
    LP: tl.constexpr = NET[0][3]
    DP: tl.constexpr = NET[0][4]
    W: tl.constexpr = NET[0][9]
    A: tl.constexpr = W + 3 * LP * LP
    back = d * u
    side = tl.zeros((z.shape[0], DP), ACC)
    slopes = d * (z - new) * u * (1.0 - u)
    back = product(slopes, transposed + W + LP * LP, back, zero, L, LP, LP, BK, False, IP, ACC)
    side = product(slopes, transposed + A + DP * LP, side, zero, L, LP, DP, BK, False, IP, ACC)
    slopes = d * (1.0 - u) * (1.0 - new * new)
    side = product(slopes, transposed + A + 2 * DP * LP, side, zero, L, LP, DP, BK, False, IP, ACC)
    back = product(slopes * r, transposed + W + 2 * LP * LP, back, zero, L, LP, LP, BK, False, IP, ACC)
    slopes = slopes * hidden * r * (1.0 - r)
    back = product(slopes, transposed + W, back, zero, L, LP, LP, BK, False, IP, ACC)
    side = product(slopes, transposed + A, side, zero, L, LP, DP, BK, False, IP, ACC)
    return back, side


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


@triton.jit
def through_mlp(
    d, x, side, weights, transposed, vectors, zero, NET: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr,
    IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Derivatives with respect to a network's output -> to its state and side input; recomputes its layers."""
    ps = ()
    for j in tl.static_range(len(NET)):
        p = layer(x, side, weights, vectors, zero, NET, j, BK, WIDEN, IP, ACC)
        ps = ps + (p,)  # noqa: RUF005 (Triton has no starred tuples)
        u, _, _ = normalised(p, vectors, NET, j)
        x = activate(u, NET[j][8])
    return backward_mlp(d, ps, transposed, vectors, zero, NET, BK, IP, ACC)


# ---- the cost ----------------------------------------------------------------------------------------------------


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
def state_slopes(
    z, goal, g, weights, transposed, vectors, coefficients, last, factor, zero, TERMS: tl.constexpr,
    CRITIC: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The derivative of g times a step's cost with respect to the state it leads to."""
    total = z * 0.0
    for k in tl.static_range(len(TERMS)):
        weight = factor * tl.load(coefficients + 3 * k + last)
        if TERMS[k][0] == 0:
            d = distance(z, goal, TERMS[k][1])
            slopes = distance_slope(z, goal, d, TERMS[k][1])
            if TERMS[k][2]:
                reach = tl.load(coefficients + 3 * k + 2)
                slopes = tl.where((d < reach)[:, None], slopes / reach, 0.0)
            total = weighted(total, g[:, None] * slopes, weight)
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


# ---- the whole horizon in one launch -----------------------------------------------------------------------------


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


# ---- one step in a few launches ----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["N", "per", "zero"])
def dense(
    x, stride, side, side_stride, center, scale, weights, vectors, residual, residual_stride, out, out_stride, N, per,
    zero, NET: tl.constexpr, j: tl.constexpr, BY_ENVIRONMENT: tl.constexpr, RESIDUAL: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Layer j: rows of x and, of the first layer, the side input (normalised) -> rows of out, plus the residual's.

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
    if NET[j][6]:
        u, _, _ = layer_norm(u, vectors, V + NP, OUT, NP)
    if GROUP:
        u = simnorm(u, BN, GROUP)
    u = activate(u, NET[j][8])
    keep = inside[:, None] & (n < OUT)[None, :]
    if RESIDUAL:
        u += tl.load(residual + row[:, None] * residual_stride + n[None, :], mask=keep, other=0.0)
    tl.store(out + row[:, None] * out_stride + n[None, :], u, mask=keep)


@triton.jit
def partial(
    acc, part, weights, k, n, NP: tl.constexpr, K: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """acc + part (BM, BK) times rows k and columns n of a matrix of NP columns and K rows."""
    w = tl.load(weights + k[:, None] * NP + n[None, :], mask=(k < K)[:, None], other=0.0)
    if w.dtype == ACC:
        acc = tl.dot(part, w, acc, input_precision=IP, out_dtype=ACC)
    elif WIDEN:
        acc = tl.dot(part.to(w.dtype).to(ACC), w.to(ACC), acc, input_precision=IP, out_dtype=ACC)
    else:
        acc = tl.dot(part.to(w.dtype), w, acc, out_dtype=ACC)
    return acc


@triton.jit(do_not_specialize=["N", "zero"])
def cell(
    x, stride, action, action_stride, center, scale, weights, vectors, out, out_stride, N, zero, NET: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A GRU step but for its norm: BN columns of the new state of BM rows, all three gates at once."""
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
    u = sigmoid(u)
    new = hyperbolic_tangent(new + sigmoid(r) * hidden)
    keep = inside[:, None] & (n < L)[None, :]
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


# ---- launchers ---------------------------------------------------------------------------------------------------


def config(kernel: str, rows: int, element_size: int) -> dict[str, Any]:
    """The launch configuration: the first entry for so many rows of candidates and bytes per weight."""
    for entry in CONFIGS[kernel]:
        if rows <= entry.get("up_to", rows) and element_size <= entry.get("bytes", element_size):
            return {name: value for name, value in entry.items() if name not in ("up_to", "bytes")}
    raise AssertionError(f"no configuration of {kernel} for {rows} rows")


def _arithmetic(packed: Packed) -> dict[str, Any]:
    double = packed.vectors.dtype == torch.float64
    return {
        "WIDEN": interpreted(),
        "IP": dot_precision(packed.vectors),
        "ACC": tl.float64 if double else tl.float32,
    }


def forward(
    packed: Packed, start: Tensor, actions: Tensor, goal: Tensor | None, previous: Tensor | None, center: Tensor,
    scale: Tensor, coefficients: Tensor, discount: float, *, per: int, stepwise: bool, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Costs (N,) and, where `keep`, the states (N, S + 1, L), else an empty tensor. All contiguous, on one device."""
    rows, steps, _ = actions.shape
    constants = dict(packed.layout.constants)
    options = config("roll", rows, packed.weights.element_size())
    with device_of(start):
        cost = packed.vectors.new_empty(rows)
        path = packed.vectors.new_empty((rows, steps + 1, constants["L"]) if keep else 0)
        given = _given(packed, start, actions, goal, previous)
        if stepwise:
            _stepwise(packed, start, actions, *given, center, scale, coefficients, discount, per, cost, path)
            return cost, path
        roll[(triton.cdiv(rows, options["BM"]),)](
            start, actions, *given, center, scale, packed.weights, packed.vectors, coefficients, cost, path, rows, per,
            steps, 0, discount, **constants, GOAL=goal is not None, PATH=keep, **_arithmetic(packed), **options,
        )  # fmt: skip
    return cost, path


def backward(
    packed: Packed, path: Tensor, actions: Tensor, goal: Tensor | None, previous: Tensor | None, center: Tensor,
    scale: Tensor, coefficients: Tensor, of_cost: Tensor, of_path: Tensor | None, discount: float, *, per: int,
    adjoints: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Derivatives with respect to actions (N, S, D), start (N, L) and, where `adjoints`, the states (N, S, L)."""
    rows, steps, _ = actions.shape
    constants = dict(packed.layout.constants)
    options = config("reverse", rows, packed.weights.element_size())
    assert packed.transposed is not None
    with device_of(path):
        of_actions = packed.vectors.new_empty(actions.shape)
        of_start = packed.vectors.new_empty(rows, constants["L"])
        of_states = packed.vectors.new_empty((rows, steps, constants["L"]) if adjoints else 0)
        given = _given(packed, path, actions, goal, previous)
        reverse[(triton.cdiv(rows, options["BM"]),)](
            path, actions, *given, center, scale, packed.weights, packed.transposed, packed.vectors, coefficients,
            of_cost, path if of_path is None else of_path, of_actions, of_states, of_start, rows, per, steps, 0,
            discount, **constants, GOAL=goal is not None, PATH=of_path is not None, ADJOINTS=adjoints,
            **_arithmetic(packed), **options,
        )  # fmt: skip
    return of_actions, of_start, of_states


def _given(
    packed: Packed, stand_in: Tensor, actions: Tensor, goal: Tensor | None, previous: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The goal, or any tensor in the place of none; the previous action, or NaN."""
    if previous is None:
        # As many rows as there may be environments.
        previous = packed.vectors.new_full((actions.shape[0], actions.shape[2]), float("nan"))
    return (stand_in if goal is None else goal), previous


def _stepwise(
    packed: Packed, start: Tensor, actions: Tensor, goal: Tensor, previous: Tensor, center: Tensor, scale: Tensor,
    coefficients: Tensor, discount: float, per: int, cost: Tensor, path: Tensor,
) -> None:  # fmt: skip
    """A launch per layer and one for the costs, at every step."""
    rows, steps, size = actions.shape
    constants, options = dict(packed.layout.constants), _arithmetic(packed)
    latent, dynamics, critic = constants["L"], packed.layout.dynamics, packed.layout.critic
    new, bytes_each = packed.vectors.new_empty, packed.weights.element_size()
    widest = max(row[2] for row in (*dynamics, *critic))
    work = [new(rows, widest), new(rows, widest)]
    states = [path[:, t] for t in range(steps + 1)] if path.numel() else [new(rows, latent) for _ in range(2)]
    values, hidden = new(rows, 1), new(rows, latent)
    states[0].copy_(start.repeat_interleave(per, 0))

    def run(network: Any, z: Tensor, side: Tensor, by_environment: bool, out: Tensor, residual: bool) -> None:
        x = z
        for j, row in enumerate(network):
            to = out if j + 1 == len(network) else work[j % 2]
            normed = row[6] or row[7]
            # The first entry is for normed rows, which one program takes whole.
            chosen = dict(config("dense" if not normed else "dense_normed", rows, bytes_each))
            chosen["BN"] = row[5] if normed else min(chosen["BN"], row[5])
            dense[(triton.cdiv(rows, chosen["BM"]) * (row[5] // chosen["BN"]),)](
                x, x.stride(0), side, side.stride(0), center, scale, packed.weights, packed.vectors, z, z.stride(0), to,
                to.stride(0), rows, per, 0, NET=network, j=j, BY_ENVIRONMENT=by_environment,
                RESIDUAL=residual and j + 1 == len(network), **options, **chosen,
            )  # fmt: skip
            x = to

    for t in range(steps):
        z, then = states[t % len(states)], states[(t + 1) % len(states)]
        action = actions[:, t]
        if constants["GRU"]:
            chosen = dict(config("cell", rows, bytes_each))
            chosen["BN"] = min(chosen["BN"], constants["LP"])
            to = hidden if dynamics[0][6] else then
            cell[(triton.cdiv(rows, chosen["BM"]) * (constants["LP"] // chosen["BN"]),)](
                z, z.stride(0), action, action.stride(0), center, scale, packed.weights, packed.vectors, to,
                to.stride(0), rows, 0, NET=dynamics, **options, **chosen,
            )  # fmt: skip
            if dynamics[0][6]:
                chosen = config("norm", rows, bytes_each)
                norm[(triton.cdiv(rows, chosen["BM"]),)](
                    hidden, packed.vectors, then, then.stride(0), rows, L=latent, LP=constants["LP"],
                    V=dynamics[0][10] + 4 * constants["LP"], ACC=options["ACC"], **chosen,
                )  # fmt: skip
        else:
            run(dynamics, z, action, False, then, constants["RESIDUAL"])
        if critic:
            run(critic, then, goal, True, values, False)
        chosen = config("charge", rows, bytes_each)
        charge[(triton.cdiv(rows, chosen["BM"]),)](
            then, then.stride(0), actions, goal, previous, center, scale, values, coefficients, cost, rows, per, steps,
            t, discount**t, L=latent, LP=constants["LP"], D=size, DP=constants["DP"], TERMS=constants["TERMS"],
            GOAL=any(kind == 0 for kind, _, _ in constants["TERMS"]), ACC=options["ACC"], **chosen,
        )  # fmt: skip
