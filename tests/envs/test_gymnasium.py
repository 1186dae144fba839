"""Two Rooms through Gymnasium."""

import subprocess
import sys

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env  # noqa: E402

import pyjepa.envs.gymnasium  # noqa: E402, F401


@pytest.fixture
def env():
    return gymnasium.make("pyjepa/TwoRooms-v0", split="train", render_mode="rgb_array")


# Actions are displacements in pixels, as planned; Gymnasium only advises a range of [-1, 1].
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space:UserWarning")
def test_gymnasium_finds_nothing_wrong(env):
    check_env(env.unwrapped)


def test_one_seed_gives_one_series_of_episodes(env):
    first = [env.reset(seed=4)[1]["position"], env.reset()[1]["position"]]
    second = [env.reset(seed=4)[1]["position"], env.reset()[1]["position"]]
    assert np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_the_episode_ends_at_the_goal_or_after_two_hundred_steps(env):
    _, info = env.reset(seed=0, options={"cross_room": True})
    for step in range(200):
        _, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        assert reward == -1.0
        assert not terminated
        assert truncated == (step == 199)
    env.reset(seed=0, options={"cross_room": False})
    world = env.unwrapped._world
    for _ in range(60):
        action = np.clip(world.goal[0] - world.position[0], -3, 3).astype(np.float32)
        _, reward, terminated, _, info = env.step(action)
        if terminated:
            break
    assert terminated
    assert reward == 0.0
    assert info["success"]
    assert info["distance"] <= 3


def test_the_rendered_picture_shows_agent_and_goal(env):
    _, info = env.reset(seed=2)
    picture = env.render()
    assert picture.shape == (64, 64, 3)
    x, y = np.round(info["position"]).astype(int)
    assert picture[y, x, 0] > 200 > 100 > picture[y, x, 1]


@pytest.mark.parametrize(
    ("imports", "name"),
    [
        ("import gymnasium", "pyjepa.envs:pyjepa/TwoRooms-v0"),
        ("import gymnasium, pyjepa.envs", "pyjepa/TwoRooms-v0"),
        ("import pyjepa.envs, gymnasium", "pyjepa/TwoRooms-v0"),
        ("import gymnasium, pyjepa", "pyjepa/TwoRooms-v0"),
    ],
)
def test_gymnasium_finds_the_world(imports, name):
    code = f"{imports}; print(gymnasium.make({name!r}).action_space.shape)"
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "(2,)\n"


def test_importing_pyjepa_does_not_import_gymnasium():
    code = "import sys, pyjepa; print('gymnasium' in sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "False\n"
