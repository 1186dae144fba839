"""Training a world model from offline episodes by multi-step latent prediction with VICReg (paper section 4.5)."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.bench.machine import describe
from pyjepa.diagnostics import CollapseError, CollapseMonitor, CollapseWarning
from pyjepa.objectives.inverse_dynamics import InverseDynamics, chance
from pyjepa.objectives.temporal import temporal_similarity, temporal_variance
from pyjepa.objectives.vicreg import VICReg
from pyjepa.spec import Spec
from pyjepa.training.checkpoint import CheckpointError, first_difference, load_checkpoint, replacing, save_checkpoint
from pyjepa.training.config import Config, Objective
from pyjepa.training.dataset import EpisodeReader, WindowSampler
from pyjepa.training.diagnostics import Diagnostics, collapse_alarms, diagnose
from pyjepa.world_model import WorldModel


class Reporter(Protocol):
    """Is told how training goes."""

    def progress(self, step: int, losses: dict[str, float]) -> None:
        """After ``step`` steps; ``losses`` are the last step's."""

    def evaluated(self, step: int, diagnostics: Diagnostics) -> None:
        """After an evaluation on the held-out clips."""

    def alarm(self, step: int, message: str) -> None:
        """A collapse alarm tripped."""


class WarningReporter:
    """Tells alarms as `CollapseWarning`, and nothing else."""

    def progress(self, step: int, losses: dict[str, float]) -> None:
        """Do nothing."""

    def evaluated(self, step: int, diagnostics: Diagnostics) -> None:
        """Do nothing."""

    def alarm(self, step: int, message: str) -> None:
        """Warn."""
        warnings.warn(f"step {step}: {message}", CollapseWarning, stacklevel=2)


def clip_losses(
    model: WorldModel, inverse: InverseDynamics, vicreg: VICReg, weights: Objective, states: Tensor, actions: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of clips, and its unweighted terms.

    ``states`` (B, T + 1, L) are the encoded observations, ``actions`` (B, T, A') what led from each to the next. The
    T states predicted from the first one (by every predictor of an ensemble) are compared with the encoded ones; both
    branches get gradients, and VICReg's variance and covariance (over the batch, at ``regularised_steps``) keep both
    from collapsing. The other terms are those of `pyjepa.objectives.temporal` and `pyjepa.objectives.inverse_dynamics`.
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
    loss = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    return loss, terms


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    settings = config.optimiser
    warm = min(1.0, (step + 1) / max(settings.warmup, 1))
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


class Trainer:
    """One training run: model, heads, optimiser and the place they are at.

    The same configuration, data and thread count give the same bits on a CPU, whether or not the run was interrupted
    and resumed in between.
    """

    def __init__(self, spec: Spec, config: Config, data: EpisodeReader) -> None:
        """``data`` needs the fields ``observation``, ``action`` and, for the probe, ``position``."""
        self.config, self.data = config, data
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
        encoder = self.model.get_submodule(self.model.encoder_name)
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.vicreg = VICReg()
        self._parameters = [*self.model.parameters(), *self.inverse.parameters()]
        self.optimiser = torch.optim.AdamW(
            self._parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
        )
        self.step = 0
        self.history: list[dict[str, float]] = []
        """One row for every ``log.every`` steps and every evaluation: ``step``, losses, diagnostics, ``seconds``."""
        self.diagnostics: Diagnostics | None = None
        """The latest evaluation's."""
        self.monitor = CollapseMonitor(
            collapse_alarms(config.alarms), action=config.alarms.action, grace=config.alarms.grace
        )
        self.seconds = 0.0

    @property
    def alarms(self) -> list[str]:
        """Every alarm that tripped, with its step."""
        return self.monitor.messages

    def run(
        self, *, until: int | None = None, checkpoint: Path | None = None, reporter: Reporter | None = None
    ) -> None:
        """Train to step ``until`` (default: all), writing ``checkpoint`` on the way and at the end.

        TensorBoard events and ``metrics.json`` go beside the checkpoint. Raises `CollapseError`, with the checkpoint
        written, where an alarm trips and the configuration says to stop.
        """
        config, reporter = self.config, reporter or WarningReporter()
        self.monitor.report = reporter.alarm
        last = config.optimiser.steps if until is None else min(until, config.optimiser.steps)
        with _threads(config.threads), _summary(checkpoint, self.step) as summary:
            began, before = time.perf_counter(), self.seconds
            for batch in self._batches.batches(self.step, last):
                losses = self._update(torch.from_numpy(batch["observation"]), torch.from_numpy(batch["action"]))
                self.step += 1
                done = self.step == config.optimiser.steps
                row: dict[str, float] = {}
                evaluated = self.step % config.log.evaluate_every == 0 or done
                if self.step % config.log.every == 0 or done:
                    row |= {f"loss/{name}": value for name, value in losses.items()}
                if evaluated:
                    row |= {f"diagnostics/{name}": value for name, value in self._evaluate(reporter).items()}
                self.seconds = before + time.perf_counter() - began
                if row:
                    self.history.append({"step": self.step, "seconds": self.seconds, **row})
                    summary(self.step, row)
                reporter.progress(self.step, losses)
                if evaluated:
                    self._judge(done, checkpoint)
                if checkpoint is not None and self.step % config.log.checkpoint_every == 0 and self.step < last:
                    self.save(checkpoint)
            if checkpoint is not None:
                self.save(checkpoint)

    def save(self, path: Path) -> None:
        """Write everything that resuming needs, and ``metrics.json`` beside it: machine, configuration and history."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "config": self.config.model_dump(),
            "data": self.data.fingerprint(),
            "model": self.model.state_dict(),
            "inverse": self.inverse.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "alarms": self.alarms,
            "seconds": self.seconds,
            "diagnostics": None if self.diagnostics is None else self.diagnostics.as_dict(),
        }
        save_checkpoint(path, state)
        metrics = {
            "machine": {**describe(), "torch": torch.__version__, "threads": self.config.threads},
            "config": self.config.model_dump(),
            "seconds": self.seconds,
            "alarms": self.alarms,
            "history": self.history,
        }
        with replacing(path.with_name("metrics.json")) as file:
            file.write(json.dumps(metrics, indent=1).encode() + b"\n")

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises `CheckpointError` if it is damaged, or of other data or another configuration (but for ``planning``,
        which has no influence on training).
        """
        state = load_checkpoint(path)
        written, wanted = ({**values, "planning": None} for values in (state["config"], self.config.model_dump()))
        difference = first_difference(written, wanted)
        if difference is not None:
            raise CheckpointError(f"{path}: written with another configuration: {difference}")
        if state["data"] != self.data.fingerprint():
            raise CheckpointError(f"{path}: written with another data set than {self.data.path}")
        self.model.load_state_dict(state["model"])
        self.inverse.load_state_dict(state["inverse"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.history, self.seconds = state["step"], state["history"], state["seconds"]
        self.monitor.messages = state["alarms"]
        self.diagnostics = None if state["diagnostics"] is None else Diagnostics(**state["diagnostics"])

    def _update(self, observations: Tensor, actions: Tensor) -> dict[str, float]:
        """One step of the optimiser on observations (B, T + 1, ...) and actions (B, T, A'); the losses before it."""
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, config)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            states = self.model.encode(observations)
        loss, terms = clip_losses(self.model, self.inverse, self.vicreg, config.objective, states.float(), actions)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {self.step}: the loss is {loss.item()}; try a smaller learning_rate")
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.optimiser.clip:
            torch.nn.utils.clip_grad_norm_(self._parameters, config.optimiser.clip)
        self.optimiser.step()
        blind = float(chance(self.model.normalise(actions)))
        relative = float(terms["inverse_dynamics"].detach()) / blind
        losses = {name: float(term.detach()) for name, term in terms.items()}
        return {"total": float(loss.detach()), **losses, "inverse_dynamics_relative": relative}

    def _evaluate(self, reporter: Reporter) -> dict[str, float]:
        self.diagnostics = diagnose(self.model, self.inverse, self._holdout, self.config.alarms)
        reporter.evaluated(self.step, self.diagnostics)
        return self.diagnostics.as_dict()

    def _judge(self, done: bool, checkpoint: Path | None) -> None:
        assert self.diagnostics is not None
        try:
            self.monitor.check(self.step, self.diagnostics.as_dict(), final=done)
        except CollapseError:
            if checkpoint is not None:
                self.save(checkpoint)
            raise


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch with ``count`` threads: the order of its sums, and so the bits, depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _summary(checkpoint: Path | None, step: int) -> Iterator[Any]:
    """A function that writes a row of scalars to TensorBoard, in ``tensorboard/`` beside the checkpoint."""
    if checkpoint is None:
        yield lambda step, row: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(checkpoint.parent / "tensorboard", purge_step=step or None) as writer:

        def write(step: int, row: dict[str, float]) -> None:
            for name, value in row.items():
                writer.add_scalar(name, value, step)

        yield write
