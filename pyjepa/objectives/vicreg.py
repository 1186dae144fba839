"""VICReg (Bardes, Ponce and LeCun 2022, https://arxiv.org/abs/2105.04906), after facebookresearch/vicreg.

The official convention: for x, y of shape (N, D) with centred columns, ``std = sqrt(var + 1e-4)`` (unbiased), the
invariance term is the mean squared difference, the variance term half the sum of both branches' mean hinges on the
standard deviation, and the covariance term the sum over both branches of the squared off-diagonal covariances over D.

Everything is computed in float32, inside autocast too: squared sums overflow and small squares vanish in 16 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-4


class Terms(NamedTuple):
    """The three terms, unweighted; scalars."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def variance(x: Tensor, *, target: float = 1.0) -> Tensor:
    """``mean_j relu(target - sqrt(var_j + 1e-4))`` of x (N, D), N >= 2.

    A collapsed batch (zero variance) gives a finite loss and a zero gradient.
    """
    _check(x)
    with torch.autocast(x.device.type, enabled=False):
        std = (x.float().var(dim=0) + EPSILON).sqrt()
        return functional.relu(target - std).mean()


def covariance(x: Tensor) -> Tensor:
    """``sum_{i != j} C_ij^2 / D`` of x (N, D), N >= 2, with the unbiased covariance matrix C."""
    _check(x)
    with torch.autocast(x.device.type, enabled=False):
        centred = x.float() - x.float().mean(dim=0)
        matrix = centred.T @ centred / (len(x) - 1)
        return (matrix.square().sum() - matrix.diagonal().square().sum()) / x.shape[1]


def terms(x: Tensor, y: Tensor, *, target: float = 1.0) -> Terms:
    """The three terms of x and y, both (N, D) with N >= 2. Raises ValueError for other shapes."""
    _check(x)
    if x.shape != y.shape:
        raise ValueError(f"x and y: expected equal shapes, got {tuple(x.shape)} and {tuple(y.shape)}")
    with torch.autocast(x.device.type, enabled=False):
        return Terms(
            invariance=functional.mse_loss(x.float(), y.float()),
            variance=(variance(x, target=target) + variance(y, target=target)) / 2,
            covariance=covariance(x) + covariance(y),
        )


class VICReg(nn.Module):
    """The weighted sum of the three terms; `terms` gives them one by one."""

    def __init__(
        self, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, target: float = 1.0
    ) -> None:
        """The weights of the terms, and the ``target`` standard deviation."""
        super().__init__()
        self.weights = (invariance, variance, covariance)
        self.target = target

    def terms(self, x: Tensor, y: Tensor) -> Terms:
        """The unweighted terms of x and y, both (N, D)."""
        return terms(x, y, target=self.target)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of x and y, both (N, D); a scalar."""
        parts = self.terms(x, y)
        invariance, variance, covariance = self.weights
        return invariance * parts.invariance + variance * parts.variance + covariance * parts.covariance


def _check(x: Tensor) -> None:
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"x: expected (N, D) with N >= 2 (a variance needs two samples), got {tuple(x.shape)}")
