"""Barlow Twins (Zbontar, Jing, Misra, LeCun and Deny 2021, https://arxiv.org/abs/2103.03230).

The cross-correlation of two branches' embeddings is pulled towards the identity: the diagonal makes them agree, zeros
beside it keep dimensions from saying the same. As facebookresearch/barlowtwins, whose normalisation is a BatchNorm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyjepa.objectives.batch import standardise, sum_over

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def barlow_twins(x: Tensor, y: Tensor, *, off_diagonal: float = 0.0051, group: ProcessGroup | None = None) -> Tensor:
    """``sum_i (1 - C_ii)^2 + off_diagonal * sum_{i != j} C_ij^2`` of x and y (N, D), N >= 2; a scalar.

    C is the cross-correlation over the batch (biased standard deviations). Computed in float32, or float64 for float64.
    A collapsed batch (zero variance) has the finite loss D and a finite gradient. With ``group`` the batch is that of
    all ranks, whose numbers of rows may differ; gradients are then scaled by the number of ranks, so that DDP's average
    is the gradient of one process with all rows. Raises ValueError for other shapes.
    """
    if x.dim() != 2 or x.shape != y.shape or x.shape[1] < 1 or (group is None and len(x) < 2):
        raise ValueError(f"x and y: expected two (N, D) with N >= 2, got {tuple(x.shape)} and {tuple(y.shape)}")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        rows = sum_over(torch.full((), float(len(x)), dtype=dtype, device=x.device), group)
        correlation = sum_over(standardise(x.to(dtype), group=group).T @ standardise(y.to(dtype), group=group), group)
        correlation = correlation / rows
        diagonal = correlation.diagonal()
        off = correlation - torch.diag(diagonal)
        return (1 - diagonal).square().sum() + off_diagonal * off.square().sum()


class BarlowTwins(nn.Module):
    """`barlow_twins` as a module; ``off_diagonal`` weighs the redundancy term (0.0051 for the paper's 8192)."""

    def __init__(self, *, off_diagonal: float = 0.0051, group: ProcessGroup | None = None) -> None:
        """Raises ValueError for a negative weight."""
        super().__init__()
        if not off_diagonal >= 0:
            raise ValueError(f"off_diagonal must be >= 0, got {off_diagonal}")
        self.off_diagonal = off_diagonal
        self.group = group

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of x and y, both (N, D); a scalar."""
        return barlow_twins(x, y, off_diagonal=self.off_diagonal, group=self.group)

    def extra_repr(self) -> str:
        """The option that differs between instances."""
        return f"off_diagonal={self.off_diagonal}"
