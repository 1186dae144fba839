"""Energies `F(x, y)`: low where y goes with x, higher elsewhere (paper section 4.1).

Shapes are those of numpy's broadcasting: x (..., X), y (..., Y), z (..., Z) give energies (...), so that a set of K
candidates for each of B pairs is ``energy(x[:, None], candidates)`` with candidates (B, K, Y) or (K, Y). Where there
is nothing to condition on, x has no features: (B, 0), as `nothing` makes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjepa.errors import InvalidArgumentError, NonFiniteEnergyError


class Energy(Protocol):
    """`F(x, y)`: x (..., X) and y (..., Y) to energies (...)."""

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor:
        """The energies."""
        ...


class LatentEnergy(Protocol):
    """`E(x, y, z)`: x (..., X), y (..., Y) and z (..., Z) to energies (...)."""

    def __call__(self, x: Tensor, y: Tensor, z: Tensor, /) -> Tensor:
        """The energies."""
        ...


def nothing(y: Tensor) -> Tensor:
    """The x of an unconditional energy of y (B, Y): (B, 0)."""
    return y.new_empty(*y.shape[:-1], 0)


def finite(energies: Tensor, what: str = "energy") -> Tensor:
    """The energies, all of them numbers. Raises NonFiniteEnergyError with how many are not."""
    bad = int((~torch.isfinite(energies)).sum())
    if bad:
        raise NonFiniteEnergyError(f"{what}: {bad} of {energies.numel()} values are not finite")
    return energies


def broadcast(*shapes: torch.Size) -> torch.Size:
    """The shape that these broadcast to."""
    out: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return out


def joined(*parts: Tensor) -> Tensor:
    """Features side by side, after broadcasting: (..., A), (..., B) to (..., A + B)."""
    shape = broadcast(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], dim=-1)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """`D(a, b) = ‖a - b‖²` over the last axis: (..., D) and (..., D) to (...)."""
    return (a - b).square().sum(dim=-1)


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with SiLU between them: smooth, since chains follow an energy's gradient."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class NeuralEnergy(nn.Module):
    """Any energy: a network of x and y, plus `confinement / 2 ‖y‖²` so that `exp(-F)` has an integral."""

    def __init__(self, x_dim: int, y_dim: int, *, hidden: int = 64, layers: int = 2, confinement: float = 0.1) -> None:
        """``layers`` hidden layers of width ``hidden``."""
        super().__init__()
        self.trunk = nn.Sequential(mlp([x_dim + y_dim, *[hidden] * layers]), nn.SiLU())
        self.head = nn.Linear(hidden, 1)
        self.confinement = confinement

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        """What the energy is read from: (..., hidden)."""
        out: Tensor = self.trunk(joined(x, y))
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The energies (...)."""
        network: Tensor = self.head(self.features(x, y)).squeeze(-1)
        return network + self.confinement / 2 * y.square().sum(dim=-1)


class PositiveEnergy(NeuralEnergy):
    """A network's energy made positive (softplus), as rows 6a, 6b and 9 ask."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The energies (...), all above 0."""
        return functional.softplus(super().forward(x, y))


class FactorisedEnergy(nn.Module):
    """A tractable energy: `F(x, y) = Σ_j f_j(x, y_j)`, whose `∫ exp(-F) dy` is a product of one-dimensional integrals.

    Each `f_j(x, .)` is piecewise linear between ``knots`` evenly spaced on [low, high], with the heights given by a
    network of x; beyond the ends it grows with the squared distance.
    """

    def __init__(
        self, x_dim: int, y_dim: int, *, low: float, high: float, knots: int = 17, hidden: int = 64, wall: float = 100.0
    ) -> None:
        """Raises InvalidArgumentError unless low < high and knots >= 2."""
        super().__init__()
        if not low < high or knots < 2:
            raise InvalidArgumentError(f"expected low < high and knots >= 2, got {low}, {high} and {knots}")
        self.low, self.high, self.knots, self.wall = low, high, knots, wall
        self.y_dim = y_dim
        self.trunk = nn.Sequential(mlp([x_dim, hidden, hidden]), nn.SiLU())
        self.head = nn.Linear(hidden, y_dim * knots)

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        """What the heights are read from: (..., hidden); y plays no part."""
        out: Tensor = self.trunk(x)
        return out

    def heights(self, x: Tensor) -> Tensor:
        """The energy at the knots: (..., Y, knots)."""
        out: Tensor = self.head(self.trunk(x))
        return out.reshape(*out.shape[:-1], self.y_dim, self.knots)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The energies (...)."""
        place = (y.clamp(self.low, self.high) - self.low) / (self.high - self.low) * (self.knots - 1)
        left = place.floor().clamp(max=self.knots - 2)
        heights = self.heights(x)
        shape = broadcast(heights.shape[:-1], y.shape)
        heights = heights.expand(*shape, self.knots)
        index = left.long().expand(shape).unsqueeze(-1)
        below, above = (heights.gather(-1, i).squeeze(-1) for i in (index, index + 1))
        outside = (y - y.clamp(self.low, self.high)).square().sum(dim=-1)
        return torch.lerp(below, above, (place - left).expand(shape)).sum(dim=-1) + self.wall * outside

    def log_partition(self, x: Tensor) -> Tensor:
        """`log ∫ exp(-F(x, y)) dy` over the box [low, high]^Y: (...), exact between the knots."""
        heights = self.heights(x)
        rise = (heights[..., 1:] - heights[..., :-1]).abs()
        # ∫ exp(-(a + r t)) dt over [0, 1] = exp(-a) (1 - exp(-r)) / r, with its series where r is all but 0.
        steep = rise > 1e-3
        safe = torch.where(steep, rise, 1.0)
        log_mean = torch.where(steep, torch.log(-torch.expm1(-safe) / safe), -rise / 2)
        segments = log_mean - torch.minimum(heights[..., 1:], heights[..., :-1])
        log_width = math.log((self.high - self.low) / (self.knots - 1))
        return (torch.logsumexp(segments, dim=-1) + log_width).sum(dim=-1)
