"""The workloads are what their table says, and a problem in plain arrays is the problem the engine solves."""

import dataclasses

import numpy as np
import pytest
from tiny import tiny, tiny_eb_jepa, tiny_lewm, tiny_tdmpc2

from pyjepa.agent import Agent
from pyjepa.bench.lewm import lewm
from pyjepa.bench.tdmpc2 import TdMpc2Problem
from pyjepa.bench.workloads import WORKLOADS, Problem, problem_of, two_rooms
from pyjepa.spec import Layer, Mlp


@pytest.mark.parametrize(
    ("name", "multiply_adds", "gflop"),
    [
        ("W0s", 66 * 64 + 64 * 64 + 64 * 64, 0.0795),
        ("W0", 34 * 128 + 128 * 128 + 128 * 32, 0.636),
        ("W0L", 66 * 256 + 256 * 256 + 256 * 64, 5.06),
        ("W0L-mppi", 66 * 256 + 256 * 256 + 256 * 64, 1.01),
    ],
)
def test_work_is_counted_as_the_engine_counts_it(name, multiply_adds, gflop):
    workload = WORKLOADS[name]()
    problem, planner = Problem.of(workload), workload.spec.planner
    assert problem.flops == 2 * multiply_adds * 10 * planner.candidates * planner.iterations
    assert problem.flops / 1e9 == pytest.approx(gflop, rel=0.01)
    agent = Agent(workload.model())
    agent.configure(goal=workload.goal)
    assert agent.settings["flops"] == problem.flops


@pytest.mark.parametrize("make", [tiny, WORKLOADS["W0"], two_rooms], ids=["tiny", "W0", "two-rooms"])
def test_a_problem_costs_plans_as_the_engine_does(make):
    workload = make()
    problem, agent = Problem.of(workload), Agent(workload.model())
    agent.configure(goal=workload.goal)
    plan = agent.plan(workload.observation)
    steps = plan.actions[:: agent.model.action_block]
    assert steps.shape == (problem.steps, problem.action_dim)
    assert problem.costs(steps[None])[0] == pytest.approx(plan.cost, rel=1e-5)
    assert plan.cost < problem.costs(problem.sample(64, seed=0)).min()


def test_w1_is_tdmpc2s_model_and_its_work_is_counted_as_the_engine_counts_it():
    workload = WORKLOADS["W1"]()
    problem = problem_of(workload)
    assert isinstance(problem, TdMpc2Problem)
    dynamics = 518 * 512 + 2 * 512 * 512
    policy, head = 2 * 512 * 512 + 512 * 12, 518 * 512 + 512 * 512 + 512 * 101
    candidate = 3 * (dynamics + head) + policy + 2 * head
    assert problem.flops == 2 * (512 * 6 * candidate + 24 * (3 * policy + 2 * dynamics))
    assert problem.flops / 1e9 == pytest.approx(36, rel=0.01)
    agent = Agent(workload.model())
    agent.configure()
    assert agent.settings["flops"] == problem.flops


def test_a_tdmpc2_problem_costs_plans_as_the_engine_does():
    workload = tiny_tdmpc2()
    reward, critic = workload.spec.cost
    all_heads = dataclasses.replace(workload.spec, cost=(reward, dataclasses.replace(critic, members=0)))
    agent = Agent(dataclasses.replace(workload, spec=all_heads).model())
    agent.configure()
    plan = agent.plan(workload.observation)
    assert problem_of(workload).costs(plan.actions[None])[0] == pytest.approx(plan.cost, rel=1e-4)
    with pytest.raises(ValueError, match="a cost or modules that peers do not state"):
        problem_of(dataclasses.replace(workload, spec=all_heads))


def test_w2_is_eb_jepas_model_and_its_work_is_counted_as_the_engine_counts_it():
    workload = WORKLOADS["W2"]()
    problem = problem_of(workload)
    assert problem.algorithm == "cem-gru"
    assert problem.flops == 2 * 3 * 512 * (512 + 2) * 90 * 200 * 20
    assert problem.flops / 1e9 == pytest.approx(568, rel=0.01)
    agent = Agent(workload.model())
    agent.configure(goal=workload.goal)
    assert agent.settings["flops"] == problem.flops
    assert workload.tensors["encoder.1.linear0.weight"].shape == (512, 2592)
    positions = [65**2, 33**2, 17**2, 9**2]
    convolutions = [
        9 * (i * o * entry + 4 * o * o * rest)
        for i, o, entry, rest in zip((2, 16, 32), (16, 32, 32), positions, positions[1:], strict=False)
    ]
    assert problem.perception.flops == 2 * (sum(convolutions) + 2592 * 512)


def test_a_recurrent_problem_costs_plans_as_the_engine_does():
    workload = tiny_eb_jepa()
    problem, agent = problem_of(workload), Agent(workload.model())
    agent.configure(goal=workload.goal)
    plan = agent.plan(workload.observation)
    assert problem.costs(plan.actions[None])[0] == pytest.approx(plan.cost, rel=1e-5)
    assert plan.cost < problem.costs(problem.sample(64, seed=0)).min()
    other = dataclasses.replace(workload.spec, cost=(dataclasses.replace(workload.spec.cost[0], terminal=2.0),))
    with pytest.raises(ValueError, match="a predictor or cost that peers do not state"):
        problem_of(dataclasses.replace(workload, spec=other))


def test_w3_is_lewms_model_and_its_work_is_counted_as_the_engine_counts_it():
    workload = WORKLOADS["W3"]()
    problem = problem_of(workload)
    assert problem.algorithm == "cem-adaln"
    assert (problem.steps, problem.action_dim, problem.latent_dim) == (5, 10, 192)
    assert np.all(problem.planner.std * problem.high == 1.0), "a standard deviation of 1"
    # By hand: what each action, token and candidate takes, with the savings.
    action = 10 * 768 + 768 * 192 + 6 * 192 * 1152
    keys, rest = 192 * 2048, 192 * 1024 + 1024 * 192 + 2 * 192 * 2048
    tokens, outputs = 1 + 1 + 1 + 3 + 3, 5
    products = 5 * (action + 2 * 192 * 2048) + 6 * tokens * keys + (5 * tokens + outputs) * rest
    pairs = 5 * (1 + 2 + 3 + 6 + 6) + (1 + 2 + 3 + 3 + 3)
    assert problem.flops == 2 * (products + 2 * 1024 * pairs) * 300 * 10
    agent = Agent(workload.model())
    agent.configure(goal=workload.goal)
    assert agent.settings["flops"] == problem.flops
    layer = 4 * 192 * 192 + 2 * 192 * 768
    attended = 12 * (257 * layer + 2 * 257 * 257 * 192)
    assert problem.perception.flops == 2 * (256 * 3 * 14 * 14 * 192 + attended + 2 * 192 * 2048)


def test_a_problem_that_looks_back_costs_plans_as_the_engine_does():
    workload = tiny_lewm()
    problem, agent = problem_of(workload), Agent(workload.model())
    agent.configure(goal=workload.goal)
    plan = agent.plan(workload.observation)
    assert problem.costs(plan.actions.reshape(1, 5, 4))[0] == pytest.approx(plan.cost, rel=1e-5)
    assert plan.cost < problem.costs(problem.sample(64, seed=0)).min()
    other = dataclasses.replace(workload.spec, cost=(dataclasses.replace(workload.spec.cost[0], stage=2.0),))
    with pytest.raises(ValueError, match="an encoder, predictor or cost that peers do not state"):
        problem_of(dataclasses.replace(workload, spec=other))
    assert lewm("tiny").spec.levels[0].encoder is None, "without a vit, the state is what is observed"
    assert problem_of(lewm("tiny", planner=problem.planner, block=2)).perception is None


def test_a_workload_is_the_same_every_time():
    first, second = tiny(), tiny()
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert np.array_equal(first.goal, second.goal)


def test_random_plans_fill_the_bounds():
    problem = Problem.of(two_rooms())
    plans = problem.sample(500, seed=0)
    assert plans.min() == pytest.approx(problem.low.min(), rel=0.01)
    assert plans.max() == pytest.approx(problem.high.max(), rel=0.01)


def test_what_arrays_cannot_say_is_refused():
    workload = tiny()
    module = workload.spec.modules["predictor"]
    block = Mlp(layers=(Layer(out=16, norm="layer"), Layer(out=16), Layer(out=8)))
    spec = dataclasses.replace(workload.spec, modules={"predictor": dataclasses.replace(module, blocks=(block,))})
    norm = {"predictor.0.norm0.weight": np.ones(16, np.float32), "predictor.0.norm0.bias": np.zeros(16, np.float32)}
    changed = dataclasses.replace(workload, spec=spec, tensors={**workload.tensors, **norm})
    with pytest.raises(ValueError, match="no plain MLP"):
        Problem.of(changed)
