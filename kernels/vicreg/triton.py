"""VICReg in Triton: kernels, then the launchers that `op.py` calls.

Five kernels, three launches each way on the common path:

    moments     columns      mean, var; partial sums of (x - y)^2 and var^2
    symmetric   M x M tiles  G = X X' / (N - 1) (Gram, N < D) or C = X'X / (N - 1) without its diagonal (primal); each
                             tile below the diagonal is computed once and stored twice; partial sums of squares
    finish      one program  partial sums -> terms and loss, and whether the Gram subtraction cancelled
    gradient    N x D tiles  the product with G or C; its epilogue adds the three gradients and writes once
    streamed_*  D x D tiles  the exact off-diagonal form, when `finish` said so; programs read that flag from the device
                             and leave at once otherwise, so nothing ever waits for the host (CUDA graphs capture it)

X is centred as it is loaded. Arithmetic is fp32 (fp64 for fp64 inputs, interpreter only) whatever the input: 16-bit
values are widened on load, because their products lose the error rule (a 16-bit dot rounds the centred values first).
No atomics: partial sums and a second sum, so the same bits on every run. Offsets are int64.
"""

# Kernel bodies are Triton, which has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..runtime import compute_dtype, device_of, dot_precision
from .fallback import CANCELLATION

CONFIGS: dict[str, list[dict[str, Any]]] = json.loads((files(__package__) / "configs.json").read_text())
# Programs of the streamed kernels: a few per multiprocessor, so that leaving at once costs one short wave.
STREAMED_PROGRAMS = 256


@triton.jit
def _triangle(p):
    """Row and column (column <= row) of tile p of a lower triangle counted row by row."""
    row = ((tl.sqrt(8.0 * p.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > p, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= p, row + 1, row)
    return row, p - row * (row + 1) // 2


@triton.jit
def _centred_tile(z, rows, cols, s_n, s_d, mean, N, D, ACC: tl.constexpr):
    """Load z[rows, cols] minus mean[cols], zero outside (N, D). rows: (R, 1) and cols: (1, C), or transposed."""
    inside = (rows < N) & (cols < D)
    values = tl.load(z + rows.to(tl.int64) * s_n + cols.to(tl.int64) * s_d, mask=inside, other=0.0).to(ACC)
    return tl.where(inside, values - tl.load(mean + cols, mask=cols < D, other=0.0), 0.0)


@triton.jit
def moments(
    x, y, mean, var, squares, diagonals, N, D, B, sx_b, sx_n, sx_d, sy_b, sy_n, sy_d,
    BN: tl.constexpr, BD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Column statistics. x, y: (B, N, D); mean, var: (2, B, D); squares: (B, blocks), diagonals (2, B, blocks).

    blocks = ceil(D / BD); squares gets each block's sum of (x - y)^2, diagonals its sum of var^2. Two passes, because
    sum of squares minus square of sum loses everything once |mean| >> std.
    """
    blocks = tl.cdiv(D, BD)
    pid = tl.program_id(0)
    batch = (pid // blocks).to(tl.int64)
    block = pid % blocks
    cols = block * BD + tl.arange(0, BD)[None, :]
    inside_d = cols < D
    x += batch * sx_b
    y += batch * sy_b
    sum_x = tl.zeros((BN, BD), ACC)
    sum_y = tl.zeros((BN, BD), ACC)
    for start in range(0, N, BN):
        rows = start + tl.arange(0, BN)[:, None]
        inside = (rows < N) & inside_d
        sum_x += tl.load(x + rows.to(tl.int64) * sx_n + cols.to(tl.int64) * sx_d, mask=inside, other=0.0).to(ACC)
        sum_y += tl.load(y + rows.to(tl.int64) * sy_n + cols.to(tl.int64) * sy_d, mask=inside, other=0.0).to(ACC)
    mean_x = tl.sum(sum_x, 0)[None, :] / N
    mean_y = tl.sum(sum_y, 0)[None, :] / N
    sum_x = tl.zeros((BN, BD), ACC)
    sum_y = tl.zeros((BN, BD), ACC)
    difference = tl.zeros((BN, BD), ACC)
    for start in range(0, N, BN):
        rows = start + tl.arange(0, BN)[:, None]
        inside = (rows < N) & inside_d
        value_x = tl.load(x + rows.to(tl.int64) * sx_n + cols.to(tl.int64) * sx_d, mask=inside, other=0.0).to(ACC)
        value_y = tl.load(y + rows.to(tl.int64) * sy_n + cols.to(tl.int64) * sy_d, mask=inside, other=0.0).to(ACC)
        delta = value_x - value_y
        difference += delta * delta
        value_x = tl.where(inside, value_x - mean_x, 0.0)
        value_y = tl.where(inside, value_y - mean_y, 0.0)
        sum_x += value_x * value_x
        sum_y += value_y * value_y
    var_x = tl.sum(sum_x, 0)[None, :] / (N - 1)
    var_y = tl.sum(sum_y, 0)[None, :] / (N - 1)
    to_x = batch * D + cols
    to_y = (B + batch) * D + cols
    tl.store(mean + to_x, mean_x, mask=inside_d)
    tl.store(mean + to_y, mean_y, mask=inside_d)
    tl.store(var + to_x, var_x, mask=inside_d)
    tl.store(var + to_y, var_y, mask=inside_d)
    tl.store(squares + batch * blocks + block, tl.sum(tl.sum(difference, 0), 0))
    tl.store(diagonals + batch * blocks + block, tl.sum(tl.sum(var_x * var_x, 0), 0))
    tl.store(diagonals + (B + batch) * blocks + block, tl.sum(tl.sum(var_y * var_y, 0), 0))


@triton.jit
def symmetric(
    x, y, mean, matrix, partials, N, D, M, B, sx_b, sx_n, sx_d, sy_b, sy_n, sy_d,
    BT: tl.constexpr, BK: tl.constexpr, GRAM: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Lower-triangle tiles of matrix (2, B, M, M), mirrored; partials (2, B, tiles) of its squares. M = min(N, D).

    GRAM: rows are samples and the dot runs over features. Otherwise rows are features, the dot runs over samples and
    the diagonal is dropped before anything is summed, so nothing can cancel.
    """
    side = tl.cdiv(M, BT)
    tiles = side * (side + 1) // 2
    pid = tl.program_id(0)
    slot = (pid // tiles).to(tl.int64)
    tile_m, tile_n = _triangle(pid % tiles)
    batch = slot % B
    if slot < B:
        z = x + batch * sx_b
        s_n = sx_n
        s_d = sx_d
    else:
        z = y + batch * sy_b
        s_n = sy_n
        s_d = sy_d
    mean += slot * D
    m = tile_m * BT + tl.arange(0, BT)
    n = tile_n * BT + tl.arange(0, BT)
    acc = tl.zeros((BT, BT), ACC)
    if GRAM:
        for start in range(0, D, BK):
            k = start + tl.arange(0, BK)
            left = _centred_tile(z, m[:, None], k[None, :], s_n, s_d, mean, N, D, ACC)
            right = _centred_tile(z, n[None, :], k[:, None], s_n, s_d, mean, N, D, ACC)
            acc += tl.dot(left, right, input_precision=IP, out_dtype=ACC)
    else:
        for start in range(0, N, BK):
            k = start + tl.arange(0, BK)
            left = _centred_tile(z, k[None, :], m[:, None], s_n, s_d, mean, N, D, ACC)
            right = _centred_tile(z, k[:, None], n[None, :], s_n, s_d, mean, N, D, ACC)
            acc += tl.dot(left, right, input_precision=IP, out_dtype=ACC)
    acc = acc / (N - 1)
    if not GRAM:
        acc = tl.where(m[:, None] == n[None, :], 0.0, acc)
    matrix += slot * M * M
    inside = (m[:, None] < M) & (n[None, :] < M)
    tl.store(matrix + m[:, None].to(tl.int64) * M + n[None, :], acc, mask=inside)
    total = tl.sum(tl.sum(acc * acc, 0), 0)
    if tile_m != tile_n:
        total = 2.0 * total
        tl.store(matrix + n[None, :].to(tl.int64) * M + m[:, None], acc, mask=inside)
    tl.store(partials + pid, total)


@triton.jit
def finish(
    var, squares, diagonals, partials, streamed_partials, out, streamed, N, D, B, columns, blocks, tiles, programs,
    w_inv, w_var, w_cov, s_var, s_cov, gamma, eps, cancellation,
    GRAM: tl.constexpr, LAST: tl.constexpr, BS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum the partials: out (4) = loss, invariance, variance, covariance; streamed (2, B) = did a subtraction cancel?

    One program. LAST: streamed_partials (2, B, programs) replace the off-diagonal sums where `streamed` is set;
    otherwise this launch only decides `streamed` (Gram form).
    """
    at = tl.arange(0, BS).to(tl.int64)
    c = tl.sum(tl.zeros((BS,), ACC), 0)
    for slot in range(0, 2 * B):
        lane = tl.zeros((BS,), ACC)
        for start in range(0, tiles, BS):
            lane += tl.load(partials + slot * tiles + start + at, mask=start + at < tiles, other=0.0)
        total = tl.sum(lane, 0)
        off = total
        if GRAM:
            lane = tl.zeros((BS,), ACC)
            for start in range(0, blocks, BS):
                lane += tl.load(diagonals + slot * blocks + start + at, mask=start + at < blocks, other=0.0)
            off = total - tl.sum(lane, 0)
            if LAST:
                lane = tl.zeros((BS,), ACC)
                for start in range(0, programs, BS):
                    lane += tl.load(
                        streamed_partials + slot * programs + start + at, mask=start + at < programs, other=0.0
                    )
                off = tl.where(tl.load(streamed + slot) != 0, tl.sum(lane, 0), off)
            else:
                cancelled = (off < cancellation * total) | (total == float("inf"))
                tl.store(streamed + slot, cancelled.to(tl.int8))
        c += off
    if LAST:
        hinge = tl.zeros((BS,), ACC)
        for start in range(0, columns, BS):
            index = start + at
            std = tl.sqrt(tl.load(var + index, mask=index < columns, other=0.0) + eps)
            # Written so that NaN stays NaN: a maximum would drop it.
            hinge += tl.where((std >= gamma) | (index >= columns), 0.0, gamma - std)
        lane = tl.zeros((BS,), ACC)
        for start in range(0, B * blocks, BS):
            lane += tl.load(squares + start + at, mask=start + at < B * blocks, other=0.0)
        invariance = tl.sum(lane, 0) / N / D / B
        variance = s_var * tl.sum(hinge, 0) / D / B
        covariance = s_cov * c / D / B
        tl.store(out, w_inv * invariance + w_var * variance + w_cov * covariance)
        tl.store(out + 1, invariance)
        tl.store(out + 2, variance)
        tl.store(out + 3, covariance)


@triton.jit
def streamed_sum(
    x, y, mean, streamed, partials, N, D, B, programs, sx_b, sx_n, sx_d, sy_b, sy_n, sy_d,
    BT: tl.constexpr, BK: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Off-diagonal sum of squared covariances through D x D tiles that are not kept; partials: (2, B, programs)."""
    pid = tl.program_id(0)
    slot = (pid // programs).to(tl.int64)
    batch = slot % B
    total = tl.sum(tl.zeros((BT,), ACC), 0)
    if tl.load(streamed + slot) != 0:
        if slot < B:
            z = x + batch * sx_b
            s_n = sx_n
            s_d = sx_d
        else:
            z = y + batch * sy_b
            s_n = sy_n
            s_d = sy_d
        mean += slot * D
        side = tl.cdiv(D, BT)
        tiles = side * (side + 1) // 2
        for tile in range(0, tl.cdiv(tiles - pid % programs, programs)):
            tile_m, tile_n = _triangle(pid % programs + tile * programs)
            m = tile_m * BT + tl.arange(0, BT)
            n = tile_n * BT + tl.arange(0, BT)
            acc = tl.zeros((BT, BT), ACC)
            for start in range(0, N, BK):
                k = start + tl.arange(0, BK)
                left = _centred_tile(z, k[None, :], m[:, None], s_n, s_d, mean, N, D, ACC)
                right = _centred_tile(z, k[:, None], n[None, :], s_n, s_d, mean, N, D, ACC)
                acc += tl.dot(left, right, input_precision=IP, out_dtype=ACC)
            acc = tl.where(m[:, None] == n[None, :], 0.0, acc / (N - 1))
            total += tl.sum(tl.sum(acc * acc, 0), 0) * tl.where(tile_m == tile_n, 1.0, 2.0)
    tl.store(partials + pid, total)


@triton.jit
def _write_gradient(
    product, x, y, gx, gy, mean, var, grads, slot, batch, rows, cols, N, D, B,
    sx_b, sx_n, sx_d, sy_b, sy_n, sy_d, w_inv, w_var, w_cov, s_var, s_cov, gamma, eps,
    SUBTRACT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Epilogue: the covariance product of one tile plus the variance and invariance gradients, written once.

    product: rows x cols; SUBTRACT: it still contains the diagonal's share, X var. grads: (4) on the device.
    """
    g_loss = tl.load(grads).to(ACC)
    g_inv = tl.load(grads + 1).to(ACC) + g_loss * w_inv
    g_var = (tl.load(grads + 2).to(ACC) + g_loss * w_var) * s_var
    g_cov = (tl.load(grads + 3).to(ACC) + g_loss * w_cov) * s_cov
    inside_d = cols < D
    inside = (rows < N) & inside_d
    value_x = tl.load(
        x + batch * sx_b + rows.to(tl.int64) * sx_n + cols.to(tl.int64) * sx_d, mask=inside, other=0.0
    ).to(ACC)
    value_y = tl.load(
        y + batch * sy_b + rows.to(tl.int64) * sy_n + cols.to(tl.int64) * sy_d, mask=inside, other=0.0
    ).to(ACC)
    variance = tl.load(var + slot * D + cols, mask=inside_d, other=1.0)
    centre = tl.load(mean + slot * D + cols, mask=inside_d, other=0.0)
    std = tl.sqrt(variance + eps)
    slope = tl.where((std >= gamma) | (std == 0.0), 0.0, 1.0 / tl.where(std == 0.0, 1.0, std))
    alpha = 4.0 * g_cov / (N - 1) / D / B
    column = -g_var * slope / (N - 1) / D / B
    if SUBTRACT:
        column -= alpha * variance
    beta = 2.0 * g_inv / N / D / B
    own = tl.where(slot < B, value_x, value_y)
    shift = beta * (value_x - value_y)
    result = alpha * product + column * (own - centre) + tl.where(slot < B, shift, -shift)
    to = batch * N * D + rows.to(tl.int64) * D + cols
    if slot < B:
        tl.store(gx + to, result.to(gx.dtype.element_ty), mask=inside)
    else:
        tl.store(gy + to, result.to(gy.dtype.element_ty), mask=inside)


@triton.jit
def gradient(
    x, y, gx, gy, mean, var, matrix, streamed, grads, N, D, M, B, first, sx_b, sx_n, sx_d, sy_b, sy_n, sy_d,
    w_inv, w_var, w_cov, s_var, s_cov, gamma, eps,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GRAM: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One (BM, BN) tile of the gradient: G X (Gram) or X C (primal), then `_write_gradient`.

    gx, gy: (B, N, D) contiguous. Programs cover branches from slot `first` on; a branch that was streamed is left to
    `streamed_gradient`.
    """
    across = tl.cdiv(D, BN)
    tiles = tl.cdiv(N, BM) * across
    pid = tl.program_id(0)
    slot = (pid // tiles + first).to(tl.int64)
    tile = pid % tiles
    batch = slot % B
    if GRAM:  # noqa: SIM102 - the outer condition is decided when compiling, the inner one when running
        if tl.load(streamed + slot) != 0:
            return
    if slot < B:
        z = x + batch * sx_b
        s_n = sx_n
        s_d = sx_d
    else:
        z = y + batch * sy_b
        s_n = sy_n
        s_d = sy_d
    rows = (tile // across) * BM + tl.arange(0, BM)
    cols = (tile % across) * BN + tl.arange(0, BN)
    centre = mean + slot * D
    weights = matrix + slot * M * M
    acc = tl.zeros((BM, BN), ACC)
    for start in range(0, M, BK):
        k = start + tl.arange(0, BK)
        if GRAM:
            inside = (rows[:, None] < N) & (k[None, :] < N)
            left = tl.load(weights + rows[:, None].to(tl.int64) * M + k[None, :], mask=inside, other=0.0)
            right = _centred_tile(z, k[:, None], cols[None, :], s_n, s_d, centre, N, D, ACC)
        else:
            left = _centred_tile(z, rows[:, None], k[None, :], s_n, s_d, centre, N, D, ACC)
            inside = (k[:, None] < D) & (cols[None, :] < D)
            right = tl.load(weights + k[:, None].to(tl.int64) * M + cols[None, :], mask=inside, other=0.0)
        acc += tl.dot(left, right, input_precision=IP, out_dtype=ACC)
    _write_gradient(
        acc, x, y, gx, gy, mean, var, grads, slot, batch, rows[:, None], cols[None, :], N, D, B,
        sx_b, sx_n, sx_d, sy_b, sy_n, sy_d, w_inv, w_var, w_cov, s_var, s_cov, gamma, eps, GRAM, ACC,
    )  # fmt: skip


@triton.jit
def streamed_gradient(
    x, y, gx, gy, mean, var, streamed, grads, N, D, B, first, programs, sx_b, sx_n, sx_d, sy_b, sy_n, sy_d,
    w_inv, w_var, w_cov, s_var, s_cov, gamma, eps,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, IP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient through off-diagonal covariance tiles recomputed for every row block: slow, exact, rarely run."""
    pid = tl.program_id(0)
    slot = (pid // programs + first).to(tl.int64)
    batch = slot % B
    if tl.load(streamed + slot) == 0:
        return
    if slot < B:
        z = x + batch * sx_b
        s_n = sx_n
        s_d = sx_d
    else:
        z = y + batch * sy_b
        s_n = sy_n
        s_d = sy_d
    centre = mean + slot * D
    across = tl.cdiv(D, BN)
    tiles = tl.cdiv(N, BM) * across
    for step in range(0, tl.cdiv(tiles - pid % programs, programs)):
        tile = pid % programs + step * programs
        rows = (tile // across) * BM + tl.arange(0, BM)
        cols = (tile % across) * BN + tl.arange(0, BN)
        acc = tl.zeros((BM, BN), ACC)
        for start in range(0, D, BK):
            k = start + tl.arange(0, BK)
            covariance = tl.zeros((BK, BN), ACC)
            for sample in range(0, N, BK):
                n = sample + tl.arange(0, BK)
                left = _centred_tile(z, n[None, :], k[:, None], s_n, s_d, centre, N, D, ACC)
                right = _centred_tile(z, n[:, None], cols[None, :], s_n, s_d, centre, N, D, ACC)
                covariance += tl.dot(left, right, input_precision=IP, out_dtype=ACC)
            covariance = tl.where(k[:, None] == cols[None, :], 0.0, covariance / (N - 1))
            left = _centred_tile(z, rows[:, None], k[None, :], s_n, s_d, centre, N, D, ACC)
            acc += tl.dot(left, covariance, input_precision=IP, out_dtype=ACC)
        _write_gradient(
            acc, x, y, gx, gy, mean, var, grads, slot, batch, rows[:, None], cols[None, :], N, D, B,
            sx_b, sx_n, sx_d, sy_b, sy_n, sy_d, w_inv, w_var, w_cov, s_var, s_cov, gamma, eps, False, ACC,
        )  # fmt: skip


def config_for(kernel: str, side: int) -> dict[str, Any]:
    """Return the shipped configuration of `kernel` for a problem whose tiled side has `side` elements."""
    return next(config for config in CONFIGS[kernel] if side <= config.get("up_to", side))


def _launch_options(config: dict[str, Any]) -> dict[str, Any]:
    blocks = {name: value for name, value in config.items() if name.isupper()}
    return {**blocks, "num_warps": config["num_warps"], "num_stages": config["num_stages"]}


def _arithmetic(x: Tensor) -> tuple[torch.dtype, Any]:
    dtype = compute_dtype(x.dtype)
    return dtype, tl.float64 if dtype == torch.float64 else tl.float32


def forward(
    x: Tensor, y: Tensor, weights: Sequence[float], scales: Sequence[float], gamma: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernels; same results as `pyjepa::vicreg`. x, y: (B, N, D)."""
    b, n, d = x.shape
    m = min(n, d)
    gram = n < d
    dtype, acc = _arithmetic(x)
    ip = dot_precision(x)
    strides = (*x.stride(), *y.stride())

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    with device_of(x):
        columns = config_for("moments", d)
        blocks = triton.cdiv(d, columns["BD"])
        mean, var, squares, diagonals = empty(2, b, d), empty(2, b, d), empty(b, blocks), empty(2, b, blocks)
        moments[(b * blocks,)](
            x, y, mean, var, squares, diagonals, n, d, b, *strides, ACC=acc, **_launch_options(columns)
        )
        square = config_for("symmetric", m)
        side = triton.cdiv(m, square["BT"])
        tiles = side * (side + 1) // 2
        matrix, partials = empty(2, b, m, m), empty(2, b, tiles)
        symmetric[(2 * b * tiles,)](
            x, y, mean, matrix, partials, n, d, m, b, *strides, GRAM=gram, IP=ip, ACC=acc, **_launch_options(square)
        )
        programs = min(STREAMED_PROGRAMS, triton.cdiv(d, config_for("streamed_sum", d)["BT"]) ** 2)
        streamed = torch.zeros(2, b, dtype=torch.bool, device=x.device)
        streamed_partials = empty(2, b, programs) if gram else partials
        out = empty(4)
        last = config_for("finish", d)

        def finish_with(is_last: bool) -> None:
            finish[(1,)](
                var, squares, diagonals, partials, streamed_partials, out, streamed.view(torch.int8), n, d, b,
                2 * b * d, blocks, tiles, programs, *weights, *scales, gamma, eps, CANCELLATION,
                GRAM=gram, LAST=is_last, ACC=acc, **_launch_options(last),
            )  # fmt: skip

        if gram:
            finish_with(False)
            tile = config_for("streamed_sum", d)
            streamed_sum[(2 * b * programs,)](
                x, y, mean, streamed.view(torch.int8), streamed_partials, n, d, b, programs, *strides,
                IP=ip, ACC=acc, **_launch_options(tile),
            )  # fmt: skip
        finish_with(True)
    loss, invariance, variance, covariance = (part.clone() for part in out.unbind())
    return loss, invariance, variance, covariance, mean, var, matrix, streamed


def backward(
    grads: tuple[Tensor | None, ...],
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    matrix: Tensor,
    streamed: Tensor,
    weights: Sequence[float],
    scales: Sequence[float],
    gamma: float,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernels; gradients of (loss, invariance, variance, covariance) -> (gx, gy), (B, N, D)."""
    b, n, d = x.shape
    m = min(n, d)
    gram = n < d
    dtype, acc = _arithmetic(x)
    ip = dot_precision(x)
    strides = (*x.stride(), *y.stride())
    gx, gy = (z.new_empty(z.shape if need else (0,)) for z, need in zip((x, y), needs, strict=True))
    first = 0 if needs[0] else b
    slots = b * sum(needs)
    constants = (*weights, *scales, gamma, eps)
    with device_of(x):
        zero = torch.zeros((), dtype=dtype, device=x.device)
        reached = torch.stack([zero if g is None else g.to(dtype) for g in grads])
        config = config_for("gradient", m)
        tiles = triton.cdiv(n, config["BM"]) * triton.cdiv(d, config["BN"])
        flags = streamed.view(torch.int8)
        gradient[(slots * tiles,)](
            x, y, gx, gy, mean, var, matrix, flags, reached, n, d, m, b, first, *strides, *constants,
            GRAM=gram, IP=ip, ACC=acc, **_launch_options(config),
        )  # fmt: skip
        if gram:
            programs = min(STREAMED_PROGRAMS, tiles)
            streamed_gradient[(slots * programs,)](
                x, y, gx, gy, mean, var, flags, reached, n, d, b, first, programs, *strides, *constants,
                IP=ip, ACC=acc, **_launch_options(config_for("streamed_gradient", d)),
            )  # fmt: skip
    return gx, gy
