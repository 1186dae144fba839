"""`pyjepa train --env`: from a Gymnasium environment to an agent that plays it, and what cannot be served."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("PIL")

import pyjepa  # noqa: E402
from pyjepa.cli import main  # noqa: E402
from pyjepa.training import environments as E  # noqa: E402


class Slide(gymnasium.Env):
    """A white bar on black that actions move; what is earned is minus its distance from the middle."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None, kind="box", fault=None):
        self.render_mode, self.fault = render_mode, fault
        spaces = gymnasium.spaces
        self.observation_space = spaces.Box(0, 1, (1,), np.float32)
        self.action_space = {
            "box": spaces.Box(-1.0, 1.0, (1,), np.float32),
            "discrete": spaces.Discrete(3, start=5),
            "dict": spaces.Dict({"a": spaces.Discrete(2)}),
            "tuple": spaces.Tuple([spaces.Discrete(2)]),
            "multi": spaces.MultiDiscrete([2, 2]),
            "lopsided": spaces.Box(np.float32([-1.0]), np.float32([3.0])),
            "matrix": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
            "unbounded": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }[kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = float(self.np_random.uniform(0.1, 0.9)), 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        move = float(action) - 6 if isinstance(self.action_space, gymnasium.spaces.Discrete) else float(action[0])
        self.place = float(np.clip(self.place + 0.1 * move, 0.0, 1.0))
        self.time += 1
        reward = float("nan") if self.fault == "reward" else -abs(self.place - 0.5)
        over = self.fault == "short" or self.place in (0.0, 1.0)
        return np.array([self.place], np.float32), reward, over, self.time >= 12, {}

    def render(self):
        if self.fault == "picture":
            return np.zeros((4, 4), np.uint8)
        picture = np.zeros((90, 120, 3), np.uint8)
        left = round(self.place * 100)
        picture[:, left : left + 20] = 255
        return picture


class Blind(Slide):
    metadata = {"render_modes": []}  # noqa: RUF012


@pytest.fixture(autouse=True)
def _registered():
    gymnasium.register("pyjepa-tests/Slide-v0", entry_point=Slide, disable_env_checker=True)
    gymnasium.register("pyjepa-tests/Blind-v0", entry_point=Blind, disable_env_checker=True)
    yield
    for name in ("pyjepa-tests/Slide-v0", "pyjepa-tests/Blind-v0"):
        gymnasium.registry.pop(name)


TINY = {
    "episodes": 6, "steps": 3, "batch": 8, "window": 2, "latent": 8, "hidden": 8, "channels": (4, 4, 4), "horizon": 4,
    "candidates": 12, "iterations": 2,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "algorithm"), [("box", "cem"), ("discrete", "categorical-cem")])
def test_an_agent_comes_of_it_and_plays(kind, algorithm, tmp_path):
    out = tmp_path / "agent.safetensors"
    found = E.train_environment(
        "pyjepa-tests/Slide-v0", out, settings=E.Settings(**TINY), episodes=2, arguments={"kind": kind}
    )
    assert len(found["agent"]["returns"]) == found["episodes"] == 2
    assert found["random"]["mean"] < 0
    assert ("still" in found) == (kind == "box")
    assert "oracle" not in found
    agent = pyjepa.load(out)
    assert agent.spec.observation.shape == (6, 64, 64)
    assert agent.spec.planner.algorithm == algorithm
    assert [term.kind for term in agent.spec.cost] == ["reward", "hazard"]
    agent.configure()
    plan = agent.plan(np.zeros((6, 64, 64), np.uint8))
    assert plan.actions.shape == ((4, 1) if kind == "box" else (4,))


@pytest.mark.parametrize("best", [2, 6])
def test_the_horizon_that_earns_most_is_kept(best, tmp_path, monkeypatch):
    """Of those tried, in whole blocks; games that judge are not looked at."""
    seeds = []

    def played(world, decide, *, episodes, seed, begin, progress):
        seeds.append(seed)
        decide(np.zeros(world.shape, np.uint8))
        return [float(-abs(len(plans[-1]) - best))] * episodes

    plans = []
    plan = E.Agent.plan

    def remembered(self, seen):
        found = plan(self, seen)
        plans.append(found.actions)
        return found

    monkeypatch.setattr(E, "played", played)
    monkeypatch.setattr(E.Agent, "plan", remembered)
    out = tmp_path / "agent.safetensors"
    settings = E.Settings(**{**TINY, "action_block": 2, "try_horizons": (3, 7, 6), "trials": 3})
    found = E.train_environment("pyjepa-tests/Slide-v0", out, settings=settings, episodes=1)
    assert [(tried["horizon"], tried["mean"]) for tried in found["tried"]] == [
        (steps, -abs(steps - best)) for steps in (2, 4, 6)
    ]
    assert pyjepa.load(out).spec.planner.horizon == best
    assert seeds == [E.TRIED_FROM] * 3 + [E.JUDGED_FROM]


def test_reward_and_danger_are_learned_from_pictures():
    settings = E.Settings(
        **{**TINY, "episodes": 60, "steps": 250, "batch": 32, "latent": 16, "hidden": 32, "window": 3}
    )
    world = E.World("pyjepa-tests/Slide-v0", history=1, action_block=1)
    settings = E.dataclasses.replace(settings, history=1)
    data = E.collect(world, settings)
    run = E.Training(E.build_spec(world, settings, data), data, settings)
    run.run()
    world.close()
    rows = np.arange(len(data.first))[np.arange(len(data.first)) < data.last]
    import torch

    with torch.no_grad():
        states = run.encode(run.stacked(rows))
        actions = run.model.normalise(torch.from_numpy(data.actions[rows]))
        told = run.finished().head("reward", states, actions)[0][:, 0].numpy()
        standardised = run.model.head("reward", states, actions)[0][:, 0].numpy()
    error = np.square(told - data.rewards[rows]).mean()
    assert error < 0.3 * data.rewards[rows].var()
    assert np.allclose(told, standardised * run.reward_std + run.reward_mean, atol=1e-5)


def trained(settings, kind="box", steps=0):
    """A world, what was recorded in it, a training and its settings."""
    settings = E.Settings(**{**TINY, **settings, "steps": steps})
    world = E.World(
        "pyjepa-tests/Slide-v0", history=settings.history, action_block=settings.action_block,
        action_scale=settings.action_scale, arguments={"kind": kind},
    )  # fmt: skip
    data = E.collect(world, settings)
    run = E.Training(E.build_spec(world, settings, data), data, settings)
    run.run()
    world.close()
    return data, run


def test_small_actions_keep_to_the_middle():
    data, run = trained({"action_scale": 0.25}, kind="lopsided")
    assert 0.5 <= data.actions.min() < 0.7
    assert 1.3 < data.actions.max() <= 1.5
    assert (run.model.spec.actions.low, run.model.spec.actions.high) == ((0.5,), (1.5,))


def test_discrete_actions_cannot_be_scaled():
    with pytest.raises(E.UnservedError, match="discrete actions cannot be scaled"):
        trained({"action_scale": 0.25}, kind="discrete")


def test_what_changes_is_whitened_and_the_agent_reads_pictures_as_they_are():
    import torch

    data, run = trained({"history": 2}, steps=2)
    rows = np.arange(len(data.first))
    seen = run.stacked(rows)
    moving = seen - seen.mean(axis=0)
    loud = np.einsum("dc,nchw->dnhw", run._whiten.numpy(), moving).reshape(6, -1)
    variances = np.linalg.eigvalsh(np.cov(loud))
    plain = np.linalg.eigvalsh(np.cov(np.moveaxis(moving, 1, 0).reshape(6, -1)))
    assert variances[-2] > 0.5 * variances[-1]  # the difference of the two pictures beside their mean...
    assert plain[-2] < 0.4 * plain[-1]  # ... which is far less as it comes
    with torch.no_grad():
        inside, outside = run.encode(seen), run.finished().encode(torch.from_numpy(seen))
    assert torch.allclose(inside, outside, atol=0.03 * float(outside.std()))


def test_the_end_of_an_episode_is_learned_from_as_often_as_what_comes_before():
    data, run = trained({"window": 3, "episodes": 20}, kind="discrete")
    ends = np.flatnonzero(data.ended) + 1
    assert len(ends)
    seen = np.bincount((run.starts[:, None] + np.arange(4)).ravel(), minlength=len(data.first))
    for end in ends:
        if end - data.first[end] >= 6:
            assert seen[end] == 3
            assert seen[data.first[end] + 3] == 4
    late = np.setdiff1d(data.last, ends)
    assert (seen[late] <= 1).all()


def test_a_critic_learns_what_is_still_to_be_earned():
    import torch

    _, run = trained({"discount": 0.5, "window": 2})

    class Sum(torch.nn.Module):
        def forward(self, inputs):
            return inputs["state"].sum(dim=-1, keepdim=True)

    run._slow = Sum()
    seen = torch.arange(24.0).reshape(2, 3, 4)
    rewards = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    run.value_mean, run.value_std = 0.0, 1.0
    worth = run._worth(seen, rewards, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    last = float(seen[0, 2].sum())
    by_hand = torch.tensor([[1 + 0.5 * (2 + 0.5 * last), 2 + 0.5 * last, last], [3 + 0.5 * 4, 4, 0]])
    assert torch.allclose(worth, by_hand)


def test_the_critic_tells_returns_and_closes_the_plan(tmp_path):
    import torch

    data, run = trained({"discount": 0.8, "episodes": 60, "batch": 32, "latent": 16, "hidden": 32, "window": 3,
                         "history": 1}, kind="discrete", steps=300)  # fmt: skip
    model = run.finished()
    model.export(tmp_path / "agent.safetensors")
    spec = pyjepa.load(tmp_path / "agent.safetensors").spec
    assert (spec.critic, spec.discount, spec.cost[-1].kind) == ("critic", 0.8, "critic")
    assert (spec.cost[-1].stage, spec.cost[-1].terminal) == (0.0, 1.0)
    togo, later = np.zeros(len(data.first)), 0.0
    for row in range(len(togo) - 1, -1, -1):
        togo[row] = later = 0.0 if row == data.last[row] else data.rewards[row] + 0.8 * later
    rows = np.flatnonzero(data.last - np.arange(len(togo)) >= 6)
    with torch.no_grad():
        told = model.head("critic", model.encode(torch.from_numpy(run.stacked(rows))))[0][:, 0].numpy()
    place = (data.pictures[rows, 0, 32].argmax(axis=1) + 5) / 64  # of the bar's middle
    mean = np.polyval(np.polyfit(place, togo[rows], 4), place)  # what is earned from there, over all that may follow
    assert np.corrcoef(told, mean)[0, 1] > 0.8
    assert abs(told.mean() - mean.mean()) < 0.3


def test_further_rounds_are_the_agents_own(tmp_path, monkeypatch):
    recorded = []
    collect = E.collect

    def noted(*arguments, **keywords):
        recorded.append((keywords["agent"], collect(*arguments, **keywords)))
        return recorded[-1][1]

    monkeypatch.setattr(E, "collect", noted)
    settings = E.Settings(
        **{**TINY, "rounds": 3, "episodes": 4, "own_episodes": 3, "episode_steps": 5, "shift": 2, "explore": 0.0}
    )
    found = E.train_environment("pyjepa-tests/Slide-v0", tmp_path / "a.safetensors", settings=settings, episodes=1)
    assert [agent is None for agent, _ in recorded] == [True, False, False]
    assert [row["steps"] for row in found["recorded"]] == [
        len(part.first) - count for count, (_, part) in zip((4, 3, 3), recorded, strict=True)
    ]
    for agent, part in recorded:
        assert (part.last - part.first).max() <= 5
        assert (np.abs(part.actions) <= 1).all()
        assert not np.array_equal(part.pictures, recorded[0][1].pictures) or agent is None
    whole = E.joined([part for _, part in recorded])
    count = len(recorded[0][1].first)
    assert len(whole.returns) == 10
    assert np.array_equal(whole.first[count : 2 * count][:3], recorded[1][1].first[:3] + count)
    rows = np.arange(len(whole.first))
    assert (whole.first <= rows).all()
    assert (rows <= whole.last).all()


@pytest.mark.parametrize(("sideways", "most"), [(None, 3), (0, 0), (2, 2)])
def test_clips_move_as_a_whole_and_repeat_their_edges(sideways, most):
    world = E.World("pyjepa-tests/Slide-v0", history=1, action_block=1)
    settings = E.Settings(**{**TINY, "history": 1, "shift": 3, "shift_sideways": sideways})
    data = E.collect(world, settings)
    run = E.Training(E.build_spec(world, settings, data), data, settings)
    world.close()
    clips = np.random.default_rng(0).integers(0, 255, (20, 2, 3, 64, 64), np.uint8)
    moved = run._moved(clips)
    padded = np.pad(clips, ((0, 0), (0, 0), (0, 0), (3, 3), (3, 3)), mode="edge")
    found = set()
    for before, after in zip(padded, moved, strict=True):
        places = [
            (down, right) for down in range(7) for right in range(7)
            if np.array_equal(after, before[..., down : down + 64, right : right + 64])
        ]  # fmt: skip
        assert len(places) == 1
        found.add(places[0])
    assert len(found) > 3
    assert {down for down, _ in found} <= set(range(7))
    assert {abs(right - 3) for _, right in found} == set(range(most + 1))


def test_a_block_holds_its_action_and_adds_what_it_earns():
    world = E.World("pyjepa-tests/Slide-v0", history=3, action_block=2)
    seen = world.reset(seed=1)
    place = world.unwrapped.place
    assert seen.shape == (9, 64, 64)
    assert np.array_equal(seen[:3], seen[6:])
    after, reward, dead, late = world.step(np.array([0.5], np.float32))
    assert world.unwrapped.place == pytest.approx(min(place + 0.1, 1.0))
    assert np.array_equal(after[:3], seen[6:])
    first, second = abs(place + 0.05 - 0.5), abs(place + 0.1 - 0.5)
    assert reward == pytest.approx(-(first + second))
    assert not dead
    assert not late
    world.close()


def test_an_action_is_repeated():
    once, thrice = (E.World("pyjepa-tests/Slide-v0", history=1, action_block=1, repeat=n) for n in (1, 3))
    for world in (once, thrice):
        world.reset(seed=4)
    assert once.unwrapped.place == thrice.unwrapped.place
    earned = [once.step(np.array([0.1], np.float32))[1] for _ in range(3)]
    assert thrice.step(np.array([0.1], np.float32))[1] == pytest.approx(sum(earned))
    assert once.unwrapped.place == pytest.approx(thrice.unwrapped.place)
    once.close()
    thrice.close()


def test_pixels_are_standardised():
    world = E.World("pyjepa-tests/Slide-v0", history=2, action_block=1)
    data = E.collect(world, E.Settings(**TINY))
    seen = E.build_spec(world, E.Settings(**TINY), data).observation
    scaled = data.pictures * seen.scale + seen.offset
    assert scaled.mean() == pytest.approx(0, abs=0.51 * seen.scale)
    assert seen.offset / seen.scale == pytest.approx(round(seen.offset / seen.scale))
    assert scaled.std() == pytest.approx(1, abs=1e-4)
    world.close()


@pytest.mark.parametrize(("kind", "levels"), [("discrete", (0, 128, 255)), ("lopsided", (0, 64, 255))])
def test_pictures_come_with_the_actions_that_led_to_them(kind, levels):
    settings = E.Settings(**{**TINY, "past_actions": True, "window": 3})
    world = E.World("pyjepa-tests/Slide-v0", history=2, action_block=1, past_actions=True, arguments={"kind": kind})
    assert world.shape == (8, 64, 64)
    given = [0, 1, 2] if kind == "discrete" else [np.float32([x]) for x in (-1.0, 0.0, 3.0)]
    assert tuple(E.action_levels(world.actions, np.asarray(given)).ravel()) == levels
    seen = world.reset(seed=2)
    assert (seen[[3, 7]] == E.NO_ACTION).all()
    assert np.array_equal(world.newest(seen), seen[4:7])
    for action, level in zip(given, levels, strict=True):
        after = world.step(action)[0]
        assert np.array_equal(after[:4], seen[4:])
        assert (after[7] == level).all()
        seen = after
    data = E.collect(world, settings)
    run = E.Training(E.build_spec(world, settings, data), data, settings)
    world.seed_actions(settings.seed)
    seen = world.reset(seed=1_000_000)
    for row in range(data.last[0] + 1):
        assert np.array_equal(run.stacked(np.array([row]))[0], seen)
        seen = world.step(data.actions[row])[0]
    world.close()


def test_actions_are_told_from_states_that_do_not_show_them():
    import torch

    _, run = trained({"past_actions": True, "history": 2, "window": 4})
    shown = []
    run.inverse = lambda states, actions: shown.append((states, actions)) or torch.tensor(0.5)
    seen, actions = torch.arange(10.0).reshape(2, 5, 1), torch.arange(8.0).reshape(2, 4, 1)
    assert run._inverse(seen, actions) == pytest.approx(0.5 / run._blind)
    ((states, told),) = shown
    assert states[..., 0].tolist() == [[0, 3], [1, 4], [5, 8], [6, 9]]
    assert told[..., 0, 0].tolist() == [0, 1, 4, 5]
    with pytest.raises(E.UnservedError, match="choose a window of 3 or more"):
        trained({"past_actions": True, "history": 2, "window": 2})


def test_grey_pictures_have_one_channel():
    colour, grey = (E.World("pyjepa-tests/Slide-v0", history=2, action_block=1, grey=g) for g in (False, True))
    first, second = colour.reset(seed=4), grey.reset(seed=4)
    assert second.shape == grey.shape == (2, 64, 64)
    assert second.dtype == np.uint8
    assert np.array_equal(second[1], first[3])  # white on black
    data = E.collect(grey, E.Settings(**{**TINY, "grey": True}))
    assert data.pictures.shape[1:] == (1, 64, 64)
    colour.close()
    grey.close()


def test_pictures_are_means_over_areas():
    picture = np.zeros((128, 192, 3), np.uint8)
    picture[::2] = 200
    assert (E.shrunk(picture) == 100).all()
    assert E.shrunk(picture).shape == (3, 64, 64)


def make(kind="box", fault=None, name="pyjepa-tests/Slide-v0", block=1):
    return E.World(name, history=1, action_block=block, arguments={"kind": kind, "fault": fault})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "dict"}, "its action space is Dict: Box and Discrete are served"),
        ({"kind": "tuple"}, "its action space is Tuple"),
        ({"kind": "multi"}, "its action space is MultiDiscrete"),
        ({"kind": "matrix"}, r"its actions have shape \(2, 2\)"),
        ({"kind": "unbounded"}, "its actions are not bounded"),
        ({"kind": "discrete", "block": 2}, "discrete actions come one at a time"),
        ({"fault": "picture"}, r"render\(\) gives uint8 \(4, 4\): a uint8 picture"),
        ({"name": "pyjepa-tests/Blind-v0"}, "it shows no pictures"),
        ({"name": "pyjepa-tests/Nowhere-v0"}, "no such environment"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_served_is_named(arguments, message):
    with pytest.raises(E.UnservedError, match=message):
        make(**arguments)


def test_rewards_that_are_none_and_episodes_that_are_over_are_named():
    world = make(fault="reward")
    world.reset(seed=0)
    with pytest.raises(E.UnservedError, match="the reward is not a finite number"):
        world.step(np.array([0.0], np.float32))
    world.close()
    world = make(fault="short")
    with pytest.raises(E.UnservedError, match="the longest of 3 recorded episodes has 1 steps, a clip 5"):
        E.collect(world, E.Settings(episodes=3, window=5))
    world.close()


def run(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def test_the_command(tmp_path):
    out, results = tmp_path / "a.safetensors", tmp_path / "r.json"
    done = run("--env", "pyjepa-tests/Slide-v0", "--out", out, "--collect", 5, "--steps", 2, "--episodes", 1,
               "--horizon", 2, "--results", results, "--argument", 'kind="discrete"', "--rounds", 2,
               "--episode-steps", 6, "--shift", 1, "--past-actions", "--discount", 0.9, "--temporal-variance", 1,
               "--action-scale", 1, "--try-horizon", 1, "--try-horizon", 2)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "a game over 1 (random -" in done.output
    found = json.loads(results.read_text())
    assert found["environment"] == "pyjepa-tests/Slide-v0"
    assert found["arguments"] == {"kind": "discrete"}
    assert found["settings"]["rounds"] == len(found["recorded"]) == 2
    assert found["settings"]["past_actions"]
    assert (found["settings"]["discount"], found["settings"]["temporal_variance"]) == (0.9, 1)
    assert found["machine"]["threads"] == 1
    assert [tried["horizon"] for tried in found["tried"]] == [1, 2]
    assert pyjepa.load(out).spec.actions.count == 3
    assert pyjepa.load(out).spec.provenance["command"] == "pyjepa train --env pyjepa-tests/Slide-v0 --out a.safetensors"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what to train on"),
        (("--env", "CartPole-v1"), "--out FILE is needed"),
        (("--env", "CartPole-v1", "a320", "--out", "x"), "exclude each other"),
        (("--env", "CartPole-v1", "--out", "/nowhere/x"), "there is no folder"),
        (("--env", "pyjepa-tests/Nowhere-v0", "--out", "x"), "no such environment"),
        (("--env", "CartPole-v1", "--out", "x", "--argument", "width"), "'width' is not NAME=JSON"),
        (("--env", "CartPole-v1", "--out", "x", "--argument", "width=wide"), "width: 'wide' is no JSON"),
        (("--env", "pyjepa-tests/Slide-v0", "--out", "x", "--argument", "colour=1"), "argument 'colour'"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.output
