"""Planning with rollouts on a GPU, or through Triton's interpreter: costs, elites and plans are the engine's."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample import networks, pixel_spec, weights

import pyjepa
from pyjepa import agent_file
from pyjepa.errors import InvalidArgumentError, UnsupportedError
from pyjepa.spec import Actions, CostTerm, Gru, Layer, Level, Mlp, Module, Observation, Planner, Spec, TwoHot

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from pyjepa.adapters.triton_rollout import TritonRollout, choose_members

DEVICE = "cuda" if torch.cuda.is_available() else "interpret"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = {
    "version-1": ("fused", {"horizon": 6}),
    "version-1-image": ("fused", {"horizon": 9, "elites": 4}),
    "version-1-discrete": ("fused", {"planner": "categorical-cem", "horizon": 6, "elites": 4}),
    "version-1-heads": ("eager", {"horizon": 3, "policy_candidates": 3}),
    "version-1-adaln": ("eager", {"planner": "cem", "elites": 4}),
    "version-1-mixed": ("fused", {"planner": "cem", "elites": 4}),
    "version-1-recurrent": ("fused", {"planner": "cem", "horizon": 8, "elites": 4, "weights": {"disagreement": 0.0}}),
}
GOAL = CostTerm(kind="goal_distance")
ACTIONS = (CostTerm(kind="action_size", stage=0.1), CostTerm(kind="action_change", stage=0.2))


def small_spec(predictor, *, cost=(GOAL, *ACTIONS), modules=None, size=6, hold=False, **changes):
    """Observations encoded to `size` latents, two actions, a step of two of them, which the predictor reads."""
    encoder = Module(inputs=("observation",), blocks=(Mlp(layers=(Layer(out=size, norm="layer"),)),))
    return Spec(
        observation=Observation(shape=(4,)),
        actions=Actions(low=(-1.0, 0.0), high=(1.0, 3.0)),
        modules={"encoder": encoder, "predictor": predictor} | (modules or {}),
        levels=(Level(encoder="encoder", predictor="predictor", action_block=2, hold=hold),),
        cost=cost,
        planner=Planner(horizon=6, candidates=16, iterations=2, elites=4),
        **changes,
    )


def mlp(*widths, inputs=("state", "action"), **changes):
    layers = tuple(Layer(out=n, activation="none" if n == widths[-1] else "mish") for n in widths)
    return Module(inputs=inputs, blocks=(Mlp(layers=layers),), **changes)


def cell(norm="layer", size=6, more=(), **changes):
    return Module(inputs=("action", "state"), combine="cell", blocks=(Gru(hidden=size, norm=norm), *more), **changes)


def saved(spec, folder, seed=0):
    path = folder / "agent.safetensors"
    agent_file.save(path, spec, weights(networks(spec, seed)))
    return path


def observation(spec, seed):
    generator = np.random.default_rng(seed)
    if spec.observation.dtype == "uint8":
        return generator.integers(0, 256, spec.observation.shape, dtype=np.uint8)
    return generator.standard_normal(spec.observation.shape, dtype=np.float32)


def pair(path, **task):
    """The same agent rolling out in the engine and elsewhere."""
    agents = [pyjepa.load(path, device=device) for device in ("cpu", DEVICE)]
    for agent in agents:
        agent.configure(goal=observation(agent.spec, 1), iterations=2, **task)
        agent.observe(observation(agent.spec, 2))
    return agents


@pytest.mark.parametrize("name", CASES)
def test_golden_agents_cost_the_same_and_keep_the_same_elites(name):
    way, task = CASES[name]
    native, elsewhere = pair(GOLDEN / f"{name}.safetensors", candidates=20, **task)
    assert (native.settings["rollout"], elsewhere.settings["rollout"]) == ("native", way)
    assert elsewhere.settings["device"] == DEVICE
    spec, level = native.spec, native.spec.levels[0]
    steps = native.settings["horizon"] // level.action_block
    discrete = spec.actions.kind == "discrete"
    width = (1 if discrete else spec.actions.size) * (1 if level.hold else level.action_block)
    generator = np.random.default_rng(3)
    plans = generator.integers(0, 3, (20, steps, width)) if discrete else generator.uniform(-1, 1, (20, steps, width))
    costs = [agent.evaluate(plans) for agent in (native, elsewhere)]
    np.testing.assert_allclose(costs[1], costs[0], rtol=1e-4, atol=1e-4)
    assert list(np.argsort(costs[0], kind="stable")[:8]) == list(np.argsort(costs[1], kind="stable")[:8])
    for turn in range(2):  # the second plan has an action before it, and starts warm
        one, other = native.plan(), elsewhere.plan()
        np.testing.assert_allclose(other.actions, one.actions, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(other.cost, one.cost, rtol=1e-4, atol=1e-4)
        assert other.states.shape == one.states.shape
        assert set(other.cost_terms) == set(one.cost_terms)
        for agent in (native, elsewhere):
            agent.observe(observation(spec, 4 + turn))


def agree(native, elsewhere, count=17, rtol=1e-4):
    """Costs of random plans are the same to 1e-4, and so are the elites."""
    level, size = native.spec.levels[0], native.spec.actions.size
    shape = (count, native.settings["horizon"] // level.action_block, size * (1 if level.hold else level.action_block))
    plans = np.random.default_rng(3).uniform(-1, 1, shape)
    one, other = native.evaluate(plans), elsewhere.evaluate(plans)
    np.testing.assert_allclose(other, one, rtol=rtol, atol=rtol)
    assert list(np.argsort(one, kind="stable")[:4]) == list(np.argsort(other, kind="stable")[:4])
    return plans


@pytest.mark.parametrize(
    ("norm", "size", "hold"), [("none", 6, False), ("layer", 17, True), ("tied", 6, True)], ids=lambda x: str(x)
)
def test_random_recurrent_agents(norm, size, hold, tmp_path):
    spec = small_spec(cell(norm, size), size=size, hold=hold)
    native, elsewhere = pair(saved(spec, tmp_path))
    assert elsewhere.settings["rollout"] == elsewhere.settings["rollout_gradient"] == "fused"
    plans = agree(native, elsewhere)
    slopes = [agent.gradient(plans)[1] for agent in (native, elsewhere)]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(elsewhere.plan().actions, native.plan().actions, rtol=1e-4, atol=1e-4)


CRITIC = CostTerm(kind="critic", stage=0.5, terminal=1.0)
HEAD = {"head": mlp(5, 1, inputs=("state",))}


@pytest.mark.parametrize(
    ("critic", "estimates"),
    [(mlp(1, inputs=("state",)), "reward"), (mlp(7, 1, inputs=("goal", "state")), "cost")],
    ids=["linear", "small mlp"],
)
def test_goal_action_and_critic_costs_are_the_kernels(critic, estimates, tmp_path):
    cost = (
        GOAL,
        CostTerm(kind="goal_distance", name="near", metric="squared_l2", stage=0.3, terminal=0.7, reach=4.0),
        *ACTIONS,
        dataclasses.replace(CRITIC, estimates=estimates),
    )
    spec = small_spec(mlp(6, residual=True), cost=cost, modules={"critic": critic}, critic="critic", discount=0.9)
    native, elsewhere = pair(saved(spec, tmp_path))
    assert elsewhere.settings["rollout"] == "fused"
    plans = agree(native, elsewhere)
    slopes = [agent.gradient(plans)[1] for agent in (native, elsewhere)]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("predictor", "cost", "modules", "changes", "reason"),
    [
        (mlp(6), CostTerm(kind="reward", module="head"), {"head": mlp(5, 1)}, {},
         r"term 'reward' \(reward through the module 'head'\)"),
        (mlp(6), CostTerm(kind="hazard", module="head"), HEAD, {}, "cost term 'hazard'"),
        (mlp(6), CostTerm(kind="box", low=(0.0,) * 6), {}, {}, r"cost term 'box' \(box\) has no kernel"),
        (mlp(6), CostTerm(kind="half_space", normal=(1.0,) * 6), {}, {}, "cost term 'half_space'"),
        (mlp(6), CostTerm(kind="goal_distance", name="seen", module="head"), HEAD, {}, "'seen' .* the module 'head'"),
        (mlp(6), CostTerm(kind="disagreement", module="head"), {"head": mlp(3, inputs=("state",), ensemble=2)}, {},
         "cost term 'disagreement'"),
        (mlp(6), CRITIC, {"critic": mlp(1, inputs=("state",), ensemble=2)}, {"critic": "critic"},
         "'critic' is an ensemble of 2"),
        (mlp(6), CRITIC, {"critic": Module(inputs=("state",), blocks=(Mlp(layers=(Layer(out=9),)),
                                                                     TwoHot(bins=9, low=-2.0, high=2.0)))},
         {"critic": "critic"}, "'critic' has a block 'two_hot'"),
        (cell(more=(Mlp(layers=(Layer(out=6),)),)), GOAL, {}, {}, "'predictor' has a block 'mlp' after its gru"),
        (cell(residual=True), GOAL, {}, {}, "'predictor' adds the state to what its gru puts out"),
    ],
    ids=["reward", "hazard", "box", "half_space", "goal head", "disagreement", "critics", "bins", "gru mlp", "gru +"],
)  # fmt: skip
def test_what_has_no_kernel_is_named_and_costs_the_same(predictor, cost, modules, changes, reason, tmp_path):
    spec = small_spec(predictor, cost=(GOAL,) if cost is GOAL else (GOAL, cost), modules=modules, **changes)
    native, elsewhere = pair(saved(spec, tmp_path))
    assert (elsewhere.settings["rollout"], elsewhere.settings["rollout_gradient"]) == ("eager", "eager")
    assert re.search(reason, elsewhere.settings["rollout_reason"])
    agree(native, elsewhere)


GROUPED = Mlp(layers=(Layer(out=12, norm="simnorm"),), simnorm_group=6)
GROUPS_OF_6 = Module(inputs=("state", "action"), blocks=(GROUPED,))


@pytest.mark.parametrize(
    ("predictor", "size", "ways"),
    [
        (mlp(300, 6), 6, ("stepwise", "stepwise", "a width of 300")),
        (mlp(256, 256, 256, 6), 6, ("fused", "stepwise", "columns to keep")),
        (mlp(20, 20, 6), 6, ("fused", "fused", "")),
        (GROUPS_OF_6, 12, ("eager", "eager", "simnorm groups of 6")),
        (mlp(600), 600, ("eager", "eager", "a state of 600, stepwise at most 512")),
    ],
    ids=["wide", "deep", "small", "groups", "state"],
)  # fmt: skip
def test_sizes_choose_the_way(predictor, size, ways, tmp_path):
    native, elsewhere = pair(saved(small_spec(predictor, size=size), tmp_path), horizon=4)
    found = [elsewhere.settings[name] for name in ("rollout", "rollout_gradient", "rollout_reason")]
    assert found[:2] == list(ways[:2])
    assert ways[2] in found[2]
    plans = agree(native, elsewhere, 5)
    slopes = [agent.gradient(plans)[1] for agent in (native, elsewhere)]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["version-1", "version-1-image"])
def test_gradients_are_the_engines(name):
    native, elsewhere = pair(GOLDEN / f"{name}.safetensors", planner="gradient", restarts=3, horizon=6)
    steps = native.settings["horizon"] // native.model.action_block
    width = native.spec.actions.size * (1 if native.spec.levels[0].hold else native.model.action_block)
    plans = np.random.default_rng(3).uniform(-1, 1, (5, steps, width))
    (costs, slopes), (found, followed) = (agent.gradient(plans) for agent in (native, elsewhere))
    np.testing.assert_allclose(found, costs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(followed, slopes, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(elsewhere.plan().cost, native.plan().cost, rtol=1e-3)


def test_factors_on_cost_terms_batches_and_clones(tmp_path):
    spec = dataclasses.replace(pixel_spec(), policy=None)
    spec = dataclasses.replace(spec, modules={k: m for k, m in spec.modules.items() if k != "policy"})
    path = tmp_path / "agent.safetensors"
    agent_file.save(path, spec, weights(networks(spec)))
    plans = np.random.default_rng(0).uniform(-3, 3, (2, 4, 2, 2)).astype(np.float32)
    costs = []
    for device in ("cpu", DEVICE):
        agent = pyjepa.load(path, device=device)
        goals = np.stack([observation(spec, i) for i in (1, 2)])
        factors = {"action_size": 30.0}
        agent.configure(goal=goals, horizon=8, candidates=4, iterations=1, elites=2, weights=factors, discount=0.5)
        twin = agent.clone()
        for each in (agent, twin):
            each.observe(np.stack([observation(spec, i) for i in (3, 4)]))
        costs.append(agent.evaluate(plans))
        np.testing.assert_array_equal(twin.evaluate(plans), costs[-1])
        np.testing.assert_array_equal(twin.plan().actions, agent.plan().actions)
    np.testing.assert_allclose(costs[1], costs[0], rtol=1e-4)
    agent.configure(goal=goals, horizon=8, rollout=lambda s, g, a: np.zeros(a.shape[:2]))
    assert agent.settings["rollout"] == "callback"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("bf16", 4e-2)])
def test_lower_precision_is_the_devices(precision, tolerance):
    agent = pyjepa.load(GOLDEN / "version-1-image.safetensors", device=DEVICE, precision=precision)
    full = pyjepa.load(GOLDEN / "version-1-image.safetensors")
    plans = np.random.default_rng(3).uniform(-1, 1, (3, 3, 1))
    costs = []
    for each in (agent, full):
        each.configure(goal=observation(each.spec, 1), horizon=9)
        each.observe(observation(each.spec, 2))
        costs.append(each.evaluate(plans))
    np.testing.assert_allclose(*costs, rtol=tolerance)
    assert (costs[0] != costs[1]).any()


def test_the_members_that_a_plan_asks_are_the_engines():
    # Head::choose(0x0123456789abcdef, 5, 3)
    assert sorted(choose_members(7, 4, 4)) == [0, 1, 2, 3]
    assert len(set(choose_members(0x0123456789ABCDEF, 5, 3))) == 3


def test_what_cannot_be_is_named():
    path = GOLDEN / "version-1-discrete.safetensors"
    for device in ("gpu", "cuda:", "cuda:x", "cuda:0 ", None):
        with pytest.raises(InvalidArgumentError, match="device must be cpu, cuda"):
            pyjepa.load(path, device=device)
    with pytest.raises(InvalidArgumentError, match=f"precision on device='{DEVICE}' must be fp32, bf16, fp16"):
        pyjepa.load(path, device=DEVICE, precision="int8")
    spec = pixel_spec()
    modules = dict(spec.modules)
    modules["predictor"] = dataclasses.replace(modules["predictor"], ensemble=2)
    with pytest.raises(UnsupportedError, match="the predictor is an ensemble"):
        TritonRollout(dataclasses.replace(spec, modules=modules), b"", device="interpret", precision="fp32")
    agent = pyjepa.load(path, device=DEVICE)
    with pytest.raises(UnsupportedError, match="tree needs the model's own predictor"):
        agent.configure(goal=observation(agent.spec, 1), planner="tree")


def test_a_device_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UnsupportedError, match="torch finds no GPU"):
        pyjepa.load(GOLDEN / "version-1.safetensors", device="cuda")


@pytest.mark.parametrize(
    ("before", "device", "message"),
    [
        ("sys.modules['torch'] = None", "cuda", "device='cuda' needs torch"),
        ("os.environ.pop('TRITON_INTERPRET', None)", "interpret", "needs TRITON_INTERPRET=1"),
        ("sys.modules['triton'] = None", "interpret", "needs the package triton"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(before, device, message):
    code = f"import os, sys; {before}\nimport pyjepa\npyjepa.load(sys.argv[1], device={device!r})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(GOLDEN / "version-1.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UnsupportedError" in done.stderr
    assert message in done.stderr
