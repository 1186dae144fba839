"""The agent as a Python user meets it: shapes, errors, callbacks, determinism."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from sample import ISAS, engine_model, networks, observations, pixel_spec, run_on, weights

import pyjepa
from pyjepa import agent_file
from pyjepa.cost import plan_cost, term_costs
from pyjepa.spec import Actions, CostTerm, Layer, Mlp, Observation, Planner, Spec
from pyjepa.world_model import WorldModel

PLANNERS = ("cem", "icem", "mppi", "predictive-sampling", "gradient", "hybrid")


@pytest.fixture(scope="module")
def modules():
    return networks(pixel_spec())


@pytest.fixture(scope="module")
def model(modules):
    return engine_model(pixel_spec(), modules)


@pytest.fixture
def agent(model):
    agent = pyjepa.Agent(model)
    agent.configure(goal=observations(2)[1])
    agent.observe(observations(2)[0])
    return agent


def callback_model(latent=3, **changes):
    spec = Spec(
        observation=Observation(shape=(latent,)),
        actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0)),
        planner=Planner(horizon=6, candidates=50, iterations=3, elites=8),
        cost=(CostTerm(kind="action_size"),),
        **changes,
    )
    return pyjepa.Model.from_bytes(agent_file.to_bytes(spec, {}))


def test_plan_has_the_shapes_it_says(agent):
    plan = agent.plan()
    assert plan.actions.shape == (24, 2)
    assert plan.states.shape == (7, 24)
    assert isinstance(plan.cost, float)
    assert {name: term.shape for name, term in plan.cost_terms.items()} == {
        "goal_distance": (6,), "action_size": (6,), "action_change": (6,)
    }  # fmt: skip
    assert plan.iterations == 4
    assert 0 < plan.elapsed < 10
    assert np.abs(plan.actions).max() <= 3.0
    assert (plan.actions.reshape(6, 4, 2) == plan.actions.reshape(6, 4, 2)[:, :1]).all(), "actions are held for a block"


@pytest.mark.parametrize("planner", PLANNERS)
def test_diagnostics_tell_how_the_plan_was_found(model, planner):
    agent = pyjepa.Agent(model)
    agent.configure(goal=observations(2)[1], planner=planner)
    plan = agent.plan(observations(2)[0])
    found = plan.diagnostics
    assert found.best_cost.shape == (plan.iterations + 1,)
    assert (np.diff(found.best_cost) <= 0).all()
    assert found.best_cost[-1] == plan.cost
    assert found.converged == np.argmax(found.best_cost <= 1.01 * plan.cost)
    expected = {"cem": 12, "icem": 12, "gradient": 1, "hybrid": 1, "predictive-sampling": 1}
    if planner == "mppi":
        assert 1 < found.effective_samples < 100
    else:
        assert found.effective_samples == expected[planner]
    if planner not in ("gradient", "hybrid"):  # restarts may all have ended in the same corner
        assert (found.elite_spread > 0) == (planner != "predictive-sampling")
    assert agent.plan(deadline=0.0).diagnostics.best_cost.shape == (1,)


def test_batches_have_a_leading_axis(model):
    agent = pyjepa.Agent(model, threads=2)
    seen = observations(6)
    agent.configure(goal=seen[3:])
    plan = agent.plan(seen[:3])
    assert plan.actions.shape == (3, 24, 2)
    assert plan.states.shape == (3, 7, 24)
    assert plan.cost.shape == (3,)
    assert plan.diagnostics.best_cost.shape == (3, 5)
    assert plan.diagnostics.converged.shape == plan.diagnostics.elite_spread.shape == (3,)
    assert plan.cost_terms["goal_distance"].shape == (3, 6)
    assert agent.state.shape == (3, 24)
    assert agent.act().shape == (3, 2)
    single = pyjepa.Agent(model)
    for e in range(3):
        single.configure(goal=seen[3 + e])
        alone = single.plan(seen[e])
        np.testing.assert_array_equal(alone.actions, plan.actions[e])
        assert alone.cost == plan.cost[e]


@pytest.mark.parametrize("planner", [*PLANNERS, "tree"])
def test_the_plan_is_what_torch_says_it_is(model, modules, planner):
    """States, terms and cost of the returned plan, recomputed in torch; and it beats every plan drawn at random."""
    spec, seen = pixel_spec(), observations(2, seed=3)
    world = WorldModel(spec)
    world.load_state_dict(modules.state_dict())
    agent = pyjepa.Agent(model)
    agent.configure(goal=seen[1], planner=planner)
    plan = agent.plan(seen[0])
    blocks = torch.from_numpy(plan.actions[::4].copy())[None]
    others = torch.from_numpy(np.random.default_rng(0).uniform(-3, 3, (64, 6, 2)).astype(np.float32))
    with torch.no_grad():
        start, goal = world.encode(torch.from_numpy(seen)).split(1)
        states = world.rollout(start, blocks)
        terms = term_costs(world, states, blocks, goal)[0]
        random = plan_cost(world, world.rollout(start.expand(64, -1), others), others, goal.expand(64, -1))
    np.testing.assert_allclose(plan.states[0], start[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plan.states[1:], states[0], rtol=1e-4, atol=1e-4)
    for term, expected in zip(spec.cost, terms, strict=True):
        assert plan.cost_terms[term.kind].sum() == pytest.approx(float(expected), rel=1e-4), term.kind
    assert plan.cost == pytest.approx(float(terms.sum()), rel=1e-5)
    assert plan.cost < float(random.min())


def test_mode_1_equals_torch(agent, modules):
    with torch.no_grad():
        start, goal = modules["encoder"]({"observation": torch.from_numpy(observations(2)).float() / 255}).split(1)
        expected = 3.0 * torch.tanh(modules["policy"]({"state": start, "goal": goal}))
    np.testing.assert_allclose(agent.act(), expected[0], rtol=1e-4, atol=1e-5)
    out = np.empty(2, np.float32)
    assert agent.act(out=out) is out
    np.testing.assert_allclose(out, expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["zero", "linear", "cubic"])
def test_knots_shape_the_plan(model, interpolation):
    agent = pyjepa.Agent(model)
    agent.configure(goal=observations(2)[1], knots=3, interpolation=interpolation)
    blocks = agent.plan(observations(2)[0]).actions[::4]
    if interpolation == "zero":
        assert (blocks[::2] == blocks[1::2]).all()
    elif interpolation == "linear":  # knots at 0, 2.5 and 5
        np.testing.assert_allclose(blocks[1] - blocks[0], blocks[2] - blocks[1], atol=1e-5)
        np.testing.assert_allclose(blocks[5] - blocks[4], blocks[4] - blocks[3], atol=1e-5)
    assert agent.settings["knots"] == 3
    assert agent.settings["interpolation"] == interpolation


def test_same_seed_same_bits_other_seed_other_plan(model):
    def planned(**task):
        agent = pyjepa.Agent(model, threads=task.pop("threads", 1))
        agent.configure(goal=observations(2)[1], **task)
        return agent.plan(observations(2)[0]).actions

    np.testing.assert_array_equal(planned(seed=5), planned(seed=5, threads=3))
    assert not np.array_equal(planned(seed=5), planned(seed=6))


def test_same_costs_same_actions_on_every_isa():
    """Noise, elite order and refit live in baseline code: where the costs are the same, so are the actions."""
    code = """
import itertools
import numpy as np, pyjepa
from pyjepa import agent_file
from pyjepa.spec import *
spec = Spec(observation=Observation(shape=(3,)), actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0)),
            planner=Planner(horizon=6, candidates=50, iterations=3, elites=8), cost=())
for planner, sampling in itertools.product(("cem", "icem", "mppi", "predictive-sampling"), ("gaussian", "sobol")):
    agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, {})))
    cost = lambda s, g, a: ((a - 0.3) ** 2).sum((2, 3), dtype=np.float64)
    agent.configure(planner=planner, sampling=sampling, noise_beta=1.5, rollout=cost)
    print(agent.plan(np.zeros(3, np.float32)).actions.tobytes().hex())
"""
    outputs = {isa: run_on(isa, code) for isa in ISAS}
    ran = [output for output in outputs.values() if output is not None]
    assert ran
    assert len(set(ran)) == 1


def test_warm_start_shifts_by_the_steps_observed(model):
    agent = pyjepa.Agent(model)
    seen = observations(2)
    agent.configure(goal=seen[1], iterations=0)
    agent.plan(seen[0])
    agent.configure(goal=seen[1])
    first = agent.plan(seen[0]).actions
    clone_of_task = pyjepa.Agent(model)
    clone_of_task.configure(goal=seen[1], iterations=4)
    clone_of_task.plan(seen[0])
    clone_of_task.observe(seen[0], steps=8)
    # With no time to improve, the plan is the last one shifted by two blocks of four steps, its end repeated.
    shifted = clone_of_task.plan(deadline=0.0)
    assert shifted.iterations == 0
    np.testing.assert_array_equal(shifted.actions[:16], first[8:])
    np.testing.assert_array_equal(shifted.actions[16:], np.repeat(first[-1:], 8, axis=0))


def test_deadline_is_kept_roughly_and_reported(model):
    agent = pyjepa.Agent(model, threads=2)
    agent.configure(goal=observations(2)[1], candidates=2000, iterations=10000)
    agent.observe(observations(2)[0])
    started = time.perf_counter()
    plan = agent.plan(deadline=0.05)
    took = time.perf_counter() - started
    assert 0 < plan.iterations < 10000
    assert took < 2.0
    assert np.isfinite(plan.cost)
    with pytest.raises(ValueError, match="deadline"):
        agent.plan(deadline=-1.0)
    with pytest.raises(ValueError, match="deadline"):
        agent.plan(deadline=float("nan"))


def test_weights_change_what_matters(model):
    agent = pyjepa.Agent(model)
    seen = observations(2)
    agent.configure(goal=seen[1], weights={"action_size": 1e4})
    assert np.abs(agent.plan(seen[0]).actions).mean() < 0.6
    agent.configure(goal=seen[1], weights={"action_size": 0.0})
    plan = agent.plan(seen[0])
    assert np.abs(plan.actions).mean() > 0.6
    assert (plan.cost_terms["action_size"] == 0).all()


def test_bounds_can_be_narrowed(model):
    agent = pyjepa.Agent(model)
    agent.configure(goal=observations(2)[1], bounds=((-0.5, 1.0), (0.5, 2.0)))
    actions = agent.plan(observations(2)[0]).actions
    assert (np.abs(actions[:, 0]) <= 0.5).all()
    assert ((actions[:, 1] >= 1.0) & (actions[:, 1] <= 2.0)).all()


def test_reset_of_one_environment_leaves_the_others(model):
    seen = observations(6)
    agents = [pyjepa.Agent(model) for _ in range(2)]
    plans = []
    for agent, reset in zip(agents, (False, True), strict=True):
        agent.configure(goal=seen[3:])
        agent.plan(seen[:3])
        if reset:
            agent.reset(env=1)
            with pytest.raises(pyjepa.NotReadyError, match="observe"):
                agent.plan()
        plans.append(agent.plan(seen[:3]).actions)
    np.testing.assert_array_equal(plans[0][[0, 2]], plans[1][[0, 2]])
    assert not np.array_equal(plans[0][1], plans[1][1])


def test_clone_shares_the_model_and_the_task(agent):
    twin = agent.clone()
    with pytest.raises(pyjepa.NotReadyError):
        twin.plan()
    np.testing.assert_array_equal(twin.plan(observations(2)[0]).actions, agent.plan().actions)
    assert twin.settings == agent.settings


def test_torch_tensors_and_dlpack_are_taken(agent):
    seen = observations(1, seed=9)[0]
    agent.observe(seen)
    expected = agent.state
    agent.observe(torch.from_numpy(seen))
    np.testing.assert_array_equal(agent.state, expected)


# ---- callbacks


def test_callback_rollouts_plan_without_any_network():
    calls = []

    def rollout(states, goals, actions):
        calls.append((states.shape, goals, actions.shape))
        return ((actions - 0.25) ** 2).sum((2, 3))

    agent = pyjepa.Agent(callback_model())
    agent.configure(rollout=rollout, environments=2)
    plan = agent.plan(np.zeros((2, 3), np.float32))
    assert calls[0] == ((2, 3), None, (2, 50, 6, 2))
    assert calls[-1] == ((2, 3), None, (2, 1, 6, 2))
    assert plan.cost.shape == (2,)
    assert (plan.cost < 0.25**2 * 12 * 0.7).all()
    assert plan.states is None
    assert plan.cost_terms == {}


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        (lambda s, g, a: np.full(a.shape[:2], np.nan), "nan as the cost of candidate 0 in environment 0"),
        (lambda s, g, a: np.full(a.shape[:2], np.inf), "inf as the cost"),
        (lambda s, g, a: np.zeros(3), r"costs of shape \(3,\), expected \(1, 50\)"),
        (lambda s, g, a: 1 / 0, "raised an exception"),
        (lambda s, g, a: "no numbers", "raised an exception"),
    ],
)
def test_bad_callbacks_are_named(rollout, message):
    agent = pyjepa.Agent(callback_model())
    agent.configure(rollout=rollout)
    agent.observe(np.zeros(3, np.float32))
    for _ in range(2):  # and again: an error leaves the agent usable
        with pytest.raises(pyjepa.RolloutError, match=message) as caught:
            agent.plan()
    if "exception" in message:
        assert isinstance(caught.value.__cause__, ZeroDivisionError | ValueError)
    agent.configure(rollout=lambda s, g, a: np.zeros(a.shape[:2]))
    assert agent.plan(np.zeros(3, np.float32)).cost == 0.0


def test_a_clone_calls_back_on_its_own():
    agent = pyjepa.Agent(callback_model())
    agent.configure(rollout=lambda s, g, a: (a**2).sum((2, 3)))
    twin = agent.clone()
    del agent
    assert twin.plan(np.zeros(3, np.float32)).cost >= 0.0


# ---- errors


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"horizon": 0}, "horizon"),
        ({"horizon": 10}, "multiple of the model's action_block 4"),
        ({"horizon": -4}, "horizon"),
        ({"horizon": 8.0}, "horizon must be an integer"),
        ({"candidates": 0}, "candidates"),
        ({"candidates": 10**9}, "candidates"),
        ({"candidates": 10, "elites": 11}, r"elites \(11\) exceed candidates \(10\)"),
        ({"elites": 0}, "elites"),
        (
            {"planner": "mppi", "elites": 5},
            "elites belong to the planners cem, icem, hybrid and categorical-cem, and to mppi with elite_refit",
        ),
        (
            {"planner": "simulated-annealing"},
            "planner must be one of cem, mppi, predictive-sampling, icem, gradient, hybrid, categorical-cem, tree",
        ),
        ({"interpolation": "quintic"}, "interpolation must be one of"),
        ({"knots": 7}, "knots"),
        ({"std": 0.0}, "std"),
        ({"std": float("nan")}, "std must be finite"),
        ({"std": "a"}, "std must be a number, got 'a'"),
        ({"momentum": [1]}, r"momentum must be a number, got \[1\]"),
        ({"bounds": (-1,)}, "bounds must be a pair"),
        ({"bounds": 5}, "bounds must be a pair"),
        ({"bounds": ("a", "b")}, "bounds: low must be numbers, got 'a'"),
        ({"prune": "no"}, "prune must be True or False"),
        ({"min_std": -0.1}, "min_std"),
        ({"momentum": 1.0}, "momentum"),
        ({"temperature": 1.0}, "temperature belongs to the planner mppi"),
        ({"planner": "mppi", "temperature": 0.0}, "temperature must be positive"),
        ({"planner": "icem", "decay": 0.5}, "decay must be at least 1"),
        ({"keep_elites": 0.5}, "keep_elites belongs? to the planner icem"),
        ({"planner": "gradient", "candidates": 5}, "gradient has restarts"),
        ({"planner": "hybrid", "iterations": 3}, r"polish \(10\) exceeds iterations \(3\)"),
        ({"sampling": "halton"}, "sampling must be one of gaussian, sobol"),
        (
            {"sampling": "sobol", "horizon": 4 * 33},
            "sobol sampling takes up to 64 numbers, this plan has 33 knots of 2",
        ),
        ({"noise_beta": 11.0}, r"noise_beta must be in \[0, 10\]"),
        ({"bounds": ((1, 1), (0, 2))}, r"bounds cross: low\[0\]"),
        ({"bounds": ((0, float("nan")), (1, 1))}, r"low\[1\] is not finite"),
        ({"bounds": ((0, 0, 0), (1, 1, 1))}, r"low has shape \(3,\), expected \(2,\)"),
        ({"weights": {"comfort": 1.0}}, "no cost term 'comfort'"),
        ({"weights": {"action_size": -1.0}}, "weight 1 must be finite and not negative"),
        ({"seed": -1}, "seed"),
        ({"discount": 0.0}, r"discount must be in \(0, 1\]"),
        ({"discount": 1.5}, r"discount must be in \(0, 1\]"),
        ({"discount": float("nan")}, "discount must be finite"),
        ({"goal": None}, "goal_distance needs a goal"),
        ({"goal": np.zeros((2, 16, 15), np.uint8)}, r"goal has shape \(2, 16, 15\), expected \(2, 16, 16\)"),
        ({"goal": np.zeros((2, 16, 16), np.float32)}, "goal has dtype float32, expected uint8"),
        ({"environments": 3}, r"goal has shape \(2, 16, 16\), expected \(3, 2, 16, 16\)"),
    ],
)
def test_configure_names_what_cannot_be(agent, task, message):
    before = agent.settings
    with pytest.raises(pyjepa.InvalidArgumentError, match=message):
        agent.configure(**{"goal": observations(2)[1], **task})
    assert agent.settings == before
    assert agent.plan().iterations == 4, "the previous task stays"


def test_observe_names_what_cannot_be(agent):
    with pytest.raises(ValueError, match=r"observation has shape \(16, 16\), expected \(2, 16, 16\)"):
        agent.observe(np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match="dtype int64, expected uint8"):
        agent.observe(np.zeros((2, 16, 16), np.int64))
    with pytest.raises(ValueError, match="steps"):
        agent.observe(observations(1)[0], steps=-1)
    other = pyjepa.Agent(callback_model())
    other.configure(rollout=lambda s, g, a: np.zeros(a.shape[:2]))
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="not finite: element 1 of environment 0"):
            other.observe(np.array([0.0, bad, 0.0], np.float32))


def test_calls_out_of_order_are_named(model):
    agent = pyjepa.Agent(model)
    for call in (agent.plan, agent.act, agent.reset, lambda: agent.state, lambda: agent.observe(observations(1)[0])):
        with pytest.raises(pyjepa.NotReadyError, match="configure"):
            call()
    agent.configure(goal=observations(1)[0])
    for call in (agent.plan, agent.act, lambda: agent.state):
        with pytest.raises(pyjepa.NotReadyError, match="observe"):
            call()
    with pytest.raises(ValueError, match="env must be an integer between 0 and 0"):
        agent.reset(env=1)


def test_what_a_file_lacks_is_named():
    agent = pyjepa.Agent(callback_model())
    with pytest.raises(pyjepa.UnsupportedError, match="no predictor"):
        agent.configure()
    agent.configure(rollout=lambda s, g, a: np.zeros(a.shape[:2]))
    agent.observe(np.zeros(3, np.float32))
    with pytest.raises(pyjepa.UnsupportedError, match="no policy"):
        agent.act()


@pytest.mark.parametrize("threads", [0, -1, 10**6, 1.5, True])
def test_thread_counts_that_cannot_be(model, threads):
    with pytest.raises(ValueError, match="threads"):
        pyjepa.Agent(model, threads=threads)


def test_out_arrays_must_fit(agent):
    out = np.empty((24, 2), np.float32)
    assert agent.plan(out=out).actions is out
    for bad in (np.empty((24, 3), np.float32), np.empty((24, 2)), np.empty((2, 24), np.float32).T):
        with pytest.raises(ValueError, match=r"out must be a writeable, contiguous float32 array of shape \(24, 2\)"):
            agent.plan(out=bad)


def test_a_second_plan_at_the_same_time_is_busy(model):
    agent = pyjepa.Agent(model)
    agent.configure(goal=observations(2)[1], candidates=5000, iterations=10000)
    agent.observe(observations(2)[0])
    planning = threading.Thread(target=lambda: agent.plan(deadline=1.0))
    planning.start()
    time.sleep(0.2)
    with pytest.raises(pyjepa.BusyError, match="clone"):
        agent.plan(deadline=0.01)
    planning.join()
    assert agent.plan(deadline=0.01).cost > 0


def run_script(code, path, **options):
    """A process of its own, started for what pytest itself must not go through."""
    # A background job's children ignore it.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", heed + code, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def pixel_file(tmp_path):
    path = tmp_path / "a.safetensors"
    agent_file.save(path, pixel_spec(), weights(networks(pixel_spec())))
    return path


def test_ctrl_c_ends_a_long_plan(pixel_file):
    code = """
import sys, time, numpy as np, pyjepa
agent = pyjepa.load(sys.argv[1], threads=2)
agent.configure(goal=np.zeros((2, 16, 16), np.uint8), candidates=5000, iterations=10000)
agent.observe(np.ones((2, 16, 16), np.uint8))
print("planning", flush=True)
try:
    agent.plan()
except KeyboardInterrupt:
    print("interrupted", time.time(), agent.plan(deadline=0.01).cost >= 0)
"""
    process = run_script(code, pixel_file)
    assert process.stdout.readline() == "planning\n"
    time.sleep(0.3)
    sent = time.time()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    said, when, usable = out.split()
    assert (said, usable, err) == ("interrupted", "True", "")
    assert float(when) - sent < 5.0, "an uninterrupted plan takes minutes"


def test_a_plan_of_another_thread_runs_on_when_the_main_one_is_interrupted(pixel_file):
    code = """
import signal, sys, threading, time, numpy as np, pyjepa
agent = pyjepa.load(sys.argv[1])
agent.configure(goal=np.zeros((2, 16, 16), np.uint8), candidates=5000, iterations=10000)
agent.observe(np.ones((2, 16, 16), np.uint8))
planning = threading.Thread(target=lambda: print("planned", agent.plan(deadline=0.5).elapsed >= 0.4))
planning.start()
time.sleep(0.1)
try:
    signal.raise_signal(signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
planning.join()
"""
    out, err = run_script(code, pixel_file).communicate(timeout=60)
    assert (out, err) == ("interrupted\nplanned True\n", "")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_failure_of_a_callback_passes_through(error):
    def rollout(states, goals, actions):
        raise error

    agent = pyjepa.Agent(callback_model())
    agent.configure(rollout=rollout)
    with pytest.raises(error):
        agent.plan(np.zeros(3, np.float32))
    agent.configure(rollout=lambda s, g, a: np.zeros(a.shape[:2]))
    assert agent.plan(np.zeros(3, np.float32)).cost == 0.0


def test_a_forked_child_plans_all_the_same(pixel_file):
    code = """
import os, signal, sys, numpy as np, pyjepa
goal, seen = np.zeros((2, 16, 16), np.uint8), np.ones((2, 16, 16), np.uint8)
agents = [pyjepa.load(sys.argv[1], threads=2) for _ in range(2)]
for agent in agents:
    agent.configure(goal=goal)
    agent.observe(seen)
expected = agents[0].plan().actions
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends a deadlock
    same = (agents[1].plan().actions == expected).all()
    agents[0].configure(goal=goal)
    same &= all((agent.plan(seen).actions == expected).all() for agent in (agents[0], agents[0].clone()))
    del agents, agent
    os._exit(0 if same else 1)
print(os.waitpid(child, 0)[1], (agents[1].plan().actions == expected).all())
"""
    out, err = run_script(code, pixel_file).communicate(timeout=120)
    assert (out, err) == ("0 True\n", "")


def test_unknown_isa_is_named(tmp_path):
    agent_file.save(tmp_path / "a.safetensors", pixel_spec(), weights(networks(pixel_spec())))
    code = """
import sys, pyjepa
try:
    pyjepa.load(sys.argv[1])
except pyjepa.UnsupportedError as error:
    print(error)
"""
    environment_message = run_on("sse17", code, str(tmp_path / "a.safetensors"))
    assert environment_message is not None
    assert "PYJEPA_ISA: 'sse17' is not available here (available: " in environment_message


def test_loading_a_missing_file_names_it(tmp_path):
    with pytest.raises(OSError, match=r"nowhere\.safetensors"):
        pyjepa.load(tmp_path / "nowhere.safetensors")


# ---- precision


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.01), ("int8", 0.03)])
def test_lower_precisions_predict_nearly_the_same(precision, bound):
    """Against fp32 on the same plans; on a machine without the instructions the answer is fp32 and a warning."""
    spec, seen = pixel_spec(), observations(2, seed=3)
    data = agent_file.to_bytes(spec, weights(networks(spec)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        low = pyjepa.Model.from_bytes(data, precision=precision)
    assert low.precision == (precision if not caught else "fp32")
    if caught:
        assert f"no {precision} instructions" in str(caught[0].message)
    plans = []
    for model in (pyjepa.Model.from_bytes(data), low):
        agent = pyjepa.Agent(model)
        agent.configure(goal=seen[1], iterations=0)
        plans.append(agent.plan(seen[0]))
    np.testing.assert_array_equal(plans[0].actions, plans[1].actions)
    full, narrow = (plan.states[1:] for plan in plans)
    error = np.linalg.norm(full - narrow) / np.linalg.norm(full)
    assert error < bound
    assert (error > 0) == (low.precision == precision)
    agent = pyjepa.Agent(low, threads=2)
    agent.configure(goal=seen[1])
    assert agent.plan(seen[0]).cost == pytest.approx(plans[0].cost, rel=0.5)


def test_a_lower_precision_falls_back_and_says_so(tmp_path):
    agent_file.save(tmp_path / "a.safetensors", pixel_spec(), weights(networks(pixel_spec())))
    code = """
import sys, warnings, pyjepa
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = pyjepa.Model.load(sys.argv[1], precision="bf16")
print(model.precision, caught[0].message)
"""
    for isa in ("baseline", "avx512", "avx512_vnni"):
        out = run_on(isa, code, str(tmp_path / "a.safetensors"))
        assert out is None or out.startswith("fp32 this machine has no bf16")


def test_instruction_sets_can_be_had_without_their_narrow_units():
    code = "from pyjepa import _engine as e; print(*(e.precision_isa(p) or '-' for p in ('fp32', 'bf16', 'int8')))"
    assert run_on("baseline", code).split() == ["baseline", "-", "-"]
    levels = {isa: run_on(isa, code) for isa in ("avx512", "avx512_vnni", "avx512_bf16")}
    assert levels["avx512"] in (None, "avx512 - -\n")
    assert levels["avx512_vnni"] in (None, "avx512 - avx512_vnni\n")
    bf16 = levels["avx512_bf16"]
    assert bf16 is None or bf16.split()[:2] == ["avx512", "avx512_bf16"]
    assert run_on("", code) in {*levels.values(), *(run_on(isa, code) for isa in ISAS)}


def test_unknown_precisions_are_named():
    with pytest.raises(ValueError, match="precision must be fp32, bf16 or int8, got 'fp4'"):
        pyjepa.Model.from_bytes(b"", precision="fp4")


@pytest.mark.parametrize(
    "task",
    [{"planner": "cem"}, {"planner": "predictive-sampling"}, {"planner": "mppi", "elite_refit": True, "elites": 9}],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_pruning_changes_no_plan(model, task, threads):
    agents = []
    for prune in (True, False):
        agent = pyjepa.Agent(model, threads=threads)
        agent.configure(goal=observations(2)[1], candidates=200, prune=prune, **task)
        agents.append(agent)
    for seed in range(3):
        pruned, whole = (agent.plan(observations(1, seed=seed)[0]) for agent in agents)
        np.testing.assert_array_equal(pruned.actions, whole.actions)
        assert pruned.cost == whole.cost


def test_discount_is_the_tasks_where_it_says_so(model, modules):
    agent = pyjepa.Agent(model)
    seen, goal = observations(2)
    agent.configure(goal=goal)
    plan = agent.plan(seen)
    assert agent.settings["discount"] == 1.0
    agent.configure(goal=goal, discount=0.7)
    assert agent.settings["discount"] == pytest.approx(0.7)
    discounted = agent.plan(seen)
    assert discounted.cost < plan.cost
    torch_model = WorldModel(dataclasses.replace(model.spec, discount=0.7))
    torch_model.load_state_dict(modules.state_dict())
    start = torch.from_numpy(discounted.states)[None]
    actions = torch.from_numpy(discounted.actions[::4])[None]
    with torch.no_grad():
        latent_goal = torch_model.encode(torch.from_numpy(goal)[None])[0]
        terms = term_costs(torch_model, start[:, 1:], actions, latent_goal, start=start[:, 0])
    assert discounted.cost == pytest.approx(float(terms.sum()), rel=1e-4)
    bare = pyjepa.Agent(callback_model())
    with pytest.raises(pyjepa.InvalidArgumentError, match="discount belongs to the model's own cost"):
        bare.configure(rollout=lambda s, g, a: np.zeros(a.shape[:2]), discount=0.9)


def gaussian_model():
    """A policy whose spread is known: its network puts out what its bias says."""
    spec = pixel_spec(policy_head="gaussian_tanh")
    policy = dataclasses.replace(spec.modules["policy"], blocks=(Mlp(layers=(Layer(out=4),)),))
    spec = dataclasses.replace(spec, modules={**spec.modules, "policy": policy})
    modules = networks(spec)
    linear = modules["policy"].get_submodule("0.linear0")
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([0.3, -0.2, 0.6, 0.4]))
    return engine_model(spec, modules)


def test_exploring_draws_from_the_policy():
    agent = pyjepa.Agent(gaussian_model())
    seen, goal = observations(2)
    agent.configure(goal=goal, seed=3)
    agent.observe(seen)
    drawn = np.stack([agent.act(explore=True) for _ in range(4000)]).astype(np.float64)
    before_tanh = np.arctanh(drawn / 3.0)
    log_std = -10 + 6 * (np.tanh([0.6, 0.4]) + 1)
    np.testing.assert_allclose(before_tanh.mean(axis=0), [0.3, -0.2], atol=4 * np.exp(log_std).max() / 60)
    np.testing.assert_allclose(before_tanh.std(axis=0), np.exp(log_std), rtol=0.06)
    np.testing.assert_allclose(agent.act(), 3 * np.tanh([0.3, -0.2]), rtol=1e-5)  # the mean, as ever
    agent.reset()
    agent.observe(seen)
    np.testing.assert_array_equal(agent.act(explore=True), drawn[0].astype(np.float32))
    agent.configure(goal=goal, seed=4)
    agent.observe(seen)
    assert (agent.act(explore=True) != drawn[0].astype(np.float32)).all()


def test_environments_explore_differently_and_the_first_as_alone():
    batch, alone = pyjepa.Agent(gaussian_model(), threads=2), pyjepa.Agent(gaussian_model())
    seen, goal = observations(2)
    batch.configure(goal=np.stack([goal, goal]))
    alone.configure(goal=goal)
    batch.observe(np.stack([seen, seen]))
    alone.observe(seen)
    for _ in range(3):
        both = batch.act(explore=True)
        assert (both[0] != both[1]).all()
        np.testing.assert_array_equal(both[0], alone.act(explore=True))


def test_a_deterministic_policy_has_nothing_to_explore(agent):
    with pytest.raises(pyjepa.UnsupportedError, match="head 'deterministic' has no distribution"):
        agent.act(explore=True)


@pytest.mark.parametrize("steps", [2**31, 2**40, -1, 1.0, True])
def test_steps_that_cannot_be_are_named(agent, steps):
    with pytest.raises(pyjepa.InvalidArgumentError, match=r"steps must be an integer between 0 and 2\*\*31 - 1"):
        agent.observe(observations(1)[0], steps=steps)


@pytest.mark.parametrize("env", ["a", 1, -1, 2**40, 0.0, False])
def test_environments_that_are_not_there_are_named(agent, env):
    with pytest.raises(pyjepa.InvalidArgumentError, match="env must be an integer between 0 and 0"):
        agent.reset(env=env)


@pytest.mark.parametrize("deadline", [True, "soon", -1.0, float("nan"), [1.0]])
def test_deadlines_that_cannot_be_are_named(agent, deadline):
    with pytest.raises(pyjepa.InvalidArgumentError, match="deadline must be a number of seconds, not negative"):
        agent.plan(deadline=deadline)


@pytest.mark.parametrize("precision", [None, 32, "fp64"])
def test_precisions_that_cannot_be_are_named(model, tmp_path, precision):
    with pytest.raises(pyjepa.InvalidArgumentError, match="precision must be fp32, bf16 or int8, got"):
        pyjepa.load(tmp_path / "a.safetensors", precision=precision)
    with pytest.raises(pyjepa.InvalidArgumentError, match="precision must be fp32, bf16 or int8, got"):
        pyjepa.Model.from_bytes(b"", precision=precision)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_a_path_need_not_be_utf8(modules, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.safetensors")
    with pytest.raises(OSError, match=r"cannot read .*\\xff\\xfe"):
        pyjepa.load(path)
    with open(path, "wb") as file:
        file.write(agent_file.to_bytes(pixel_spec(), weights(modules)))
    assert pyjepa.load(path).spec == agent_file.validate(path) == pixel_spec()
