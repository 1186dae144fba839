"""The four architectures with and without what keeps them from collapsing, trained on digits and measured.

`UNITS` names each: an un-regularised joint embedding and its cures, an auto-encoder and a generative model that may
copy, the four limits on z, deterministic prediction. Nothing here knows which of them ought to collapse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pyjepa.diagnostics import covariance_spectrum, energy_gap, rankme
from pyjepa.energy.architectures import AutoEncoder, Generative, JointEmbedding, Prediction
from pyjepa.energy.contrast import corrupt
from pyjepa.energy.energies import Energy, squared_distance
from pyjepa.energy.inference import GradientDescent, LatentVariableEBM
from pyjepa.energy.latents import Discrete, Latent, LowDimensional, Noisy, Sparse, Unlimited
from pyjepa.energy.recipes import Digits
from pyjepa.objectives import SIGReg, VICReg
from pyjepa.objectives.ema import EMATarget, byol, momentum_at

SIZE = 32
"""Features of x and of y: half an image of 8 × 8 pixels."""


@dataclass(frozen=True)
class Model:
    """What is trained, and what is measured of it."""

    module: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    """Of x (B, X) and y (B, Y)."""
    energy: Energy
    features: Callable[[Tensor, Tensor], Tensor]
    """The representation whose rank tells: of x and y, (B, D)."""
    in_y: bool
    """Whether the energy is a squared distance in the space of y, so that its gap has a scale."""
    after: Callable[[int], None] = lambda step: None
    """Called after each step of the optimiser."""


@dataclass
class Outcome:
    """What a training came to."""

    effective_rank: float
    dimensions: int
    relative_gap: float | None
    """By how much corruption raises the energy, over its own squared size; 1 for a prediction, 0 for a copy. None for
    energies of embeddings, which have no scale."""
    auroc: float
    verdict: str
    ranks: list[tuple[int, float]] = field(default_factory=list)
    """(step, effective rank) along the training."""
    spectrum: list[float] = field(default_factory=list)
    """Eigenvalues of the covariance of the representation, from the largest."""


LEAST_RANK = 2.0
LEAST_GAP = 0.25


def judged(rank: float, relative_gap: float | None) -> str:
    """`collapsed` where the representation is a point or a line, or the energy nearly blind to corruption."""
    flat = relative_gap is not None and not relative_gap >= LEAST_GAP
    return "collapsed" if flat or not rank >= LEAST_RANK else "not collapsed"


def build(name: str, steps: int, generator: torch.Generator) -> Model:
    """The model of that name in `UNITS`."""
    return UNITS[name](steps, generator)


def run(
    name: str, digits: Digits, *, steps: int, generator: torch.Generator, batch: int = 128, rate: float = 3e-3
) -> Outcome:
    """Trains and measures one of `UNITS`."""
    model = build(name, steps, generator)
    # A short memory of squared gradients: a collapse makes them vanish, and must not slow down for it.
    optimiser = torch.optim.Adam(model.module.parameters(), lr=rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    x_test, y_test = digits.test()
    ranks = []
    for step in range(steps):
        if step % max(1, steps // 10) == 0:
            ranks.append((step, rank(model, x_test, y_test)))
        x, y, _ = digits.batch(batch, generator)
        loss = model.loss(x, y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimiser.step()
        schedule.step()
        model.after(step)
    with torch.no_grad():
        corrupted = corrupt(y_test, digits.noise, generator=generator)
        gap = energy_gap(model.energy(x_test, y_test), model.energy(x_test, corrupted))
        relative = gap.gap / float(squared_distance(corrupted, y_test).mean()) if model.in_y else None
        found = rank(model, x_test, y_test)
        features = model.features(x_test, y_test)
        return Outcome(
            effective_rank=found,
            dimensions=features.shape[1],
            relative_gap=relative,
            auroc=gap.auroc,
            verdict=judged(found, relative),
            ranks=[*ranks, (steps, found)],
            spectrum=covariance_spectrum(features).tolist(),
        )


@torch.no_grad()
def rank(model: Model, x: Tensor, y: Tensor) -> float:
    """The effective rank of the representation, not centred (RankMe).

    The centred one ignores scale: of encoders that are constant but for float32 noise it measures the noise.
    """
    return rankme(model.features(x, y))


def _joint(regularised: Callable[[JointEmbedding, Tensor, Tensor], Tensor]) -> Model:
    network = JointEmbedding(SIZE, SIZE, embedding=32, hidden=128)
    return Model(network, lambda x, y: regularised(network, x, y), network, network.features, in_y=False)


def _joint_none(steps: int, generator: torch.Generator) -> Model:
    return _joint(lambda network, x, y: network(x, y).mean())


def _joint_vicreg(steps: int, generator: torch.Generator) -> Model:
    criterion = VICReg(invariance=10.0, variance=25.0, covariance=5.0)
    return _joint(lambda network, x, y: criterion(network.predict(x), network.features(x, y)))


def _joint_sigreg(steps: int, generator: torch.Generator) -> Model:
    criterion, weight = SIGReg(directions=128), 0.05

    def loss(network: JointEmbedding, x: Tensor, y: Tensor) -> Tensor:
        target = network.features(x, y)
        prediction = squared_distance(target, network.predict(x)).mean() / target.shape[1]
        out: Tensor = (1 - weight) * prediction + weight * criterion(target)
        return out

    return _joint(loss)


def _joint_ema(steps: int, generator: torch.Generator) -> Model:
    # BYOL: one encoder for both halves, a predictor on the online branch, a slow copy of the encoder as the target.
    network = JointEmbedding(SIZE, SIZE, embedding=32, hidden=128)
    network.encoder_y = network.encoder_x
    target = EMATarget(network.encoder_x)
    return Model(
        network,
        lambda x, y: byol(network.predict(x), target(y)) + byol(network.predict(y), target(x)),
        network,
        network.features,
        in_y=False,
        after=lambda step: target.update(network.encoder_x, momentum_at(step, steps, base=0.99)),
    )


def _autoencoder(steps: int, generator: torch.Generator) -> Model:
    network = AutoEncoder(0, SIZE, code=128, hidden=256)

    def energy(x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = network(x[..., :0], y)
        return out

    def code(x: Tensor, y: Tensor) -> Tensor:
        return network.features(x[..., :0], y)

    return Model(network, lambda x, y: energy(x, y).mean(), energy, code, in_y=True)


def _generative(make: Callable[[], Latent]) -> Callable[[int, torch.Generator], Model]:
    def build(steps: int, generator: torch.Generator) -> Model:
        latent = make()
        network = Generative(SIZE, SIZE, latent.dim, hidden=128)
        short, long = (  # a search cut short teaches as well; one that is measured must have arrived
            LatentVariableEBM(
                network,
                latent,
                method=None if isinstance(latent, Discrete) else GradientDescent(starts=1, steps=steps, step_size=0.5),
            )
            for steps in (10, 100)
        )

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return short.free_energy(x, y, generator=generator).mean()

        def decoded(x: Tensor, y: Tensor) -> Tensor:
            return network.decode(x, long.infer_z(x, y, generator=generator).z)

        return Model(network, loss, lambda x, y: long.free_energy(x, y, generator=generator), decoded, in_y=True)

    return build


def _prediction(steps: int, generator: torch.Generator) -> Model:
    network = Prediction(SIZE, SIZE, hidden=128)
    return Model(network, lambda x, y: network(x, y).mean(), network, network.features, in_y=True)


UNITS: dict[str, Callable[[int, torch.Generator], Model]] = {
    "joint_none": _joint_none,
    "joint_vicreg": _joint_vicreg,
    "joint_sigreg": _joint_sigreg,
    "joint_ema": _joint_ema,
    "autoencoder": _autoencoder,
    "generative_z": _generative(lambda: Unlimited(4 * SIZE, spread=0.01)),
    "prediction": _prediction,
}
"""The seven that `results.json` holds."""

LIMITS: dict[str, Callable[[int, torch.Generator], Model]] = {
    "generative_discrete": _generative(lambda: Discrete.one_hot(16)),
    "generative_low_dimensional": _generative(lambda: LowDimensional(2)),
    "generative_sparse": _generative(lambda: Sparse(4 * SIZE, weight=0.2)),
    "generative_noisy": _generative(lambda: Noisy(SIZE, sigma=1.0, weight=0.1)),
}
"""`generative_z` with the four limits on z."""
UNITS |= LIMITS
