"""pyjepa and other libraries: their recordings, data sets, models and planners, and Triton under ours.

Each file imports what it adapts, and is imported only where it is asked for.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from pyjepa.errors import MissingPackageError


def needed(module: str, install: str, purpose: str) -> ModuleType:
    """A module of another library. Raises `MissingPackageError` saying what to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise  # it is there, and lacks something itself
        # Installed plainly, that one brings a CUDA build of torch.
        how = "docs/environments.md says how to install it"
        if install != "stable-worldmodel":
            how = f"pip install {install} (or pip install 'pyjepa-engine[envs]')"
        raise MissingPackageError(f"{purpose} needs {install}: {how}") from error
