"""Trains the Two Rooms agent: data, spec, training run, agent file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from pyjepa.envs import two_rooms
from pyjepa.spec import Actions, Spec
from pyjepa.training.checkpoint import existing
from pyjepa.training.collection import collect_two_rooms
from pyjepa.training.config import Config, ConfigError
from pyjepa.training.dataset import DatasetError, EpisodeReader
from pyjepa.training.loop import Trainer
from pyjepa.training.pixels import picture_spec, provenance
from pyjepa.training.run import Reporter


def build_spec(config: Config) -> Spec:
    """The spec of a Two Rooms agent with the configured sizes."""
    step = two_rooms.STEP
    return picture_spec(
        "two-rooms",
        config,
        shape=(2, two_rooms.SIZE, two_rooms.SIZE),
        actions=Actions(low=(-step, -step), high=(step, step), center=(0.0, 0.0), scale=(step, step)),
        hold=True,
    )


def train_two_rooms(
    config: Config,
    out: str | os.PathLike[str],
    *,
    run_directory: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    resume: bool = False,
    command: str = "pyjepa.training.two_rooms.train_two_rooms",
    reporter: Reporter | None = None,
    collected: Callable[[int], None] | None = None,
) -> Trainer:
    """Train an agent and write its file to ``out``; returns the finished run.

    ``run_directory`` holds the checkpoint, ``metrics.json``, the TensorBoard events and, unless ``data`` names a data
    set, the episodes collected for this run (``data.h5``, reused when it was collected with the same settings).
    ``collected`` is told how many episodes were added while collecting. ``resume`` goes on from the checkpoint in
    ``run_directory``; the result is the same, bit for bit, as that of a run without interruption.

    Raises `ConfigError`, `DatasetError` or `CheckpointError` for what does not fit, FileExistsError if the directory
    already holds a run and ``resume`` is false.
    """
    directory = Path(run_directory)
    checkpoint = existing(directory, resume)
    source = Path(data) if data is not None else _collected(config, directory / "data.h5", collected)
    with EpisodeReader(source) as episodes:
        block = episodes.metadata.get("action_block")
        if block != config.data.action_block:
            raise DatasetError(f"{source}: action_block is {block}, the configuration's {config.data.action_block}")
        trainer = Trainer(build_spec(config), config, episodes)
        if resume:
            trainer.resume(checkpoint)
        trainer.run(checkpoint=checkpoint, reporter=reporter)
        trainer.model.export(out, with_provenance(trainer, command))
    return trainer


def with_provenance(trainer: Trainer, command: str) -> Spec:
    """The run's spec, with where the weights come from: command, seed, configuration, versions, final figures."""
    data = {"config_sha256": trainer.config.digest(), "data_crc32": trainer.data.fingerprint()}
    return dataclasses.replace(trainer.model.spec, provenance=provenance(trainer, command) | data)


def _collected(config: Config, path: Path, progress: Callable[[int], None] | None) -> Path:
    """The run's own data set, collected unless it already is."""
    settings = config.data
    wanted = {"seed": config.seed, "episodes": settings.episodes, "steps": settings.steps}
    if path.exists():
        with EpisodeReader(path) as reader:
            found = {"seed": reader.metadata.get("seed"), "episodes": len(reader), "steps": int(reader.lengths.max())}
            if found == wanted and reader.metadata.get("action_block") == settings.action_block:
                return path
    collect_two_rooms(path, **wanted, action_block=settings.action_block, progress=progress)
    return path


__all__ = ["Config", "ConfigError", "build_spec", "train_two_rooms", "with_provenance"]
