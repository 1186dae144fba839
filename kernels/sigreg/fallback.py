"""SIGReg without Triton: characteristic functions by rotation, a block of rows at a time.

The knots are evenly spaced, so exp(i t_k h) comes from exp(i t_{k-1} h) by one complex multiplication: one sine and one
cosine a projection instead of T of each, and no array larger than the N x K projections. The rotation's rounding grows
with the knot, to about 1e-6 at the 17th in fp32, in each sample; the mean over samples is what is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Projections of one block: 256 KiB in fp32, so that the six arrays of a block stay within a 2 MiB share of cache.
BLOCK_ELEMENTS = 1 << 16


class Knots(NamedTuple):
    """Knots t_k = first + k step, k = 0 .. number - 1, all >= 0; the last weighs step, the others 2 step.

    The statistic is even in t, so a grid over [-t_max, t_max] folds onto its half, and the weight at t = 0 is free
    because the error there is zero.
    """

    first: float
    step: float
    number: int

    def at(self, index: int) -> float:
        """t of knot `index`."""
        return self.first + index * self.step

    def weight(self, index: int) -> float:
        """Trapezoid weight times the window exp(-t^2 / 2) of knot `index`."""
        return (self.step if index == self.number - 1 else 2.0 * self.step) * self.window(index)

    def window(self, index: int) -> float:
        """The normal distribution's characteristic function at knot `index`."""
        return math.exp(-0.5 * self.at(index) ** 2)


def _turns(h: Tensor, knots: Knots) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (cos t_k h, sin t_k h) for each knot; the arrays are reused by the next one."""
    cos_step, sin_step = torch.cos(h * knots.step), torch.sin(h * knots.step)
    cos, sin = torch.cos(h * knots.first), torch.sin(h * knots.first)
    next_cos, next_sin = torch.empty_like(cos), torch.empty_like(sin)
    for k in range(knots.number):
        yield cos, sin
        if k + 1 < knots.number:
            torch.mul(cos, cos_step, out=next_cos).addcmul_(sin, sin_step, value=-1.0)
            torch.mul(sin, cos_step, out=next_sin).addcmul_(cos, sin_step)
            cos, sin, next_cos, next_sin = next_cos, next_sin, cos, sin


def _blocks(rows: int, directions: int) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // directions)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def sums(z: Tensor, directions: Tensor, knots: Knots) -> tuple[Tensor, Tensor]:
    """Return the projections h (N, K) and the sums over rows of cos and sin, (T, 2, K), of z (N, D)."""
    h = z.to(directions.dtype) @ directions
    total = h.new_zeros(knots.number, 2, h.shape[1])
    for rows in _blocks(*h.shape):
        for k, (cos, sin) in enumerate(_turns(h[rows], knots)):
            total[k, 0] += cos.sum(0)
            total[k, 1] += sin.sum(0)
    return h, total


def statistic(means: Tensor, knots: Knots, scale: float) -> Tensor:
    """Return scale times the mean over directions of the weighted squared distance. means: (T, 2, K)."""
    windows = [knots.window(k) for k in range(knots.number)]
    weights = [knots.weight(k) for k in range(knots.number)]
    phi = torch.tensor(windows, dtype=means.dtype, device=means.device)[:, None]
    omega = torch.tensor(weights, dtype=means.dtype, device=means.device)
    error = (means[:, 0] - phi).square() + means[:, 1].square()
    return scale * (error.mean(1) * omega).sum()


def backward(g: Tensor, h: Tensor, means: Tensor, directions: Tensor, knots: Knots, scale: float, rows: int) -> Tensor:
    """Return the gradient (N, D) for h (N, K); `rows` is the number of rows that `means` averages."""
    out = h.new_empty(h.shape[0], directions.shape[0])
    factor = g * (2.0 * scale / (rows * h.shape[1]))
    for block in _blocks(*h.shape):
        slope = torch.zeros_like(h[block])
        for k, (cos, sin) in enumerate(_turns(h[block], knots)):
            coefficient = factor * (knots.weight(k) * knots.at(k))
            slope.addcmul_(sin, (knots.window(k) - means[k, 0]) * coefficient)
            slope.addcmul_(cos, means[k, 1] * coefficient)
        torch.mm(slope, directions.t(), out=out[block])
    return out
