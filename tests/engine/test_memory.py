"""Short-term memory: what the engine records as the agent perceives, and files of it."""

import numpy as np
import pytest
from sample import engine_model, networks, observations, pixel_spec

import pyjepa
from pyjepa.memory import Memory


@pytest.fixture(scope="module")
def model():
    return engine_model(pixel_spec(), networks(pixel_spec()))


@pytest.fixture
def agent(model):
    agent = pyjepa.Agent(model)
    agent.remember(100)
    agent.configure(goal=observations(9)[8])
    return agent


def test_states_are_recorded_with_their_time_and_intrinsic_cost(agent, model):
    seen = observations(9)
    for i in range(5):
        agent.observe(seen[i], steps=i + 2)
    memory = agent.memory
    states, goal = model.encode(seen[:5]), model.encode(seen[8:9])
    np.testing.assert_allclose(memory.states, states, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(memory.goals, np.repeat(goal, 5, axis=0), rtol=1e-5, atol=1e-6)
    # The stage weight of goal_distance is 1; terms of actions have no share in a state.
    np.testing.assert_allclose(memory.costs, np.linalg.norm(states - goal, axis=1), rtol=1e-5)
    assert memory.steps.tolist() == [0, 3, 7, 12, 18]
    assert len(set(memory.episodes.tolist())) == 1
    assert memory.environments.tolist() == [0] * 5


def test_weights_of_the_task_weigh_the_intrinsic_cost(agent):
    picture = observations(1)[0]
    agent.observe(picture)
    agent.configure(goal=observations(9)[8], weights={"goal_distance": 0.25})
    agent.observe(picture)
    assert agent.memory.costs[1] == pytest.approx(0.25 * agent.memory.costs[0])


def test_the_oldest_records_make_room(agent):
    agent.remember(4)
    for i in range(11):
        agent.observe(observations(11)[i])
    memory = agent.memory
    assert memory.steps.tolist() == [28, 32, 36, 40]  # action_block is 4
    np.testing.assert_array_equal(memory.states[-1], agent.state)


def test_an_episode_ends_at_reset_and_configure(agent):
    picture = observations(1)[0]
    for _ in range(2):
        agent.observe(picture)
    agent.reset()
    agent.observe(picture)
    agent.configure(goal=observations(9)[7])
    agent.observe(picture)
    memory = agent.memory
    assert memory.steps.tolist() == [0, 4, 0, 0]
    assert [len(t) for t in memory.trajectories()] == [2, 1, 1]


def test_every_environment_has_episodes_of_its_own(model):
    agent = pyjepa.Agent(model)
    agent.remember(20)
    agent.configure(goal=observations(2))
    agent.observe(observations(2))
    agent.reset(env=1)
    agent.observe(observations(2))
    memory = agent.memory
    assert memory.environments.tolist() == [0, 1, 0, 1]
    assert memory.steps.tolist() == [0, 0, 4, 0]
    assert len(set(memory.episodes.tolist())) == 3


def test_without_a_goal_and_with_a_rollout_of_the_users_there_is_no_intrinsic_cost(model):
    agent = pyjepa.Agent(model)
    agent.remember(3)
    agent.configure(rollout=lambda states, goals, actions: np.zeros(actions.shape[:2]))
    agent.observe(observations(1)[0])
    memory = agent.memory
    assert memory.costs.tolist() == [0.0]
    assert np.isnan(memory.goals).all()


def test_nothing_is_recorded_before_remember_or_after_forgetting_nor_by_a_clone(model, agent):
    plain = pyjepa.Agent(model)
    plain.configure(goal=observations(1)[0])
    plain.observe(observations(1)[0])
    assert len(plain.memory) == 0
    agent.observe(observations(1)[0])
    twin = agent.clone()
    twin.observe(observations(1)[0])
    assert (len(agent.memory), len(twin.memory)) == (1, 0)
    agent.remember(0)
    agent.observe(observations(1)[0])
    assert len(agent.memory) == 0


@pytest.mark.parametrize("capacity", [-1, 2.0, True, 2**50])
def test_a_capacity_that_cannot_be_is_an_error(agent, capacity):
    with pytest.raises(pyjepa.InvalidArgumentError, match=r"capacity must be|too large"):
        agent.remember(capacity)


@pytest.fixture
def memory(agent):
    for i in range(6):
        agent.observe(observations(6)[i])
    return agent.memory


def equal(a, b):
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in a.__dataclass_fields__)


def test_a_file_gives_back_what_was_saved(memory, tmp_path):
    memory.save(tmp_path / "a.memory")
    assert equal(Memory.load(tmp_path / "a.memory"), memory)
    assert [p.name for p in tmp_path.iterdir()] == ["a.memory"]


def test_joined_memories_keep_their_episodes_apart(memory):
    both = Memory.joined([memory, memory])
    assert len(both) == 2 * len(memory)
    assert [len(t) for t in both.trajectories()] == [6, 6]
    with pytest.raises(pyjepa.InvalidArgumentError, match="no memory to join"):
        Memory.joined([])


def test_a_file_truncated_at_any_byte_is_a_named_error_and_the_agent_keeps_acting(memory, agent, tmp_path):
    memory.save(tmp_path / "a.memory")
    data = (tmp_path / "a.memory").read_bytes()
    for end in range(len(data)):
        (tmp_path / "b.memory").write_bytes(data[:end])
        with pytest.raises(pyjepa.MemoryFileError, match=r"b\.memory"):
            Memory.load(tmp_path / "b.memory")
    assert np.isfinite(agent.act()).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda a: a.pop("costs"), "no memory file: it holds"),
        (lambda a: a.update(costs=a["costs"][:2]), "costs is float32"),
        (lambda a: a.update(steps=a["steps"].astype(np.int32)), "steps is int32"),
        (lambda a: a["states"].__setitem__((1, 2), np.nan), "states holds values that are not finite"),
        (lambda a: a["steps"].__setitem__(0, -4), "negative steps"),
        (lambda a: a.update(states=a["states"][:, 0]), r"expected \(M, L\)"),
    ],
)
def test_files_of_something_else_are_named_errors(memory, tmp_path, change, match):
    import safetensors.numpy

    arrays = {name: np.array(getattr(memory, name)) for name in memory.__dataclass_fields__}
    change(arrays)
    (tmp_path / "c.memory").write_bytes(safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))
    with pytest.raises(pyjepa.MemoryFileError, match=match):
        Memory.load(tmp_path / "c.memory")
    with pytest.raises(FileNotFoundError):
        Memory.load(tmp_path / "absent.memory")
