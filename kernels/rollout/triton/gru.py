"""A GRU cell on rows in registers, forward and backward."""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import hyperbolic_tangent, product, sigmoid


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
