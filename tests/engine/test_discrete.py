"""Discrete actions: at the interface, categorical CEM beside its statement, tree search beside brute force."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from sample import ISAS, engine_model, networks, observations, pixel_spec, run_on, weights

import pyjepa
from pyjepa import agent_file
from pyjepa.cost import plan_cost, term_costs
from pyjepa.spec import Actions, CostTerm, Layer, Level, Mlp, Module, Observation, Planner, Spec
from pyjepa.world_model import WorldModel

COUNT = 5


def discrete_spec(**changes):
    """The small Two Rooms with five discrete actions."""
    spec = pixel_spec(
        actions=Actions(kind="discrete", count=COUNT),
        planner=Planner(algorithm="categorical-cem", horizon=24, candidates=100, iterations=4, elites=12),
    )
    policy = Module(
        inputs=("state", "goal"), blocks=(Mlp(layers=(Layer(out=16, activation="mish"), Layer(out=COUNT))),)
    )
    modules = {**spec.modules, "policy": policy}
    return dataclasses.replace(spec, **{"modules": modules, "policy_head": "categorical", **changes})


@pytest.fixture(scope="module")
def modules():
    return networks(discrete_spec())


@pytest.fixture(scope="module")
def model(modules):
    return engine_model(discrete_spec(), modules)


# ---- at the interface ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", ["categorical-cem", "tree"])
def test_actions_are_indices(model, modules, planner):
    seen = observations(4)
    agent = pyjepa.Agent(model)
    agent.configure(goal=seen[1], planner=planner)
    plan = agent.plan(seen[0])
    assert plan.actions.dtype == np.int64
    assert plan.actions.shape == (24,)
    assert set(plan.actions) <= set(range(COUNT))
    assert (plan.actions.reshape(6, 4) == plan.actions.reshape(6, 4)[:, :1]).all(), "actions are held for a block"
    with torch.no_grad():
        start, goal = modules["encoder"]({"observation": torch.from_numpy(seen[:2]).float() / 255}).split(1)
        logits = modules["policy"]({"state": start, "goal": goal})
    assert agent.act() == int(logits.argmax())
    assert isinstance(agent.act(), int)
    agent.configure(goal=seen[2:], planner=planner)
    plan = agent.plan(seen[:2])
    assert plan.actions.shape == (2, 24)
    assert agent.act().shape == (2,)
    assert agent.act().dtype == np.int64
    out = np.empty((2, 24), np.int64)
    assert agent.plan(out=out).actions is out
    with pytest.raises(pyjepa.InvalidArgumentError, match=r"int64 array of shape \(2, 24\)"):
        agent.plan(out=np.empty((2, 24, 1), np.float32))


@pytest.mark.parametrize("planner", ["categorical-cem", "tree"])
def test_the_plan_is_what_torch_says_it_is(model, modules, planner):
    """States, terms and cost of the returned plan, recomputed in torch; and it beats every plan drawn at random."""
    spec, seen = discrete_spec(), observations(2, seed=3)
    world = WorldModel(spec)
    world.load_state_dict(modules.state_dict())
    agent = pyjepa.Agent(model)
    agent.configure(goal=seen[1], planner=planner)
    plan = agent.plan(seen[0])
    blocks = torch.from_numpy(plan.actions[::4].copy())[None, :, None]
    others = torch.from_numpy(np.random.default_rng(0).integers(0, COUNT, (64, 6, 1)))
    with torch.no_grad():
        start, goal = world.encode(torch.from_numpy(seen)).split(1)
        states = world.rollout(start, blocks)
        assert torch.equal(states, world.rollout(start, torch.nn.functional.one_hot(blocks[..., 0], COUNT).float()))
        terms = term_costs(world, states, blocks, goal)[0]
        random = plan_cost(world, world.rollout(start.expand(64, -1), others), others, goal.expand(64, -1))
    np.testing.assert_allclose(plan.states[1:], states[0], rtol=1e-4, atol=1e-4)
    for term, expected in zip(spec.cost, terms, strict=True):
        assert plan.cost_terms[term.kind].sum() == pytest.approx(float(expected), rel=1e-4), term.kind
    assert plan.cost == pytest.approx(float(terms.sum()), rel=1e-5)
    assert plan.cost < float(random.min())
    with pytest.raises(ValueError, match="indices must be between 0 and 4"):
        world.normalise(torch.tensor([5]))


def test_plans_are_evaluated_by_index(model):
    agent, seen = pyjepa.Agent(model), observations(2, seed=3)
    agent.configure(goal=seen[1])
    plan = agent.plan(seen[0])
    again = pyjepa.Agent(model)  # without a plan before, as the first one was
    again.configure(goal=seen[1])
    again.observe(seen[0])
    costs = again.evaluate(np.stack([plan.actions[::4], (plan.actions[::4] + 1) % COUNT])[..., None])
    assert costs[0] == pytest.approx(plan.cost, rel=1e-6)
    assert costs[1] > costs[0]
    for wrong in (COUNT, -1, 0.5):
        with pytest.raises(pyjepa.InvalidArgumentError, match="none of the actions 0 to 4"):
            agent.evaluate(np.full((1, 6, 1), wrong))
    with pytest.raises(pyjepa.UnsupportedError, match="discrete actions have no gradient"):
        agent.gradient(np.zeros((1, 6, 1)))


def test_diagnostics_and_settings(model):
    agent, seen = pyjepa.Agent(model), observations(2, seed=3)
    agent.configure(goal=seen[1], elites=7)
    plan = agent.plan(seen[0])
    assert plan.diagnostics.best_cost.shape == (plan.iterations + 1,)
    assert plan.diagnostics.best_cost[-1] == plan.cost
    assert plan.diagnostics.effective_samples == 7.0
    assert 0.0 <= plan.diagnostics.elite_spread <= 1.0
    assert agent.settings["elites"] == 7
    assert agent.settings["exploration"] > 0.0
    assert agent.settings["sampling"] is None
    assert agent.settings["branching"] == 0
    agent.configure(goal=seen[1], planner="tree")
    plan = agent.plan(seen[0])
    assert plan.diagnostics.best_cost.shape == (plan.iterations + 1,)
    assert plan.diagnostics.best_cost[-1] == plan.cost
    assert (plan.diagnostics.effective_samples, plan.diagnostics.elite_spread) == (0.0, 0.0)
    assert agent.settings["branching"] >= 2
    assert agent.settings["exploration"] == 0.0


@pytest.mark.parametrize("threads", [1, 3])
def test_giving_candidates_up_changes_nothing(model, threads):
    agent, seen = pyjepa.Agent(model, threads=threads), observations(3, seed=3)
    plans = []
    for prune in (False, True):
        agent.configure(goal=seen[2], prune=prune)
        plans.append([agent.plan(observation) for observation in seen[:2]])
    for whole, pruned in zip(*plans, strict=True):
        np.testing.assert_array_equal(whole.actions, pruned.actions)
        assert whole.cost == pruned.cost


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"planner": "cem"}, "'cem' plans continuous actions, this agent's are discrete"),
        ({"planner": "mppi"}, "'mppi' plans continuous actions"),
        ({"planner": "icem"}, "'icem' plans continuous actions"),
        ({"planner": "gradient"}, "'gradient' plans continuous actions"),
        ({"planner": "hybrid"}, "'hybrid' plans continuous actions"),
        ({"std": 0.5}, "std belongs to continuous actions"),
        ({"min_std": 0.1}, "min_std belongs to continuous actions"),
        ({"bounds": (0.0, 1.0)}, "bounds belong to continuous actions"),
        ({"interpolation": "linear"}, "interpolation other than zero belongs to continuous actions"),
        ({"planner": "tree", "interpolation": "linear"}, "interpolation other than zero belongs to continuous actions"),
        ({"temperature": 1.0}, "temperature belongs to the planner mppi"),
        ({"branching": 4}, "branching belongs to the planner tree"),
        ({"planner": "tree", "exploration": 0.1}, "exploration belongs to the planner categorical-cem"),
        ({"planner": "tree", "elites": 3}, "elites belong to the planners cem, icem, hybrid and categorical-cem"),
        ({"sampling": "sobol"}, "sampling belongs to planners that draw normal noise, not to categorical-cem"),
        ({"noise_beta": 1.0}, "noise_beta belongs to planners that draw normal noise, not to categorical-cem"),
        ({"planner": "tree", "sampling": "gaussian"}, "sampling belongs to planners .* not to tree"),
        ({"planner": "tree", "noise_beta": 0.0}, "noise_beta belongs to planners .* not to tree"),
        ({"keep_elites": 0.5}, "keep_elites belong to the planner icem"),
        ({"planner": "tree", "decay": 2.0}, "decay belongs to the planner icem"),
        ({"learning_rate": 0.1}, "learning_rate belongs to the planners gradient and hybrid"),
        ({"planner": "tree", "restarts": 3}, "restarts belong to the planners gradient and hybrid"),
        ({"polish": 3}, "polish belongs to the planner hybrid"),
        ({"planner": "categorical-cem", "policy_candidates": 1}, "policy_candidates belong to continuous actions"),
        ({"planner": "tree", "policy_candidates": 1}, "policy_candidates belong to planners that draw candidates"),
        ({"planner": "tree", "branching": 1}, "branching must be between 2 and 1024, got 1"),
        ({"exploration": 1.5}, r"exploration must be in \[0, 1\]"),
        ({"elites": 101}, "exceed candidates"),
        ({"planner": "tree", "candidates": 100000, "iterations": 10000}, "too large to hold"),
    ],
)
def test_what_cannot_be_is_named_and_the_task_stays(model, task, message):
    agent = pyjepa.Agent(model)
    seen = observations(2)
    agent.configure(goal=seen[1], seed=3)
    before = agent.plan(seen[0]).actions
    with pytest.raises(pyjepa.InvalidArgumentError, match=message):
        agent.configure(goal=seen[1], **task)
    agent.reset()
    np.testing.assert_array_equal(agent.plan(seen[0]).actions, before)


def test_a_box_refuses_what_plans_discrete_actions():
    agent = pyjepa.Agent(engine_model(pixel_spec(), networks(pixel_spec())))
    goal = observations(2)[1]
    with pytest.raises(pyjepa.InvalidArgumentError, match=r"'categorical-cem' plans discrete actions.* are a box"):
        agent.configure(goal=goal, planner="categorical-cem")
    with pytest.raises(pyjepa.InvalidArgumentError, match="holds its actions: interpolation must be zero"):
        agent.configure(goal=goal, planner="tree", interpolation="cubic")
    with pytest.raises(pyjepa.UnsupportedError, match="tree needs the model's own predictor"):
        agent.configure(goal=goal, planner="tree", rollout=lambda states, goals, actions: actions[..., 0, 0])


def test_a_policy_that_reads_a_goal_needs_one():
    spec = discrete_spec(cost=(CostTerm(kind="action_change"),))
    agent = pyjepa.Agent(engine_model(spec, networks(spec)))
    agent.configure(planner="categorical-cem")
    with pytest.raises(pyjepa.InvalidArgumentError, match="tree asks the policy, which reads a goal"):
        agent.configure(planner="tree")


# ---- categorical CEM beside its statement -------------------------------------------------------------------------


def philox(k0, k1, counter):
    """Philox4x32-10 (Salmon et al. 2011): counter (n, 4) -> words (n, 4), uint32."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for r in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        k = [np.uint64((k0 + r * 0x9E3779B9) % 2**32), np.uint64((k1 + r * 0xBB67AE85) % 2**32)]
        c = [(b >> shift) ^ c[1] ^ k[0], b & low, (a >> shift) ^ c[3] ^ k[1], a & low]
    return np.stack(c, axis=1).astype(np.uint32)


def uniforms(seed, plan, iteration, candidates, count):
    """(candidates, count) in [0, 1), named by who draws them."""
    key = philox(seed, 0, np.array([[plan, 0, 0, iteration]]))[0]
    groups = -(-count // 4)
    n, group = np.divmod(np.arange(candidates * groups), groups)
    words = philox(int(key[0]), int(key[1]), np.stack([n, group, 0 * n, 0 * n], axis=1))
    return ((words >> 8) * np.float32(2**-24)).astype(np.float32).reshape(candidates, -1)[:, :count]


def test_exploring_draws_moves_by_the_softmax(model, modules):
    seen = observations(2)
    agent = pyjepa.Agent(model)
    agent.configure(goal=seen[1], seed=2)
    agent.observe(seen[0])
    with torch.no_grad():
        start, goal = modules["encoder"]({"observation": torch.from_numpy(seen).float() / 255}).split(1)
        expected = torch.softmax(modules["policy"]({"state": start, "goal": goal})[0], dim=-1).numpy()
    drawn = [agent.act(explore=True) for _ in range(6000)]
    shares = np.bincount(drawn, minlength=COUNT) / len(drawn)
    np.testing.assert_allclose(shares, expected, atol=4 * 0.5 / np.sqrt(len(drawn)))
    agent.reset()
    agent.observe(seen[0])
    assert [agent.act(explore=True) for _ in range(50)] == drawn[:50]
    assert agent.act() == int(expected.argmax())


def test_categorical_cem_is_what_numpy_says_it_is():
    """Every candidate of every iteration, and the plan, over two plans with momentum and knots."""
    horizon, knots, n, candidates, elites, seed = 8, 4, 6, 40, 7, 11
    momentum, explore, warm = np.float32(0.3), np.float32(0.1), np.float32(0.5)
    spec = Spec(
        observation=Observation(shape=(2,)),
        actions=Actions(kind="discrete", count=n),
        cost=(),
        planner=Planner(
            algorithm="categorical-cem", horizon=horizon, candidates=candidates, iterations=3, elites=elites
        ),
    )
    table = np.random.default_rng(0).normal(size=(horizon, n))
    calls = []

    def rollout(states, goals, actions):
        assert actions.shape[2:] == (horizon, 1)
        calls.append(actions[0, :, :, 0].astype(np.int64))
        return table[np.arange(horizon), calls[-1]].sum(-1)[None].astype(np.float32)

    agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, {})))
    agent.configure(rollout=rollout, seed=seed, knots=knots, momentum=float(momentum), exploration=float(explore))
    best, best_cost = np.zeros(knots, np.int64), None
    hold = np.repeat(np.arange(knots), horizon // knots)

    def evaluate(plans):
        np.testing.assert_array_equal(calls.pop(0), plans[:, hold])
        return table[np.arange(horizon), plans[:, hold]].sum(-1).astype(np.float32)

    for plan_index in (1, 2):
        calls.clear()
        plan = agent.plan(np.zeros(2, np.float32), deadline=None)
        mode = best if plan_index == 1 else best[[1, 2, 3, 3]]  # shifted by two steps, a knot
        if plan_index == 2:
            mode = best[
                np.minimum(np.floor((hold.searchsorted(np.arange(knots)) + 1) * knots / horizon), knots - 1).astype(int)
            ]
        one_hot = np.eye(n, dtype=np.float32)
        p = warm * one_hot[mode] + (np.float32(1) - warm) * (np.float32(1) / np.float32(n))
        best, best_cost = mode, np.inf
        for iteration in range(3):
            u = uniforms(seed, plan_index, iteration, candidates, knots)
            drawn = np.empty((candidates, knots), np.int64)
            for c, k in itertools.product(range(candidates), range(knots)):
                chosen, below = 0, p[k, 0]
                while chosen + 1 < n and u[c, k] >= below:
                    chosen += 1
                    below = np.float32(below + p[k, chosen])
                drawn[c, k] = chosen
            drawn[0] = mode
            cost = evaluate(drawn)
            if cost.min() < best_cost:
                best, best_cost = drawn[cost.argmin()], cost.min()
            share = one_hot[drawn[np.argsort(cost, kind="stable")[:elites]]].astype(np.float64).mean(0)
            smooth = np.float64(momentum) * p + (1 - np.float64(momentum)) * share
            p = ((1 - np.float64(explore)) * smooth + np.float64(explore) / n).astype(np.float32)
            mode = p.argmax(-1)
        cost = evaluate(mode[None])[0]
        if cost < best_cost:
            best, best_cost = mode, cost
        assert not calls
        np.testing.assert_array_equal(plan.actions, best[hold])
        assert plan.cost == pytest.approx(float(best_cost))


def test_same_costs_same_candidates_on_every_isa():
    code = """
import numpy as np, pyjepa
from pyjepa import agent_file
from pyjepa.spec import *
spec = Spec(observation=Observation(shape=(2,)), actions=Actions(kind="discrete", count=7), cost=(),
            planner=Planner(algorithm="categorical-cem", horizon=9, candidates=60, iterations=4, elites=9))
agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, {})))
table = np.random.default_rng(0).normal(size=(9, 7))
agent.configure(rollout=lambda s, g, a: table[np.arange(9), a[..., 0].astype(int)].sum(-1))
print(agent.plan(np.zeros(2, np.float32)).actions.tolist())
"""
    found = {out for isa in ISAS if (out := run_on(isa, code)) is not None}
    assert len(found) == 1


# ---- tree search beside brute force -------------------------------------------------------------------------------


def small_world(seed, count=3, horizon=5, block=1, hold=False, latent=4):
    """A world whose state is its observation, and that bends: going straight for the goal fails."""
    spec = Spec(
        observation=Observation(shape=(latent,)),
        actions=Actions(kind="discrete", count=count),
        modules={
            "predictor": Module(
                inputs=("state", "action"),
                residual=True,
                blocks=(Mlp(layers=(Layer(out=12, activation="tanh"), Layer(out=latent))),),
            )
        },
        levels=(Level(predictor="predictor", action_block=block, hold=hold),),
        cost=(CostTerm(kind="goal_distance", stage=0.1), CostTerm(kind="action_change", stage=0.05)),
        planner=Planner(algorithm="tree", horizon=horizon * block, candidates=32, iterations=16, elites=8),
    )
    torch.manual_seed(seed)
    reads = count * (1 if hold else block) + latent
    tensors = {
        "predictor.0.linear0.weight": torch.randn(12, reads) * 1.5,
        "predictor.0.linear0.bias": torch.randn(12),
        "predictor.0.linear1.weight": torch.randn(latent, 12) * 0.5,
        "predictor.0.linear1.bias": torch.zeros(latent),
    }
    return spec, {name: value.numpy() for name, value in tensors.items()}


def costs_of(spec, tensors, state, goal, plans, previous=None):
    """Costs (N,) of plans (N, S) of indices, in NumPy."""
    n = spec.actions.count
    one_hot = np.eye(n, dtype=np.float32)[plans]
    s = np.broadcast_to(state, (len(plans), len(state))).astype(np.float32)
    total = np.zeros(len(plans))
    before = one_hot[:, 0] if previous is None else np.eye(n)[previous][None]
    for t in range(plans.shape[1]):
        x = np.concatenate([s, one_hot[:, t]], axis=1)
        h = np.tanh(x @ tensors["predictor.0.linear0.weight"].T + tensors["predictor.0.linear0.bias"])
        s = s + h @ tensors["predictor.0.linear1.weight"].T + tensors["predictor.0.linear1.bias"]
        weight = 1.0 if t + 1 == plans.shape[1] else 0.1
        total += weight * np.linalg.norm(s - goal, axis=1) + 0.05 * ((one_hot[:, t] - before) ** 2).sum(1)
        before = one_hot[:, t]
    return total


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("knots", [0, 3])
def test_a_tree_that_is_searched_out_holds_the_optimum(seed, knots):
    """All 3**5 plans (3**3 where knots hold actions); a later plan knows what came before it."""
    spec, tensors = small_world(seed)
    rng = np.random.default_rng(seed)
    state, goal = rng.normal(size=(2, 4)).astype(np.float32)
    agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, tensors)))
    agent.configure(goal=goal, seed=seed, knots=knots)
    hold = np.arange(5) if knots == 0 else np.arange(5) * 3 // 5
    every = np.array(list(itertools.product(range(3), repeat=int(hold[-1]) + 1)))[:, hold]
    previous = None
    for _ in range(2):
        plan = agent.plan(state)
        cost = costs_of(spec, tensors, state, goal, every, previous)
        assert plan.cost == pytest.approx(cost.min(), rel=1e-4)
        assert cost[(every == plan.actions).all(1)] == pytest.approx(cost.min(), rel=1e-4)
        previous = plan.actions[0]


def last_states(spec, tensors, state, plans):
    """The states (N, L) that plans (N, S) of indices end in, in NumPy."""
    s = np.broadcast_to(state, (len(plans), len(state)))
    for action in np.moveaxis(np.eye(spec.actions.count)[plans], 1, 0):
        x = np.concatenate([s, action], axis=1)
        h = np.tanh(x @ tensors["predictor.0.linear0.weight"].T + tensors["predictor.0.linear0.bias"])
        s = s + h @ tensors["predictor.0.linear1.weight"].T + tensors["predictor.0.linear1.bias"]
    return s


@pytest.mark.parametrize("seed", range(4))
def test_what_may_not_be_at_the_end_may_be_on_the_way(seed):
    """A hard constraint on the last state alone, which the present breaks and few plans meet."""
    spec, tensors = small_world(seed)
    rng = np.random.default_rng(seed)
    state, goal = rng.normal(size=(2, 4)).astype(np.float32)
    every = np.array(list(itertools.product(range(3), repeat=5)))
    ends = last_states(spec, tensors, state, every)[:, 0]
    side = 1.0 if ends.min() < state[0] else -1.0
    least, next_least = np.sort(side * ends)[[5, 6]]
    bound = float(least + next_least) / 2
    assert side * state[0] > bound
    term = CostTerm(kind="half_space", normal=(side, 0.0, 0.0, 0.0), offset=bound, hard=True, stage=0.0)
    constrained = dataclasses.replace(spec, cost=(*spec.cost, term))
    agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(constrained, tensors)))
    agent.configure(goal=goal)
    cost = costs_of(spec, tensors, state, goal, every)[side * ends < bound]
    assert len(cost) == 6
    assert agent.plan(state).cost == pytest.approx(cost.min(), rel=1e-4)


def judged_spec(estimates):
    """Four decisions, judged by a reward head and the critic Q(s, policy(s)), discounted."""
    spec = discrete_spec(discount=0.8, critic="q")

    def head(*inputs):
        return Module(inputs=inputs, blocks=(Mlp(layers=(Layer(out=16, activation="tanh"), Layer(out=1))),))

    return dataclasses.replace(
        spec,
        modules={**spec.modules, "reward": head("state", "action", "goal"), "q": head("action", "state")},
        cost=(
            CostTerm(kind="goal_distance", stage=0.3),
            CostTerm(kind="reward", module="reward"),
            CostTerm(kind="critic", stage=0.2, terminal=2.0, estimates=estimates),
            CostTerm(kind="action_change", stage=0.1),
        ),
        planner=Planner(algorithm="tree", horizon=16, candidates=64, iterations=8, elites=8),
    )


@pytest.mark.parametrize("estimates", ["reward", "cost"])
def test_tree_and_categorical_cem_weigh_rewards_critic_and_discount(estimates):
    """The optimum of all 5**4 plans, as torch weighs them; a tree that is searched out holds it."""
    spec, seen = judged_spec(estimates), observations(2, seed=9)
    torch.manual_seed(4)
    world = WorldModel(spec)
    agent = pyjepa.Agent(engine_model(spec, world))
    every = torch.tensor(list(itertools.product(range(COUNT), repeat=4)))[..., None]
    with torch.no_grad():
        start, goal = world.encode(torch.from_numpy(seen)).split(1)
        logits = world.head("policy", start, goal=goal)[0]
        assert torch.equal(world.act(start, goal).argmax(-1), logits.argmax(-1))
        starts, goals = start.expand(len(every), -1), goal.expand(len(every), -1)
        costs = plan_cost(world, world.rollout(starts, every), every, goals, start=starts).numpy()
    found = {}
    for planner in ("tree", "categorical-cem"):
        agent.configure(goal=seen[1], planner=planner)
        plan = agent.plan(seen[0])
        found[planner] = plan.cost
        index = np.ravel_multi_index(tuple(plan.actions[::4]), (COUNT,) * 4)
        assert plan.cost == pytest.approx(costs[index], rel=1e-4, abs=1e-4)
        assert agent.act() == int(logits.argmax())
    assert found["tree"] == pytest.approx(costs.min(), rel=1e-4, abs=1e-4)
    assert found["categorical-cem"] < np.quantile(costs, 0.02)


def test_a_searched_out_tree_stops_early():
    spec, tensors = small_world(0)
    agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, tensors)))
    goal = np.ones(4, np.float32)
    agent.configure(goal=goal, candidates=64, iterations=50)
    plan = agent.plan(np.zeros(4, np.float32))
    every = np.array(list(itertools.product(range(3), repeat=5)))
    assert plan.iterations == 50
    assert plan.cost == pytest.approx(costs_of(spec, tensors, np.zeros(4), goal, every).min(), rel=1e-4)


def test_search_beats_as_many_moves_at_random():
    """With 1,600 moves, where all 4**7 plans take 21,844: better than 228 plans (of seven moves) drawn at random."""
    better, excess = 0, []
    for seed in range(20):
        spec, tensors = small_world(seed, count=4, horizon=7)
        state, goal = np.random.default_rng(seed).normal(size=(2, 4)).astype(np.float32)
        agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(spec, tensors)))
        agent.configure(goal=goal, candidates=100, iterations=4)
        found = agent.plan(state).cost
        every = np.array(list(itertools.product(range(4), repeat=7)))
        cost = costs_of(spec, tensors, state, goal, every)
        random = np.random.default_rng(0).choice(cost, (100, 228)).min(axis=1).mean()
        better += found < random
        excess.append(found / cost.min() - 1)
    assert better >= 15
    assert np.median(excess) < 0.06


@pytest.mark.parametrize("hold", [False, True])
def test_blocks_of_actions(hold):
    """The predictor reads two actions at once, one-hot side by side, or one that is held."""
    spec, tensors = small_world(1, count=3, horizon=3, block=2, hold=hold)
    model = pyjepa.Model.from_bytes(agent_file.to_bytes(spec, tensors))
    goal = np.ones(4, np.float32)
    for planner in ("tree", "categorical-cem"):
        agent = pyjepa.Agent(model)
        agent.configure(goal=goal, planner=planner)
        plan = agent.plan(np.zeros(4, np.float32))
        assert plan.actions.shape == (6,)
        one_hot = np.eye(3, dtype=np.float32)[plan.actions[::2][:, None] if hold else plan.actions.reshape(3, 2)]
        state = np.zeros(4, np.float32)
        for t in range(3):
            state = model.forward("predictor", np.concatenate([state, one_hot[t].ravel()])[None])[0]
            np.testing.assert_allclose(plan.states[t + 1], state, rtol=1e-4, atol=1e-5)


def test_more_actions_than_branching_are_sampled(model):
    agent = pyjepa.Agent(model)
    seen = observations(2, seed=5)
    agent.configure(goal=seen[1], planner="tree", branching=2, iterations=20)
    agent.observe(seen[0])
    narrow = [agent.plan() for _ in range(4)]  # of the same moment
    agent.configure(goal=seen[1], planner="tree", iterations=20)
    wide = agent.plan(seen[0])
    assert len({int(a) for plan in narrow for a in plan.actions}) > 2, "each node samples its own"
    assert narrow[-1].cost <= narrow[0].cost + 1e-4
    assert wide.cost <= narrow[0].cost * 1.05


def prior_world(actions, policy, weight, bias):
    """``s' = s + W a`` in two numbers; a policy that always says the same, or none."""
    linear = Mlp(layers=(Layer(out=2),))
    modules = {"predictor": Module(inputs=("state", "action"), residual=True, blocks=(linear,))}
    tensors = {
        "predictor.0.linear0.weight": np.concatenate([np.zeros((2, 2)), weight], axis=1),
        "predictor.0.linear0.bias": np.zeros(2),
    }
    if policy:
        modules["policy"] = Module(inputs=("state",), blocks=(Mlp(layers=(Layer(out=actions.size),)),))
        tensors |= {"policy.0.linear0.weight": np.zeros((actions.size, 2)), "policy.0.linear0.bias": bias}
    spec = Spec(
        observation=Observation(shape=(2,)), actions=actions, modules=modules,
        levels=(Level(predictor="predictor"),), policy="policy" if policy else None,
        policy_head="categorical" if actions.kind == "discrete" else "deterministic",
        planner=Planner(algorithm="tree", horizon=5, candidates=20, iterations=2, elites=5),
    )  # fmt: skip
    return pyjepa.Model.from_bytes(agent_file.to_bytes(spec, {k: v.astype(np.float32) for k, v in tensors.items()}))


def test_the_policy_says_which_of_many_actions_to_weigh():
    """One of 300 leads to the goal. Without a policy four of them, drawn at a node, rarely have it among them."""
    weight = np.zeros((2, 300))
    weight[0, 217] = 1.0
    bias = np.where(np.arange(300) == 217, 30.0, 0.0)
    found = {}
    for policy in (False, True):
        agent = pyjepa.Agent(prior_world(Actions(kind="discrete", count=300), policy, weight, bias))
        agent.configure(goal=np.array([5, 0], np.float32), branching=4)
        found[policy] = agent.plan(np.zeros(2, np.float32))
    np.testing.assert_array_equal(found[True].actions, 217)
    assert found[True].cost < found[False].cost


def test_of_a_box_the_policys_action_is_weighed_within_the_bounds():
    actions, bias = Actions(low=(-1.0, -1.0), high=(1.0, 1.0)), np.full(2, 3.0)
    far = {}
    for policy in (False, True):
        agent = pyjepa.Agent(prior_world(actions, policy, np.eye(2), bias))
        agent.configure(goal=np.array([9, 9], np.float32), std=0.01, bounds=(-0.5, 0.5))
        far[policy] = agent.plan(np.zeros(2, np.float32)).actions
    assert np.abs(far[False]).max() < 0.05
    np.testing.assert_allclose(far[True], 0.5 * np.tanh(3.0), rtol=1e-4)


@pytest.mark.parametrize("spec", [discrete_spec(), pixel_spec()], ids=["discrete", "box"])
def test_a_search_repeats_itself_and_ends_in_time(spec):
    model, seen = engine_model(spec, networks(spec)), observations(2)

    def planned(threads=1, deadline=None, **task):
        agent = pyjepa.Agent(model, threads=threads)
        agent.configure(goal=seen[1], planner="tree", **task)
        return [agent.plan(seen[0], deadline=deadline) for _ in range(2)]

    for a, b in zip(planned(seed=5), planned(seed=5, threads=2), strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.states, b.states)
        assert a.cost == b.cost
    late = planned(deadline=2e-3, iterations=300)[0]
    assert 0 <= late.iterations < 300
    assert np.isfinite(late.cost)
    assert planned(deadline=0.0)[0].iterations == 0
    first, _ = planned(seed=1, iterations=8)
    assert planned(seed=1, iterations=1)[0].cost >= first.cost


def test_a_tree_over_a_box_samples_within_its_bounds():
    spec = pixel_spec()
    agent = pyjepa.Agent(engine_model(spec, networks(spec)))
    seen = observations(2, seed=3)
    agent.configure(goal=seen[1], planner="tree", bounds=(-1.0, 0.5), iterations=0)
    middle = agent.plan(seen[0])
    np.testing.assert_array_equal(middle.actions, np.full((24, 2), -0.25, np.float32))
    agent.configure(goal=seen[1], planner="tree", bounds=(-1.0, 0.5), iterations=6)
    plan = agent.plan(seen[0])
    assert plan.actions.min() >= -1.0
    assert plan.actions.max() <= 0.5
    assert plan.cost < middle.cost
    assert len(np.unique(plan.actions)) > 4


def test_weights_of_a_discrete_agent_are_checked_like_any_other():
    spec = discrete_spec()
    tensors = weights(networks(spec))
    tensors["predictor.0.linear0.weight"] = tensors["predictor.0.linear0.weight"][:, :-1]
    with pytest.raises(pyjepa.AgentFileError, match=r"wrong shape \[40, 28\], the spec calls for \[40, 29\]"):
        agent_file.to_bytes(spec, tensors)
    policy = Module(inputs=("state",), blocks=(Mlp(layers=(Layer(out=2),)),))
    with pytest.raises(pyjepa.AgentFileError, match="a policy puts out 5 logits, this one puts out 2"):
        agent_file.to_bytes(dataclasses.replace(spec, modules={**spec.modules, "policy": policy}), tensors)
    for head in ("deterministic", "gaussian_tanh"):
        with pytest.raises(pyjepa.AgentFileError, match="a policy of discrete actions has the head 'categorical'"):
            agent_file.to_bytes(dataclasses.replace(spec, policy_head=head), tensors)
    proposing = dataclasses.replace(spec.planner, policy_candidates=1)
    with pytest.raises(pyjepa.AgentFileError, match=r"policy_candidates: the policy proposes no discrete actions"):
        agent_file.to_bytes(dataclasses.replace(spec, planner=proposing), tensors)
