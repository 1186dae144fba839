"""``pyjepa train a320``: trains, measures and writes the agent of a real flight."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import torch

from pyjepa import agent_file
from pyjepa.adapters.recordings import read_a320
from pyjepa.agent import Model
from pyjepa.atomic import write_text
from pyjepa.bench import a320 as bench
from pyjepa.bench.machine import describe
from pyjepa.training import a320


def train_a320(
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    results: str | os.PathLike[str] | None = None,
    seeds: int = 3,
    steps: int | None = None,
    choose: bool = False,
    command: str = "pyjepa.training.a320_run.train_a320",
    stage: Callable[[str, int], None] = lambda name, total: None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Trains agents of the flight, one a seed, on all blocks but the test's, and judges them; then trains the one that
    is written to ``out`` without the validation blocks, on which its surprise is calibrated.

    Returns what was measured, and writes it to ``results``. Raises what reading recordings and writing files raise.
    """
    flight = read_a320(data)
    split = a320.Split.of(flight)
    settings = a320.DEFAULTS if steps is None else dataclasses.replace(a320.DEFAULTS, steps=steps)
    torch.set_num_threads(1)
    tried = None
    if choose:
        stage("choosing", len(a320.CANDIDATES))
        candidates = [c if steps is None else dataclasses.replace(c, steps=steps) for c in a320.CANDIDATES]
        settings, tried = bench.choose(flight, candidates, lambda done: progress(1))
    rows = []
    for seed in range(seeds):
        stage(f"seed {seed}", settings.steps)
        model = _model(
            *a320.train_agent(
                flight, dataclasses.replace(settings, seed=seed), usable=split.training | split.validation,
                progress=lambda done, losses: progress(1),
            )
        )  # fmt: skip
        rows.append(bench.prediction(model, flight, split.test))
    stage("the agent", settings.steps)
    spec, tensors = a320.train_agent(flight, settings, usable=split.training, progress=lambda done, losses: progress(1))
    spec = dataclasses.replace(spec, provenance=a320.provenance(settings, command))
    by_steps = {steps: a320.calibrated(spec, tensors, flight, split.validation, steps=steps) for steps in bench.STEPS}
    chosen, delays = bench.surprise_steps(lambda steps: _model(by_steps[steps], tensors), flight)
    spec = by_steps[chosen]
    agent_file.save(out, spec, tensors)
    model = Model.load(out)
    block = bench.busiest(flight)
    found: dict[str, Any] = {
        "machine": {**describe(), "torch": torch.__version__, "threads": 1},
        "settings": dataclasses.asdict(settings),
        "units": a320.UNITS,
        "rows": len(flight),
        **bench.baselines(flight),
        "model": a320.mean_of(rows),
        "seeds": rows,
        "agent": bench.prediction(model, flight, split.test),
        "plans": bench.plans(model, flight),
        "surprise": {**bench.surprise(model, flight), "validation_delay_s": delays},
        "stretch": bench.track_record(model, flight, block * a320.BLOCK, a320.BLOCK),
        "example": bench.example(model, flight, block),
    }
    if tried is not None:
        found["choices"] = tried
    if results is not None:
        write_text(results, json.dumps(found, indent=1) + "\n")
    return found


def _model(spec: Any, tensors: Any) -> Model:
    return Model.from_bytes(agent_file.to_bytes(spec, tensors))
