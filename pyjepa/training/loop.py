"""Training a world model from offline episodes by multi-step latent prediction, regularised (paper section 4.5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pyjepa.diagnostics import CollapseMonitor
from pyjepa.objectives.inverse_dynamics import InverseDynamics, chance
from pyjepa.objectives.sigreg import SIGReg
from pyjepa.objectives.temporal import temporal_similarity, temporal_variance
from pyjepa.objectives.vicreg import VICReg
from pyjepa.spec import Spec
from pyjepa.training.config import Config, Objective
from pyjepa.training.dataset import EpisodeReader, WindowSampler
from pyjepa.training.diagnostics import Diagnostics, collapse_alarms, diagnose
from pyjepa.training.run import Run
from pyjepa.world_model import WorldModel


def clip_losses(
    model: WorldModel,
    inverse: InverseDynamics,
    vicreg: VICReg,
    weights: Objective,
    states: Tensor,
    actions: Tensor,
    sigreg: SIGReg | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of clips, and its unweighted terms.

    ``states`` (B, T + 1, L) are the encoded observations, ``actions`` (B, T, A') what led from each to the next. The
    T states predicted from the first one (by every predictor of an ensemble) are compared with the encoded ones; both
    branches get gradients. What keeps both from collapsing looks over the batch at ``regularised_steps``: VICReg's
    variance and covariance, and ``sigreg``, where given, at the encoded states. The other terms are those of
    `pyjepa.objectives.temporal` and `pyjepa.objectives.inverse_dynamics`.
    """
    rollouts = model.rollouts(states[:, 0], actions)
    predicted = torch.cat([states[:, :1], rollouts[0]], dim=1)
    regularised = [vicreg.terms(predicted[:, t], states[:, t]) for t in weights.regularised_steps]
    terms = {
        "prediction": torch.stack([functional.mse_loss(rollout, states[:, 1:]) for rollout in rollouts]).mean(),
        "variance": torch.stack([term.variance for term in regularised]).mean(),
        "covariance": torch.stack([term.covariance for term in regularised]).mean(),
        "temporal_variance": temporal_variance(states, target=weights.temporal_variance_target),
        "inverse_dynamics": inverse(states, model.normalise(actions)),
        "temporal_similarity": temporal_similarity(states),
    }
    if sigreg is not None:
        terms["sigreg"] = torch.stack([sigreg(states[:, t]) for t in weights.regularised_steps]).mean()
    loss = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    return loss, terms


class Trainer(Run):
    """The run that trains a world model."""

    UNTRAINED: ClassVar[tuple[str, ...]] = ("planning",)
    config: Config
    data: EpisodeReader

    def __init__(self, spec: Spec, config: Config, data: EpisodeReader) -> None:
        """``data`` needs the fields ``observation``, ``action`` and, for the probe, ``position``."""
        held_out = min(config.data.holdout, len(data) // 2)
        training = range(len(data) - held_out)
        window, settings = config.data.window, config.optimiser
        self._batches = WindowSampler(data, steps=window, batch=settings.batch, seed=config.seed, episodes=training)
        fields = ("observation", "action", "position")
        holdout = range(len(data) - held_out, len(data))
        self._holdout = WindowSampler(
            data, steps=window, batch=held_out, seed=config.seed, episodes=holdout, fields=fields
        ).batch(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = WorldModel(spec)
            self.inverse = InverseDynamics(self.model.latent_dim, self.model.plan_dim)
        assert self.model.encoder_name is not None  # Two Rooms is seen
        encoder = self.model.get_submodule(self.model.encoder_name)
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.vicreg = VICReg()
        modules = {"model": self.model, "inverse": self.inverse}
        objective = config.objective
        self.sigreg = SIGReg(directions=objective.directions, seed=config.seed) if objective.sigreg else None
        if self.sigreg is not None:
            modules["sigreg"] = self.sigreg  # counts its calls
        alarms = config.alarms
        monitor = CollapseMonitor(collapse_alarms(alarms), action=alarms.action, grace=alarms.grace)
        super().__init__(config, data, modules, monitor)

    @property
    def diagnostics(self) -> Diagnostics | None:
        """The latest evaluation's."""
        return None if self.figures is None else Diagnostics(**self.figures)

    def batches(self, first: int, last: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Windows of the training episodes."""
        return self._batches.batches(first, last)

    def losses(self, batch: dict[str, NDArray[Any]]) -> tuple[Tensor, dict[str, float]]:
        """Of observations (B, T + 1, ...) and actions (B, T, A')."""
        config = self.config
        observations, actions = torch.from_numpy(batch["observation"]), torch.from_numpy(batch["action"])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            states = self.model.encode(observations)
        loss, terms = clip_losses(
            self.model, self.inverse, self.vicreg, config.objective, states.float(), actions, self.sigreg
        )
        blind = float(chance(self.model.normalise(actions)))
        relative = float(terms["inverse_dynamics"].detach()) / blind
        losses = {name: float(term.detach()) for name, term in terms.items()}
        return loss, {"total": float(loss.detach()), **losses, "inverse_dynamics_relative": relative}

    def evaluate(self) -> dict[str, float]:
        """On the held-out clips."""
        return diagnose(self.model, self.inverse, self._holdout, self.config.alarms).as_dict()
