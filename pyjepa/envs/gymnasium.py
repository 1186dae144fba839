"""The worlds as Gymnasium environments, registered when this is imported. The only module here that needs gymnasium."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias, cast

import gymnasium
import numpy as np
from numpy.typing import NDArray

from pyjepa.envs.registration import register
from pyjepa.envs.two_rooms import MAX_STEPS, SIZE, STEP, Split, TwoRooms
from pyjepa.envs.two_rooms_discrete import MOVES, TwoRoomsDiscrete

Observation: TypeAlias = dict[str, NDArray[np.uint8]]


class _Env(gymnasium.Env[Observation, Any]):
    """What one Two Rooms world is to Gymnasium, whatever moves it."""

    world: type[TwoRooms]
    actions: gymnasium.Space[Any]
    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it an instance attribute)
        "render_modes": ["rgb_array"],
        "render_fps": 30,
    }

    def __init__(self, *, split: Split = "test", render_mode: str | None = None) -> None:
        """``split`` is that of `TwoRooms`: which doors and random streams the episodes come from."""
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        picture = gymnasium.spaces.Box(0, 255, (2, SIZE, SIZE), np.uint8)
        pictures = gymnasium.spaces.Dict({"observation": picture, "goal": picture})
        self.observation_space = cast("gymnasium.Space[Observation]", pictures)
        self.action_space = copy.deepcopy(self.actions)  # each draws its own samples
        self._world = self.world(1, split=split)
        self._seed: int | None = None
        self._episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode: ``seed`` starts a new series, without it the series goes on.

        ``options={"cross_room": bool}`` puts start and goal in different rooms, or in the same.
        """
        super().reset(seed=seed)
        if seed is not None or self._seed is None:
            self._seed = seed if seed is not None else int(self.np_random.integers(2**32))
            self._episode = 0
        self._world.reset(seed=self._seed, cross_room=(options or {}).get("cross_room"), first=self._episode)
        self._episode += 1
        self._goal = self._world.goal_observation[0]
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move by ``action``, one of the action space."""
        self._world.step(np.asarray(action)[None])
        success = bool(self._world.success[0])
        truncated = not success and int(self._world.steps[0]) >= MAX_STEPS
        return self._observation(), 0.0 if success else -1.0, success, truncated, self._info()

    def render(self) -> NDArray[np.uint8] | None:
        """The picture (64, 64, 3): agent red, goal green, wall grey. None without a render mode."""
        if self.render_mode is None:
            return None
        agent, wall = self._world.observation[0]
        background = 255 - wall // 2
        picture = np.stack([background] * 3, axis=-1)
        picture[..., 1:] -= np.minimum(agent, background)[..., None]
        picture[..., ::2] -= np.minimum(self._goal[0][..., None], picture[..., ::2])
        return picture

    def _observation(self) -> Observation:
        return {"observation": self._world.observation[0], "goal": self._goal.copy()}

    def _info(self) -> dict[str, Any]:
        return {
            "success": bool(self._world.success[0]),
            "distance": float(self._world.distance[0]),
            "position": self._world.position[0].copy(),
            "door": int(self._world.door[0]),
        }


class TwoRoomsEnv(_Env):
    """One Two Rooms world, ``pyjepa/TwoRooms-v0``.

    Observations are ``{"observation": uint8 (2, 64, 64), "goal": uint8 (2, 64, 64)}``, actions float32 (2,) in
    [-3, 3] px (shortened to 3 px). The reward is -1 a step and 0 on the step that reaches the goal, which terminates
    the episode; 200 steps truncate it. ``info`` has ``success``, ``distance`` (px), ``position`` and ``door``.
    """

    world = TwoRooms
    actions = gymnasium.spaces.Box(-STEP, STEP, (2,), np.float32)


class TwoRoomsDiscreteEnv(_Env):
    """The same with eight moves, ``pyjepa/TwoRoomsDiscrete-v0``: actions are integers from 0 to 7, the compass
    directions of `two_rooms_discrete.MOVES`.
    """

    world = TwoRoomsDiscrete
    actions = gymnasium.spaces.Discrete(len(MOVES))


register()
