"""Cost terms, heads and critics in the engine against `pyjepa.cost`, drawn members, policy rollouts and their MPPI."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from sample import ISAS, engine_model, networks, run_on, weights

import pyjepa
from pyjepa import agent_file
from pyjepa.cost import plan_cost, term_costs
from pyjepa.spec import Actions, CostTerm, Layer, Level, Mlp, Module, Observation, Planner, Spec, TwoHot
from pyjepa.world_model import WorldModel

LATENT, ACTIONS = 24, 3


def head(*inputs, out=1, ensemble=1):
    return Module(
        inputs=inputs,
        ensemble=ensemble,
        blocks=(Mlp(layers=(Layer(out=20, norm="layer", activation="mish"), Layer(out=out))),),
    )


def two_hot(*inputs, ensemble=1):
    layers = (Layer(out=20, norm="layer", activation="mish"), Layer(out=33))
    return Module(inputs=inputs, ensemble=ensemble, blocks=(Mlp(layers=layers), TwoHot(bins=33, low=-5.0, high=5.0)))


MODULES = {
    "dynamics": Module(
        inputs=("state", "action"),
        blocks=(Mlp(layers=(Layer(out=40, norm="layer", activation="mish"), Layer(out=LATENT, norm="layer+simnorm"))),),
    ),
    "pi": head("state", out=2 * ACTIONS),
    "pi_goal": head("goal", "state", out=2 * ACTIONS),
    "reward": two_hot("state", "action"),
    "reward_swapped": two_hot("goal", "action", "state", ensemble=3),
    "hazard": head("state"),
    "hazard_goal": head("goal", "state", ensemble=2),
    "place": head("state", out=4),
    "places": head("state", "goal", out=4, ensemble=3),
    "guesses": head("state", "action", out=6, ensemble=4),
    "q": two_hot("state", "action", ensemble=5),
    "q_goal": two_hot("action", "goal", "state", ensemble=2),
    "v": head("state", "goal"),
    "pay": head("goal", "action", "state"),
    "effort": head("action"),
}


def agent_spec(*terms, policy="pi", critic=None, **changes):
    """A TD-MPC2-like agent whose observation is its state, with the modules that its cost needs."""
    names = {"dynamics", policy, critic, *(term.module for term in terms)} - {None}
    spec = Spec(
        observation=Observation(shape=(LATENT,)),
        actions=Actions(low=(-1.0, -2.0, 0.0), high=(1.0, 4.0, 0.5)),
        modules={name: module for name, module in MODULES.items() if name in names},
        levels=(Level(predictor="dynamics"),),
        policy=policy,
        policy_head="gaussian_tanh",
        critic=critic,
        discount=0.9,
        cost=terms,
        planner=Planner(horizon=4, candidates=40, iterations=3, elites=8),
    )
    return dataclasses.replace(spec, **changes)


def world_model(spec, modules):
    """`WorldModel` around the state: it wants an encoder, so it gets one that changes nothing."""
    encoder = Module(inputs=("observation",), blocks=(Mlp(layers=(Layer(out=LATENT),)),))
    world = WorldModel(
        dataclasses.replace(
            spec,
            modules={**spec.modules, "encoder": encoder},
            levels=(dataclasses.replace(spec.levels[0], encoder="encoder"),),
        )
    )
    state = modules.state_dict()
    known = {name: value for name, value in state.items() if name in world.state_dict()}
    missing, unexpected = world.load_state_dict(known, strict=False)
    assert not unexpected
    assert all(name.startswith("encoder.") for name in missing)
    return world.eval()


def seen(seed=0):
    start, goal = np.random.default_rng(seed).standard_normal((2, LATENT)).astype(np.float32)
    return start, goal


def planned(spec, modules, *, seed=0, **task):
    start, goal = seen()
    agent = pyjepa.Agent(engine_model(spec, modules))
    agent.configure(goal=goal, seed=seed, **task)
    return agent.plan(start)


@torch.no_grad()
def torch_terms(spec, modules, plan, members=None):
    """What torch says that each term of the plan costs."""
    world = world_model(spec, modules)
    start, goal = map(torch.from_numpy, seen())
    actions = torch.from_numpy(plan.actions)[None]
    states = world.rollout(start[None], actions)
    return term_costs(world, states, actions, goal, start=start, members=members)[0].numpy()


CASES = {
    "l1": ((CostTerm(kind="goal_distance", metric="l1", stage=0.5),), None),
    "cosine": ((CostTerm(kind="goal_distance", metric="cosine"),), None),
    "reach": (
        (CostTerm(kind="goal_distance", reach=1.5), CostTerm(kind="goal_distance", reach=50.0, name="far")),
        None,
    ),
    "distance-of-places": ((CostTerm(kind="goal_distance", module="place", metric="squared_l2"),), None),
    "reward": ((CostTerm(kind="reward", module="reward", stage=2.0),), None),
    "reward-and-goal": ((CostTerm(kind="reward", module="reward_swapped", reduce="max"),), None),
    "hazard": ((CostTerm(kind="hazard", module="hazard"),), None),
    "hazard-sigmoid": ((CostTerm(kind="hazard", module="hazard_goal", sigmoid=True, reduce="min"),), None),
    "disagreement": ((CostTerm(kind="disagreement", module="guesses", stage=3.0),), None),
    "curiosity": ((CostTerm(kind="disagreement", module="places", seek=True, stage=0.5),), None),
    "box": ((CostTerm(kind="box", low=(0.1,) * LATENT, high=(0.2,) * LATENT),), None),
    "box-of-places": ((CostTerm(kind="box", module="places", high=(-0.5, 0.1, 0.2, 0.0), terminal=0.0),), None),
    "half-space": ((CostTerm(kind="half_space", normal=(0.5,) * LATENT, offset=-0.3),), None),
    "half-space-of-place": ((CostTerm(kind="half_space", module="place", normal=(1.0, -1.0, 0.5, 0.0)),), None),
    "value": ((CostTerm(kind="critic", stage=0.0),), "v"),
    "cost-to-go": ((CostTerm(kind="critic", stage=0.3, estimates="cost"),), "v"),
    "q": ((CostTerm(kind="critic", stage=0.0),), "q"),
    "q-goal": ((CostTerm(kind="critic", stage=0.2, reduce="min"),), "q_goal"),
    "all": (
        (
            CostTerm(kind="reward", module="reward"),
            CostTerm(kind="critic", stage=0.0),
            CostTerm(kind="hazard", module="hazard", stage=0.1),
            CostTerm(kind="action_size", stage=0.01),
            CostTerm(kind="action_change", stage=0.02),
            CostTerm(kind="goal_distance", stage=0.0, terminal=0.5),
        ),
        "q",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_terms_cost_what_torch_says(case):
    terms, critic = CASES[case]
    spec = agent_spec(*terms, critic=critic)
    modules = networks(spec)
    plan = planned(spec, modules)
    expected = torch_terms(spec, modules, plan)
    for term, cost in zip(terms, expected, strict=True):
        assert abs(cost) > 1e-3, "a term that says nothing tests nothing"
        assert plan.cost_terms[term.label].sum() == pytest.approx(float(cost), rel=2e-5, abs=2e-6), term.label
    assert plan.cost == pytest.approx(float(expected.sum()), rel=2e-5)


SMOOTH = {
    **{name: CASES[name] for name in ("l1", "cosine", "reach", "distance-of-places", "hazard", "box", "value")},
    **{name: CASES[name] for name in ("half-space-of-place", "cost-to-go")},
    "l1-of-places": ((CostTerm(kind="goal_distance", module="place", metric="l1", stage=0.3, reach=9.0),), None),
    "cosine-of-places": ((CostTerm(kind="goal_distance", module="place", metric="cosine", stage=0.3),), None),
    "l2-within-reach": ((CostTerm(kind="goal_distance", reach=20.0, stage=0.3),), None),
    "reward-of-an-mlp": ((CostTerm(kind="reward", module="pay", stage=2.0),), None),
    "reward-of-actions": ((CostTerm(kind="reward", module="effort"),), None),
    "sigmoid": ((CostTerm(kind="hazard", module="hazard", sigmoid=True),), None),
    "half-space": ((CostTerm(kind="half_space", normal=tuple(range(LATENT)), offset=-0.3),), None),
    "box-of-place": ((CostTerm(kind="box", module="place", low=(-0.05,) * 4, high=(0.0, 0.1, 0.2, 0.0)),), None),
    "distance-and-cost-to-go": (
        (
            CostTerm(kind="goal_distance", reach=20.0),
            CostTerm(kind="critic", stage=0.0, estimates="cost"),
            CostTerm(kind="action_change", stage=0.02),
        ),
        "v",
    ),
}


@pytest.mark.parametrize("case", SMOOTH)
@pytest.mark.parametrize("count", [1, 37])
def test_slopes_are_those_of_autograd(case, count):
    terms, critic = SMOOTH[case]
    spec = agent_spec(*terms, critic=critic)
    modules = networks(spec)
    start, goal = seen()
    low, high = spec.actions.low, spec.actions.high
    plans = np.random.default_rng(3).uniform(low, high, (count, 4, ACTIONS)).astype(np.float32)
    world, actions = world_model(spec, modules), torch.from_numpy(plans).requires_grad_()
    begin = torch.from_numpy(start).expand(count, -1)
    cost = plan_cost(world, world.rollout(begin, actions), actions, torch.from_numpy(goal), start=begin)
    cost.sum().backward()
    expected = actions.grad.numpy()
    agent = pyjepa.Agent(engine_model(spec, modules), threads=2)
    agent.configure(goal=goal)
    agent.observe(start)
    found_cost, found = agent.gradient(plans)
    np.testing.assert_allclose(found_cost, cost.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found_cost, agent.evaluate(plans), rtol=1e-5, atol=1e-6)
    error = np.linalg.norm((found - expected).reshape(count, -1), axis=1)
    assert (error <= 2e-4 * np.linalg.norm(expected.reshape(count, -1), axis=1) + 1e-7).all()
    assert np.abs(expected).max() > 1e-5


@pytest.mark.parametrize("planner", ["gradient", "hybrid"])
def test_descent_to_a_critic_beats_where_it_started(planner):
    spec = agent_spec(*SMOOTH["distance-and-cost-to-go"][0], critic="v")
    modules = networks(spec)
    plan = planned(spec, modules, planner=planner)
    expected = torch_terms(spec, modules, plan)
    assert plan.cost == pytest.approx(float(expected.sum()), rel=2e-5)
    assert plan.cost < plan.diagnostics.best_cost[0] - 1e-3
    assert plan.cost <= planned(spec, modules, planner="cem", candidates=400, iterations=8).cost + 1e-3


def test_hard_constraints_have_no_slope():
    """Where they are kept nothing changes; where they are not, there is nowhere to go."""
    start, goal = seen()
    plans = np.zeros((3, 4, ACTIONS), np.float32)
    found = {}
    for offset in (None, 1e3, -1e3):
        terms = [CostTerm(kind="goal_distance")]
        if offset is not None:
            terms.append(CostTerm(kind="half_space", normal=(1.0,) * LATENT, offset=offset, hard=True))
        spec = agent_spec(*terms)
        agent = pyjepa.Agent(engine_model(spec, networks(spec)))
        agent.configure(goal=goal)
        agent.observe(start)
        found[offset] = agent.gradient(plans)
    for ours, theirs in zip(found[1e3], found[None], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.isinf(found[-1e3][0]).all()
    assert (found[-1e3][1] == 0).all()


@pytest.mark.parametrize("case", ["reward", "reward-and-goal", "hazard-sigmoid", "box-of-places", "q", "q-goal"])
def test_terms_without_a_slope_are_refused_by_number(case):
    terms, critic = CASES[case]
    spec = agent_spec(CostTerm(kind="action_size"), *terms, critic=critic)
    modules = networks(spec)
    with pytest.raises(pyjepa.UnsupportedError, match="cost term 1 has no gradient"):
        planned(spec, modules, planner="gradient")
    assert np.isfinite(planned(spec, modules, planner="gradient", weights={terms[0].label: 0.0}).cost)


def test_descent_starts_from_proposals_of_the_policy_too():
    spec = agent_spec(CostTerm(kind="goal_distance"))
    modules = networks(spec)
    for planner, changes in (("gradient", {"restarts": 6}), ("hybrid", {}), ("icem", {"decay": 3.0})):
        alone = planned(spec, modules, planner=planner, **changes)
        helped = planned(spec, modules, planner=planner, policy_candidates=4, **changes)
        assert (helped.actions != alone.actions).any(), planner
        assert helped.cost < helped.diagnostics.best_cost[0], planner
    with pytest.raises(pyjepa.InvalidArgumentError, match="policy_candidates must be between 0 and 5"):
        planned(spec, modules, planner="gradient", restarts=6, policy_candidates=6)


def test_a_policy_that_reads_the_goal_is_asked_with_it():
    spec = agent_spec(CostTerm(kind="critic", stage=0.0), policy="pi_goal", critic="q")
    modules = networks(spec)
    plan = planned(spec, modules)
    assert plan.cost == pytest.approx(float(torch_terms(spec, modules, plan).sum()), rel=2e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_costs_on_every_isa(isa, tmp_path):
    spec = agent_spec(*CASES["all"][0], critic="q")
    modules = networks(spec)
    agent_file.save(tmp_path / "agent.safetensors", spec, weights(modules))
    start, goal = seen()
    np.save(tmp_path / "seen.npy", np.stack([start, goal]))
    code = """
import sys, numpy as np, pyjepa
agent = pyjepa.load(sys.argv[1] + "/agent.safetensors")
start, goal = np.load(sys.argv[1] + "/seen.npy")
agent.configure(goal=goal, iterations=0)
print(agent.plan(start).cost)
"""
    ran = run_on(isa, code, str(tmp_path))
    if ran is None:
        pytest.skip(f"this machine has no {isa}")
    assert float(ran) == pytest.approx(planned(spec, modules, iterations=0).cost, rel=2e-5)


@pytest.mark.parametrize("reduce", ["mean", "min", "max"])
def test_two_members_of_five_are_drawn_for_each_plan(reduce):
    spec = agent_spec(CostTerm(kind="critic", stage=0.0, members=2, reduce=reduce), critic="q")
    modules = networks(spec)
    plans = [planned(spec, modules, seed=seed, iterations=0) for seed in range(40)]  # that differ in the draw only
    assert all((plan.actions == plans[0].actions).all() for plan in plans)
    pairs = itertools.combinations(range(5), 2)
    expected = np.array([torch_terms(spec, modules, plans[0], {"critic": pair}).sum() for pair in pairs])
    costs = np.array([plan.cost for plan in plans])
    near = np.isclose(costs[:, None], expected, rtol=2e-5)
    assert near.any(axis=1).all()
    assert near.any(axis=0).sum() >= 8
    again = planned(spec, modules, seed=3)
    assert again.cost == planned(spec, modules, seed=3).cost


def test_each_plan_draws_anew_and_a_batch_draws_as_its_members_would():
    spec = agent_spec(CostTerm(kind="critic", stage=0.0, members=1), critic="q")
    modules = networks(spec)
    start, goal = seen()
    agent = pyjepa.Agent(engine_model(spec, modules), threads=2)
    agent.configure(goal=goal, iterations=0)
    single = []
    for _ in range(12):
        agent.observe(start, steps=0)
        single.append(agent.plan().cost)
    assert 2 <= len(set(single)) <= 5
    agent.configure(goal=np.stack([goal, goal]), iterations=0)
    for cost in single:
        agent.observe(np.stack([start, start]), steps=0)
        np.testing.assert_array_equal(agent.plan().cost, [cost, cost])


def test_hard_constraints_filter_candidates():
    """The first action drives the reached state; what lies outside costs infinity, and the plan lies inside."""
    spec = agent_spec(CostTerm(kind="action_size"), CostTerm(kind="half_space", module="place", normal=(1.0, 0, 0, 0)))
    modules = networks(spec)
    free = planned(spec, modules, weights={"half_space": 0.0})
    world, start = world_model(spec, modules), torch.from_numpy(seen()[0])
    draws = torch.from_numpy(np.random.default_rng(0).uniform((-1, -2, 0), (1, 4, 0.5), (400, 4, 3)).astype(np.float32))
    with torch.no_grad():
        reached = world.rollout(start.expand(400, -1), draws)
        along = world.head("place", reached.flatten(0, 1))[0][:, 0].reshape(400, 4).amax(1)
        own = float(world.head("place", torch.from_numpy(free.states[1:]))[0][:, 0].amax())
    offset = min(own, float(along.median())) - 1e-4  # the free plan lies outside, some plans do not
    offset = max(offset, float(along.min()) + 0.2 * (offset - float(along.min())))
    hard = CostTerm(kind="half_space", module="place", normal=(1.0, 0, 0, 0), offset=offset, hard=True)
    spec = dataclasses.replace(spec, cost=(spec.cost[0], hard))
    plan = planned(spec, modules, std=1.0, candidates=400, iterations=6)
    assert own > offset
    assert np.isfinite(plan.cost)
    with torch.no_grad():
        inside = world.head("place", torch.from_numpy(plan.states[1:]))[0][:, 0]
        assert float(inside.max()) <= offset + 1e-5
        world.spec = spec
        costs = plan_cost(world, reached, draws, torch.zeros(LATENT), start=start)
    assert (torch.isinf(costs) == (along > offset)).all()


def test_terms_of_one_kind_are_told_apart_by_name():
    terms = (
        CostTerm(kind="hazard", module="hazard", name="fire"),
        CostTerm(kind="hazard", module="hazard_goal", name="water"),
    )
    spec = agent_spec(*terms)
    modules = networks(spec)
    plan = planned(spec, modules, weights={"water": 0.0}, iterations=0)
    assert list(plan.cost_terms) == ["fire", "water"]
    assert (plan.cost_terms["water"] == 0).all()
    assert (plan.cost_terms["fire"] != 0).all()
    with pytest.raises(pyjepa.InvalidArgumentError, match=r"no cost term 'hazard' .*fire, water"):
        planned(spec, modules, weights={"hazard": 1.0})


def test_a_goal_is_asked_for_by_the_term_that_reads_it():
    for terms, critic, name in (
        ((CostTerm(kind="reward", module="reward_swapped"),), None, "reward"),
        ((CostTerm(kind="box", module="places", low=(0.0,) * 4),), None, "box"),
        ((CostTerm(kind="critic"),), "v", "critic"),
    ):
        spec = agent_spec(*terms, critic=critic)
        agent = pyjepa.Agent(engine_model(spec, networks(spec)))
        with pytest.raises(pyjepa.InvalidArgumentError, match=f"the cost term {name} needs a goal"):
            agent.configure()
        agent.configure(weights={name: 0.0})


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_heads_run_in_the_precision_asked_for(precision):
    spec = agent_spec(CostTerm(kind="reward", module="reward"), CostTerm(kind="critic", stage=0.0), critic="q")
    data = agent_file.to_bytes(spec, weights(networks(spec)))
    full, narrow = pyjepa.Model.from_bytes(data), pyjepa.Model.from_bytes(data, precision=precision)
    if narrow.precision != precision:
        pytest.skip(f"this machine has no {precision} instructions")
    inputs = np.random.default_rng(0).standard_normal((64, LATENT + ACTIONS)).astype(np.float32)
    for name in ("reward", "q"):
        exact, near = full.forward(name, inputs), narrow.forward(name, inputs)
        assert 1e-6 < np.linalg.norm(exact - near) / np.linalg.norm(exact - exact.mean(0)) < 0.1
    start, _ = seen()
    actions = []
    for model in (full, narrow):
        agent = pyjepa.Agent(model)
        agent.configure()
        actions.append(agent.act(start))
    np.testing.assert_array_equal(*actions, "acting stays in fp32")


def test_the_gaussian_policy_acts_at_its_mean():
    spec = agent_spec(CostTerm(kind="action_size"))
    modules = networks(spec)
    start, _ = seen()
    agent = pyjepa.Agent(engine_model(spec, modules))
    agent.configure()
    with torch.no_grad():
        u = modules["pi"]({"state": torch.from_numpy(start)[None]})[0, :ACTIONS]
    low, high = (np.asarray(b, np.float32) for b in (spec.actions.low, spec.actions.high))
    np.testing.assert_allclose(agent.act(start), (low + high) / 2 + (high - low) / 2 * np.tanh(u.numpy()), rtol=1e-5)


# ---- MPPI as TD-MPC2 has it

TDMPC2 = {
    "planner": "mppi",
    "elite_refit": True,
    "elites": 10,
    "temperature": 0.5,
    "temperature_scale": "absolute",
    "std": 2.0,
    "max_std": 2.0,
    "min_std": 0.05,
}


def reference_mppi(samples, cost, settings):
    """TD-MPC2's update (tdmpc2.py, `_plan`) in float64, from candidates (N, K) and their costs; its temperature is one
    over ours. Mean and std (K,).
    """
    if settings["elite_refit"]:
        order = np.argsort(cost, kind="stable")[: settings["elites"]]
        samples, cost = samples[order], cost[order]
    scale = settings["temperature"] * (cost.std() if settings["temperature_scale"] == "std" else 1.0)
    score = np.exp((cost.min() - cost) / scale)
    score /= score.sum()
    mean = (score[:, None] * samples).sum(0)
    std = np.sqrt((score[:, None] * (samples - mean) ** 2).sum(0)) if settings["elite_refit"] else None
    return mean, None if std is None else np.clip(std, settings["min_std"], settings["max_std"])


@pytest.mark.parametrize("scale", ["std", "absolute"])
@pytest.mark.parametrize("elite_refit", [False, True])
def test_mppi_moves_as_its_reference_does(scale, elite_refit):
    """Candidates are seen through a callback; candidate 0 is the mean."""
    seen_plans, seen_costs = [], []

    def rollout(states, goals, actions):
        cost = ((actions - 0.3) ** 2).sum((2, 3)) + 0.3 * np.sin(5 * actions[..., 0]).sum(2)
        seen_plans.append(actions[0].reshape(actions.shape[1], -1).astype(np.float64))
        seen_costs.append(cost[0].astype(np.float32).astype(np.float64))
        return cost

    spec = Spec(
        observation=Observation(shape=(3,)),
        actions=Actions(low=(-1.0, -1.0), high=(1.0, 1.0)),
        planner=Planner(horizon=3, candidates=60, iterations=3),
        cost=(),
    )
    task = {**TDMPC2, "temperature_scale": scale, "elite_refit": elite_refit, "std": 0.5}
    if not elite_refit:
        for name in ("elites", "max_std", "min_std"):
            del task[name]
    agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, {})))
    agent.configure(rollout=rollout, **task)
    agent.plan(np.zeros(3, np.float32))
    iterations = [i for i, plans in enumerate(seen_plans) if len(plans) > 1]
    assert len(iterations) == 3
    for now, then in itertools.pairwise(iterations):
        mean, std = reference_mppi(seen_plans[now], seen_costs[now], {**TDMPC2, **task})
        following = seen_plans[then]
        np.testing.assert_allclose(following[0], mean, atol=2e-6)
        inside = np.abs(following[1:]) < 0.999999
        spread = np.sqrt(np.nanmean(np.where(inside, following[1:] - mean, np.nan) ** 2, axis=0))
        wanted = 0.5 if std is None else std
        np.testing.assert_allclose(spread, wanted, rtol=0.45)


def test_the_refitted_spread_is_the_references():
    """With next to no noise bounded away, the ratio of two iterations' deviations is the ratio of their spreads."""
    plans, costs = [], []

    def rollout(states, goals, actions):
        plans.append(actions[0].reshape(actions.shape[1], -1).astype(np.float64))
        costs.append(((actions[0] - 0.01) ** 2).sum((1, 2)))
        return costs[-1][None]

    spec = Spec(
        observation=Observation(shape=(1,)),
        actions=Actions(low=(-100.0,), high=(100.0,), center=(0.0,), scale=(1.0,)),
        planner=Planner(horizon=2, candidates=50, iterations=2),
        cost=(),
    )
    agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, {})))
    agent.configure(rollout=rollout, **{**TDMPC2, "std": 0.01, "min_std": 0.0001, "temperature": 0.3})
    agent.plan(np.zeros(1, np.float32))
    first, second = (i for i, p in enumerate(plans) if len(p) > 1)
    settings = {**TDMPC2, "temperature": 0.3, "min_std": 0.01, "max_std": 200.0}
    mean, std = reference_mppi(plans[first], costs[first].astype(np.float32).astype(np.float64), settings)
    deviation = (plans[second][1:] - mean).std(0)
    # The noise of an iteration is the same whatever the spread: recover it from a run with a fixed one.
    fixed = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, {})))
    start = len(plans)
    fixed.configure(rollout=rollout, planner="mppi", std=0.01, temperature=0.3)
    fixed.plan(np.zeros(1, np.float32))
    _, again = (i for i, p in enumerate(plans) if i >= start and len(p) > 1)
    noise = (plans[again][1:] - plans[again][0]) / 1.0
    np.testing.assert_allclose(deviation, std * noise.std(0), rtol=1e-3)


def proposing_agent(**task):
    spec = agent_spec(CostTerm(kind="reward", module="reward"), CostTerm(kind="critic", stage=0.0), critic="q")
    modules = networks(spec)
    agent = pyjepa.Agent(engine_model(spec, modules), threads=task.pop("threads", 1))
    agent.configure(policy_candidates=6, **{**TDMPC2, **task})
    return agent, spec, modules


def test_policy_candidates_are_rollouts_of_the_policy():
    """With nothing but proposals to choose from and no spread left, the plan is the cheapest of them: its first action
    lies on the policy's distribution, and every action follows from the state reached.
    """
    agent, spec, modules = proposing_agent(candidates=7, iterations=1, elites=7, std=1e-6, min_std=0.0)
    start, _ = seen()
    middle = (np.add(spec.actions.low, spec.actions.high) / 2).astype(np.float32)
    plans = {}
    for _ in range(20):
        agent.reset()
        plan = agent.plan(start)
        plans[plan.actions.tobytes()] = plan
    (plan,) = plans.values()  # the same every time
    if np.array_equal(plan.actions, np.tile(middle, (4, 1))):
        pytest.fail("the mean of a cold start beats the policy: another seed is needed")
    low, high = (torch.tensor(b) for b in (spec.actions.low, spec.actions.high))
    with torch.no_grad():
        out = modules["pi"]({"state": torch.from_numpy(plan.states[:-1])})
    mean, log_std = out[:, :ACTIONS], -10 + 6 * (torch.tanh(out[:, ACTIONS:]) + 1)
    u = torch.atanh(
        ((torch.from_numpy(plan.actions) - (low + high) / 2) / ((high - low) / 2)).clamp(-0.999999, 0.999999)
    )
    normals = (u - mean) / log_std.exp()
    assert normals.abs().max() < 4.5
    assert normals.std() > 0.3


def test_policy_candidates_are_the_same_for_any_number_of_threads():
    start, _ = seen()
    plans = [proposing_agent(threads=threads)[0].plan(start) for threads in (1, 3)]
    np.testing.assert_array_equal(plans[0].actions, plans[1].actions)
    assert plans[0].cost < proposing_agent(iterations=0)[0].plan(start).cost


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"planner": "cem", "elite_refit": True}, "elite_refit belongs to the planner mppi"),
        ({"planner": "cem", "max_std": 1.0}, "max_std belongs to the planner mppi with elite_refit"),
        (
            {"planner": "mppi", "min_std": 0.1},
            "min_std belongs to the planners cem, icem and hybrid, and to mppi with elite_refit",
        ),
        (
            {"planner": "mppi", "elites": 5},
            "elites belong to the planners cem, icem, hybrid and categorical-cem, and to mppi with elite_refit",
        ),
        ({**TDMPC2, "elites": 50}, r"elites \(50\) exceed candidates \(40\)"),
        ({**TDMPC2, "max_std": 0.01}, r"min_std \(0.05.*\) exceeds max_std"),
        ({**TDMPC2, "max_std": 11.0}, "max_std must be in"),
        ({**TDMPC2, "temperature_scale": "kelvin"}, "temperature_scale must be one of std, absolute"),
        ({"planner": "cem", "temperature_scale": "std"}, "temperature_scale belongs to the planner mppi"),
        ({"elite_refit": 1}, "elite_refit must be True or False, got 1"),
        ({"policy_candidates": 40}, "policy_candidates must be between 0 and 39, got 40"),
        ({"policy_candidates": 3, "knots": 2}, "policy_candidates need a knot for every step"),
        (
            {"policy_candidates": 3, "rollout": lambda s, g, a: a.sum((2, 3))},
            "policy_candidates need the model's own rollout",
        ),
    ],
)
def test_settings_that_cannot_be_are_named(task, message):
    agent, _, _ = proposing_agent()
    with pytest.raises(pyjepa.InvalidArgumentError, match=message):
        agent.configure(**task)


def test_deterministic_policies_propose_once():
    spec = agent_spec(CostTerm(kind="action_size"))
    spec = dataclasses.replace(
        spec, policy_head="deterministic", modules={**spec.modules, "pi": head("state", out=ACTIONS)}
    )
    agent = pyjepa.Agent(engine_model(spec, networks(spec)))
    agent.configure(policy_candidates=1)
    agent.plan(seen()[0])
    with pytest.raises(pyjepa.InvalidArgumentError, match="need a policy head that samples, gaussian_tanh"):
        agent.configure(policy_candidates=2)


@pytest.mark.parametrize("changes", [{"module": "hazard"}, {"module": "places", "members": 1}])
def test_one_network_cannot_disagree(changes):
    spec = agent_spec(CostTerm(kind="disagreement", **changes))
    with pytest.raises(pyjepa.AgentFileError, match="one network alone cannot disagree"):
        engine_model(spec, networks(spec))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("planner", ["cem", "mppi", "tree"])
def test_predictors_disagree_and_the_first_rolls_out(planner, residual):
    """What torch says that an ensemble of predictors costs; a plan's states are the first member's."""
    spec = agent_spec(
        CostTerm(kind="disagreement", module="dynamics", stage=2.0),
        CostTerm(kind="disagreement", module="dynamics", members=2, seek=True, name="two"),
        CostTerm(kind="goal_distance", stage=0.1),
    )
    predictor = dataclasses.replace(MODULES["dynamics"], residual=residual, ensemble=4)
    spec = dataclasses.replace(spec, modules={**spec.modules, "dynamics": predictor})
    modules = networks(spec)
    plan = planned(spec, modules, planner=planner)
    world = world_model(spec, modules)
    start, actions = torch.from_numpy(seen()[0])[None], torch.from_numpy(plan.actions)[None]
    with torch.no_grad():
        every = world.rollouts(start, actions)[:, 0].numpy()
    np.testing.assert_allclose(plan.states[1:], every[0], rtol=1e-4, atol=1e-5)
    assert np.abs(every[1] - every[0]).max() > 0.1
    costs = [torch_terms(spec, modules, plan, {"two": pair}) for pair in itertools.combinations(range(4), 2)]
    for label, index in (("disagreement", 0), ("goal_distance", 2)):
        assert plan.cost_terms[label].sum() == pytest.approx(float(costs[0][index]), rel=2e-5, abs=2e-6)
    assert costs[0][0] > 1e-3
    assert any(plan.cost_terms["two"].sum() == pytest.approx(float(c[1]), rel=2e-5, abs=2e-6) for c in costs)


@pytest.mark.filterwarnings("ignore:.*precision:RuntimeWarning")
def test_heads_find_every_steps_action_in_every_precision():
    # In int8 a step leaves the next one's input in bytes: the actions have to be where heads read them all the same.
    spec = agent_spec(CostTerm(kind="reward", module="effort"), observation=Observation(shape=(32,)), policy=None)
    dynamics = Module(
        inputs=("state", "action"),
        residual=True,
        blocks=(Mlp(layers=(Layer(out=40, activation="relu"), Layer(out=32))),),
    )
    spec = dataclasses.replace(spec, modules={**spec.modules, "dynamics": dynamics})
    data = agent_file.to_bytes(spec, weights(networks(spec)))
    start = np.random.default_rng(0).standard_normal(32, np.float32)
    low, high = np.float32(spec.actions.low), np.float32(spec.actions.high)
    plans = low + (high - low) * np.random.default_rng(1).random((50, 4, ACTIONS), np.float32)
    found = []
    for precision in ("fp32", "bf16", "int8"):
        agent = pyjepa.Agent(pyjepa.Model.from_bytes(data, precision=precision))
        agent.configure()
        agent.observe(start)
        found.append(agent.evaluate(plans))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=0.05 * np.ptp(found[0]))


def test_a_module_shows_what_every_predictor_says():
    spec = agent_spec(CostTerm(kind="goal_distance"))
    predictor = dataclasses.replace(MODULES["dynamics"], residual=True, ensemble=3)
    spec = dataclasses.replace(spec, modules={**spec.modules, "dynamics": predictor})
    modules = networks(spec)
    inputs = np.random.default_rng(2).standard_normal((70, LATENT + ACTIONS)).astype(np.float32)
    state, action = torch.from_numpy(inputs).split([LATENT, ACTIONS], dim=1)
    with torch.no_grad():
        expected = modules["dynamics"]({"state": state, "action": action})
    found = engine_model(spec, modules).forward("dynamics", inputs).reshape(70, 3, LATENT)
    np.testing.assert_allclose(found, expected.permute(1, 0, 2).numpy(), rtol=1e-4, atol=1e-5)


def test_a_predictor_is_a_head_of_disagreement_only():
    spec = agent_spec(CostTerm(kind="reward", module="dynamics"))
    with pytest.raises(pyjepa.AgentFileError, match="a reward head puts out 1 number, this one puts out 24"):
        engine_model(spec, networks(spec))
    residual = dataclasses.replace(MODULES["guesses"], residual=True, blocks=MODULES["dynamics"].blocks)
    spec = agent_spec(CostTerm(kind="disagreement", module="guesses"))
    spec = dataclasses.replace(spec, modules={**spec.modules, "guesses": residual})
    with pytest.raises(pyjepa.AgentFileError, match="a head that may disagree puts out no state to add to"):
        engine_model(spec, networks(spec))


def test_disagreement_has_no_gradient():
    spec = agent_spec(CostTerm(kind="disagreement", module="places"))
    with pytest.raises(pyjepa.UnsupportedError, match="cost term 0 has no gradient"):
        planned(spec, networks(spec), planner="gradient")
