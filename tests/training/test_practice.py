"""Practice: the critic learns what is still to come, the policy what the planner decided."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner

import pyjepa
from pyjepa import agent_file, agents
from pyjepa.cli import main
from pyjepa.cost import intrinsic_cost
from pyjepa.discretise import discretise
from pyjepa.envs.two_rooms_discrete import MOVES, TwoRoomsDiscrete
from pyjepa.memory import Memory
from pyjepa.spec import Actions, CostTerm, Layer, Level, Mlp, Module, Observation, Planner, Spec
from pyjepa.training import experience
from pyjepa.training.critic import pairs, train_critic
from pyjepa.training.distillation import train_policy
from pyjepa.training.experience import Plans
from pyjepa.training.practice import Settings, practise, practised_spec
from pyjepa.world_model import WorldModel

LATENT = 2


def network(*sizes, reads=("state", "goal")):
    layers = tuple(Layer(out=n, activation="relu" if i + 1 < len(sizes) else "none") for i, n in enumerate(sizes))
    return Module(inputs=reads, blocks=(Mlp(layers=layers),))


def spec(**changes):
    """A point in a plane; its encoder and predictor are there, but nothing here asks them."""
    return dataclasses.replace(
        Spec(
            observation=Observation(shape=(LATENT,)),
            actions=Actions(low=(-1.0, -2.0), high=(1.0, 4.0)),
            modules={
                "encoder": network(LATENT, reads=("observation",)),
                "predictor": network(LATENT, reads=("state", "action")),
                "critic": network(64, 64, 1),
                "policy": network(64, 64, 4),
            },
            levels=(Level(encoder="encoder", predictor="predictor"),),
            critic="critic",
            policy="policy",
            policy_head="gaussian_tanh",
            cost=(CostTerm(kind="goal_distance", reach=1.5), CostTerm(kind="critic", stage=0.0, estimates="cost")),
        ),
        **changes,
    )


def walks(episodes=40, length=8, seed=0, goal=True):
    """Straight walks towards goals, half a unit a step."""
    rng = np.random.default_rng(seed)
    goals = rng.uniform(-2, 2, (episodes, 1, LATENT))
    heading = rng.normal(size=(episodes, 1, LATENT))
    heading /= np.linalg.norm(heading, axis=-1, keepdims=True)
    left = np.arange(length)[::-1][None, :, None]
    states = (goals + 0.5 * left * heading).astype(np.float32).reshape(-1, LATENT)
    kept = np.repeat(goals.astype(np.float32), length, axis=1).reshape(-1, LATENT)
    return Memory(
        episodes=np.repeat(np.arange(episodes), length),
        steps=np.tile(np.arange(length), episodes),
        environments=np.zeros(episodes * length, np.int32),
        states=states,
        goals=kept if goal else np.full_like(kept, np.nan),
        costs=np.zeros(episodes * length, np.float32),
    )


def distance(states, goals):
    return (states - goals).norm(dim=-1)


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_targets_are_sums_of_what_followed(window, discount):
    memory = walks(episodes=2, length=5, goal=False)
    found = pairs(memory, distance, window=window, discount=discount)
    assert len(found) == 2 * (2 + 3 + 4 + 5)  # every later state as a goal, with all that came before
    at = 0
    for episode in range(2):
        path = memory.states[episode * 5 : episode * 5 + 5]
        for end in range(1, 5):
            for i in range(end + 1):
                stop = min(i + window, end)
                total = sum(
                    discount ** (k - i - 1) * np.linalg.norm(path[k] - path[end]) for k in range(i + 1, stop + 1)
                )
                assert found.costs[at].item() == pytest.approx(total, abs=1e-6)
                assert found.factor[at].item() == pytest.approx(0.0 if stop == end else discount**window)
                np.testing.assert_array_equal(found.states[at], path[i])
                np.testing.assert_array_equal(found.ahead[at], path[stop])
                np.testing.assert_array_equal(found.goals[at], path[end])
                at += 1


def test_ways_to_the_own_goal_go_on_after_the_last_record():
    memory = walks(episodes=1, length=4)
    found = pairs(memory, distance, window=100, hindsight=False)
    assert len(found) == 3  # the last one has nothing after it
    assert (found.factor > 0).all()
    np.testing.assert_array_equal(found.ahead, np.repeat(memory.states[-1:], 3, axis=0))


def test_there_must_be_something_to_learn_from():
    with pytest.raises(ValueError, match="window must be at least 1"):
        pairs(walks(), distance, window=0)
    with pytest.raises(ValueError, match="nothing to learn from"):
        pairs(walks(length=1), distance, window=1)
    bare = spec(modules={k: v for k, v in spec().modules.items() if k != "critic"}, critic=None, cost=())
    with pytest.raises(ValueError, match="no critic"):
        train_critic(WorldModel(bare), walks(), steps=1)


@pytest.mark.parametrize("window", [2, 1000])
def test_the_critic_learns_what_is_still_to_come(window):
    torch.manual_seed(0)
    model = WorldModel(spec())
    train_critic(model, walks(episodes=150), steps=900, batch=256, window=window)
    exact = pairs(walks(episodes=30, seed=7), lambda s, g: intrinsic_cost(model, s, g), window=1000)
    assert (exact.factor == 0).all()
    with torch.no_grad():
        found = model.head("critic", exact.states, goal=exact.goals)[0, :, 0]
    # Windows of 2 close their sums with the critic itself.
    assert (found - exact.costs).abs().mean() < 0.25 * exact.costs.std()


def test_intrinsic_cost_is_what_the_engine_remembers():
    base = pyjepa.Model.load(agents.path("two_rooms"))
    tensors = experience.load_tensors(str(agents.path("two_rooms")))
    changed = dataclasses.replace(
        base.spec,
        cost=(
            CostTerm(kind="goal_distance", stage=0.5, reach=4.0),
            CostTerm(kind="action_size"),
            CostTerm(kind="box", low=(0.0,) * base.latent_dim, stage=0.01),
        ),
        critic=None,
        policy=None,
        policy_head="deterministic",
        planner=dataclasses.replace(base.spec.planner, policy_candidates=0),
        modules={k: v for k, v in base.spec.modules.items() if k in ("encoder", "predictor")},
    )
    tensors = {k: v for k, v in tensors.items() if k.split(".")[0] in changed.modules}
    agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(changed, tensors)))
    memory, _ = experience.walk(agent, episodes=3, environments=2, steps=2)
    assert len(memory) == 6  # two decisions in three episodes
    found = intrinsic_cost(WorldModel(changed), torch.from_numpy(memory.states), torch.from_numpy(memory.goals))
    np.testing.assert_allclose(found, memory.costs, rtol=1e-4)


def test_the_policy_learns_what_was_planned_and_how_far_it_scatters():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    states, goals = rng.normal(size=(2, 4000, LATENT)).astype(np.float32)
    middle, half = np.array([0.0, 1.0]), np.array([1.0, 3.0])
    towards = np.tanh(0.7 * (goals - states))
    scattered = np.tanh(0.7 * (goals - states) + np.array([0.05, 0.5]) * rng.normal(size=states.shape))
    actions = (middle + half * scattered).astype(np.float32)[:, None]
    model = WorldModel(spec())
    train_policy(model, Plans(np.stack([states, states], axis=1), goals, actions), steps=1200, batch=256)
    with torch.no_grad():
        acted = model.act(torch.from_numpy(states), torch.from_numpy(goals)).numpy()
        head = model.head("policy", torch.from_numpy(states), goal=torch.from_numpy(goals))[0][:, 2:]
    assert np.abs((acted - (middle + half * towards)) / half).mean() < 0.12
    spread = torch.exp(-10 + 6 * (torch.tanh(head) + 1)).mean(dim=0)
    assert spread[1] > 2 * spread[0]


def test_the_policy_learns_how_often_which_action_was_planned():
    """Towards the goal along x by one of two actions, one taken three times as often as the other; never the third."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    states, goals = rng.normal(size=(2, 6000, LATENT)).astype(np.float32)
    right = goals[:, 0] > states[:, 0]
    actions = np.where(right, 0, np.where(rng.random(len(states)) < 0.75, 1, 2))[:, None]
    discrete = spec(
        actions=Actions(kind="discrete", count=4),
        modules={**spec().modules, "policy": network(64, 64, 4)},
        policy_head="categorical",
    )
    model = WorldModel(discrete)
    plans = Plans(np.stack([states, states], axis=1), goals, actions)
    loss = train_policy(model, plans, steps=800, batch=256)
    with torch.no_grad():
        logits = model.head("policy", torch.from_numpy(states), goal=torch.from_numpy(goals))[0]
        acted = model.act(torch.from_numpy(states), torch.from_numpy(goals)).argmax(-1).numpy()
    sure = np.abs(goals[:, 0] - states[:, 0]) > 0.3
    assert (acted == np.where(right, 0, 1))[sure].mean() > 0.97
    shares = torch.softmax(logits, dim=-1)[torch.from_numpy(sure & ~right)].mean(dim=0)
    assert shares[1] == pytest.approx(0.75, abs=0.06)
    assert shares[2] == pytest.approx(0.25, abs=0.06)
    assert shares[3] < 0.01
    assert loss < 0.6


def discrete_agent(path):
    file = agents.path("two_rooms")
    parts = discretise(pyjepa.Model.load(file).spec, experience.load_tensors(str(file)), MOVES)
    agent_file.save(path, *parts)
    return path


def test_an_agent_of_moves_practises_in_their_world(tmp_path):
    """A short practice: the agent acts by moves, and a policy learns from either planner of them."""
    settings = Settings(episodes=8, plans=64, rounds=1, steps=40)
    out = tmp_path / "practised.safetensors"
    new, memory = practise(discrete_agent(tmp_path / "moves.safetensors"), out, settings=settings)
    assert new.policy_head == "categorical"
    assert new.planner.algorithm == "categorical-cem"
    agent = pyjepa.load(out)
    teacher = experience.latent_model(new, experience.load_tensors(str(out)))
    for planner in ("categorical-cem", "tree"):
        plans = experience.plan_from(teacher, memory.states[:32], memory.goals[:32], planner=planner, iterations=2)
        assert plans.actions.dtype == np.int64
        model = WorldModel(new)
        before = train_policy(model, plans, steps=1)
        assert train_policy(model, plans, steps=150) < 0.8 * before
    world = TwoRoomsDiscrete(1)
    world.reset(seed=3)
    agent.configure(goal=world.goal_observation[0])
    move = agent.act(world.observation[0])
    assert isinstance(move, int)
    assert 0 <= move < len(MOVES)
    agent.configure(goal=world.goal_observation[0], planner="tree")
    assert set(agent.plan(world.observation[0]).cost_terms) == {"goal_distance", "critic"}


def test_practice_needs_the_actions_of_its_world(tmp_path):
    file = agents.path("two_rooms")
    parts = discretise(pyjepa.Model.load(file).spec, experience.load_tensors(str(file)), MOVES[:3])
    agent_file.save(tmp_path / "few.safetensors", *parts)
    with pytest.raises(ValueError, match="Two Rooms has two continuous actions or 8 moves, this agent has 3"):
        practise(tmp_path / "few.safetensors", tmp_path / "out.safetensors")


def test_plans_from_stored_states_are_those_of_the_agent():
    path = agents.path("two_rooms")
    model = pyjepa.Model.load(path)
    agent = pyjepa.Agent(model)
    memory, _ = experience.walk(agent, episodes=2, environments=2, steps=2)
    bare = experience.latent_model(model.spec, experience.load_tensors(str(path)))
    plans = experience.plan_from(bare, memory.states, memory.goals, environments=1, iterations=2)
    assert plans.states.shape == (len(memory), plans.actions.shape[1] + 1, model.latent_dim)
    np.testing.assert_array_equal(plans.states[:, 0], memory.states)
    again = experience.plan_from(bare, memory.states, memory.goals, environments=1, iterations=2)
    np.testing.assert_array_equal(plans.actions, again.actions)


def test_the_command_writes_an_agent_that_acts(tmp_path):
    out, memory = tmp_path / "a.safetensors", tmp_path / "a.memory"
    arguments = ["distil", "--out", out, "--episodes", 8, "--plans", 32, "--rounds", 1, "--steps", 20]
    run = CliRunner().invoke(main, [*map(str, arguments), "--save-memory", str(memory)])
    assert run.exit_code == 0, run.output
    agent = pyjepa.load(out)
    assert agent.spec.critic is not None
    assert "practice" in agent.spec.provenance
    observation = np.zeros((2, 64, 64), np.uint8)
    agent.configure(goal=observation)
    assert agent.act(observation).shape == (2,)
    assert set(agent.plan().cost_terms) == {"goal_distance", "critic"}
    # From what was remembered, nothing is played; the same seed gives the same agent.
    again = [*map(str, arguments[3:]), "--memory", str(memory)]
    for name in ("b", "c"):
        run = CliRunner().invoke(main, ["distil", "--out", str(tmp_path / f"{name}.safetensors"), *again])
        assert run.exit_code == 0, run.output
    b, c = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("b", "c"))
    assert all(np.array_equal(b[name], c[name]) for name in b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "nowhere/a.safetensors"], "there is no folder"),
        (["--out", "a.safetensors", "--memory", "empty.memory"], "no memory file"),
        (["--out", "a.safetensors", "--memory", "other.memory"], "states have 2 numbers"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.memory").write_bytes(b"")
    walks().save(tmp_path / "other.memory")
    run = CliRunner().invoke(main, ["distil", *arguments])
    assert run.exit_code == 2
    assert message in run.output
    assert "Traceback" not in run.output
    assert not (tmp_path / "a.safetensors").exists()


def test_practice_replaces_critic_policy_and_goal_distance_and_keeps_the_rest():
    old = spec(
        cost=(CostTerm(kind="goal_distance"), CostTerm(kind="action_size", stage=0.1)), planner=Planner(horizon=8)
    )
    new = practised_spec(old, Settings(reach=2.0, horizon=5, hidden=(8,)))
    assert [term.kind for term in new.cost] == ["goal_distance", "critic", "action_size"]
    assert new.cost[0].reach == 2.0
    assert new.planner.horizon == 5
    assert new.modules["critic"].blocks[0].layers[0].out == 8
