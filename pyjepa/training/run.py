"""A training run: batches in, steps of the optimiser, and everything written that resuming needs."""

from __future__ import annotations

import json
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pyjepa.bench.machine import describe
from pyjepa.diagnostics import CollapseError, CollapseMonitor, CollapseWarning
from pyjepa.training.checkpoint import CheckpointError, first_difference, load_checkpoint, replacing, save_checkpoint
from pyjepa.training.config import Optimiser, RunConfig, validate


class Reporter(Protocol):
    """Is told how training goes."""

    def progress(self, step: int, losses: dict[str, float]) -> None:
        """After ``step`` steps; ``losses`` are the last step's."""

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """After an evaluation on what training never sees."""

    def alarm(self, step: int, message: str) -> None:
        """A collapse alarm tripped."""


class WarningReporter:
    """Tells alarms as `CollapseWarning`, and nothing else."""

    def progress(self, step: int, losses: dict[str, float]) -> None:
        """Do nothing."""

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Do nothing."""

    def alarm(self, step: int, message: str) -> None:
        """Warn."""
        warnings.warn(f"step {step}: {message}", CollapseWarning, stacklevel=2)


class Source(Protocol):
    """What a run reads of its data."""

    @property
    def path(self) -> Path:
        """Where it comes from, for messages."""

    def fingerprint(self) -> str:
        """Stands for the content."""


def learning_rate(step: int, settings: Optimiser) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    warm = min(1.0, (step + 1) / max(settings.warmup, 1))
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


class Run(ABC):
    """One training run: modules, optimiser and the place they are at.

    The same configuration, data and thread count give the same bits on a CPU, whether or not the run was interrupted
    and resumed in between: batch k must depend on the seed and k alone.
    """

    UNTRAINED: ClassVar[tuple[str, ...]] = ()
    """Sections of the configuration that have no influence on training, and may differ when resuming."""

    def __init__(
        self, config: RunConfig, data: Source, modules: Mapping[str, nn.Module], monitor: CollapseMonitor
    ) -> None:
        """``modules``, by the names they have in checkpoints; the optimiser trains what of them takes gradients."""
        self.config, self.data, self.modules, self.monitor = config, data, dict(modules), monitor
        self._parameters = [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]
        settings = config.optimiser
        self.optimiser = torch.optim.AdamW(
            self._parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
        )
        self.step = 0
        self.history: list[dict[str, float]] = []
        """One row for every ``log.every`` steps and every evaluation: ``step``, losses, diagnostics, ``seconds``."""
        self.figures: dict[str, float] | None = None
        """The latest evaluation's."""
        self.seconds = 0.0

    @abstractmethod
    def batches(self, first: int, last: int) -> Iterator[Any]:
        """Batches ``first ... last - 1``."""

    @abstractmethod
    def losses(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, to descend, and what to report: ``total``, its value, and its terms."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Measure on what training never sees."""

    def stepped(self) -> None:
        """Called after every step of the optimiser."""
        return

    @property
    def alarms(self) -> list[str]:
        """Every alarm that tripped, with its step."""
        return self.monitor.messages

    def run(
        self, *, until: int | None = None, checkpoint: Path | None = None, reporter: Reporter | None = None
    ) -> None:
        """Train to step ``until`` (default: all), writing ``checkpoint`` on the way and at the end.

        TensorBoard events and ``metrics.json`` go beside the checkpoint. Raises `CollapseError`, with the checkpoint
        written, where an alarm trips and the monitor is to stop.
        """
        settings, log, reporter = self.config.optimiser, self.config.log, reporter or WarningReporter()
        self.monitor.report = reporter.alarm
        last = settings.steps if until is None else min(until, settings.steps)
        with _threads(self.config.threads), _summary(checkpoint, self.step) as summary:
            began, before = time.perf_counter(), self.seconds
            for batch in self.batches(self.step, last):
                losses = self._update(batch)
                self.step += 1
                done = self.step == settings.steps
                evaluated = self.step % log.evaluate_every == 0 or done
                row: dict[str, float] = {}
                if self.step % log.every == 0 or done:
                    row |= {f"loss/{name}": value for name, value in losses.items()}
                if evaluated:
                    self.figures = self.evaluate()
                    reporter.evaluated(self.step, self.figures)
                    row |= {f"diagnostics/{name}": value for name, value in self.figures.items()}
                self.seconds = before + time.perf_counter() - began
                if row:
                    self.history.append({"step": self.step, "seconds": self.seconds, **row})
                    summary(self.step, row)
                reporter.progress(self.step, losses)
                if evaluated:
                    self._judge(done, checkpoint)
                if checkpoint is not None and self.step % log.checkpoint_every == 0 and self.step < last:
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
            **{name: module.state_dict() for name, module in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
            "alarms": self.alarms,
            "seconds": self.seconds,
            "diagnostics": self.figures,
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

        Raises `CheckpointError` if it is damaged, or of other data or another configuration (but for `UNTRAINED`), and
        `ConfigError` if its configuration has fields that are not known here.
        """
        state = load_checkpoint(path)
        free = dict.fromkeys(self.UNTRAINED)
        # A field that is younger than the checkpoint had its default's meaning then.
        stored = validate(state["config"], str(path), schema=type(self.config))
        written, wanted = ({**config.model_dump(), **free} for config in (stored, self.config))
        difference = first_difference(written, wanted)
        if difference is not None:
            raise CheckpointError(f"{path}: written with another configuration: {difference}")
        if state["data"] != self.data.fingerprint():
            raise CheckpointError(f"{path}: written with another data set than {self.data.path}")
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.history, self.seconds = state["step"], state["history"], state["seconds"]
        self.monitor.messages, self.figures = state["alarms"], state["diagnostics"]

    def _update(self, batch: Any) -> dict[str, float]:
        """One step of the optimiser; the losses before it."""
        settings = self.config.optimiser
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, settings)
        loss, terms = self.losses(batch)
        if not math.isfinite(terms["total"]):
            raise FloatingPointError(f"step {self.step}: the loss is {terms['total']}; try a smaller learning_rate")
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(self._parameters, settings.clip)
        self.optimiser.step()
        self.stepped()
        return terms

    def _judge(self, done: bool, checkpoint: Path | None) -> None:
        assert self.figures is not None
        try:
            self.monitor.check(self.step, self.figures, final=done)
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
