"""Collects offline episodes of Two Rooms into a data set (`pyjepa.training.dataset`)."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pyjepa.envs import two_rooms
from pyjepa.training.dataset import EpisodeWriter

BATCH = 512  # episodes rendered at once: 57 KiB each with the default length
NEAR_DOOR = 0.35  # the share of episodes that begin near the door: crossings are rare otherwise
PERSISTENCE = 0.5  # the probability that an action goes on roughly as the one before


def collect_two_rooms(
    path: str | os.PathLike[str],
    *,
    episodes: int,
    seed: int = 0,
    steps: int = 12,
    action_block: int = 4,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``episodes`` random walks of ``steps`` actions, each held for ``action_block`` environment steps.

    Only training doors and training streams are used. Fields: ``observation`` uint8 (2, 64, 64) at the ends of the
    blocks, ``action`` float32 (2,) in px per environment step, ``position`` float32 (2,) in px and ``door`` float32 ()
    for probes; training reads the first two alone. ``progress`` is told how many episodes were added.
    """
    fields: dict[str, tuple[tuple[int, ...], str]] = {
        "observation": ((2, two_rooms.SIZE, two_rooms.SIZE), "uint8"),
        "action": ((2,), "float32"),
        "position": ((2,), "float32"),
        "door": ((), "float32"),
    }
    metadata: dict[str, str | int | float] = {
        "environment": "pyjepa/TwoRooms-v0",
        "split": "train",
        "seed": seed,
        "action_block": action_block,
    }
    extra = {"position": 1, "door": 1}
    with EpisodeWriter(path, fields, steps=steps, metadata=metadata, extra=extra) as writer:
        for first in range(0, episodes, BATCH):
            count = min(BATCH, episodes - first)
            rng = two_rooms.generator("train", seed, 1, first)
            writer.append(_walk(rng, count, steps, action_block))
            if progress is not None:
                progress(count)


def _walk(rng: np.random.Generator, count: int, steps: int, action_block: int) -> dict[str, NDArray[np.generic]]:
    door = rng.choice(two_rooms.DOORS["train"], count)
    position = _starts(rng, door)
    action = rng.uniform(-two_rooms.STEP, two_rooms.STEP, (count, 2))
    positions, actions = [position], []
    for _ in range(steps):
        fresh = rng.uniform(-two_rooms.STEP, two_rooms.STEP, (count, 2))
        similar = np.clip(action + rng.normal(0.0, 1.0, (count, 2)), -two_rooms.STEP, two_rooms.STEP)
        action = np.where(rng.random((count, 1)) < PERSISTENCE, similar, fresh).astype(np.float32)
        for _ in range(action_block):
            position = two_rooms.move(position, action, door)
        positions.append(position)
        actions.append(action)
    path = np.stack(positions, axis=1)
    frames = two_rooms.render(path.reshape(-1, 2), np.repeat(door, steps + 1))
    return {
        "observation": frames.reshape(count, steps + 1, *frames.shape[1:]),
        "action": np.stack(actions, axis=1).astype(np.float32),
        "position": path.astype(np.float32),
        "door": np.repeat(door[:, None], steps + 1, axis=1).astype(np.float32),
    }


def _starts(rng: np.random.Generator, door: NDArray[np.int64]) -> NDArray[np.float64]:
    """(E, 2): anywhere in the rooms, or within 10 px of the wall and 8 px of the door's height."""
    anywhere = two_rooms.draw_positions(rng, rng.integers(2, size=len(door)))
    side = rng.choice([-1.0, 1.0], len(door))
    x = (two_rooms.SIZE - 1) / 2 + side * rng.uniform(1.0, 11.0, len(door))
    y = np.clip(door + rng.uniform(-8.0, 8.0, len(door)), *two_rooms.BORDER)
    return np.where(rng.random((len(door), 1)) < NEAR_DOOR, np.stack([x, y], axis=-1), anywhere)
