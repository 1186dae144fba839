"""Inference in energy-based models: the best z, the free energy without z, the best values of what is hidden in y.

Paper sections 4.1 and 4.2: `ž = argmin_z E(x, y, z)`; `F(x, y) = min_z E`, or `-1/β log ∫ exp(-β E) dz`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pyjepa.energy.energies import Energy, LatentEnergy, broadcast, finite
from pyjepa.energy.latents import Discrete, Latent
from pyjepa.energy.sampling import Langevin, energy_and_gradient
from pyjepa.errors import InvalidArgumentError


class Inferred(NamedTuple):
    """The z found for each of B pairs."""

    z: Tensor
    """(B, Z), without a gradient."""
    energy: Tensor
    """`E(x, y, z) + R(z)`, (B,), without a gradient."""


class Completed(NamedTuple):
    """y with its hidden part filled in."""

    y: Tensor
    """(B, Y), without a gradient."""
    energy: Tensor
    """`F(x, y)`, (B,), without a gradient."""


@dataclass(frozen=True)
class Exhaustive:
    """Tries every code of a discrete latent."""


@dataclass(frozen=True)
class GradientDescent:
    """Proximal gradient descent from ``starts`` draws of the prior; every start has a step size of its own.

    A step that does not lower the energy is taken back and the step size halved, so that the energy never rises.
    """

    starts: int = 8
    steps: int = 50
    step_size: float = 0.1

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        if self.starts < 1 or self.steps < 1 or not self.step_size > 0:
            raise InvalidArgumentError(f"expected starts >= 1, steps >= 1 and step_size > 0, got {self}")


@dataclass(frozen=True)
class LangevinSearch:
    """Langevin chains from ``starts`` draws of the prior; a sample of `exp(-E)` at the chain's temperature.

    The best of the chains' last positions is taken.
    """

    starts: int = 8
    chain: Langevin = field(default_factory=lambda: Langevin(steps=50, step_size=0.01))


Method = Exhaustive | GradientDescent | LangevinSearch


class LatentVariableEBM:
    """`E(x, y, z)` with a limited latent; itself an `Energy`, the free energy `F(x, y)` at zero temperature.

    ``method`` is how z is inferred: `Exhaustive` for discrete latents and `GradientDescent` for others where None.
    """

    def __init__(self, energy: LatentEnergy, latent: Latent, *, method: Method | None = None) -> None:
        """Raises InvalidArgumentError for `Exhaustive` with a latent that is not discrete, or the reverse."""
        self.base, self.latent = energy, latent
        discrete = isinstance(latent, Discrete)
        self.method = method or (Exhaustive() if discrete else GradientDescent())
        if discrete is not isinstance(self.method, Exhaustive):
            raise InvalidArgumentError(
                f"method: {type(self.method).__name__} cannot infer a {type(latent).__name__} latent"
            )

    def energy(self, x: Tensor, y: Tensor, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """`E(x, y, z) + R(z)` of x (..., X), y (..., Y) and z (..., Z); differentiable in all of them."""
        return self.base(x, y, self.latent.transmit(z, generator)) + self.latent.penalty(z)

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor:
        """`free_energy(x, y)`."""
        return self.free_energy(x, y)

    def infer_z(self, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Inferred:
        """`ž = argmin_z E(x, y, z)` for x (..., X) and y (..., Y). Raises NonFiniteEnergyError."""
        shape = broadcast(x.shape[:-1], y.shape[:-1])
        x, y = (v.detach().expand(*shape, v.shape[-1]).reshape(-1, v.shape[-1]) for v in (x, y))
        match self.method:
            case Exhaustive():
                found = self._enumerate(x, y, generator)
            case GradientDescent():
                found = self._descend(x, y, self.method, generator)
            case LangevinSearch():
                found = self._sample(x, y, self.method, generator)
        return Inferred(found.z.reshape(*shape, -1), found.energy.reshape(shape))

    def free_energy(
        self,
        x: Tensor,
        y: Tensor,
        *,
        beta: float | None = None,
        samples: int = 64,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`F(x, y)` of x (..., X) and y (..., Y): (...), differentiable in x, y and the energy's parameters.

        ``beta`` None: `min_z E`; its gradient is that of E at the inferred z, exact where the search has reached the
        minimum. Otherwise `-1/β log Σ_z exp(-β E)` over the codes of a discrete latent, and for others
        `-1/β log ∫ exp(-β E) dz`, estimated by ``samples`` draws of the prior, weighted.
        Raises InvalidArgumentError for beta <= 0 and NonFiniteEnergyError.
        """
        if beta is None:
            return finite(self.energy(x, y, self.infer_z(x, y, generator=generator).z, generator=generator))
        if not beta > 0 or samples < 1:
            raise InvalidArgumentError(f"expected beta > 0 and samples >= 1, got {beta} and {samples}")
        if isinstance(self.latent, Discrete):
            z = self.latent.codes.to(y)
            log_weights = y.new_zeros(len(z))
        else:
            shape = broadcast(x.shape[:-1], y.shape[:-1])
            z = self.latent.draw((*shape, samples), y, generator)
            log_weights = -self.latent.log_prior(z) - math.log(samples)
        energies = finite(self.energy(x.unsqueeze(-2), y.unsqueeze(-2), z, generator=generator))
        return -torch.logsumexp(log_weights - beta * energies, dim=-1) / beta

    @torch.no_grad()
    def _enumerate(self, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Inferred:
        assert isinstance(self.latent, Discrete)
        codes = self.latent.codes.to(y)
        energies = finite(self.energy(x[:, None], y[:, None], codes, generator=generator))
        best = energies.min(dim=1)
        return Inferred(codes[best.indices], best.values)

    def _descend(self, x: Tensor, y: Tensor, method: GradientDescent, generator: torch.Generator | None) -> Inferred:
        x, y = (v.expand(method.starts, *v.shape) for v in (x, y))
        z = self.latent.draw((method.starts, y.shape[1]), y, generator)

        def base(z: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                value = self.base(x, y, self.latent.transmit(z, generator))
                (gradient,) = torch.autograd.grad(value.sum(), z)
            return (value + self.latent.penalty(z)).detach(), gradient

        value, gradient = base(z)
        finite(value)
        step = torch.full_like(value, method.step_size)
        for _ in range(method.steps):
            proposal = self.latent.proximal(z - step.unsqueeze(-1) * gradient, step).detach()
            new_value, new_gradient = base(proposal)
            better = new_value <= value  # a NaN is not
            z, gradient = (
                torch.where(better.unsqueeze(-1), new, old) for new, old in ((proposal, z), (new_gradient, gradient))
            )
            value, step = torch.where(better, new_value, value), torch.where(better, step * 1.2, step / 2)
        return _best(z, value)

    def _sample(self, x: Tensor, y: Tensor, method: LangevinSearch, generator: torch.Generator | None) -> Inferred:
        x, y = (v.expand(method.starts, *v.shape).flatten(0, 1) for v in (x, y))
        z = self.latent.draw((len(y),), y, generator)
        chains = method.chain(lambda x, z: self.energy(x, y, z, generator=generator), x, z, generator=generator)
        bounded = self.latent.proximal(chains.y, chains.energy.new_zeros(len(y)))
        with torch.no_grad():
            energy = self.energy(x, y, bounded, generator=generator)
        return _best(bounded.reshape(method.starts, -1, bounded.shape[1]), energy.reshape(method.starts, -1))


def _best(z: Tensor, energy: Tensor) -> Inferred:
    """Of starts (S, B, Z) with energies (S, B), each row's best."""
    finite(energy)
    best = energy.min(dim=0)
    return Inferred(z.gather(0, best.indices[None, :, None].expand(1, -1, z.shape[-1])).squeeze(0), best.values)


def complete(
    energy: Energy,
    x: Tensor,
    y: Tensor,
    hidden: Tensor,
    *,
    starts: int = 4,
    steps: int = 100,
    step_size: float = 0.1,
    spread: float = 1.0,
    bounds: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> Completed:
    """Fills in what is hidden of y by descending the energy: the paper's picture of self-supervised learning.

    x (B, X), y (B, Y) and ``hidden``, a mask (Y,) or (B, Y), True where y is to be found; what y holds there is the
    first start, and the others add Gaussian noise of standard deviation ``spread``. The best of the starts is
    returned. ``bounds`` clamps. Raises InvalidArgumentError for a mask that hides everything or nothing of a row (to
    find all of y is sampling: `pyjepa.energy.sampling`), and NonFiniteEnergyError.
    """
    if y.dim() != 2 or len(x) != len(y) or not len(y):
        raise InvalidArgumentError(f"expected x (B, X) and y (B, Y), B >= 1, got {tuple(x.shape)} and {tuple(y.shape)}")
    if hidden.dtype != torch.bool or hidden.shape not in (y.shape, y.shape[1:]):
        raise InvalidArgumentError(
            f"hidden: expected a boolean mask {tuple(y.shape[1:])} or {tuple(y.shape)}, "
            f"got {hidden.dtype} {tuple(hidden.shape)}"
        )
    if starts < 1 or steps < 1 or not step_size > 0:
        raise InvalidArgumentError(f"expected starts, steps >= 1 and step_size > 0, got {starts}, {steps}, {step_size}")
    hidden = hidden.expand(y.shape)
    for what, rows in (("everything", hidden.all(dim=1)), ("nothing", ~hidden.any(dim=1))):
        if bool(rows.any()):
            raise InvalidArgumentError(f"hidden: the mask hides {what} of row {int(rows.nonzero()[0])}")
    x, given, mask = (v.detach().repeat(starts, 1) for v in (x, y, hidden))
    noise = spread * torch.randn(given.shape, dtype=y.dtype, device=y.device, generator=generator)
    noise[: len(y)] = 0
    at = torch.where(mask, given + noise, given)
    if bounds is not None:
        at = torch.where(mask, at.clamp(*bounds), at)
    value, gradient = energy_and_gradient(energy, x, at)
    finite(value)
    step = torch.full_like(value, step_size)
    for _ in range(steps):
        proposal = at - step[:, None] * gradient
        if bounds is not None:
            proposal = proposal.clamp(*bounds)
        proposal = torch.where(mask, proposal, at)
        new_value, new_gradient = energy_and_gradient(energy, x, proposal)
        better = new_value <= value
        at, gradient = (
            torch.where(better[:, None], new, old) for new, old in ((proposal, at), (new_gradient, gradient))
        )
        value, step = torch.where(better, new_value, value), torch.where(better, step * 1.2, step / 2)
    return Completed(*_best(at.reshape(starts, *y.shape), value.reshape(starts, -1)))
