"""Trained agents that ship with the package."""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path

from pyjepa.agent import Model, Precision


def path(name: str) -> Path:
    """The agent file called ``name``, e.g. ``two_rooms``. Raises FileNotFoundError, naming those that are there."""
    here = Path(str(files(__package__)))
    found = here / f"{name}.safetensors"
    if not found.is_file():
        known = ", ".join(sorted(p.stem for p in here.glob("*.safetensors")))
        raise FileNotFoundError(f"no agent called {name!r} ships with pyjepa (there is: {known})")
    return found


def two_rooms_discrete(*, precision: Precision = "fp32") -> Model:
    """The agent of Two Rooms with eight moves: the shipped ``two_rooms``, its predictor composed with the moves.

    ``precision``: see `Model.load`.
    """
    from safetensors.numpy import load_file

    from pyjepa import agent_file
    from pyjepa.discretise import discretise
    from pyjepa.envs.two_rooms_discrete import MOVES

    file = path("two_rooms")
    spec, tensors = discretise(Model.load(file).spec, load_file(file), MOVES)
    # No policy proposes a candidate here, so there are more of them.
    planner = dataclasses.replace(spec.planner, candidates=2 * spec.planner.candidates)
    spec = dataclasses.replace(spec, name="two-rooms-discrete", planner=planner)
    return Model.from_bytes(agent_file.to_bytes(spec, tensors), precision=precision)
