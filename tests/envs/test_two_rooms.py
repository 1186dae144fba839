"""The Two Rooms world: geometry, rendering, seeds and splits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyjepa.envs import TwoRooms, draw_episodes, evaluation_episodes
from pyjepa.envs.two_rooms import BORDER, DOOR_HALF_WIDTH, DOORS, MAX_STEPS, START_DISTANCE, STEP, WALL, move, render

ONE_DOOR = np.array([32])


def go(position, *actions, door=32):
    at = np.array([position], dtype=np.float64)
    for action in actions:
        at = move(at, [action], np.array([door]))
    return at[0]


def test_long_actions_are_shortened_to_three_pixels():
    assert np.allclose(go((10, 10), (30, 40)), (10 + 1.8, 10 + 2.4))
    assert np.allclose(go((10, 10), (1, -2)), (11, 8))


def test_the_wall_blocks_and_the_agent_slides_along_it():
    assert np.allclose(go((29, 10), (2.5, 1)), (30.5, 11))
    assert np.allclose(go((34, 10), (-2.5, 1)), (32.5, 11))
    assert np.allclose(go((30.5, 10), (2, 0)), (30.5, 10))


def test_no_step_tunnels_through_the_wall():
    # 3 px are longer than the wall is thick: both ends of this step are free, what lies between is not.
    assert np.allclose(go((30, 10), (3, 0)), (30.5, 10))
    assert np.allclose(go((33, 10), (-3, 0)), (32.5, 10))


def test_the_door_lets_the_agent_through_both_ways():
    assert np.allclose(go((30, 32), (3, 0)), (33, 32))
    assert np.allclose(go((33, 32), (-3, 0)), (30, 32))
    assert np.allclose(go((30, 37), (3, 0)), (33, 37))
    assert np.allclose(go((30, 37.1), (3, 0)), (30.5, 37.1))


def test_the_jambs_bound_the_motion_inside_the_door():
    assert np.allclose(go((31.5, 36), (0, 3)), (31.5, 37))
    # Enters at the middle, is held at the jamb while inside, and is free again behind the wall.
    x, y = go((31.5, 36.5), (2, 2))
    assert np.allclose((x, y), (33.5, 37 + 2 * 0.5))


def test_the_border_holds_the_agent():
    assert np.allclose(go((3, 3), (-3, 0), (0, -3)), (BORDER[0], BORDER[0]))


coordinate = st.floats(BORDER[0], BORDER[1])
displacement = st.floats(-4, 4)


@settings(max_examples=300, deadline=None)
@given(
    x=coordinate,
    y=coordinate,
    door=st.sampled_from(DOORS["train"] + DOORS["test"]),
    actions=st.lists(st.tuples(displacement, displacement), min_size=1, max_size=12),
)
def test_the_agent_is_never_inside_the_wall_and_crosses_only_at_the_door(x, y, door, actions):
    if WALL[0] < x < WALL[1]:
        x = WALL[0]
    position = np.array([[x, y]])
    doors = np.array([door])
    for action in actions:
        after = move(position, [action], doors)
        assert np.hypot(*(after - position)[0]) <= STEP + 1e-9
        inside = WALL[0] < after[0, 0] < WALL[1]
        if inside:
            assert abs(after[0, 1] - door) <= DOOR_HALF_WIDTH + 1e-9
        crossed = (position[0, 0] < 31.5) != (after[0, 0] < 31.5)
        if crossed:
            low, high = sorted((position[0, 1], after[0, 1]))
            assert low <= door + DOOR_HALF_WIDTH + 1e-9
            assert high >= door - DOOR_HALF_WIDTH - 1e-9
        position = after


def test_a_batch_moves_like_its_members():
    rng = np.random.default_rng(0)
    position, action = rng.uniform(2, 61, (500, 2)), rng.uniform(-4, 4, (500, 2))
    door = rng.choice(DOORS["train"], 500)
    together = move(position, action, door)
    for i in range(500):
        assert np.array_equal(together[i], move(position[i : i + 1], action[i : i + 1], door[i : i + 1])[0])


def test_the_picture_shows_the_dot_and_the_wall_with_its_door():
    picture = render(np.array([[10.0, 20.0]]), np.array([30]))
    assert picture.shape == (1, 2, 64, 64)
    assert picture.dtype == np.uint8
    dot, wall = picture[0]
    assert dot[20, 10] == 255
    assert dot.argmax() == 20 * 64 + 10
    assert dot[20, 12] == round(255 * np.exp(-4 / (2 * 1.5**2)))
    assert not wall[:, :31].any()
    assert not wall[:, 33:].any()
    closed = np.abs(np.arange(64) - 30) > 5
    assert np.array_equal(wall[:, 31] == 255, closed)
    assert np.array_equal(wall[:, 31], wall[:, 32])


def test_the_dot_moves_by_less_than_a_pixel():
    a, b = render(np.array([[10.0, 20.0], [10.25, 20.0]]), np.array([30, 30]))
    assert (a[0] != b[0]).any()


def test_test_doors_and_streams_are_never_met_in_training():
    assert not set(DOORS["train"]) & set(DOORS["test"])
    train = draw_episodes(300, seed=5, split="train")
    test = draw_episodes(300, seed=5, split="test")
    assert set(train.door) <= set(DOORS["train"])
    assert set(test.door) == set(DOORS["test"])
    assert not np.isclose(train.start[:, None], test.start[None]).all(-1).any()


def test_an_episode_depends_on_its_seed_and_number_alone():
    many, one = draw_episodes(10, seed=3), draw_episodes(1, seed=3, first=7)
    assert np.array_equal(many.start[7], one.start[0])
    assert np.array_equal(many.goal[7], one.goal[0])
    assert many.door[7] == one.door[0]
    other = draw_episodes(10, seed=4)
    assert not np.isclose(many.start, other.start).any()


def test_starts_are_away_from_goals_and_rooms_are_as_asked():
    episodes = evaluation_episodes(100)
    assert np.array_equal(episodes.cross_room, np.arange(100) % 2 == 0)
    assert (np.hypot(*(episodes.goal - episodes.start).T) >= START_DISTANCE).all()
    for points in (episodes.start, episodes.goal):
        assert (np.abs(points[:, 0] - 31.5) >= 3).all()
    drawn = draw_episodes(200, seed=0).cross_room
    assert 60 < drawn.sum() < 140


def test_reaching_the_goal_ends_an_episode_and_so_do_two_hundred_steps():
    world = TwoRooms(2)
    episodes = draw_episodes(2, seed=1, cross_room=False)
    world.begin(episodes)
    assert not world.success.any()
    for _ in range(60):
        towards = world.goal - world.position
        towards[1] = 0.0
        world.step(towards)
    assert world.success.tolist() == [True, False]
    assert world.steps[0] < 60
    resting = world.position.copy()
    for _ in range(MAX_STEPS):
        world.step([[3.0, 0.0], [0.0, 0.0]])
    assert np.array_equal(world.position, resting)
    assert world.truncated.tolist() == [False, True]
    assert world.steps[1] == MAX_STEPS


def test_the_goal_is_a_picture_of_the_same_walls():
    world = TwoRooms(3, split="train")
    world.reset(seed=9)
    assert np.array_equal(world.goal_observation[:, 1], world.observation[:, 1])
    assert np.array_equal(world.goal_observation[:, 0], render(world.goal, world.door)[:, 0])


@pytest.mark.parametrize(
    ("action", "message"),
    [([[0.0, 0.0, 0.0]], r"expected shape \(1, 2\), got \(1, 3\)"), ([[np.nan, 0.0]], "finite")],
)
def test_a_wrong_action_is_an_error(action, message):
    with pytest.raises(ValueError, match=message):
        TwoRooms(1).step(action)


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="environments"):
        TwoRooms(0)
    with pytest.raises(ValueError, match="split"):
        TwoRooms(1, split="validation")
    with pytest.raises(ValueError, match="expected 2"):
        TwoRooms(2).begin(draw_episodes(3, seed=0))
