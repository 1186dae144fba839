"""Checkpoints: written to a temporary file and renamed, read without executing anything in them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pyjepa.errors import PyjepaError

VERSION = 1


CHECKPOINT = "checkpoint.pt"
"""The file in a run directory."""


class CheckpointError(PyjepaError, ValueError):
    """The checkpoint is damaged, or belongs to another run; the message says how it differs."""


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write tensors and plain values so that ``path`` is the old checkpoint or the whole new one, never a part."""
    with replacing(path) as file:
        torch.save({"version": VERSION, **state}, file)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of ``path`` when the block ends well, and is removed if it does not."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_checkpoint` wrote. Raises FileNotFoundError, or `CheckpointError` if the file is damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        # torch raises RuntimeError, EOFError, KeyError or UnpicklingError, depending on where the damage lies.
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({error})") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise CheckpointError(f"{path}: expected checkpoint version {VERSION}")
    return state


def existing(directory: Path, resume: bool) -> Path:
    """The checkpoint's place in a run directory, which holds one if and only if ``resume``.

    Raises `CheckpointError` where there is nothing to resume, FileExistsError where something would be overwritten.
    """
    checkpoint = directory / CHECKPOINT
    if resume and not checkpoint.exists():
        raise CheckpointError(f"nothing to resume: there is no {checkpoint}")
    if checkpoint.exists() and not resume:
        raise FileExistsError(f"{checkpoint} exists: resume that run, or choose another run directory")
    return checkpoint


def first_difference(expected: Any, found: Any, where: str = "") -> str | None:
    """Where two nested configurations differ first: ``name: value, not value``; None if they are equal."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(set(expected) | set(found)):
            inner = first_difference(expected.get(key), found.get(key), f"{where}.{key}" if where else key)
            if inner is not None:
                return inner
        return None
    return None if expected == found else f"{where}: {expected!r}, not {found!r}"
