"""Is the representation collapsing? What training looks at beside its losses."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pyjepa.objectives.inverse_dynamics import InverseDynamics, chance
from pyjepa.training.config import Alarms
from pyjepa.world_model import WorldModel


class CollapseWarning(UserWarning):
    """A collapse alarm tripped; the message says which and what to look at."""


@dataclass(frozen=True)
class Diagnostics:
    """Measured on clips that training never sees."""

    probe_r2: float
    """The share of the position's variance that a linear probe of the latent explains."""
    probe_px: float
    """The probe's mean distance from the true position, in pixels."""
    effective_rank: float
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


def effective_rank(x: Tensor) -> float:
    """``exp(entropy(p))`` with p the singular values of centred x (N, D), normalised (Roy and Vetterli 2007).

    Between 1 and min(N, D); 0 if x is constant.
    """
    singular = torch.linalg.svdvals((x - x.mean(dim=0)).double())
    total = singular.sum()
    if total <= 1e-12 * len(x):
        return 0.0
    p = singular / total
    return float(torch.exp(-(p * torch.log(p.clamp_min(1e-300))).sum()))


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
    std = flat.std(dim=0)
    # Clip by clip: the two halves of the probe's data then come from different episodes.
    r2, distance = linear_probe(flat, torch.from_numpy(clips["position"]).flatten(0, 1))
    return Diagnostics(
        probe_r2=r2,
        probe_px=distance,
        effective_rank=effective_rank(flat),
        std_min=float(std.min()),
        std_mean=float(std.mean()),
        dead=float((std < alarms.std).float().mean()),
        prediction=error,
        prediction_relative=error / max(unchanged, 1e-12),
        inverse_dynamics=inverse_error,
        inverse_dynamics_relative=inverse_error / blind,
    )


def tripped(diagnostics: Diagnostics, alarms: Alarms) -> list[str]:
    """One sentence for every alarm that these diagnostics trip."""
    found = []
    if diagnostics.probe_r2 < alarms.probe_r2:
        found.append(
            f"the linear position probe explains {diagnostics.probe_r2:.2f} of the variance "
            f"({diagnostics.probe_px:.1f} px off; alarm below {alarms.probe_r2:g}): "
            "the latent hardly tells the position"
        )
    if diagnostics.effective_rank < alarms.effective_rank:
        found.append(
            f"the effective rank is {diagnostics.effective_rank:.1f} (alarm below {alarms.effective_rank:g}): "
            "the latent dimensions are redundant"
        )
    if diagnostics.dead > 0.5:
        found.append(
            f"{diagnostics.dead:.0%} of the latent dimensions have a standard deviation below {alarms.std:g}: "
            "the representation is shrinking to a point"
        )
    if diagnostics.inverse_dynamics_relative > alarms.inverse_dynamics:
        found.append(
            f"inverse dynamics is at {diagnostics.inverse_dynamics_relative:.2f} of chance (alarm above "
            f"{alarms.inverse_dynamics:g}): the latent does not tell what actions change"
        )
    return found
