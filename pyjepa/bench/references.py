"""What there is to earn in a Gymnasium environment: by random actions, by none, and by those who know its true state.

An oracle reads the simulator, which no agent that sees pictures can; it says what share of the possible one reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa import agent_file
from pyjepa.adapters import needed
from pyjepa.agent import Agent, Model
from pyjepa.spec import Actions, CostTerm, Observation, Planner, Spec

Policy = Callable[[], Any]
"""The next action, from the environment that it was made for."""


class ReacherOracle:
    """`pyjepa`'s CEM over copies of the MuJoCo state: what a plan earns is the environment's own reward."""

    ABOUT = "CEM of pyjepa on the simulator's state: 30 steps ahead, 5 knots, 40 candidates, 3 iterations"
    TAKEN = 2
    """Steps of a plan that are taken before the next is made."""

    def __init__(self, env: Any, seed: int) -> None:
        self._env = env.unwrapped
        self._rollout = needed("mujoco.rollout", "mujoco", "the oracle of Reacher").rollout
        self._mujoco = needed("mujoco", "mujoco", "the oracle of Reacher")
        space = env.action_space
        spec = Spec(
            observation=Observation(shape=(1,)),
            actions=Actions(low=tuple(map(float, space.low)), high=tuple(map(float, space.high))),
            cost=(CostTerm(kind="action_size"),),
            planner=Planner(
                horizon=30, knots=5, interpolation="linear", candidates=40, iterations=3, elites=8, std=0.3,
            ),
        )  # fmt: skip
        self._agent = Agent(Model.from_bytes(agent_file.to_bytes(spec, {})))
        self._agent.configure(rollout=lambda states, goals, actions: -self.earned(actions[0])[None], seed=seed)
        self._copy = self._mujoco.MjData(self._env.model)
        self._ahead: list[npt.NDArray[np.float32]] = []

    def earned(self, plans: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What plans (N, H, 2) earn from here on, (N,)."""
        env, kind = self._env, self._mujoco.mjtState.mjSTATE_FULLPHYSICS
        start = np.empty(self._mujoco.mj_stateSize(env.model, kind))
        self._mujoco.mj_getState(env.model, env.data, start, kind)
        controls = np.repeat(plans.astype(np.float64), env.frame_skip, axis=1)
        states, _ = self._rollout(env.model, self._copy, np.tile(start, (len(plans), 1)), controls)
        places = states[:, env.frame_skip - 1 :: env.frame_skip, 1 : 1 + env.model.nq]
        first, second, target = places[..., 0], places[..., 0] + places[..., 1], places[..., 2:4]
        tip = np.stack([0.1 * np.cos(first) + 0.11 * np.cos(second), 0.1 * np.sin(first) + 0.11 * np.sin(second)], -1)
        distance = np.linalg.norm(tip - target, axis=-1) * env._reward_dist_weight
        lost = (distance + np.square(plans).sum(-1) * env._reward_control_weight).sum(-1)
        earned: npt.NDArray[np.float32] = -lost.astype(np.float32)
        return earned

    def reset(self) -> None:
        """An episode begins."""
        self._agent.reset()
        self._ahead = []

    def __call__(self) -> Any:
        """The action to take now."""
        if not self._ahead:
            self._agent.observe(np.zeros(1, np.float32), steps=self.TAKEN)
            self._ahead = list(self._agent.plan().actions[: self.TAKEN])
        return self._ahead.pop(0)


class CartPoleOracle:
    """Pushes to where the pole falls, leaning towards the middle of the track."""

    ABOUT = "a linear rule on the true state"

    def __init__(self, env: Any, seed: int) -> None:
        self._env = env.unwrapped

    def reset(self) -> None:
        """An episode begins."""

    def __call__(self) -> int:
        """The action to take now."""
        place, speed, angle, turning = self._env.state
        return int(0.05 * place + 0.1 * speed + angle + 0.3 * turning > 0)


ORACLES: dict[str, Any] = {"Reacher-v5": ReacherOracle, "CartPole-v1": CartPoleOracle}


def references(
    name: str, *, episodes: int, seed: int, arguments: dict[str, Any] | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:  # fmt: skip
    """What random actions earn, no action (where 0 is one), and an oracle (where there is one for ``name``).

    Each plays the same ``episodes``, from seeds ``seed``, ``seed`` + 1, … Returns means, deviations and the oracle's
    description.
    """
    gymnasium = needed("gymnasium", "gymnasium", "playing an environment")
    env = gymnasium.make(name, **(arguments or {}))
    space = env.action_space
    space.seed(seed)

    def play(decide: Policy, begin: Callable[[], None] = lambda: None) -> dict[str, Any]:
        returns = []
        for episode in range(episodes):
            env.reset(seed=seed + episode)
            begin()
            total, over = 0.0, False
            while not over:
                _, reward, ended, late, _ = env.step(decide())
                total, over = total + float(reward), ended or late
            returns.append(total)
            progress(1)
        return {"mean": float(np.mean(returns)), "std": float(np.std(returns))}

    found = {"random": play(space.sample)}
    if isinstance(space, gymnasium.spaces.Box) and space.contains(np.zeros(space.shape, space.dtype)):
        found["still"] = play(lambda: np.zeros(space.shape, space.dtype))
    if name in ORACLES:
        oracle = ORACLES[name](env, seed)
        found["oracle"] = {"about": oracle.ABOUT, **play(oracle, oracle.reset)}
    env.close()
    return found
