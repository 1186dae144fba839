"""Four ways to limit what a latent variable z may tell (paper sections 4.3 and 4.5, criterion 4).

A latent that can carry all of y makes the energy low everywhere. Each limit here says where a search for z starts, how
its regulariser `R(z)` grows, and what a step of a search must do to keep to it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.errors import InvalidArgumentError


class Latent(ABC):
    """A limited latent variable z of ``dim`` numbers."""

    dim: int

    @abstractmethod
    def draw(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Samples of z's prior, (*shape, Z): where searches start, and what to draw from when y is unknown."""

    @abstractmethod
    def log_prior(self, z: Tensor) -> Tensor:
        """The logarithm of the prior's density (of its mass, for discrete z) at z (..., Z): (...)."""

    def penalty(self, z: Tensor) -> Tensor:
        """`R(z)`, (..., Z) to (...)."""
        return z.new_zeros(z.shape[:-1])

    def proximal(self, z: Tensor, step: Tensor) -> Tensor:
        """The minimum over z' of `‖z' - z‖² / 2 + step R(z')`, for z (..., Z) and step (...)."""
        return z

    def transmit(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What arrives of z (..., Z) at the decoder or predictor."""
        return z


@dataclass(frozen=True, eq=False)
class Discrete(Latent):
    """z is one of the K rows of ``codes`` (K, Z): at most log K nats. One-hot vectors by `Discrete.one_hot`."""

    codes: Tensor

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for an empty code book."""
        if self.codes.dim() != 2 or not len(self.codes):
            raise InvalidArgumentError(f"codes: expected (K, Z) with K >= 1, got {tuple(self.codes.shape)}")

    @classmethod
    def one_hot(cls, count: int) -> Discrete:
        """``count`` one-hot codes."""
        return cls(torch.eye(count))

    @property
    def dim(self) -> int:  # type: ignore[override]  # a property where the others hold a number
        """Z."""
        return self.codes.shape[1]

    def draw(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes at random."""
        index = torch.randint(len(self.codes), shape, generator=generator, device=like.device)
        return self.codes.to(like)[index]

    def log_prior(self, z: Tensor) -> Tensor:
        """`-log K`."""
        return z.new_full(z.shape[:-1], -math.log(len(self.codes)))


@dataclass(frozen=True)
class Unlimited(Latent):
    """No limit, for comparison: searches start at Gaussian draws of standard deviation ``spread``."""

    dim: int
    spread: float = 1.0

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        _positive(dim=self.dim, spread=self.spread)

    def draw(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian."""
        return self.spread * torch.randn(*shape, self.dim, dtype=like.dtype, device=like.device, generator=generator)

    def log_prior(self, z: Tensor) -> Tensor:
        """The Gaussian density's, from which samples come; it limits nothing."""
        scaled = (z / self.spread).square().sum(dim=-1)
        return -self.dim * math.log(self.spread * math.sqrt(2 * math.pi)) - scaled / 2


@dataclass(frozen=True)
class LowDimensional(Latent):
    """z has few dimensions, and each lies within [-bound, bound]."""

    dim: int
    bound: float = 3.0

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        _positive(dim=self.dim, bound=self.bound)

    def draw(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Uniform within the bounds."""
        unit = torch.rand(*shape, self.dim, dtype=like.dtype, device=like.device, generator=generator)
        return (unit * 2 - 1) * self.bound

    def log_prior(self, z: Tensor) -> Tensor:
        """That of the uniform density within the bounds."""
        inside = (z.abs() <= self.bound).all(dim=-1)
        return torch.where(inside, -self.dim * math.log(2 * self.bound), -math.inf).to(z)

    def proximal(self, z: Tensor, step: Tensor) -> Tensor:
        """Back to within the bounds."""
        return z.clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class Sparse(Latent):
    """`R(z) = weight ‖z‖₁`: z has many dimensions and few that are not 0 (sparse coding)."""

    dim: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        _positive(dim=self.dim, weight=self.weight)

    def draw(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Laplace, the prior whose negative logarithm is the penalty."""
        unit = torch.rand(*shape, self.dim, dtype=like.dtype, device=like.device, generator=generator) - 0.5
        return -unit.sign() * torch.log1p(-2 * unit.abs().clamp(max=0.5 - 1e-7)) / self.weight

    def log_prior(self, z: Tensor) -> Tensor:
        """The Laplace density's."""
        return self.dim * math.log(self.weight / 2) - self.penalty(z)

    def penalty(self, z: Tensor) -> Tensor:
        """`weight ‖z‖₁`."""
        return self.weight * z.abs().sum(dim=-1)

    def proximal(self, z: Tensor, step: Tensor) -> Tensor:
        """Every entry nearer to 0 by `weight step`, and 0 where it would cross."""
        return z.sign() * functional.relu(z.abs() - self.weight * step.unsqueeze(-1))


@dataclass(frozen=True)
class Noisy(Latent):
    """Noise of standard deviation ``sigma`` is added to z, and `R(z) = weight ‖z‖² / 2` keeps z from drowning it.

    A Gaussian channel: about `½ log(1 + z² / sigma²)` nats a dimension, as in variational auto-encoders.
    """

    dim: int
    sigma: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        _positive(dim=self.dim, sigma=self.sigma, weight=self.weight)

    def draw(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Gaussian, the prior whose negative logarithm is the penalty."""
        normal = torch.randn(*shape, self.dim, dtype=like.dtype, device=like.device, generator=generator)
        return normal / math.sqrt(self.weight)

    def log_prior(self, z: Tensor) -> Tensor:
        """The Gaussian density's."""
        return self.dim / 2 * math.log(self.weight / (2 * math.pi)) - self.penalty(z)

    def penalty(self, z: Tensor) -> Tensor:
        """`weight ‖z‖² / 2`."""
        return self.weight / 2 * z.square().sum(dim=-1)

    def proximal(self, z: Tensor, step: Tensor) -> Tensor:
        """`z / (1 + weight step)`."""
        return z / (1 + self.weight * step.unsqueeze(-1))

    def transmit(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """z and noise."""
        return z + self.sigma * torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)


def _positive(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise InvalidArgumentError(f"{name}: expected > 0, got {value}")
