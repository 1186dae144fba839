"""Two-dimensional densities known in closed form, and what a learnt energy is worth against them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyjepa.energy.energies import Energy, finite, nothing
from pyjepa.errors import InvalidArgumentError


@dataclass(frozen=True)
class Mixture:
    """A mixture of isotropic Gaussians in the plane, and the box [-box, box]² that holds it."""

    name: str
    means: tuple[tuple[float, float], ...]
    sigmas: tuple[float, ...]
    weights: tuple[float, ...]
    box: float = 2.5

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for unequal lengths, a sigma that is not positive, or weights not adding to 1."""
        if not len(self.means) == len(self.sigmas) == len(self.weights) > 0:
            raise InvalidArgumentError(
                f"{self.name}: expected as many means as sigmas and weights, got "
                f"{len(self.means)}, {len(self.sigmas)} and {len(self.weights)}"
            )
        if min(self.sigmas) <= 0 or min(self.weights) <= 0 or not math.isclose(sum(self.weights), 1):
            raise InvalidArgumentError(f"{self.name}: expected positive sigmas, and positive weights that add up to 1")

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` points: (count, 2)."""
        component = torch.multinomial(torch.tensor(self.weights), count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, generator=generator)
        return torch.tensor(self.means)[component] + torch.tensor(self.sigmas)[component, None] * noise

    def log_density(self, y: Tensor) -> Tensor:
        """`log p(y)`: (..., 2) to (...), in nats."""
        means, sigmas = y.new_tensor(self.means), y.new_tensor(self.sigmas)
        squared = (y[..., None, :] - means).square().sum(dim=-1)
        logs = torch.log(y.new_tensor(self.weights) / (2 * math.pi * sigmas**2)) - squared / (2 * sigmas**2)
        return torch.logsumexp(logs, dim=-1)

    def energy(self, x: Tensor, y: Tensor) -> Tensor:
        """`F = -log p(y)`, the energy that maximum likelihood looks for; x plays no part."""
        return -self.log_density(y)


def ring(count: int = 6, *, radius: float = 1.5, sigma: float = 0.1) -> Mixture:
    """``count`` equal Gaussians on a circle."""
    angles = [2 * math.pi * k / count for k in range(count)]
    means = tuple((radius * math.cos(a), radius * math.sin(a)) for a in angles)
    return Mixture(f"ring of {count}", means, (sigma,) * count, (1 / count,) * count)


def unequal() -> Mixture:
    """Three Gaussians of different weights and widths."""
    return Mixture("unequal three", ((-1.2, -0.9), (1.2, -0.6), (0.1, 1.3)), (0.1, 0.12, 0.15), (0.5, 0.3, 0.2))


DENSITIES: Sequence[Mixture] = (ring(), unequal())
"""What `pyjepa energy-lab` trains on; every sigma is on its page."""


def plane(box: float, side: int) -> Tensor:
    """The midpoints of side × side equal cells of [-box, box]²: (side², 2)."""
    middle = ((torch.arange(side) + 0.5) / side * 2 - 1) * box
    return torch.cartesian_prod(middle, middle)


@torch.no_grad()
def log_partition(energy: Energy, box: float, *, side: int = 200) -> float:
    """`log ∫ exp(-F(y)) dy` over [-box, box]², by the midpoint rule. Raises NonFiniteEnergyError."""
    points = plane(box, side)
    energies = finite(energy(nothing(points), points)).double()
    return float(torch.logsumexp(-energies, dim=0)) + 2 * math.log(2 * box / side)


@torch.no_grad()
def negative_log_likelihood(energy: Energy, data: Tensor, box: float, *, side: int = 200) -> float:
    """The mean of `F(y) + log ∫ exp(-F)` over data (N, 2), in nats, integrated numerically over [-box, box]².

    Raises InvalidArgumentError where data lie outside the box, NonFiniteEnergyError.
    """
    if data.abs().max() > box:
        raise InvalidArgumentError(f"data: expected within [-{box}, {box}], got {float(data.abs().max())}")
    return float(finite(energy(nothing(data), data)).double().mean()) + log_partition(energy, box, side=side)
