"""Trained agents that ship with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def path(name: str) -> Path:
    """The agent file called ``name``, e.g. ``two_rooms``. Raises FileNotFoundError, naming those that are there."""
    here = Path(str(files(__package__)))
    found = here / f"{name}.safetensors"
    if not found.is_file():
        known = ", ".join(sorted(p.stem for p in here.glob("*.safetensors")))
        raise FileNotFoundError(f"no agent called {name!r} ships with pyjepa (there is: {known})")
    return found
