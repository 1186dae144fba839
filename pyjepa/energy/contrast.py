"""Where the ŷ of contrastive methods come from: the column "ŷ from" of the paper's Table 1.

Chains are in `pyjepa.energy.sampling`. All ŷ come without a gradient but those of a `Generator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyjepa.energy.energies import Energy, finite, joined, mlp
from pyjepa.energy.sampling import energy_and_gradient
from pyjepa.errors import InvalidArgumentError

Margin = Callable[[Tensor, Tensor], Tensor]
"""`m(y, ŷ)`: y (..., Y) and ŷ (..., Y) to margins (...), each >= 0."""


@dataclass(frozen=True)
class DistanceMargin:
    """`m(y, ŷ) = height min(‖y - ŷ‖ / radius, 1)`: the further, the more, up to a point."""

    height: float = 1.0
    radius: float = 1.0

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for a negative height or a radius that is not positive."""
        if self.height < 0 or not self.radius > 0:
            raise InvalidArgumentError(f"expected height >= 0 and radius > 0, got {self.height} and {self.radius}")

    def __call__(self, y: Tensor, other: Tensor) -> Tensor:
        """The margins (...)."""
        distance: Tensor = torch.linalg.vector_norm(y - other, dim=-1)
        return self.height * (distance / self.radius).clamp(max=1)


@dataclass(frozen=True)
class Quadrature:
    """Points (K, Y) and log weights (K,): `∫ f dy ≈ Σ_k w_k f(y_k)`; for all values of a discrete y, w = 1."""

    points: Tensor
    log_weights: Tensor

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for an empty set or unequal lengths."""
        if self.points.dim() != 2 or not len(self.points):
            raise InvalidArgumentError(f"points: expected (K, Y) with K >= 1, got {tuple(self.points.shape)}")
        if self.log_weights.shape != self.points.shape[:1]:
            raise InvalidArgumentError(
                f"log_weights: expected ({len(self.points)},), got {tuple(self.log_weights.shape)}"
            )

    @classmethod
    def exhaustive(cls, values: Tensor) -> Quadrature:
        """All values (K, Y) of a discrete y."""
        return cls(values, values.new_zeros(len(values)))

    @classmethod
    def midpoint(cls, low: float, high: float, side: int, dim: int, *, shift: Tensor | None = None) -> Quadrature:
        """The midpoint rule on side^dim cells of [low, high]^dim.

        ``shift`` (dim,) in [-½, ½] moves all points by that share of a cell: drawn anew for each step it makes the
        integral unbiased (Cranley and Patterson 1976).
        """
        if not low < high or side < 1 or dim < 1:
            raise InvalidArgumentError(f"expected low < high, side >= 1, dim >= 1, got {low}, {high}, {side}, {dim}")
        width = (high - low) / side
        middle = low + (torch.arange(side) + 0.5) * width
        points = torch.cartesian_prod(*[middle] * dim).reshape(-1, dim)
        if shift is not None:
            points = points + shift * width
        return cls(points, torch.full((len(points),), dim * math.log(width)))

    def energies(self, energy: Energy, x: Tensor) -> Tensor:
        """`F(x, y_k)` for x (B, X): (B, K), or (1, K) where x has no features and all rows are the same."""
        x = x if x.shape[-1] else x[:1]
        return energy(x[:, None], self.points.to(x))

    def log_partition(self, energy: Energy, x: Tensor) -> Tensor:
        """`log ∫ exp(-F(x, y)) dy` for x (B, X): (B,) or (1,). Raises NonFiniteEnergyError."""
        return torch.logsumexp(self.log_weights - finite(self.energies(energy, x)), dim=-1)


def margins(margin: Margin, y: Tensor, other: Tensor) -> Tensor:
    """`m(y, ŷ)`, checked. Raises InvalidArgumentError where a margin is negative or no number."""
    found = margin(y, other)
    if not bool((found >= 0).all()):
        raise InvalidArgumentError(f"margin: expected >= 0, got {float(found.min())}")
    return found


@torch.no_grad()
def most_offending(energy: Energy, x: Tensor, y: Tensor, candidates: Tensor, *, margin: Margin | None = None) -> Tensor:
    """The candidate of highest `m(y, ŷ) - F(x, ŷ)` for each of x (B, X), y (B, Y): (B, Y).

    ``candidates`` (K, Y) or (B, K, Y). Without ``margin`` the one of lowest energy. A candidate equal to y has margin
    0 and is no contrast: it is taken only where there is no other. Raises InvalidArgumentError for an empty set, and
    NonFiniteEnergyError.
    """
    if candidates.dim() not in (2, 3) or 0 in candidates.shape[:-1]:
        raise InvalidArgumentError(
            f"candidates: expected (K, Y) or (B, K, Y) with K >= 1, got {tuple(candidates.shape)}"
        )
    shared = candidates.dim() == 2
    energies = finite(energy(x[:1, None] if shared and not x.shape[-1] else x[:, None], candidates))
    score = -energies if margin is None else margins(margin, y[:, None], candidates) - energies
    same = (candidates == y[:, None]).all(dim=-1)
    best = torch.where(same, -math.inf, score).argmax(dim=1)
    return candidates[best] if shared else candidates[torch.arange(len(y), device=y.device), best]


def most_offending_nearby(
    energy: Energy,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    *,
    margin: Margin | None = None,
    steps: int = 10,
    step_size: float = 0.1,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Ascends `m(y, ŷ) - F(x, ŷ)` from ``start`` (B, Y), each step of length at most ``step_size``: (B, Y).

    Steps are the gradient, shortened to that length where it is longer. Raises InvalidArgumentError,
    NonFiniteEnergyError.
    """
    if start.shape != y.shape or not len(y):
        raise InvalidArgumentError(f"start: expected {tuple(y.shape)} with B >= 1, got {tuple(start.shape)}")
    if steps < 1 or not step_size > 0:
        raise InvalidArgumentError(f"expected steps >= 1 and step_size > 0, got {steps} and {step_size}")
    target = y.detach()

    def offence(x: Tensor, other: Tensor) -> Tensor:
        return energy(x, other) if margin is None else energy(x, other) - margins(margin, target, other)

    at = start.detach()
    for _ in range(steps):
        value, gradient = energy_and_gradient(offence, x, at)
        finite(value)
        length = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        at = at - gradient * (step_size / length.clamp_min(step_size)).clamp(max=1)
        at = at if bounds is None else at.clamp(*bounds)
    return at


class Generator(nn.Module):
    """`ŷ = g_u(x, z)` with Gaussian z, within [low, high]: the generator of row 9.

    The first Y numbers of z are added to the output before it is squashed into the bounds, so that a new generator
    already covers them.
    """

    def __init__(self, x_dim: int, y_dim: int, *, low: float, high: float, z_dim: int = 8, hidden: int = 64) -> None:
        """Raises InvalidArgumentError unless low < high and z_dim >= y_dim."""
        super().__init__()
        if not low < high or z_dim < y_dim:
            raise InvalidArgumentError(f"expected low < high, z_dim >= y_dim, got {low}, {high}, {z_dim} and {y_dim}")
        self.y_dim = y_dim
        self.z_dim, self.low, self.high = z_dim, low, high
        self.network = mlp([x_dim + z_dim, hidden, hidden, y_dim])

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """One ŷ for each x (B, X): (B, Y), differentiable in the generator's parameters."""
        z = torch.randn(*x.shape[:-1], self.z_dim, dtype=x.dtype, device=x.device, generator=generator)
        out: Tensor = torch.sigmoid(self.network(joined(x, z)) + z[..., : self.y_dim])
        return self.low + (self.high - self.low) * out


def corrupt(y: Tensor, sigma: float, *, generator: torch.Generator | None = None) -> Tensor:
    """`ŷ = N(y)`: y (..., Y) and Gaussian noise of standard deviation ``sigma``. Raises InvalidArgumentError."""
    if not sigma > 0 or not y.numel():
        raise InvalidArgumentError(f"expected sigma > 0 and a y that is not empty, got {sigma} and {tuple(y.shape)}")
    return y + sigma * torch.randn(y.shape, dtype=y.dtype, device=y.device, generator=generator)


def nearest_neighbour_entropy(samples: Tensor) -> Tensor:
    """The entropy of samples (N, Y), N >= 2, up to a constant, in nats (Kozachenko and Leonenko 1987); a scalar.

    `Y mean_i log min_{j≠i} ‖y_i - y_j‖`. A generator that descends `F(ŷ) - entropy` comes to sample `exp(-F)` instead
    of the energy's minimum alone (Dai et al. 2017).
    """
    if samples.dim() != 2 or len(samples) < 2:
        raise InvalidArgumentError(f"samples: expected (N, Y) with N >= 2, got {tuple(samples.shape)}")
    with torch.no_grad():
        distances = torch.cdist(samples, samples)
        distances.fill_diagonal_(math.inf)
        nearest = distances.argmin(dim=1)
    squared = (samples - samples[nearest]).square().sum(dim=-1)
    return samples.shape[1] / 2 * torch.log(squared + 1e-12).mean()
