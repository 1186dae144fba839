"""What the rollout kernels are made of: products, activations, norms, and rows in and out."""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton
import triton.language as tl


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
def simnorm(u, N: tl.constexpr, GROUP: tl.constexpr):
    """Softmax within groups of columns."""
    grouped = tl.reshape(u, (u.shape[0], N // GROUP, GROUP))
    e = tl.exp(grouped - tl.max(grouped, 2)[:, :, None])
    return tl.reshape(e / tl.sum(e, 2)[:, :, None], (u.shape[0], N))


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
    return load_action_columns(actions, center, scale, rows, inside, tl.arange(0, DP), D, ACC)


@triton.jit
def load_action_columns(actions, center, scale, rows, inside, d, D: tl.constexpr, ACC: tl.constexpr):
    """Columns d of them."""
    a = tl.load(
        actions + rows[:, None].to(tl.int64) * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0
    ).to(ACC)  # fmt: skip
    c = tl.load(center + d, mask=d < D, other=0.0)
    s = tl.load(scale + d, mask=d < D, other=1.0)
    return (a - c[None, :]) / s[None, :]
