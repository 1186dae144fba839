"""Two Rooms with eight moves: the compass directions, each a step at the speed limit. All else is `two_rooms`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyjepa.envs.two_rooms import STEP, TwoRooms

_DIAGONAL = STEP / np.sqrt(2.0)
MOVES: NDArray[np.float64] = np.array(
    [
        (STEP, 0.0),
        (_DIAGONAL, _DIAGONAL),
        (0.0, STEP),
        (-_DIAGONAL, _DIAGONAL),
        (-STEP, 0.0),
        (-_DIAGONAL, -_DIAGONAL),
        (0.0, -STEP),
        (_DIAGONAL, -_DIAGONAL),
    ]
)
"""(8, 2): the displacement in pixels (x, y) of each action; action 0 goes right, the others follow clockwise."""


class TwoRoomsDiscrete(TwoRooms):
    """`TwoRooms` whose actions are indices into `MOVES`."""

    def step(self, action: ArrayLike) -> NDArray[np.uint8]:
        """Move every environment by one of the eight moves, ``action`` (E,); returns the observation (E, 2, 64, 64).

        Raises ValueError if the shape is another or a number is not an integer from 0 to 7.
        """
        index = np.asarray(action)
        if index.shape != (self.environments,):
            raise ValueError(f"action: expected shape {(self.environments,)}, got {index.shape}")
        if not np.issubdtype(index.dtype, np.integer) or ((index < 0) | (index >= len(MOVES))).any():
            raise ValueError(f"action: expected integers from 0 to {len(MOVES) - 1}, got {action!r}")
        return super().step(MOVES[index])
