"""Two Rooms: a dot in two rooms joined by one door, seen as pixels, with the goal given as an image.

The world is a 64 x 64 px picture (positions are in pixels, ``(x, y)``, the centre of the pixel in column c and row r
being ``(c, r)``). A wall 2 px thick (columns 31 and 32) splits it; its door, 11 px high (half-width 5), lies at a place
drawn for each episode. An action is a displacement in pixels, at most 3 px long a step; longer ones are shortened to
3 px. The agent is a point: the wall and the jambs of the door stop it exactly where the swept step meets them and it
slides along them, and it stays 2 px away from the picture's border.

An observation is uint8 (2, 64, 64): channel 0 a Gaussian dot (sigma 1.5 px) at the agent, channel 1 the wall (255)
with its door (0). The goal is such an observation with the dot at the goal.

Door places are integers. Every fourth one is held out: ``split="test"`` draws only those and ``split="train"`` only
the others, and the two splits draw from different random streams whatever their seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Split: TypeAlias = Literal["train", "test"]

SIZE = 64
"""Height and width of the picture in pixels."""
STEP = 3.0
"""The longest displacement in one step, in pixels."""
WALL = (30.5, 32.5)
"""The faces of the wall: it fills the columns in between."""
DOOR_HALF_WIDTH = 5.0
"""Half the height of the door, in pixels, measured from its centre."""
BORDER = (2.0, SIZE - 3.0)
"""The range of both coordinates of the agent."""
DOT_SIGMA = 1.5
"""Standard deviation of the Gaussian dot, in pixels."""
GOAL_RADIUS = 3.0
"""Success: the agent's distance to the goal, in pixels, is at most this."""
START_DISTANCE = 10.0
"""The shortest distance between start and goal, in pixels."""
MAX_STEPS = 200
"""Steps after which an episode is over."""
WALL_CLEARANCE = 2.0
"""Starts and goals keep this far from the wall, so that no goal can be reached from the wrong side of it."""
DOORS: dict[Split, tuple[int, ...]] = {
    "train": tuple(d for d in range(8, 56) if d % 4 != 2),
    "test": tuple(d for d in range(8, 56) if d % 4 == 2),
}
"""The door centres (rows) that each split draws from."""

_DOMAIN = int.from_bytes(b"TwoRooms", "big")  # keeps these streams apart from any other use of the same seed
_STREAM: dict[Split, int] = {"train": 1, "test": 2}


@dataclass(frozen=True)
class Episodes:
    """Where E episodes begin and what they aim for."""

    start: NDArray[np.float64]
    """(E, 2), pixels."""
    goal: NDArray[np.float64]
    """(E, 2), pixels."""
    door: NDArray[np.int64]
    """(E,), the row of the door's centre."""

    def __len__(self) -> int:
        return len(self.door)

    def __getitem__(self, index: slice) -> Episodes:
        return Episodes(self.start[index], self.goal[index], self.door[index])

    @property
    def cross_room(self) -> NDArray[np.bool_]:
        """(E,), whether start and goal lie in different rooms."""
        middle = (WALL[0] + WALL[1]) / 2
        crossing: NDArray[np.bool_] = (self.start[:, 0] < middle) != (self.goal[:, 0] < middle)
        return crossing


def generator(split: Split, seed: int, *path: int) -> np.random.Generator:
    """The random stream of a split and a seed (>= 0); ``path`` numbers streams within it."""
    return np.random.default_rng(np.random.SeedSequence([_DOMAIN, _STREAM[split], seed, *path]))


def draw_episodes(
    count: int, *, seed: int, split: Split = "test", cross_room: bool | ArrayLike | None = None, first: int = 0
) -> Episodes:
    """Episodes ``first`` to ``first + count - 1`` of a seed (>= 0). Each is drawn from a stream of its own.

    ``cross_room``, a bool or (count,) of them, puts start and goal in different rooms (True) or in the same (False);
    None draws the two rooms independently. Starts and goals are uniform over the rooms, at least `START_DISTANCE`
    apart.
    """
    crossing = None if cross_room is None else np.broadcast_to(np.asarray(cross_room, dtype=np.bool_), (count,))
    start, goal = np.empty((count, 2)), np.empty((count, 2))
    door = np.empty(count, dtype=np.int64)
    for i in range(count):
        rng = generator(split, seed, first + i)
        door[i] = rng.choice(DOORS[split])
        rooms = rng.integers(2, size=2)
        if crossing is not None:
            rooms[1] = rooms[0] ^ crossing[i]
        while True:
            start[i], goal[i] = draw_positions(rng, rooms)
            if np.hypot(*(goal[i] - start[i])) >= START_DISTANCE:
                break
    return Episodes(start, goal, door)


def evaluation_episodes(count: int = 100, *, seed: int = 0) -> Episodes:
    """The episodes that an agent is judged by: held-out doors, every other episode (0, 2, ...) across the wall."""
    return draw_episodes(count, seed=seed, split="test", cross_room=np.arange(count) % 2 == 0)


def draw_positions(rng: np.random.Generator, rooms: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 2) positions, uniform over ``rooms`` (n,): 0 is the left room and 1 the right one."""
    near, far = BORDER[0], WALL[0] - WALL_CLEARANCE
    x = rng.uniform(near, far, size=len(rooms))
    return np.stack([np.where(rooms == 1, SIZE - 1 - x, x), rng.uniform(*BORDER, size=len(rooms))], axis=-1)


def move(position: NDArray[np.float64], action: ArrayLike, door: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where one step leads: ``position`` (E, 2) and ``action`` (E, 2) in pixels, ``door`` (E,) -> (E, 2).

    The whole swept segment is checked, so that no step tunnels through the 2 px of wall. A step that meets the wall
    keeps its motion along it; a step through the door that meets a jamb keeps its motion across.
    """
    delta = np.asarray(action, dtype=np.float64)
    length = np.hypot(delta[:, 0], delta[:, 1])
    delta = delta * (STEP / np.maximum(length, STEP))[:, None]
    # Mirror the picture wherever the motion goes left: the wall is symmetric, so one direction covers both.
    left = delta[:, 0] < 0
    mirror = SIZE - 1.0
    x = np.where(left, mirror - position[:, 0], position[:, 0])
    dx = np.abs(delta[:, 0])
    y, dy = position[:, 1], delta[:, 1]
    low, high = door - DOOR_HALF_WIDTH, door + DOOR_HALF_WIDTH
    near, far = WALL

    enters = (x <= near) & (x + dx > near)
    entry = np.where(enters, near - x, 0.0) / np.where(enters, dx, 1.0)
    y_entry = y + dy * entry
    blocked = enters & ((y_entry < low) | (y_entry > high))
    passes = (enters & ~blocked) | ((x > near) & (x < far))
    # Between the faces the jambs bound y; beyond the far face the rest of the step is free.
    leaves = (x < far) & (x + dx > far)
    leaving = np.where(leaves, far - x, 1.0) / np.where(leaves, dx, 1.0)
    y_passed = np.clip(y + dy * leaving, low, high) + dy * (1.0 - leaving)

    x = np.where(blocked, near, x + dx)
    x = np.where(left, mirror - x, x)
    after: NDArray[np.float64] = np.clip(np.stack([x, np.where(passes, y_passed, y + dy)], axis=-1), *BORDER)
    return after


def render(position: NDArray[np.float64], door: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Observations uint8 (E, 2, 64, 64) of agents at ``position`` (E, 2) in worlds with doors at ``door`` (E,)."""
    pixels = np.arange(SIZE, dtype=np.float32)
    x, y = np.float32(position[:, :1]), np.float32(position[:, 1:])
    column = np.exp(-((pixels - x) ** 2) / np.float32(2 * DOT_SIGMA**2))
    row = np.exp(-((pixels - y) ** 2) / np.float32(2 * DOT_SIGMA**2)) * np.float32(255)
    picture = np.zeros((len(position), 2, SIZE, SIZE), dtype=np.uint8)
    picture[:, 0] = row[:, :, None] * column[:, None, :] + np.float32(0.5)
    closed = np.abs(pixels - door[:, None]) > DOOR_HALF_WIDTH
    columns = slice(int(WALL[0] + 0.5), int(WALL[1] + 0.5))
    picture[:, 1, :, columns] = closed[:, :, None] * np.uint8(255)
    return picture


class TwoRooms:
    """E environments side by side. An environment whose episode is over stays as it is until the next reset."""

    def __init__(self, environments: int = 1, *, split: Split = "test") -> None:
        """``split`` chooses the doors and the random streams that `reset` draws from."""
        if environments < 1:
            raise ValueError(f"environments: expected at least 1, got {environments}")
        if split not in DOORS:
            raise ValueError(f"split: expected one of {', '.join(map(repr, DOORS))}, got {split!r}")
        self.environments = environments
        self.split: Split = split
        self.reset(seed=0)

    def reset(self, *, seed: int, cross_room: bool | ArrayLike | None = None, first: int = 0) -> NDArray[np.uint8]:
        """Begin episodes ``first`` ... ``first + E - 1`` of ``seed`` (see `draw_episodes`); returns the observation."""
        return self.begin(
            draw_episodes(self.environments, seed=seed, split=self.split, cross_room=cross_room, first=first)
        )

    def begin(self, episodes: Episodes) -> NDArray[np.uint8]:
        """Begin the given episodes, one per environment; returns the observation (E, 2, 64, 64)."""
        if len(episodes) != self.environments:
            raise ValueError(f"episodes: expected {self.environments} (one per environment), got {len(episodes)}")
        self.position = episodes.start.copy()
        self.goal = episodes.goal.copy()
        self.door = episodes.door.copy()
        self.steps = np.zeros(self.environments, dtype=np.int64)
        return self.observation

    def step(self, action: ArrayLike) -> NDArray[np.uint8]:
        """Move every environment by ``action`` (E, 2) in pixels; returns the observation (E, 2, 64, 64).

        Raises ValueError if the shape is another or a number is not finite.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (self.environments, 2):
            raise ValueError(f"action: expected shape {(self.environments, 2)}, got {action.shape}")
        if not np.isfinite(action).all():
            raise ValueError("action: every number must be finite")
        running = ~(self.success | self.truncated)
        self.position = np.where(running[:, None], move(self.position, action, self.door), self.position)
        self.steps += running
        return self.observation

    @property
    def observation(self) -> NDArray[np.uint8]:
        """What the agents see now, (E, 2, 64, 64)."""
        return render(self.position, self.door)

    @property
    def goal_observation(self) -> NDArray[np.uint8]:
        """What they would see at their goals, (E, 2, 64, 64)."""
        return render(self.goal, self.door)

    @property
    def distance(self) -> NDArray[np.float64]:
        """(E,), the straight distance to the goal in pixels, whatever stands in between."""
        distance: NDArray[np.float64] = np.hypot(*(self.goal - self.position).T)
        return distance

    @property
    def success(self) -> NDArray[np.bool_]:
        """(E,), whether the agent is within `GOAL_RADIUS` of its goal."""
        return self.distance <= GOAL_RADIUS

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """(E,), whether `MAX_STEPS` steps have passed without success."""
        return (self.steps >= MAX_STEPS) & ~self.success
