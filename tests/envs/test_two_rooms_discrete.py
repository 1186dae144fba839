"""Two Rooms with eight moves."""

import numpy as np
import pytest

from pyjepa.envs import TwoRooms, TwoRoomsDiscrete, evaluation_episodes
from pyjepa.envs.two_rooms_discrete import MOVES


def test_a_move_is_a_step_at_the_speed_limit_in_a_compass_direction():
    np.testing.assert_allclose(np.hypot(*MOVES.T), 3.0)
    np.testing.assert_allclose(np.degrees(np.arctan2(MOVES[:, 1], MOVES[:, 0])) % 360, np.arange(8) * 45)


def test_it_is_the_same_world():
    episodes = evaluation_episodes(8)
    one, other = TwoRooms(8), TwoRoomsDiscrete(8)
    np.testing.assert_array_equal(one.begin(episodes), other.begin(episodes))
    rng = np.random.default_rng(0)
    for _ in range(40):
        action = rng.integers(0, 8, 8)
        np.testing.assert_array_equal(one.step(MOVES[action]), other.step(action))
    np.testing.assert_array_equal(one.position, other.position)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0], r"expected shape \(2,\), got \(1,\)"),
        ([[0.0, 1.0]], r"expected shape \(2,\)"),
        ([0, 8], "integers from 0 to 7"),
        ([-1, 0], "integers from 0 to 7"),
        ([0.0, 1.0], "integers from 0 to 7"),
    ],
)
def test_an_action_that_is_none_is_named(action, message):
    with pytest.raises(ValueError, match=message):
        TwoRoomsDiscrete(2).step(action)


def test_gymnasium_finds_nothing_wrong():
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make("pyjepa.envs:pyjepa/TwoRoomsDiscrete-v0", split="train", render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.action_space == gymnasium.spaces.Discrete(8)
    _, info = env.reset(seed=3)
    _, reward, _, _, after = env.step(np.int64(2))
    assert reward == -1.0
    assert after["position"][1] == pytest.approx(min(info["position"][1] + 3.0, 61.0))
