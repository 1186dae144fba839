"""VICReg without Triton: the same two exact forms in torch, lean enough to be the honest baseline.

Official code goes through the D x D covariance matrix and lets autograd keep every temporary. Here:

* N < D takes the Gram form (|X'X|_F = |XX'|_F): with G = X X' / (N - 1), sum C_ij^2 = sum G_ij^2 and
  d/dX (sum C_ij^2) = 4 G X / (N - 1); the diagonal's share, sum_j var_j^2, is subtracted. N >= D takes the primal form
  and drops the diagonal inside the matrix.
* Matrices are symmetric, so blocks above the diagonal are mirrored, not multiplied. Measured on one thread (AVX-512,
  MKL): the 2048 x 8192 Gram 757 -> 418 ms in row blocks of 128, the 256 x 2048 one 3.1 -> 1.9 ms in blocks of 64.
* Columns are centred a block at a time, so the only buffers are that block and the min(N, D)^2 matrix.
* Subtracting the diagonal cancels when it holds nearly all of the sum (decorrelated features with N near D, or one
  dominant feature). Then the exact off-diagonal sum is streamed through D x D tiles that are never kept: slow, rare,
  and right. On a CPU the test costs nothing, because the sums are already here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..runtime import compute_dtype

# Elements of one centred block: 4 MiB in fp32, four times a 1 MiB L2 - smaller blocks made the 2048 x 8192 Gram slower.
BLOCK_ELEMENTS = 1 << 20
# Up to here both branches and all steps run as one batch: call overhead, not arithmetic, is the cost ((64, 128) went
# from 0.53 to SMALLTIME ms).
SMALL_ELEMENTS = 1 << 16
# Side of the tiles of the streamed form: 1 MiB in fp32.
TILE = 512
# Below this share of the whole sum, the off-diagonal part has lost 3 bits to the subtraction: stream instead.
CANCELLATION = 1 / 8


def _spans(total: int, width: int) -> Iterator[slice]:
    for start in range(0, total, width):
        yield slice(start, min(start + width, total))


def _block_rows(m: int) -> int:
    # Wider blocks waste more of the mirrored half, narrower ones lose GEMM speed: see the module's measurements.
    return 128 if m > 512 or m <= 128 else 64


def _symmetric_product(a: Tensor, out: Tensor, alpha: float, beta: float) -> None:
    """out = alpha a a' + beta out on and below the diagonal blocks; a: (M, K), out: (M, M)."""
    m = a.shape[0]
    rows = _block_rows(m)
    if m <= rows:
        torch.addmm(out, a, a.t(), beta=beta, alpha=alpha, out=out)
        return
    for span in _spans(m, rows):
        target = out[span, : span.stop]
        torch.addmm(target, a[span], a[: span.stop].t(), beta=beta, alpha=alpha, out=target)


def _mirror_and_sum(matrix: Tensor) -> float:
    """Copy the lower blocks of `_symmetric_product` to the upper ones; return the sum of all squares."""
    m = matrix.shape[0]
    rows = _block_rows(m)
    if m <= rows:
        return float((matrix * matrix).sum())
    total = 0.0
    for span in _spans(m, rows):
        if span.start:
            left = matrix[span, : span.start]
            matrix[: span.start, span].copy_(left.t())
            total += 2.0 * float((left * left).sum())
        corner = matrix[span, span]
        total += float((corner * corner).sum())
    return total


class _Scratch:
    """Reused buffers: a fresh 2 MiB temporary costs four times its arithmetic in page faults (213 against 47 us)."""

    def __init__(self, elements: int, count: int, like: Tensor) -> None:
        self.buffers = like.new_empty(count, elements)

    def view(self, index: int, shape: torch.Size) -> Tensor:
        return self.buffers[index, : shape[0] * shape[1]].view(shape)


def _subtract(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out = a - b, computed in out's dtype (torch would round a 16-bit difference to 16 bits first)."""
    if a.dtype == out.dtype:
        return torch.sub(a, b, out=out)
    return out.copy_(a).sub_(b)


def _centred(z: Tensor, mean: Tensor) -> Tensor:
    return z.to(mean.dtype) - mean


def _block_width(n: int, d: int) -> int:
    """Rows (primal, N >= D) or columns (Gram) of one centred block."""
    return min(n, max(128, BLOCK_ELEMENTS // d)) if n >= d else min(d, max(128, BLOCK_ELEMENTS // n))


def _streamed_off_diagonal(z: Tensor, mean: Tensor) -> float:
    """Sum of squared off-diagonal covariances, tile by tile, nothing kept. z: (N, D), mean: (D)."""
    n, d = z.shape
    total = 0.0
    for rows in _spans(d, TILE):
        a = _centred(z[:, rows], mean[rows]).t() / (n - 1)
        for cols in _spans(rows.stop, TILE):
            tile = a @ _centred(z[:, cols], mean[cols])
            if rows.start == cols.start:
                total += float(tile.fill_diagonal_(0.0).square_().sum())
            else:
                total += 2.0 * float(tile.square_().sum())
    return total


def _forward_branch(z: Tensor, mean: Tensor, var: Tensor, matrix: Tensor, scratch: _Scratch) -> tuple[float, bool]:
    """Fill mean (D), var (D) and matrix (M, M) for z (N, D); return (sum of squared off-diagonal C, streamed?)."""
    n, d = z.shape
    scale = 1.0 / (n - 1)
    width = _block_width(n, d)
    torch.mean(z, 0, dtype=mean.dtype, out=mean)
    if n >= d:
        for rows in _spans(n, width):
            part = z[rows] if width < n else z
            block = _subtract(part, mean, scratch.view(0, part.shape))
            _symmetric_product(block.t(), matrix, scale, 1.0 if rows.start else 0.0)
        diagonal = matrix.diagonal()
        var.copy_(diagonal)
        diagonal.zero_()
        return _mirror_and_sum(matrix), False
    for cols in _spans(d, width):
        part, mean_part, var_part = (z, mean, var) if width == d else (z[:, cols], mean[cols], var[cols])
        block = _subtract(part, mean_part, scratch.view(0, part.shape))
        torch.sum(torch.mul(block, block, out=scratch.view(1, part.shape)), 0, out=var_part)
        _symmetric_product(block, matrix, scale, 1.0 if cols.start else 0.0)
    var.mul_(scale)
    total = _mirror_and_sum(matrix)
    off = total - float((var * var).sum())
    if off < CANCELLATION * total or math.isinf(total):
        return _streamed_off_diagonal(z, mean), True
    return off, False


_ForwardState = tuple[float, float, float, Tensor, Tensor, Tensor, Tensor]


def _stacked(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.stack((x, y)) if x.dtype == dtype else torch.stack((x.to(dtype), y.to(dtype)))


def _forward_small(x: Tensor, y: Tensor, gamma: float, eps: float) -> _ForwardState | None:
    """`forward` with the branches and the batch in one batched product; None where the subtraction cancels."""
    batch, n, d = x.shape
    scale = 1.0 / (n - 1)
    z = _stacked(x, y, compute_dtype(x.dtype))
    mean = z.mean(2)
    invariance = torch.nn.functional.mse_loss(z[0], z[1]).item()
    z.sub_(mean.unsqueeze(2))
    rows = z.view(2 * batch, n, d)
    if n >= d:
        matrix = torch.bmm(rows.transpose(1, 2), rows).mul_(scale).view(2, batch, d, d)
        diagonal = matrix.diagonal(dim1=2, dim2=3)
        var = diagonal.clone()
        diagonal.zero_()
        off = (matrix * matrix).sum().item()
    else:
        matrix = torch.bmm(rows, rows.transpose(1, 2)).mul_(scale).view(2, batch, n, n)
        var = z.mul_(z).sum(2).mul_(scale)
        off = 0.0
        totals, shares = (matrix * matrix).sum((2, 3)).flatten(), (var * var).sum(2).flatten()
        for total, share in zip(totals.tolist(), shares.tolist(), strict=True):
            if total - share < CANCELLATION * total or math.isinf(total):
                return None
            off += total - share
    variance = 2.0 * (gamma - torch.sqrt(var + eps)).clamp_(min=0.0).mean().item()
    streamed = torch.zeros(2, batch, dtype=torch.bool, device=x.device)
    return invariance, variance, off / (batch * d), mean, var, matrix, streamed


def _backward_small(
    x: Tensor, y: Tensor, mean: Tensor, var: Tensor, matrix: Tensor, column: Tensor, alpha: float, beta: float
) -> tuple[Tensor, Tensor]:
    """`backward` with the branches and the batch in one batched product; column: (2, B, D), the variance scale k."""
    batch, n, d = x.shape
    z = _stacked(x, y, mean.dtype)
    shift = (z[0] - z[1]).mul_(beta)
    z.sub_(mean.unsqueeze(2))
    rows = z.view(2 * batch, n, d)
    if n >= d:
        product = matrix * alpha
        product.diagonal(dim1=2, dim2=3).copy_(column)
        out = torch.bmm(rows, product.view(2 * batch, d, d)).view(2, batch, n, d)
    else:
        scale = torch.sub(column, var, alpha=alpha).unsqueeze(2)
        own = (z * scale).view(2 * batch, n, d)
        out = own.baddbmm_(matrix.view(2 * batch, n, n), rows, alpha=alpha).view(2, batch, n, d)
    gx, gy = out[0] + shift, out[1] - shift
    return gx.to(x.dtype), gy.to(y.dtype)


def forward(x: Tensor, y: Tensor, gamma: float, eps: float) -> _ForwardState:
    """Return (invariance, v(x) + v(y), c(x) + c(y), mean, var, matrix, streamed) for x, y of shape (B, N, D).

    Terms are averaged over B. mean, var: (2, B, D); matrix: (2, B, M, M), M = min(N, D), the Gram matrix over N - 1 or
    the covariance without its diagonal; streamed: (2, B) bool, where the matrix is not to be used by `backward`.
    """
    batch, n, d = x.shape
    dtype = compute_dtype(x.dtype)
    if x.numel() <= SMALL_ELEMENTS:
        small = _forward_small(x, y, gamma, eps)
        if small is not None:
            return small
    m = min(n, d)
    mean = torch.empty(2, batch, d, dtype=dtype, device=x.device)
    var = torch.empty_like(mean)
    matrix = mean.new_empty(2, batch, m, m)
    streamed = torch.zeros(2, batch, dtype=torch.bool, device=x.device)
    width = _block_width(n, d)
    scratch = _Scratch(width * m, 2, mean)
    invariance = covariance = 0.0
    for b in range(batch):
        x_b, y_b = x[b], y[b]
        for span in _spans(max(n, d), width):
            if width == max(n, d):
                x_part, y_part = x_b, y_b
            elif n >= d:
                x_part, y_part = x_b[span], y_b[span]
            else:
                x_part, y_part = x_b[:, span], y_b[:, span]
            difference = _subtract(x_part, y_part, scratch.view(0, x_part.shape))
            invariance += float(difference.mul_(difference).sum())
        for i, z in enumerate((x_b, y_b)):
            off, slow = _forward_branch(z, mean[i, b], var[i, b], matrix[i, b], scratch)
            covariance += off
            if slow:
                streamed[i, b] = True
    variance = 2.0 * float((gamma - torch.sqrt(var + eps)).clamp_(min=0.0).mean())
    return invariance / (batch * n * d), variance, covariance / (batch * d), mean, var, matrix, streamed


def variance_slope(var: Tensor, gamma: float, eps: float) -> Tensor:
    """1 / std where the hinge is active, else 0: minus d relu(gamma - std) / d var, times 2. Zero std gives 0."""
    std = torch.sqrt(var + eps)
    inactive = std >= gamma
    if eps == 0.0:
        inactive |= std == 0.0
    return std.reciprocal_().masked_fill_(inactive, 0.0)


def _streamed_product(z: Tensor, mean: Tensor, cols: slice, alpha: float, out: Tensor) -> None:
    """out += alpha X C[:, cols] with the diagonal of C dropped and C recomputed in tiles. out: (N, one tile of D)."""
    n, d = z.shape
    right = _centred(z[:, cols], mean[cols])
    for rows in _spans(d, TILE):
        left = _centred(z[:, rows], mean[rows])
        tile = left.t() @ right
        if rows.start == cols.start:
            tile.fill_diagonal_(0.0)
        out.addmm_(left, tile, alpha=alpha / (n - 1))


def backward(
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    matrix: Tensor,
    streamed: Tensor,
    coefficients: tuple[float, float, float],
    gamma: float,
    eps: float,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Return the gradients for x and y, each (B, N, D) in the input dtype (empty where `needs` says no).

    coefficients: the gradients reaching (invariance, v(x) + v(y), c(x) + c(y)). One pass writes the sum of the three:
    with a = 4 g_c / ((N - 1) B D), the column scale k_j = -g_v slope_j / ((N - 1) B D) and b = +-2 g_i / (B N D),

        Gram   a G X + X diag(k - a var) + b (x - y)        primal   X (a C, diagonal replaced by k) + b (x - y)

    X centred by columns. The Gram form needs no centring of its result: the columns of G sum to zero.
    """
    batch, n, d = x.shape
    dtype = mean.dtype
    g_inv, g_var, g_cov = coefficients
    alpha = 4.0 * g_cov / ((n - 1) * batch * d)
    beta = 2.0 * g_inv / (batch * n * d)
    column = variance_slope(var, gamma, eps).mul_(-g_var / ((n - 1) * batch * d))
    flags = streamed.tolist()
    if x.numel() <= SMALL_ELEMENTS and all(needs) and not any(map(any, flags)):
        return _backward_small(x, y, mean, var, matrix, column, alpha, beta)
    grads = [z.new_empty(z.shape if need else (0,)) for z, need in zip((x, y), needs, strict=True)]
    rounded = x.dtype != dtype
    for b in range(batch):
        x_b, y_b = x[b], y[b]
        branches = [
            (z, grads[i][b], mean[i, b], column[i, b], var[i, b], matrix[i, b], beta if i == 0 else -beta, flags[i][b])
            for i, z in enumerate((x_b, y_b))
            if needs[i]
        ]
        if n >= d:
            width = _block_width(n, d)
            scratch = _Scratch(width * d, 3, mean)
            for z, grad, mean_b, column_b, _, matrix_b, sign, _ in branches:
                product = matrix_b * alpha
                product.diagonal().copy_(column_b)
                for rows in _spans(n, width):
                    whole = width == n
                    part, target = (z, grad) if whole else (z[rows], grad[rows])
                    x_part, y_part = (x_b, y_b) if whole else (x_b[rows], y_b[rows])
                    block = _subtract(part, mean_b, scratch.view(0, part.shape))
                    out = scratch.view(2, part.shape) if rounded else target
                    _subtract(x_part, y_part, out)
                    torch.addmm(out, block, product, beta=sign, out=out)
                    if rounded:
                        target.copy_(out)
            continue
        width = TILE if any(branch[-1] for branch in branches) else _block_width(n, d)
        scratch = _Scratch(min(width, d) * n, 3, mean)
        for cols in _spans(d, width):
            whole = width >= d
            x_part, y_part = (x_b, y_b) if whole else (x_b[:, cols], y_b[:, cols])
            shift = _subtract(x_part, y_part, scratch.view(1, x_part.shape))
            for z, grad, mean_b, column_b, var_b, matrix_b, sign, slow in branches:
                part, target = (z, grad) if whole else (z[:, cols], grad[:, cols])
                mean_part, scale, var_part = (t if whole else t[cols] for t in (mean_b, column_b, var_b))
                block = _subtract(part, mean_part, scratch.view(0, part.shape))
                out = scratch.view(2, part.shape) if rounded else target
                torch.mul(block, scale if slow else torch.sub(scale, var_part, alpha=alpha), out=out)
                out.add_(shift, alpha=sign)
                if slow:
                    _streamed_product(z, mean_b, cols, alpha, out)
                else:
                    out.addmm_(matrix_b, block, alpha=alpha)
                if rounded:
                    target.copy_(out)
    return grads[0], grads[1]
