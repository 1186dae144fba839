"""Markov chains that sample `exp(-F(x, y))` over y: Langevin, Hamiltonian and Gibbs steps, truncated or persistent.

Samples carry no gradient. A chain that diverges (an energy, gradient or position that is no number or beyond ``limit``)
is put back where it started and reported: in `Chains.divergences` and as a `ChainDivergedWarning`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyjepa.energy.energies import Energy, finite
from pyjepa.errors import DivergedChainError, InvalidArgumentError


class ChainDivergedWarning(UserWarning):
    """Chains diverged and were started again; the message says how many and how often."""


@dataclass(frozen=True)
class Chains:
    """Where B chains have come to."""

    y: Tensor
    """(B, Y), without a gradient."""
    energy: Tensor
    """`F(x, y)`, (B,)."""
    acceptance: float
    """The share of proposals accepted; 1 for chains that accept all."""
    divergences: int
    """How often a chain was started again because it had diverged."""


class Sampler(Protocol):
    """Steps of B chains from y (B, Y), for x (B, X)."""

    def __call__(self, energy: Energy, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Chains:
        """Where the chains come to."""
        ...


@dataclass(frozen=True)
class Langevin:
    """`y ← y - ε ∇F + sqrt(2 ε T) noise`; with ``metropolis`` each step is accepted or refused, which makes it exact.

    ``temperature`` T = 0 descends the energy. ``bounds`` clamps y: for data known to lie within.
    """

    steps: int = 20
    step_size: float = 0.01
    temperature: float = 1.0
    metropolis: bool = False
    bounds: tuple[float, float] | None = None
    limit: float = 1e3
    restarts: int = 3

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        _positive(steps=self.steps, step_size=self.step_size, limit=self.limit)
        if self.temperature < 0 or (self.metropolis and self.temperature == 0):
            raise InvalidArgumentError(f"temperature: expected >= 0 (> 0 with metropolis), got {self.temperature}")

    def __call__(self, energy: Energy, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Chains:
        """``steps`` steps. Raises DivergedChainError for a chain that diverged more than ``restarts`` times."""
        guard = _Guard(energy, x, y, self.limit, self.restarts)
        y, value, gradient = guard.start()
        accepted = 0.0
        for _ in range(self.steps):
            noise = _normal(y, generator)
            proposal = y - self.step_size * gradient + math.sqrt(2 * self.step_size * self.temperature) * noise
            if self.bounds is not None:
                proposal = proposal.clamp(*self.bounds)
            proposal, new_value, new_gradient, bad = guard.check(proposal)
            if self.metropolis:
                there = (proposal - y + self.step_size * gradient).square().sum(-1)
                back = (y - proposal + self.step_size * new_gradient).square().sum(-1)
                log_ratio = (value - new_value) / self.temperature + (there - back) / (
                    4 * self.step_size * self.temperature
                )
                take = (_uniform(value, generator).log() < log_ratio) | bad
                proposal, new_value, new_gradient = (
                    torch.where(take.reshape(-1, *[1] * (new.dim() - 1)), new, old)
                    for new, old in ((proposal, y), (new_value, value), (new_gradient, gradient))
                )
                accepted += float((take & ~bad).float().mean())
            y, value, gradient = proposal, new_value, new_gradient
        return guard.end(y, value, accepted / self.steps if self.metropolis else 1.0)


@dataclass(frozen=True)
class Hamiltonian:
    """Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011): leapfrog trajectories, accepted or refused.

    Each trajectory's step size is within a fifth of ``step_size``, at random: one whose length is a multiple of the
    energy's own half period would come back to where it began.
    """

    steps: int = 5
    leapfrog: int = 8
    step_size: float = 0.1
    limit: float = 1e3
    restarts: int = 3

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        _positive(steps=self.steps, leapfrog=self.leapfrog, step_size=self.step_size, limit=self.limit)

    def __call__(self, energy: Energy, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Chains:
        """``steps`` trajectories. Raises DivergedChainError for a chain that diverged more than ``restarts`` times."""
        guard = _Guard(energy, x, y, self.limit, self.restarts)
        y, value, gradient = guard.start()
        accepted = 0.0
        for _ in range(self.steps):
            momentum = _normal(y, generator)
            step_size = self.step_size * (0.8 + 0.4 * _uniform(value, generator))[:, None]
            before = value + momentum.square().sum(-1) / 2
            position, slope, diverged = y, gradient, torch.zeros_like(value, dtype=torch.bool)
            for _ in range(self.leapfrog):
                momentum = momentum - step_size / 2 * slope
                position, new_value, slope, bad = guard.check(position + step_size * momentum)
                momentum = momentum - step_size / 2 * slope
                diverged |= bad
            log_ratio = before - new_value - momentum.square().sum(-1) / 2
            take = (_uniform(value, generator).log() < log_ratio) | diverged
            y, gradient = (torch.where(take[:, None], new, old) for new, old in ((position, y), (slope, gradient)))
            value = torch.where(take, new_value, value)
            accepted += float((take & ~diverged).float().mean())
        return guard.end(y, value, accepted / self.steps)


@dataclass(frozen=True)
class Gibbs:
    """One coordinate after the other, drawn from its conditional over the ``values`` it may take.

    For discrete y the values are all there are; for continuous y they are a grid of spacing ``width``, which every
    chain shifts by a random part of it (griddy Gibbs, Ritter and Tanner 1992). No step size, no divergence.
    """

    values: Tensor
    """(V,), the same for every coordinate."""
    sweeps: int = 1
    width: float = 0.0
    chunk: int = 1 << 20
    """At most about so many energies are computed at a time."""

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        _positive(sweeps=self.sweeps)
        if self.values.dim() != 1 or not len(self.values):
            raise InvalidArgumentError(f"values: expected (V,) with V >= 1, got {tuple(self.values.shape)}")
        if self.width < 0:
            raise InvalidArgumentError(f"width: expected >= 0, got {self.width}")

    @torch.no_grad()
    def __call__(self, energy: Energy, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Chains:
        """``sweeps`` visits to every coordinate. Raises NonFiniteEnergyError."""
        _chains(x, y)
        y, values = y.detach().clone(), self.values.to(y)
        rows = max(1, self.chunk // len(values))
        for _ in range(self.sweeps):
            for j in range(y.shape[-1]):
                for first in range(0, len(y), rows):
                    part = slice(first, first + rows)
                    shift = (_uniform(y[part, j], generator) - 0.5) * self.width
                    candidates = y[part, None].repeat(1, len(values), 1)
                    candidates[:, :, j] = values + shift[:, None]
                    energies = finite(energy(x[part, None], candidates))
                    chosen = torch.multinomial(torch.softmax(-energies, dim=-1), 1, generator=generator).squeeze(-1)
                    y[part, j] = values[chosen] + shift
        return Chains(y, finite(energy(x, y)), 1.0, 0)


@dataclass(frozen=True)
class ImportanceResampling:
    """Monte Carlo without a chain: ``proposals`` uniform points of the box [low, high]^Y, of which each row draws one.

    A point is drawn with a probability in proportion to `exp(-F)`, which tends to an exact sample with more proposals
    (Rubin 1987). In a few dimensions only. Where x has no features all rows share their proposals. The y given tells
    only how many rows and dimensions there are.
    """

    low: float
    high: float
    proposals: int = 1024

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        if not self.low < self.high or self.proposals < 1:
            raise InvalidArgumentError(f"expected low < high and proposals >= 1, got {self}")

    @torch.no_grad()
    def __call__(self, energy: Energy, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Chains:
        """Independent samples. Raises NonFiniteEnergyError."""
        _chains(x, y)
        x, count = (x, len(y)) if x.shape[1] else (x[:1], 1)
        points = torch.rand(count, self.proposals, y.shape[1], dtype=y.dtype, device=y.device, generator=generator)
        points = self.low + (self.high - self.low) * points
        energies = finite(energy(x[:, None], points))
        draws = torch.multinomial(torch.softmax(-energies, dim=1), len(y) // count, True, generator=generator)
        rows = torch.arange(count, device=y.device)[:, None]
        return Chains(points[rows, draws].reshape(y.shape), energies.gather(1, draws).reshape(len(y)), 1.0, 0)


class PersistentChains:
    """Chains that go on where the last call left them (Tieleman 2008), one for each of N rows of data.

    ``fresh()`` draws N new starts (N, Y). Each call starts a random ``restart`` of the chains it moves anew, so that
    none gets stuck for ever (Du and Mordatch 2019).
    """

    def __init__(self, sampler: Sampler, fresh: Callable[[], Tensor], *, restart: float = 0.05) -> None:
        """Raises InvalidArgumentError unless 0 <= restart <= 1."""
        if not 0 <= restart <= 1:
            raise InvalidArgumentError(f"restart: expected within [0, 1], got {restart}")
        self.sampler, self.fresh, self.restart = sampler, fresh, restart
        self.state = fresh().detach().clone()

    def __call__(
        self, energy: Energy, x: Tensor, rows: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Chains:
        """Moves the chains of ``rows`` (B,) of N, or all of them, for x (B, X)."""
        rows = torch.arange(len(self.state), device=self.state.device) if rows is None else rows
        y = self.state[rows]
        again = torch.rand(len(rows), generator=generator, device=y.device) < self.restart
        if bool(again.any()):
            y = torch.where(again[:, None], self.fresh().to(y)[rows], y)
        chains = self.sampler(energy, x, y, generator=generator)
        self.state[rows] = chains.y
        return chains


class _Guard:
    """Energy and gradient of chains, each of which starts again when it diverges."""

    def __init__(self, energy: Energy, x: Tensor, y: Tensor, limit: float, restarts: int) -> None:
        _chains(x, y)
        self.energy, self.x, self.limit, self.restarts = energy, x, limit, restarts
        self.origin = y.detach().clone()
        self.counts = torch.zeros(len(y), dtype=torch.long, device=y.device)

    def start(self) -> tuple[Tensor, Tensor, Tensor]:
        value, gradient = self._evaluate(self.origin)
        finite(value, "energy where a chain starts")
        finite(gradient, "gradient where a chain starts")
        self.origin_value, self.origin_gradient = value, gradient
        return self.origin, value, gradient

    def check(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y, its energy and gradient, those of diverged chains replaced by the start's; and which diverged (B,)."""
        inside = y.isfinite().all(dim=-1) & (y.abs().amax(dim=-1) <= self.limit)
        value, gradient = self._evaluate(torch.where(inside[:, None], y, self.origin))
        bad = ~(inside & value.isfinite() & gradient.isfinite().all(dim=-1))
        if bool(bad.any()):
            self.counts += bad
            if int(self.counts.max()) > self.restarts:
                raise DivergedChainError(
                    f"a chain diverged {int(self.counts.max())} times (restarts: {self.restarts}); "
                    "a smaller step_size, or an energy that grows with the distance, would hold it"
                )
            y = torch.where(bad[:, None], self.origin, y)
            value = torch.where(bad, self.origin_value, value)
            gradient = torch.where(bad[:, None], self.origin_gradient, gradient)
        return y, value, gradient, bad

    def end(self, y: Tensor, value: Tensor, acceptance: float) -> Chains:
        divergences = int(self.counts.sum())
        if divergences:
            warnings.warn(
                f"{int((self.counts > 0).sum())} of {len(y)} chains diverged and were started again "
                f"({divergences} times): the step size may be too large",
                ChainDivergedWarning,
                stacklevel=3,
            )
        return Chains(y, value, acceptance, divergences)

    def _evaluate(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return energy_and_gradient(self.energy, self.x, y)


def energy_and_gradient(energy: Energy, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`F(x, y)` (B,) and `∂F/∂y` (B, Y), neither with a graph, whatever gradient mode is on."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        value = energy(x.detach(), y)
        if value.shape != y.shape[:-1]:
            raise InvalidArgumentError(f"energy: expected {tuple(y.shape[:-1])} values, got {tuple(value.shape)}")
        (gradient,) = torch.autograd.grad(value.sum(), y)
    return value.detach(), gradient


def _chains(x: Tensor, y: Tensor) -> None:
    if y.dim() != 2 or not len(y) or len(x) != len(y):
        raise InvalidArgumentError(
            f"expected x (B, X) and y (B, Y) with B >= 1, got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def _positive(**settings: float) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise InvalidArgumentError(f"{name}: expected > 0, got {value}")


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=generator)
