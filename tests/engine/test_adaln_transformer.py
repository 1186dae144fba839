"""The transformer that looks back: rollouts in the engine against the naive form in torch, which runs the whole window
anew at every step, and each saving that the engine makes, in the situation where it alone is at work.
"""

import dataclasses

import numpy as np
import pytest
import torch
from sample import ISAS, engine_model, networks, run_on, weights

import pyjepa
from pyjepa import agent_file
from pyjepa.cost import plan_cost
from pyjepa.spec import (
    Actions,
    AdalnTransformer,
    CostTerm,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Quantisation,
    Spec,
)
from pyjepa.world_model import WorldModel


def spec_of(
    *,
    window=3,
    depth=2,
    latent=24,
    width=24,
    heads=3,
    head_dim=16,
    hidden=72,
    embedding=40,
    steps=6,
    residual=False,
    inputs=("state", "action"),
    stage=0.5,
    projector=True,
):
    """A LeWM in small: blocks of two steps of two actions, a projector after the transformer."""
    transformer = AdalnTransformer(
        window=window, depth=depth, width=width, heads=heads, head_dim=head_dim, hidden=hidden, embedding=embedding
    )
    after = (Mlp(layers=(Layer(out=56, activation="gelu"), Layer(out=latent))),) if projector else ()
    return Spec(
        observation=Observation(shape=(latent,)),
        actions=Actions(low=(-1.0, -2.0), high=(1.0, 3.0)),
        modules={
            "predictor": Module(inputs=inputs, combine="adaln", residual=residual, blocks=(transformer, *after)),
        },
        levels=(Level(predictor="predictor", action_block=2),),
        cost=(CostTerm(kind="goal_distance", metric="squared_l2", stage=stage),),
        planner=Planner(horizon=2 * steps, candidates=40, iterations=3, elites=6),
    )


# What is at work: all of it; only the growing window's keys and values; only the moving window; only the last layer's
# unread tokens; sizes that fill no vector; a state that is not as wide as a token.
CASES = {
    "small": spec_of(),
    "grows": spec_of(window=6, steps=6),
    "grows-deep": spec_of(window=5, steps=5, depth=4),
    "moves": spec_of(window=2, steps=7),
    "moves-one-layer": spec_of(window=3, steps=7, depth=1),
    "no-past": spec_of(window=1, steps=4),
    "odd": spec_of(latent=37, width=37, heads=3, head_dim=7, hidden=51, embedding=13, steps=8),
    "wide-heads": spec_of(heads=4, head_dim=64, depth=3, steps=5),
    "projected": spec_of(latent=19, width=45, steps=5, inputs=("action", "state")),
    "residual": spec_of(residual=True, window=4),
    "bare": spec_of(projector=False),
}


def world_of(spec, modules):
    world = WorldModel(spec)
    world.load_state_dict(modules.state_dict())
    return world


def drawn(spec, count, seed=0):
    """Present state, goal, plans (count, S, A')."""
    rng = np.random.default_rng(seed)
    seen, goal = rng.standard_normal((2, *spec.observation.shape)).astype(np.float32)
    low, high = np.tile(spec.actions.low, 2), np.tile(spec.actions.high, 2)
    plans = rng.uniform(low, high, (count, spec.planner.horizon // 2, 4)).astype(np.float32)
    return seen, goal, plans


def naive(spec, modules, seen, goal, plans, past=None):
    """States (N, S, L) and costs (N,) in double precision; past: states (T, L) and actions (T, A') before."""
    world = world_of(spec, modules).double()
    with torch.no_grad():
        start, target = (torch.from_numpy(x).double().expand(len(plans), -1) for x in (seen, goal))
        actions = torch.from_numpy(plans).double()
        if past is not None:
            past = tuple(torch.from_numpy(x).double().expand(len(plans), *x.shape) for x in past)
        states = world.rollout(start, actions, past)
        return states.numpy(), plan_cost(world, states, actions, target).numpy()


@pytest.mark.parametrize("case", CASES)
def test_rollouts_equal_the_naive_form(case):
    spec = CASES[case]
    modules = networks(spec)
    seen, goal, plans = drawn(spec, 61)
    states, costs = naive(spec, modules, seen, goal, plans)
    agent = pyjepa.Agent(engine_model(spec, modules), threads=2)
    agent.configure(goal=goal, prune=False)
    agent.observe(seen)
    np.testing.assert_allclose(agent.evaluate(plans), costs, rtol=1e-5)
    plan = agent.plan()
    flat = plan.actions.reshape(1, -1, 4)
    expected, cost = naive(spec, modules, seen, goal, flat)
    assert np.linalg.norm(plan.states[1:] - expected[0]) < 1e-5 * np.linalg.norm(expected)
    np.testing.assert_allclose(plan.cost, cost[0], rtol=1e-5)
    assert states.std(axis=0).min() > 1e-3  # actions matter, at every step and in every number


def test_a_window_sees_what_the_last_state_does_not_tell():
    """The history changes the prediction: else the tests above would pass without it."""
    spec = CASES["small"]
    world = world_of(spec, networks(spec))
    states, actions = torch.randn(5, 3, 24), torch.randn(5, 3, 4)
    with torch.no_grad():
        assert (world.step(states, actions)[:, -1] - world.step(states[:, -1], actions[:, -1])).abs().mean() > 0.01


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder with an agent file and plans for every case, and what the naive form says that the plans cost."""
    folder, expected = tmp_path_factory.mktemp("cases"), {}
    for case, spec in CASES.items():
        modules = networks(spec)
        agent_file.save(folder / f"{case}.safetensors", spec, weights(modules))
        seen, goal, plans = drawn(spec, 29)
        np.savez(folder / f"{case}.npz", seen=seen, goal=goal, plans=plans)
        expected[case] = naive(spec, modules, seen, goal, plans)[1]
    return folder, expected


@pytest.mark.parametrize("isa", ISAS)
def test_rollouts_equal_the_naive_form_on_every_isa(isa, told):
    folder, expected = told
    code = """
import pathlib, sys, numpy as np, pyjepa
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    given = np.load(file.with_suffix(".npz"))
    agent = pyjepa.load(file)
    agent.configure(goal=given["goal"])
    agent.observe(given["seen"])
    np.save(str(file) + ".out.npy", agent.evaluate(given["plans"]))
"""
    if run_on(isa, code, str(folder)) is None:
        pytest.skip(f"this machine has no {isa}")
    for case, costs in expected.items():
        np.testing.assert_allclose(np.load(folder / f"{case}.safetensors.out.npy"), costs, rtol=1e-5, err_msg=case)


def test_a_batch_equals_single_plans_whatever_the_threads():
    spec = CASES["small"]
    model = engine_model(spec, networks(spec))
    seen = np.random.default_rng(1).standard_normal((6, 24)).astype(np.float32)
    batch, single = pyjepa.Agent(model, threads=2), pyjepa.Agent(model)
    batch.configure(goal=seen[3:])
    together = batch.plan(seen[:3])
    assert together.states is not None
    plans = together.actions.reshape(3, 1, -1, 4)
    for e in range(3):
        single.configure(goal=seen[3 + e])
        single.observe(seen[e])
        np.testing.assert_array_equal(batch.evaluate(plans)[e], single.evaluate(plans[e]))
        if e == 0:  # the others' noise is their own
            np.testing.assert_array_equal(single.plan().actions, together.actions[0])


def test_candidates_given_up_change_nothing():
    """Rows move when others are given up: with them goes what they keep of the past."""
    terms = (
        CostTerm(kind="goal_distance", metric="squared_l2", stage=0.0, terminal=50.0),
        CostTerm(kind="action_size", stage=1.0),
    )
    spec = dataclasses.replace(CASES["small"], cost=terms)
    modules = networks(spec)
    seen, _, plan = drawn(spec, 1)
    goal = naive(spec, modules, seen, seen, plan)[0][0, -1].astype(np.float32)
    model = engine_model(spec, modules)
    plans = []
    for prune in (False, True):
        agent = pyjepa.Agent(model)
        agent.configure(goal=goal, prune=prune, candidates=300, elites=10)
        plans.append(agent.plan(seen))
    np.testing.assert_array_equal(plans[0].actions, plans[1].actions)
    np.testing.assert_array_equal(plans[0].states, plans[1].states)


def loaded(spec, modules, precision):
    model = pyjepa.Model.from_bytes(agent_file.to_bytes(spec, weights(modules)), precision=precision)
    if model.precision != precision:
        pytest.skip(f"this machine has no {precision}")
    return model


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.01), ("int8", 0.03)])
@pytest.mark.parametrize("case", [case for case in CASES if case != "no-past"])
def test_lower_precisions_are_near(case, precision, error):
    """States along a plan, against double precision."""
    spec = CASES[case]
    modules = networks(spec)
    model = loaded(spec, modules, precision)
    seen, goal, _ = drawn(spec, 1)
    agent = pyjepa.Agent(model)
    agent.configure(goal=goal)
    plan = agent.plan(seen)
    expected, cost = naive(spec, modules, seen, goal, plan.actions.reshape(1, -1, 4))
    assert 0 < np.linalg.norm(plan.states[1:] - expected[0]) < error * np.linalg.norm(expected)
    np.testing.assert_allclose(plan.cost, cost[0], rtol=3 * error)


def test_a_layer_keeps_the_precision_that_the_file_gives_it():
    spec = CASES["small"]
    modules = networks(spec)
    quantised = dataclasses.replace(
        spec.modules["predictor"], quantisation=Quantisation(weights="int8", precisions=("fp32",) * 12)
    )
    kept = dataclasses.replace(spec, modules={"predictor": quantised})
    fp32, int8 = (
        pyjepa.Model.from_bytes(agent_file.to_bytes(s, weights(modules)), precision=p)
        for s, p in ((spec, "fp32"), (kept, "int8"))
    )
    inputs = np.random.default_rng(0).standard_normal((9, 28)).astype(np.float32)
    np.testing.assert_array_equal(fp32.forward("predictor", inputs), int8.forward("predictor", inputs))
    short = dataclasses.replace(quantised, quantisation=Quantisation(weights="int8", precisions=("fp32",) * 3))
    with pytest.raises(pyjepa.AgentFileError, match="has 3 items, but the module's blocks have 12 layers"):
        agent_file.to_bytes(dataclasses.replace(spec, modules={"predictor": short}), weights(modules))


def live_through(agent, states, actions, seen):
    """The agent after what it saw and did: states (T, L) and actions (T, A'), then the present state."""
    agent.observe(states[0])
    for action, state in zip(actions, [*states[1:], seen], strict=True):
        agent.observe(state, taken=action)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("case", ["small", "grows-deep", "moves", "projected", "residual", "no-past"])
def test_what_was_seen_and_done_is_looked_back_on(case, length, precision):
    """As many states as fit in the window; a shorter past makes a shorter window, which grows from there."""
    spec = CASES[case]
    modules = networks(spec)
    model = loaded(spec, modules, precision)
    seen, goal, plans = drawn(spec, 61)
    rng = np.random.default_rng(4)
    states = rng.standard_normal((length, len(seen))).astype(np.float32)
    actions = rng.uniform(-1, 1, (length, 4)).astype(np.float32)
    kept = min(length, spec.modules["predictor"].blocks[0].window - 1)
    past = (states[length - kept :], actions[length - kept :])
    costs = naive(spec, modules, seen, goal, plans, past)[1]
    error = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.09}[precision]
    agent = pyjepa.Agent(model, threads=2)
    agent.configure(goal=goal, prune=False)
    live_through(agent, states, actions, seen)
    looked_back = agent.evaluate(plans)
    np.testing.assert_allclose(looked_back, costs, rtol=error)
    plan = agent.plan()
    reached = naive(spec, modules, seen, goal, plan.actions.reshape(1, -1, 4), past)[0][0]
    assert np.linalg.norm(plan.states[1:] - reached) < error * np.linalg.norm(reached)
    # Told nothing, it looks at the present alone.
    agent.observe(seen)
    alone = agent.evaluate(plans)
    np.testing.assert_allclose(alone, naive(spec, modules, seen, goal, plans)[1], rtol=error)
    assert np.array_equal(alone, looked_back) == (kept == 0)
    live_through(agent, states, actions, seen)
    agent.reset()
    agent.observe(seen, taken=actions[0])
    np.testing.assert_array_equal(agent.evaluate(plans), alone)


def test_gradients_look_back_on_what_was_done():
    spec = CASES["grows-deep"]
    modules = networks(spec)
    seen, goal, plans = drawn(spec, 9)
    rng = np.random.default_rng(4)
    agent = pyjepa.Agent(engine_model(spec, modules), threads=2)
    agent.configure(goal=goal)
    for length in (1, 3, 4, 7):
        states, actions = rng.standard_normal((length, 24)).astype(np.float32), rng.uniform(-1, 1, (length, 4))
        live_through(agent, states, actions, seen)
        costs, gradient = agent.gradient(plans)
        np.testing.assert_allclose(costs, agent.evaluate(plans), rtol=1e-5)
        world = world_of(spec, modules).double()
        rows = torch.from_numpy(plans).double().requires_grad_()
        start, target = (torch.from_numpy(x).double().expand(len(plans), -1) for x in (seen, goal))
        past = tuple(torch.from_numpy(x[-4:]).double().expand(len(plans), -1, -1) for x in (states, actions))
        plan_cost(world, world.rollout(start, rows, past), rows, target).sum().backward()
        assert np.linalg.norm(gradient - rows.grad.numpy()) < 1e-4 * np.linalg.norm(rows.grad.numpy())


def test_each_environment_has_its_own_past():
    """Of a batch one is reset: it looks at the present alone, the others at what was told; threads change no bit."""
    spec = CASES["grows"]
    modules = networks(spec)
    model = engine_model(spec, modules)
    rng = np.random.default_rng(5)
    states, goal = rng.standard_normal((6, 3, 24)).astype(np.float32), rng.standard_normal((3, 24)).astype(np.float32)
    actions = rng.uniform(-1, 1, (5, 3, 4)).astype(np.float32)
    plans = rng.uniform(-1, 1, (3, 40, 6, 4)).astype(np.float32)
    costs = []
    for threads in (1, 2):
        agent = pyjepa.Agent(model, threads=threads)
        agent.configure(goal=goal)
        agent.observe(states[0])
        for t in range(5):
            if t == 3:
                agent.reset(env=1)
            agent.observe(states[t + 1], taken=actions[t].reshape(3, 2, 2))
        costs.append(agent.evaluate(plans))
    np.testing.assert_array_equal(*costs)
    for e in range(3):
        since = 4 if e == 1 else 0
        past = (states[since:5, e], actions[since:, e])
        np.testing.assert_allclose(
            costs[0][e], naive(spec, modules, states[5, e], goal[e], plans[e], past)[1], rtol=1e-5
        )


def test_what_was_taken_is_what_the_next_action_is_compared_with():
    """Also by a predictor that does not look back; and it counts instead of what was planned."""
    terms = (CostTerm(kind="goal_distance", stage=0.0), CostTerm(kind="action_change", name="change"))
    spec = dataclasses.replace(CASES["no-past"], cost=terms)
    seen, goal, plans = drawn(spec, 5)
    agent = pyjepa.Agent(engine_model(spec, networks(spec)))
    agent.configure(goal=goal, weights={"change": 1.0})
    agent.plan(seen)
    agent.observe(seen, taken=plans[0, 0])
    agent.plan()
    with_change = agent.evaluate(plans)
    low, high = (np.tile(bound, 2) for bound in (spec.actions.low, spec.actions.high))
    steps = np.diff(np.concatenate([np.tile(plans[0, 0], (5, 1, 1)), plans], axis=1), axis=1) / (
        (np.array(high) - low) / 2
    )
    agent.configure(goal=goal, weights={"change": 0.0})
    agent.observe(seen)
    np.testing.assert_allclose(with_change - agent.evaluate(plans), np.square(steps).sum((1, 2)), rtol=1e-4, atol=1e-4)


def test_what_cannot_have_been_taken_is_named():
    spec = CASES["small"]
    agent = pyjepa.Agent(engine_model(spec, networks(spec)))
    agent.configure(goal=np.zeros(24, np.float32))
    seen, taken = np.zeros(24, np.float32), np.zeros(4, np.float32)
    with pytest.raises(pyjepa.InvalidArgumentError, match=r"taken has shape \(3,\), expected \(4,\)"):
        agent.observe(seen, taken=taken[:3])
    with pytest.raises(pyjepa.InvalidArgumentError, match="taken is not finite"):
        agent.observe(seen, taken=taken + np.nan)
    with pytest.raises(pyjepa.InvalidArgumentError, match="steps must be 2, got 1"):
        agent.observe(seen, taken=taken, steps=1)
    agent.configure(rollout=lambda states, goals, plans: np.zeros(plans.shape[:2], np.float32))
    agent.observe(seen, taken=taken)  # what it looks back on is the callback's own business
    world = world_of(spec, networks(spec))
    with pytest.raises(ValueError, match="3 states of the past and the present one exceed the window of 3"):
        world.rollout(torch.zeros(1, 24), torch.zeros(1, 2, 4), (torch.zeros(1, 3, 24), torch.zeros(1, 3, 4)))


def test_flops_count_what_is_computed():
    """By hand for the small case: one token while the window grows, three from then on, one in the last layer."""
    spec = CASES["small"]
    agent = pyjepa.Agent(engine_model(spec, networks(spec)))
    agent.configure(goal=np.zeros(24, np.float32))
    width, inner, hidden, embedding = 24, 48, 72, 40
    action = 4 * embedding + embedding * width + 2 * 6 * width * width
    keys, rest = 2 * width * inner, 2 * width * inner + 2 * width * hidden
    total = 0
    for length, fresh in ((1, 1), (2, 1), (3, 1), (3, 3), (3, 3), (3, 3)):
        total += action + (fresh * (keys + rest) + keys * fresh + rest) + (24 * 56 + 56 * 24)
        pairs = length if fresh == 1 else 1 + 2 + 3
        total += 2 * inner * (pairs + length)
    steps = agent.settings["flops"] / (spec.planner.candidates * spec.planner.iterations)
    assert steps == pytest.approx(2 * total, rel=0.02)  # the cost's own operations are few


def test_what_does_not_fit_is_named():
    spec = CASES["small"]
    model = engine_model(spec, networks(spec))
    agent = pyjepa.Agent(model)
    with pytest.raises(pyjepa.UnsupportedError, match="predictor looks back on several"):
        agent.configure(goal=np.zeros(24, np.float32), planner="tree")
    world = world_of(spec, networks(spec))
    with pytest.raises(ValueError, match="4 states are more than the window of 3"):
        world.step(torch.zeros(1, 4, 24), torch.zeros(1, 4, 4))
    tensors = weights(networks(spec))
    longer = dataclasses.replace(
        spec.modules["predictor"].blocks[0], window=5
    )  # a window longer than the positions in the file
    other = dataclasses.replace(
        spec,
        modules={
            "predictor": dataclasses.replace(
                spec.modules["predictor"], blocks=(longer, *spec.modules["predictor"].blocks[1:])
            )
        },
    )
    with pytest.raises(pyjepa.AgentFileError, match=r"'predictor.0.position': wrong shape \[3, 24\].* \[5, 24\]"):
        agent_file.to_bytes(other, tensors)
