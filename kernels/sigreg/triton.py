"""SIGReg in Triton: kernels, then the launchers that `op.py` calls.

    project     N x K tiles    h = z A, then every knot by rotation in registers: sums over the tile's rows
    combine     blocks of K    partial sums -> means (T, 2, K) and each block's share of the statistic
    unproject   N x D tiles    d loss / dh from h and the means, knot by knot in registers, times A'

Nothing has N x K x T elements: `project` leaves h (N, K) and ceil(N / BN) x T x 2 x K partial sums. fp32 arithmetic, no
atomics, int64 offsets. Sines and cosines are taken once a projection, of |step h|, then rotated from knot to knot.
"""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime import device_of, dot_precision
from .fallback import Knots

CONFIGS: dict[str, list[dict[str, Any]]] = json.loads((files(__package__) / "configs.json").read_text())


@triton.jit
def project(
    z, directions, h, partials, N, D, K, T, s_n, s_d, s_f, s_k, first, step,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """z: (N, D), directions: (D, K), both strided; h: (N, K); partials: (N / BN, T, 2, K), cos then sin."""
    across = tl.cdiv(K, BK)
    pid = tl.program_id(0)
    block = pid // across
    rows = block * BN + tl.arange(0, BN)
    cols = (pid % across) * BK + tl.arange(0, BK)
    acc = tl.zeros((BN, BK), ACC)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        left = tl.load(
            z + rows[:, None].to(tl.int64) * s_n + d[None, :].to(tl.int64) * s_d,
            mask=(rows[:, None] < N) & (d[None, :] < D),
            other=0.0,
        ).to(ACC)
        right = tl.load(
            directions + d[:, None].to(tl.int64) * s_f + cols[None, :].to(tl.int64) * s_k,
            mask=(d[:, None] < D) & (cols[None, :] < K),
            other=0.0,
        ).to(ACC)
        acc += tl.dot(left, right, input_precision=IP, out_dtype=ACC)
    inside = (rows[:, None] < N) & (cols[None, :] < K)
    tl.store(h + rows[:, None].to(tl.int64) * K + cols[None, :], acc, mask=inside)
    cos_step = tl.cos(acc * step)
    sin_step = tl.sin(acc * step)
    # Rows past N start as 0 and stay 0 under rotation, so they add nothing to the sums.
    cos = tl.where(inside, tl.cos(acc * first), 0.0)
    sin = tl.where(inside, tl.sin(acc * first), 0.0)
    to = partials + block.to(tl.int64) * T * 2 * K + cols
    for _ in range(0, T):
        tl.store(to, tl.sum(cos, 0), mask=cols < K)
        tl.store(to + K, tl.sum(sin, 0), mask=cols < K)
        turned = cos * cos_step - sin * sin_step
        sin = sin * cos_step + cos * sin_step
        cos = turned
        to += 2 * K


@triton.jit
def combine(
    partials, means, shares, N, K, T, blocks, first, step, BK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """means: (T, 2, K) from partials (blocks, T, 2, K); shares: (K / BK), sums over directions of the statistic."""
    pid = tl.program_id(0)
    cols = pid * BK + tl.arange(0, BK)
    inside = cols < K
    share = tl.zeros((BK,), ACC)
    for knot in range(0, T):
        cos = tl.zeros((BK,), ACC)
        sin = tl.zeros((BK,), ACC)
        source = partials + knot * 2 * K + cols
        for _ in range(0, blocks):
            cos += tl.load(source, mask=inside, other=0.0)
            sin += tl.load(source + K, mask=inside, other=0.0)
            source += T * 2 * K
        cos = cos / N
        sin = sin / N
        tl.store(means + knot * 2 * K + cols, cos, mask=inside)
        tl.store(means + (knot * 2 + 1) * K + cols, sin, mask=inside)
        t = first + knot * step
        window = tl.exp(tl.zeros((BK,), ACC) - 0.5 * t * t)
        weight = tl.where(knot == T - 1, step, 2.0 * step) * window
        share += weight * ((cos - window) * (cos - window) + sin * sin)
    tl.store(shares + pid, tl.sum(tl.where(inside, share, 0.0), 0))


@triton.jit
def unproject(
    g, h, means, directions, out, N, D, K, T, s_f, s_k, first, step, scale,
    BN: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out (N, D) contiguous = dh A', dh (N, K) computed tile by tile from h and means; g: scalar; scale: over N K."""
    across = tl.cdiv(D, BD)
    pid = tl.program_id(0)
    rows = (pid // across) * BN + tl.arange(0, BN)
    d = (pid % across) * BD + tl.arange(0, BD)
    factor = tl.load(g).to(ACC) * 2.0 * scale / N / K
    acc = tl.zeros((BN, BD), ACC)
    for start in range(0, K, BK):
        cols = start + tl.arange(0, BK)
        inside = (rows[:, None] < N) & (cols[None, :] < K)
        angle = tl.load(h + rows[:, None].to(tl.int64) * K + cols[None, :], mask=inside, other=0.0)
        cos_step = tl.cos(angle * step)
        sin_step = tl.sin(angle * step)
        cos = tl.cos(angle * first)
        sin = tl.sin(angle * first)
        slope = tl.zeros((BN, BK), ACC)
        for knot in range(0, T):
            t = first + knot * step
            window = tl.exp(tl.zeros((BK,), ACC) - 0.5 * t * t)
            weight = tl.where(knot == T - 1, step, 2.0 * step) * window * t
            mean_cos = tl.load(means + knot * 2 * K + cols, mask=cols < K, other=0.0)
            mean_sin = tl.load(means + (knot * 2 + 1) * K + cols, mask=cols < K, other=0.0)
            slope += (weight * (window - mean_cos))[None, :] * sin + (weight * mean_sin)[None, :] * cos
            turned = cos * cos_step - sin * sin_step
            sin = sin * cos_step + cos * sin_step
            cos = turned
        right = tl.load(
            directions + d[None, :].to(tl.int64) * s_f + cols[:, None].to(tl.int64) * s_k,
            mask=(d[None, :] < D) & (cols[:, None] < K),
            other=0.0,
        ).to(ACC)
        acc += tl.dot(slope, right, input_precision=IP, out_dtype=ACC)
    inside = (rows[:, None] < N) & (d[None, :] < D)
    to = out + rows[:, None].to(tl.int64) * D + d[None, :]
    tl.store(to, (acc * factor).to(out.dtype.element_ty), mask=inside)


def _options(config: dict[str, Any]) -> dict[str, Any]:
    blocks = {name: value for name, value in config.items() if name.isupper()}
    return {**blocks, "num_warps": config["num_warps"], "num_stages": config["num_stages"]}


def forward(z: Tensor, directions: Tensor, knots: Knots, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `project` and `combine`: (statistic, h (N, K), means (T, 2, K)) in the dtype of `directions`."""
    n, d = z.shape
    k = directions.shape[1]
    acc = tl.float64 if directions.dtype == torch.float64 else tl.float32
    tile, block = CONFIGS["project"][0], CONFIGS["combine"][0]
    rows = triton.cdiv(n, tile["BN"])
    with device_of(z):
        h = directions.new_empty(n, k)
        partials = directions.new_empty(rows, knots.number, 2, k)
        project[(rows * triton.cdiv(k, tile["BK"]),)](
            z, directions, h, partials, n, d, k, knots.number, *z.stride(), *directions.stride(), knots.first,
            knots.step, IP=dot_precision(z), ACC=acc, **_options(tile),
        )  # fmt: skip
        means = directions.new_empty(knots.number, 2, k)
        shares = directions.new_empty(triton.cdiv(k, block["BK"]))
        combine[(shares.numel(),)](
            partials, means, shares, n, k, knots.number, rows, knots.first, knots.step, ACC=acc, **_options(block)
        )
        return shares.sum() * (scale / k), h, means


def backward(
    g: Tensor, h: Tensor, means: Tensor, directions: Tensor, knots: Knots, scale: float, dtype: torch.dtype
) -> Tensor:
    """Launch `unproject`: the gradient (N, D) in `dtype`."""
    n, k = h.shape
    d = directions.shape[0]
    acc = tl.float64 if directions.dtype == torch.float64 else tl.float32
    tile = CONFIGS["unproject"][0]
    with device_of(h):
        out = torch.empty(n, d, dtype=dtype, device=h.device)
        unproject[(triton.cdiv(n, tile["BN"]) * triton.cdiv(d, tile["BD"]),)](
            g, h, means, directions, out, n, d, k, knots.number, *directions.stride(), knots.first, knots.step, scale,
            IP=dot_precision(h), ACC=acc, **_options(tile),
        )  # fmt: skip
        return out
