"""VICReg (Bardes, Ponce and LeCun 2022, https://arxiv.org/abs/2105.04906) as a module, over `pyjepa.kernels.vicreg`.

Everything is computed in float32, inside autocast too: squared sums overflow and small squares vanish in 16 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjepa.kernels import CONVENTIONS, VICRegTerms, vicreg

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from pyjepa.kernels.runtime import Backend
    from pyjepa.kernels.vicreg.reference import Convention, VarianceAxis

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
    return Terms(*vicreg(x, y, gamma=target, eps=EPSILON)[1:])


class VICReg(nn.Module):
    """The weighted sum of the three terms; `terms` gives them one by one.

    ``invariance``, ``variance`` and ``covariance`` are the weights, those of the convention where None; ``target`` is
    the standard deviation below which a feature is penalised. ``convention`` ("vicreg", "vicregl", "solo", "eb"),
    ``variance_over``, ``group`` (a torch.distributed group whose ranks share statistics) and ``backend`` are those of
    `pyjepa.kernels.vicreg`.
    """

    def __init__(
        self,
        *,
        invariance: float | None = None,
        variance: float | None = None,
        covariance: float | None = None,
        target: float = 1.0,
        eps: float = EPSILON,
        convention: Convention = "vicreg",
        variance_over: VarianceAxis = "batch",
        group: ProcessGroup | None = None,
        backend: Backend = "auto",
    ) -> None:
        """Raises ValueError for an unknown convention."""
        super().__init__()
        if convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, not {convention!r}")
        defaults = CONVENTIONS[convention].weights
        given = (invariance, variance, covariance)
        self.weights: tuple[float, float, float] = tuple(  # type: ignore[assignment]  # three in, three out
            default if weight is None else weight for weight, default in zip(given, defaults, strict=True)
        )
        self.target = target
        self.eps = eps
        self.convention = convention
        self.variance_over = variance_over
        self.group = group
        self.backend = backend

    def _compute(self, x: Tensor, y: Tensor) -> VICRegTerms:
        return vicreg(
            x,
            y,
            weights=self.weights,
            convention=self.convention,
            gamma=self.target,
            eps=self.eps,
            variance_over=self.variance_over,
            group=self.group,
            backend=self.backend,
        )

    def terms(self, x: Tensor, y: Tensor) -> Terms:
        """The unweighted terms of x and y, both (N, D), or (T, N, D) for statistics per time step."""
        return Terms(*self._compute(x, y)[1:])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of x and y, both (N, D), or (T, N, D) for statistics per time step; a scalar."""
        return self._compute(x, y).loss

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"weights={self.weights}, convention={self.convention!r}, target={self.target}"


def _check(x: Tensor) -> None:
    if x.dim() != 2 or len(x) < 2:
        raise ValueError(f"x: expected (N, D) with N >= 2 (a variance needs two samples), got {tuple(x.shape)}")
