"""What a world model's training looks at beside its losses: `pyjepa.diagnostics` and what only a world model has."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pyjepa.diagnostics import Alarm, embedding_alarms, measure
from pyjepa.objectives.inverse_dynamics import InverseDynamics, chance
from pyjepa.training.config import Alarms
from pyjepa.world_model import WorldModel


@dataclass(frozen=True)
class Diagnostics:
    """Measured on clips that training never sees."""

    probe_r2: float
    """The share of the position's variance that a linear probe of the latent explains."""
    probe_px: float
    """The probe's mean distance from the true position, in pixels."""
    effective_rank: float
    rankme: float
    std_min: float
    std_mean: float
    dead: float
    """The share of latent dimensions whose standard deviation is below the alarm's threshold."""
    prediction: float
    """The mean squared error of the multi-step prediction."""
    prediction_relative: float
    """The same over that of predicting no change at all."""
    inverse_dynamics: float
    inverse_dynamics_relative: float
    """The same over what a blind guess scores."""

    def as_dict(self) -> dict[str, float]:
        """The values by name."""
        return asdict(self)


def linear_probe(features: Tensor, targets: Tensor) -> tuple[float, float]:
    """Least squares from features (N, D) to targets (N, K) on the first half, judged on the second.

    Returns the share of variance explained (R^2, over all K at once; negative where the mean is better) and the mean
    Euclidean distance in the targets' unit. The first half needs more rows than D.
    """
    half = len(features) // 2
    inputs = torch.cat([features, features.new_ones(len(features), 1)], dim=1).double()
    # gelsd takes rank-deficient features too: a collapsed encoder must be measured, not crash.
    solution = torch.linalg.lstsq(inputs[:half], targets[:half].double(), driver="gelsd").solution
    error = inputs[half:] @ solution - targets[half:].double()
    spread = targets[half:].double() - targets[half:].double().mean(dim=0)
    return float(1 - error.square().sum() / spread.square().sum()), float(error.norm(dim=1).mean())


@torch.no_grad()
def diagnose(
    model: WorldModel, inverse: InverseDynamics, clips: dict[str, NDArray[np.generic]], alarms: Alarms
) -> Diagnostics:
    """Measure on clips: ``observation`` (B, T + 1, ...), ``action`` (B, T, A'), ``position`` (B, T + 1, K)."""
    states = torch.cat([model.encode(torch.from_numpy(part)) for part in np.array_split(clips["observation"], 8)])
    actions = torch.from_numpy(clips["action"])
    predicted = model.rollout(states[:, 0], actions)
    error = float(functional.mse_loss(predicted, states[:, 1:]))
    unchanged = float(functional.mse_loss(states[:, :1].expand_as(predicted), states[:, 1:]))
    normalised = model.normalise(actions)
    inverse_error, blind = float(inverse(states, normalised)), float(chance(normalised))
    flat = states.flatten(0, 1)
    # Clip by clip: the two halves of the probe's data then come from different episodes.
    r2, distance = linear_probe(flat, torch.from_numpy(clips["position"]).flatten(0, 1))
    return Diagnostics(
        probe_r2=r2,
        probe_px=distance,
        **measure(flat, std=alarms.std),
        prediction=error,
        prediction_relative=error / max(unchanged, 1e-12),
        inverse_dynamics=inverse_error,
        inverse_dynamics_relative=inverse_error / blind,
    )


def collapse_alarms(alarms: Alarms) -> tuple[Alarm, ...]:
    """What a `CollapseMonitor` judges `Diagnostics` by."""
    return (
        Alarm(
            figure="probe_r2",
            says="the linear position probe explains {probe_r2:.2f} of the variance, {probe_px:.1f} px off",
            means="the latent hardly tells the position",
            below=alarms.probe_r2,
        ),
        *embedding_alarms(effective_rank=alarms.effective_rank, std=alarms.std),
        Alarm(
            figure="inverse_dynamics_relative",
            says="inverse dynamics is at {inverse_dynamics_relative:.2f} of chance",
            means="the latent does not tell what actions change",
            above=alarms.inverse_dynamics,
        ),
    )
