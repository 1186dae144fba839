"""An mlp on rows in registers, forward and backward: dynamics, or a critic."""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import activate, layer_norm, layer_norm_backward, product, simnorm, slope


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
    d = through_norms(d, p + zero, vectors, NET, j)
    SIDE: tl.constexpr = NET[j][1]
    OUT: tl.constexpr = NET[j][2]
    KP: tl.constexpr = NET[j][3]
    SP: tl.constexpr = NET[j][4]
    NP: tl.constexpr = NET[j][5]
    W: tl.constexpr = NET[j][9]
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
def through_norms(d, p, vectors, NET: tl.constexpr, j: tl.constexpr):
    """Derivatives with respect to layer j's output -> to its products `p`: through its activation and its norms."""
    OUT: tl.constexpr = NET[j][2]
    NP: tl.constexpr = NET[j][5]
    GROUP: tl.constexpr = NET[j][7]
    u, hat, rstd = normalised(p, vectors, NET, j)
    d = d * slope(u, NET[j][8])
    if GROUP:
        along = tl.reshape(d * u, (u.shape[0], NP // GROUP, GROUP))
        along = tl.sum(along, 2)[:, :, None] + tl.zeros((u.shape[0], NP // GROUP, GROUP), d.dtype)
        d = u * (d - tl.reshape(along, (u.shape[0], NP)))
    if NET[j][6]:
        d = layer_norm_backward(d, hat, rstd, vectors, NET[j][10] + NP, OUT, NP)
    return d


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
