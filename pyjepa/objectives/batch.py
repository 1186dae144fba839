"""Statistics over a batch that several processes share, with the gradients of one process that holds all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

EPSILON = 1e-5
"""Added to the variance before the root, as in torch's BatchNorm1d."""


def standardise(z: Tensor, *, group: ProcessGroup | None = None) -> Tensor:
    """Rows (N, D) with zero mean and unit (biased) standard deviation in every dimension: BatchNorm without weights.

    With ``group`` over the rows of all ranks, whose numbers may differ. Raises ValueError for fewer than two.
    """
    rows = sum_over(torch.full((), float(len(z)), dtype=z.dtype, device=z.device), group)
    if rows < 2:
        raise ValueError(f"expected N >= 2 rows over all ranks, got {int(rows)}")
    centred = z - sum_over(z.sum(dim=0), group) / rows
    variance = sum_over(centred.square().sum(dim=0), group) / rows
    return centred * torch.rsqrt(variance + EPSILON)


def sum_over(value: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum over a group's ranks, or the value where there is no group."""
    if group is None:
        return value
    summed: Tensor = _AllSum.apply(value, group)  # type: ignore[no-untyped-call]
    return summed


class _AllSum(torch.autograd.Function):
    """Every rank's loss depends on the sum, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        total = value.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total, group=ctx.group)
        return total, None
