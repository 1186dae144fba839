"""``pyjepa train stable-worldmodel``: records, trains, plans and compares on ``swm/TwoRoom-v1``."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyjepa.atomic import write_text
from pyjepa.bench import swm_two_room as bench
from pyjepa.bench.machine import describe
from pyjepa.training import swm_two_room as two_room
from pyjepa.training.checkpoint import CHECKPOINT
from pyjepa.training.pixels import provenance, train_on

JUDGED_ON, CALIBRATED_ON = 150, 300
"""Episodes of the undisturbed expert that starts and goals are drawn from: for the judgement, and before it."""
STARTS = 100
"""That an agent's reach is chosen on."""


class _Reporter:
    """Passes progress on, and drops the rest: it is in the agent file."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def progress(self, step: int, losses: dict[str, float]) -> None:
        self._advance(1)

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        pass

    def alarm(self, step: int, message: str) -> None:
        pass


def train_two_room(
    out: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str],
    results: str | os.PathLike[str] | None = None,
    seeds: int = 3,
    collect: int = 1500,
    steps: int | None = None,
    episodes: int = two_room.EPISODES,
    compare: bool = False,
    command: str = "pyjepa train stable-worldmodel",
    stage: Callable[[str, int], None] = lambda name, total: None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Agents of several seeds, judged by stable-worldmodel's own evaluation; the first is written to ``out``.

    ``folder`` keeps the recordings, ``train.h5`` (the expert, disturbed), ``calibrate.h5`` and ``judge.h5`` (the
    expert) and ``blocks.h5``, and a checkpoint for every seed; what is there is used again. The second recording
    decides on an agent's reach, ``episodes`` of the third judge it. Returns what was measured, and writes it
    to ``results``. Raises `CheckpointError` where a checkpoint is of other settings or data.
    """
    torch.set_num_threads(1)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    judge, calibrate, recorded, blocks = (root / f"{name}.h5" for name in ("judge", "calibrate", "train", "blocks"))
    stage("recording", 3)
    for path, count, first in ((judge, JUDGED_ON, 300_000), (calibrate, CALIBRATED_ON, 200_000)):
        if not path.exists():
            two_room.collect(path, episodes=count, seed=first, noise=0.0, hold=1, steps=100)
        progress(1)
    if not recorded.exists():
        two_room.collect(recorded, episodes=collect, seed=1)
    progress(1)
    if not blocks.exists():
        two_room.prepare(recorded, blocks)
    rows = []
    for seed in range(seeds):
        config = two_room.config(seed, steps)
        stage(f"seed {seed}", config.optimiser.steps)
        checkpoint = root / f"seed{seed}" / CHECKPOINT
        trainer = train_on(
            two_room.build_spec(config), config, blocks, checkpoint=checkpoint, reporter=_Reporter(progress)
        )
        stage(f"calibrating seed {seed}", len(two_room.REACHES))
        tensors = {name: value.detach().numpy() for name, value in trainer.model.state_dict().items()}
        spec, tried = bench.calibrated(
            trainer.model.spec, tensors, calibrate, episodes=STARTS, seed=0, told=lambda reach: progress(1)
        )
        path = Path(out) if seed == 0 else root / f"seed{seed}.safetensors"
        trainer.model.export(path, dataclasses.replace(spec, provenance=provenance(trainer, command)))
        found = bench.planned(bench.EngineSolver(path), judge, episodes=episodes, seed=0)
        assert trainer.diagnostics is not None
        rows.append({"seed": seed, **found, "reach": spec.cost[0].reach, "calibration": tried,
                     "probe_px": trainer.diagnostics.probe_px, "alarms": trainer.alarms})  # fmt: skip
    found = {
        "machine": {**describe(), "torch": torch.__version__, "threads": 1},
        "episodes": episodes,
        "calibrated_on": STARTS,
        "goal_offset": two_room.OFFSET,
        "budget": two_room.BUDGET,
        "published": two_room.PUBLISHED,
        "planner": trainer.model.spec.planner.algorithm,
        "success": bench.by_rate(rows),
        "seeds": rows,
        **bench.references(judge, episodes=episodes, seed=0),
    }
    if compare:
        stage("comparing", 6)
        found["compared"] = bench.compared(out, judge, episodes=episodes, seed=0, told=lambda name: progress(1))
    if results is not None:
        write_text(results, json.dumps(found, indent=1) + "\n")
    return found
