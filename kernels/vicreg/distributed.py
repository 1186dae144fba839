"""VICReg over the rows of several processes, with the gradients of one process that holds them all.

Raw `all_reduce` has no gradient, and gathering inside autograd makes every rank redo the whole batch. Here the op knows
its own derivative, so each rank computes only its row block and needs one exchange forward, none backward:

* Gram (all rows together N < D): ranks exchange their centred rows; rank r computes its rows of G, X_r X' / (N - 1).
* primal (N >= D): ranks add up their X_r' X_r; nothing N long is exchanged.

Means and variances come from exchanged column sums, the numbers of rows may differ. Every rank returns the loss of all
rows. Its gradient is multiplied by the number of ranks, because DDP averages gradients over ranks where the joint
gradient is their sum. torch arithmetic on every device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from ..runtime import compute_dtype, refuse_second_derivative
from .fallback import CANCELLATION, variance_slope
from .reference import VICRegTerms


def _same_everywhere(shape: tuple[int, ...], device: torch.device, group: ProcessGroup) -> list[int]:
    """Exchange (steps, rows, features); return every rank's rows. Raises ValueError unless the rest agrees."""
    mine = torch.tensor(shape, dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(everyone, mine, group=group)
    shapes = [tuple(other.tolist()) for other in everyone]
    if len({(steps, features) for steps, _, features in shapes}) != 1:
        raise ValueError(f"ranks disagree on (T, *, D): their (T, N, D) are {shapes}")
    return [rows for _, rows, _ in shapes]


def _gather_rows(rows: Tensor, counts: list[int], group: ProcessGroup) -> Tensor:
    """Concatenate every rank's (B, N_r, D) along N, padded on the wire where numbers of rows differ."""
    batch, n, d = rows.shape
    wire = rows.new_zeros(batch, max(counts), d)
    wire[:, :n] = rows
    parts = [torch.empty_like(wire) for _ in counts]
    distributed.all_gather(parts, wire, group=group)
    return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1)


class _Joint(torch.autograd.Function):
    """(x, y) of this rank -> (loss, invariance, variance, covariance) of all ranks; x, y: (B, N_r, D)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        weights: tuple[float, float, float],
        scales: tuple[float, float],
        gamma: float,
        eps: float,
        group: ProcessGroup,
    ) -> tuple[Tensor, ...]:
        batch, _, d = x.shape
        counts = _same_everywhere(tuple(x.shape), x.device, group)
        n = sum(counts)
        if n < 2:
            raise ValueError(f"VICReg needs N >= 2 rows over all ranks, not {n}")
        dtype = compute_dtype(x.dtype)
        gram = n < d
        with torch.autocast(x.device.type, enabled=False):
            z = torch.stack((x.to(dtype), y.to(dtype)))
            mean = z.sum(2)
            distributed.all_reduce(mean, group=group)
            mean /= n
            z -= mean.unsqueeze(2)
            # Both branches and all steps in one batch of matrices.
            rows = z.flatten(0, 1)
            squares = (x.to(dtype) - y.to(dtype)).square().sum()
            sums = torch.cat(((rows * rows).sum(1).flatten(), squares[None]))
            distributed.all_reduce(sums, group=group)
            var = (sums[:-1] / (n - 1)).view(2 * batch, d)
            others = rows
            if gram:
                others = _gather_rows(rows, counts, group)
                matrix = torch.bmm(rows, others.transpose(1, 2)).div_(n - 1)
                totals = (matrix * matrix).sum((1, 2))
                distributed.all_reduce(totals, group=group)
                off = totals - (var * var).sum(1)
                gram = not bool((off < CANCELLATION * totals).any())
            if not gram:  # also where subtracting the diagonal would cancel: every rank decides from the same sums
                others = rows
                matrix = torch.bmm(rows.transpose(1, 2), rows)
                distributed.all_reduce(matrix, group=group)
                matrix /= n - 1
                matrix.diagonal(dim1=1, dim2=2).zero_()
                off = (matrix * matrix).sum((1, 2))
            invariance = sums[-1] / (batch * n * d)
            hinge = gamma - torch.sqrt(var + eps)
            variance = scales[0] * 2.0 * hinge.clamp(min=0.0).mean()
            covariance = scales[1] * off.sum() / (batch * d)
        ctx.save_for_backward(x, y, rows, others, matrix, var)
        ctx.options = (weights, scales, gamma, eps, n, gram, len(counts))
        ctx.set_materialize_grads(False)
        loss = weights[0] * invariance + weights[1] * variance + weights[2] * covariance
        return loss, invariance, variance, covariance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, y, rows, others, matrix, var = ctx.saved_tensors
        weights, scales, gamma, eps, n, gram, ranks = ctx.options
        batch, _, d = x.shape
        g_loss, g_inv, g_var, g_cov = (rows.new_zeros(()) if g is None else g for g in grads)
        with torch.autocast(x.device.type, enabled=False):
            alpha = ranks * 4.0 * scales[1] * (g_cov + weights[2] * g_loss) / ((n - 1) * batch * d)
            column = variance_slope(var, gamma, eps) * (
                -ranks * scales[0] * (g_var + weights[1] * g_loss) / ((n - 1) * batch * d)
            )
            product = torch.bmm(matrix, others) - rows * var[:, None] if gram else torch.bmm(rows, matrix)
            out = (alpha * product + rows * column[:, None]).view(2, batch, -1, d)
            shift = (x.to(out.dtype) - y.to(out.dtype)) * (
                ranks * 2.0 * (g_inv + weights[0] * g_loss) / (batch * n * d)
            )
        return (out[0] + shift).to(x.dtype), (out[1] - shift).to(y.dtype), None, None, None, None, None


def vicreg_distributed(
    x: Tensor,
    y: Tensor,
    weights: tuple[float, float, float],
    scales: tuple[float, float],
    gamma: float,
    eps: float,
    group: ProcessGroup,
) -> VICRegTerms:
    """Return the terms of all ranks' rows; x, y: this rank's (N_r, D) or (T, N_r, D), N_r >= 0."""
    if x.dim() == 2:
        x, y = x[None], y[None]
    return VICRegTerms(*_Joint.apply(x, y, weights, scales, gamma, eps, group))  # type: ignore[no-untyped-call]
