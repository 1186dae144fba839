"""How `pyjepa energy-lab` trains each row of Table 1: an energy, its ŷ and its loss, on the plane and on digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from pyjepa.energy import losses
from pyjepa.energy.architectures import AutoEncoder, JointEmbedding
from pyjepa.energy.contrast import (
    DistanceMargin,
    Generator,
    Quadrature,
    corrupt,
    margins,
    most_offending,
    most_offending_nearby,
    nearest_neighbour_entropy,
)
from pyjepa.energy.densities import Mixture, plane
from pyjepa.energy.energies import FactorisedEnergy, NeuralEnergy, PositiveEnergy, nothing, squared_distance
from pyjepa.energy.methods import METHODS
from pyjepa.energy.sampling import Gibbs, ImportanceResampling, Langevin, PersistentChains
from pyjepa.errors import InvalidArgumentError

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The loss of x (B, X), y (B, Y) and the rows (B,) of the training data they are."""


@dataclass(frozen=True)
class Learner:
    """An energy with `features`, and the loss that teaches it."""

    energy: nn.Module
    loss: Loss


@dataclass(frozen=True)
class Plane:
    """y is a point of a density in the plane; there is no x."""

    density: Mixture
    noise: float = 1.0
    """Standard deviation of the corruption that the energy must tell from data."""

    @property
    def name(self) -> str:
        """The density's."""
        return self.density.name

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(x, y, rows); fresh points each time."""
        y = self.density.sample(count, generator)
        return nothing(y), y, torch.arange(count)

    def test(self) -> tuple[Tensor, Tensor]:
        """(x, y) that no training sees."""
        y = self.density.sample(4000, torch.Generator().manual_seed(2**31 - 1))
        return nothing(y), y


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 8 × 8 digits, pixels in [0, 1]: y the right half (32,), x the left (32,); a fifth for tests."""

    seed: int = 0
    noise: float = 0.3
    """Standard deviation of the corruption that the energy must tell from data."""
    name: str = "digits"

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x and y to train on, x and y to test on."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = torch.tensor(digits.images / 16, dtype=torch.float32)
        train, test = train_test_split(
            range(len(images)), test_size=0.2, random_state=self.seed, stratify=digits.target
        )
        x, y = images[:, :, :4].flatten(1), images[:, :, 4:].flatten(1)
        return x[train], y[train], x[test], y[test]

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(x, y, rows), drawn with replacement."""
        x, y, _, _ = self.halves
        rows = torch.randint(len(x), (count,), generator=generator)
        return x[rows], y[rows], rows

    def test(self) -> tuple[Tensor, Tensor]:
        """(x, y) that no training sees."""
        return self.halves[2], self.halves[3]


Task = Plane | Digits


def learner(key: str, task: Task, generator: torch.Generator) -> Learner:
    """The recipe of a row of Table 1 for a task; weights come from torch's global generator.

    Raises InvalidArgumentError for an unknown row.
    """
    if key not in METHODS:
        raise InvalidArgumentError(f"no method {key!r} (there are {', '.join(METHODS)})")
    return _on_plane(key, task, generator) if isinstance(task, Plane) else _on_digits(key, task, generator)


def train(
    learner: Learner,
    task: Task,
    *,
    steps: int,
    generator: torch.Generator,
    batch: int = 256,
    rate: float = 5e-3,
) -> None:
    """Adam with a short warm-up and a linear decay."""
    optimiser = torch.optim.Adam(learner.energy.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 50) * max(0.02, 1 - step / steps)
    )
    for _ in range(steps):
        loss = learner.loss(*task.batch(batch, generator))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimiser.step()
        schedule.step()


def _on_plane(key: str, task: Plane, generator: torch.Generator) -> Learner:
    box, hidden = task.density.box, 96
    if key == "10":
        coder = AutoEncoder(0, 2, code=hidden, hidden=hidden)
        return Learner(coder, _denoising(coder, 0.15, generator))
    positive = key in ("6a", "6b", "7")
    energy = PositiveEnergy(0, 2, hidden=hidden) if positive else NeuralEnergy(0, 2, hidden=hidden)

    def all_cells(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        cells = Quadrature.exhaustive(plane(box, 64))
        width = 2 * box / 64
        inside = y.clamp(-box + width / 2, box - width / 2)
        snapped = ((inside / width - 0.5).round() + 0.5) * width
        return losses.maximum_likelihood(energy(x, snapped), cells.energies(energy, x))

    def integral(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        shift = torch.rand(2, generator=generator) - 0.5
        points = Quadrature.midpoint(-box, box, 48, 2, shift=shift)
        return losses.integrated_likelihood(energy(x, y), points.energies(energy, x), points.log_weights)

    def monte_carlo(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        other = ImportanceResampling(-box, box, 8192)(energy, x, y, generator=generator).y
        return losses.energy_difference(energy(x, y), energy(x, other))

    def divergence(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        chain = Gibbs(torch.linspace(-box, box, 31), sweeps=2, width=box / 15)
        return losses.energy_difference(energy(x, y), energy(x, chain(energy, x, y, generator=generator).y))

    def search(x: Tensor, y: Tensor, margin: DistanceMargin) -> Tensor:
        candidates = corrupt(y[:, None].expand(-1, 4, -1), task.noise, generator=generator)
        return most_offending(energy, x, y, candidates, margin=margin)

    match key:
        case "1":
            return Learner(energy, all_cells)
        case "2":
            return Learner(energy, integral)
        case "3":
            return Learner(energy, monte_carlo)
        case "4":
            return Learner(energy, divergence)
        case "9":
            return Learner(
                energy, _adversarial(energy, Generator(0, 2, low=-3.5, high=3.5), generator, temperature=1.0)
            )
        case _:
            return Learner(energy, _offended(key, energy, DistanceMargin(1.0, 0.5), search))


def _on_digits(key: str, task: Digits, generator: torch.Generator) -> Learner:
    size = 32
    # Pixels are multiples of 1/16: without noise on them the likeliest energy is infinitely deep there.
    blur = 0.1
    if key == "10":
        coder = AutoEncoder(size, size, code=64, hidden=128)
        return Learner(coder, _denoising(coder, task.noise, generator))
    if key == "2":
        product = FactorisedEnergy(size, size, low=-0.5, high=1.5, knots=33, hidden=128)

        def tractable(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            y = corrupt(y, blur, generator=generator)
            log_partition = product.log_partition(x)[:, None]  # one term: the integral is known
            return losses.integrated_likelihood(product(x, y), -log_partition, y.new_zeros(1))

        return Learner(product, tractable)
    if key in ("3", "4", "5", "8", "9"):  # those that take any energy; row 7 wants its least to be 0
        energy: NeuralEnergy | JointEmbedding = NeuralEnergy(size, size, hidden=128, confinement=1.0)
    else:
        energy = JointEmbedding(size, size, embedding=32, hidden=128)
    chain = Langevin(steps=20, step_size=0.005)
    persistent = PersistentChains(
        chain, lambda: torch.rand(len(task.halves[0]), size, generator=generator), restart=0.02
    )

    def batch_as_values(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return losses.info_nce(energy(x[:, None], y[None]))

    def likelihood(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        y = corrupt(y, blur, generator=generator)
        other = persistent(energy, x, rows, generator=generator).y if key == "3" else truncated(x, y)
        low, high = energy(x, y), energy(x, other)
        return losses.energy_difference(low, high) + _drift(low, high)

    def truncated(x: Tensor, y: Tensor) -> Tensor:
        return chain(energy, x, y, generator=generator).y

    def search(x: Tensor, y: Tensor, margin: DistanceMargin) -> Tensor:
        # For half of the rows among other right halves, for half among y with noise.
        even = (torch.arange(len(y)) % 2 == 0)[:, None]
        if key in ("5", "8"):  # energies without a floor: a search by gradient would find no end
            others = torch.stack([y.roll(shift, 0) for shift in (1, 2, 3)], dim=1)
            noisy = corrupt(y[:, None].expand_as(others), task.noise, generator=generator)
            return most_offending(energy, x, y, torch.where(even[:, None], others, noisy), margin=margin)
        start = torch.where(even, y.roll(1, 0), corrupt(y, task.noise, generator=generator))
        return most_offending_nearby(energy, x, y, start, margin=margin, steps=5, step_size=0.05)

    match key:
        case "1":
            return Learner(energy, batch_as_values)
        case "3" | "4":
            return Learner(energy, likelihood)
        case "9":
            return Learner(
                energy,
                _adversarial(
                    energy, Generator(size, size, low=-0.5, high=1.5, z_dim=32, hidden=128), generator, temperature=0.05
                ),
            )
        case _:
            return Learner(energy, _offended(key, energy, DistanceMargin(1.0, 1.0), search))


def _offended(
    key: str, energy: nn.Module, margin: DistanceMargin, search: Callable[[Tensor, Tensor, DistanceMargin], Tensor]
) -> Loss:
    """Rows 5 to 8: a loss of the energies of y and of the most offending ŷ."""

    def loss(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        other = search(x, y, margin)
        low, high = energy(x, y), energy(x, other)
        value = METHODS[key].loss(low, high, *(() if key in ("7", "8") else (margins(margin, y, other),)))
        return value + _drift(low, high) if key in ("5", "8") else value

    return loss


def _drift(low: Tensor, high: Tensor) -> Tensor:
    """A small weight on squared energies, where a loss knows only differences: nothing else ties one x to another."""
    out: Tensor = 0.01 * (low.square() + high.square()).mean()
    return out


def _adversarial(energy: nn.Module, network: Generator, generator: torch.Generator, *, temperature: float) -> Loss:
    """Row 9; the generator's entropy, in the energy's unit at this temperature, keeps it from one point alone.

    Three quarters of the ŷ are earlier ones, a fair sample of all there were, so that the energy forgets none
    (Shrivastava et al. 2017).
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.99))
    past: list[Tensor] = []
    made_so_far = 0

    def remember(batch: Tensor) -> None:  # reservoir sampling
        nonlocal made_so_far
        made_so_far += 1
        place = int(torch.randint(made_so_far, (), generator=generator))
        if len(past) < 500:
            past.append(batch)
        elif place < len(past):
            past[place] = batch

    def loss(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        made = network(x, generator=generator)
        deceived = losses.generator(energy(x, made)) - temperature * nearest_neighbour_entropy(made)
        optimiser.zero_grad(set_to_none=True)
        deceived.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimiser.step()
        remember(made.detach())
        earlier = len(y) * 3 // 4
        which = torch.randint(len(past), (earlier,), generator=generator)
        row = torch.randint(len(y), (earlier,), generator=generator)
        other = torch.cat([torch.stack([past[i][j] for i, j in zip(which, row, strict=True)]), made.detach()[earlier:]])
        return losses.gan(energy(x, y), energy(x, other), y.new_ones(()))

    return loss


def _denoising(coder: AutoEncoder, sigma: float, generator: torch.Generator) -> Loss:
    """Row 10."""

    def loss(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return losses.denoising(squared_distance(y, coder.reconstruct(x, corrupt(y, sigma, generator=generator))))

    return loss
