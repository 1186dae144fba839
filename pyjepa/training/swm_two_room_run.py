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

JUDGED_ON = 150
"""Episodes of the undisturbed expert that starts and goals are drawn from."""


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

    ``folder`` keeps the recordings, ``train.h5`` (the expert, disturbed), ``judge.h5`` (the expert) and ``blocks.h5``,
    and a checkpoint for every seed; what is there is used again. Returns what was measured, and writes it to
    ``results``. Raises `CheckpointError` where a checkpoint is of other settings or data.
    """
    torch.set_num_threads(1)
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    judge, recorded, blocks = root / "judge.h5", root / "train.h5", root / "blocks.h5"
    stage("recording", 2)
    if not judge.exists():
        two_room.collect(judge, episodes=JUDGED_ON, seed=100_000, noise=0.0, repeat=0.0, steps=100)
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
        path = Path(out) if seed == 0 else root / f"seed{seed}.safetensors"
        trainer.model.export(path, dataclasses.replace(trainer.model.spec, provenance=provenance(trainer, command)))
        found = bench.planned(bench.EngineSolver(path), judge, episodes=episodes, seed=0)
        assert trainer.diagnostics is not None
        rows.append({"seed": seed, **found, "probe_px": trainer.diagnostics.probe_px, "alarms": trainer.alarms})
    found = {
        "machine": {**describe(), "torch": torch.__version__, "threads": 1},
        "episodes": episodes,
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
