"""Gradients of plans against torch autograd, over every activation and norm, and the planners that follow them."""

import dataclasses

import numpy as np
import pytest
import torch
from sample import ISAS, engine_model, networks, run_on, weights

import pyjepa
from pyjepa import agent_file
from pyjepa.blocks import Network
from pyjepa.cost import plan_cost
from pyjepa.spec import (
    Actions,
    AdalnTransformer,
    Conv,
    ConvLayer,
    CostTerm,
    Gru,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Spec,
)
from pyjepa.world_model import WorldModel

LATENT, ACTIONS, STEPS = 24, 3, 5
COST = (
    CostTerm(kind="goal_distance", stage=0.5, terminal=3.0),
    CostTerm(kind="goal_distance", stage=0.1, metric="squared_l2"),
    CostTerm(kind="action_size", stage=0.2),
    CostTerm(kind="action_change", stage=0.3),
)


def state_spec(norm="none", activation="relu", *, residual=True, inputs=("state", "action"), last="none"):
    """Two blocks, so that the derivative crosses from one to the other; sizes that fill no vector."""
    mlp = Mlp(layers=(Layer(out=40, norm=norm, activation=activation), Layer(out=24, norm=norm, activation=activation)))
    head = Mlp(layers=(Layer(out=35, activation="tanh"), Layer(out=LATENT, norm=last)), simnorm_group=4)
    return Spec(
        observation=Observation(shape=(LATENT,)),
        actions=Actions(low=(-1.0, -2.0, 0.0), high=(1.0, 3.0, 0.5)),
        modules={
            "encoder": Module(inputs=("observation",), blocks=(Mlp(layers=(Layer(out=LATENT),)),)),
            "predictor": Module(inputs=inputs, residual=residual, blocks=(mlp, head)),
        },
        levels=(Level(encoder="encoder", predictor="predictor"),),
        cost=COST,
        planner=Planner(horizon=STEPS, candidates=64, iterations=4, elites=8),
    )


def recurrent_spec(norm, *, latent=LATENT, residual=False, inputs=("state", "action"), after=()):
    """A GRU cell as predictor."""
    spec = state_spec(inputs=inputs)
    encoder = Module(inputs=("observation",), blocks=(Mlp(layers=(Layer(out=latent, norm="layer"),)),))
    cell = Module(inputs=inputs, combine="cell", residual=residual, blocks=(Gru(hidden=latent, norm=norm), *after))
    return dataclasses.replace(spec, modules={"encoder": encoder, "predictor": cell})


def looking_back_spec(window, *, latent=LATENT, width=LATENT, depth=2, residual=False, inputs=("state", "action")):
    """A transformer as predictor, and an mlp after it; sizes that fill no vector."""
    spec = state_spec(inputs=inputs)
    encoder = Module(inputs=("observation",), blocks=(Mlp(layers=(Layer(out=latent, norm="layer"),)),))
    block = AdalnTransformer(window=window, depth=depth, width=width, heads=3, head_dim=7, hidden=50, embedding=20)
    projector = Mlp(layers=(Layer(out=33, activation="gelu"), Layer(out=latent)))
    module = Module(inputs=inputs, combine="adaln", residual=residual, blocks=(block, projector))
    return dataclasses.replace(spec, modules={"encoder": encoder, "predictor": module})


def autograd(spec, modules, seen, goal, plans):
    """Costs and gradients in torch."""
    world = WorldModel(spec)
    world.load_state_dict(modules.state_dict())
    actions = torch.from_numpy(plans).requires_grad_()
    with torch.no_grad():
        start, target = world.encode(torch.from_numpy(np.stack([seen, goal]))).split(1)
    cost = plan_cost(
        world, world.rollout(start.expand(len(plans), -1), actions), actions, target.expand(len(plans), -1)
    )
    cost.sum().backward()
    return cost.detach().numpy(), actions.grad.numpy()


def name_of(block):
    """For ids."""
    if isinstance(block, Gru):
        return f"gru-{block.hidden}-{block.norm}"
    if isinstance(block, AdalnTransformer):
        return f"adaln-{block.window}-{block.depth}-{block.width}"
    return "-".join(f"{layer.norm}-{layer.activation}" for layer in block.layers)


def drawn_plans(spec, count, seed=0):
    rng = np.random.default_rng(seed)
    low, high = np.array(spec.actions.low), np.array(spec.actions.high)
    return rng.uniform(low, high, (count, STEPS, ACTIONS)).astype(np.float32)


@pytest.mark.parametrize(
    "spec",
    [
        *(state_spec(activation=a) for a in ("none", "relu", "gelu", "silu", "mish", "tanh")),
        *(state_spec(norm=n, activation="silu") for n in ("layer", "simnorm", "layer+simnorm")),
        state_spec(residual=False, last="layer+simnorm"),
        state_spec(inputs=("action", "state"), activation="gelu", last="simnorm"),
        recurrent_spec("none"),
        recurrent_spec("tied", latent=150),
        recurrent_spec("layer", latent=30, residual=True, inputs=("action", "state")),
        looking_back_spec(3),
        looking_back_spec(8, depth=3),
        looking_back_spec(1, residual=True),
        looking_back_spec(2, latent=30, width=41, residual=True, inputs=("action", "state")),
        recurrent_spec("layer", latent=64, after=(Mlp(layers=(Layer(out=64, activation="mish"),)),)),
    ],
    ids=lambda s: "-".join(
        str(part) for part in (s.modules["predictor"].inputs[0], *map(name_of, s.modules["predictor"].blocks))
    ),
)
@pytest.mark.parametrize("count", [1, 37])
def test_gradients_equal_autograd(spec, count):
    modules = networks(spec, seed=1)
    seen, goal = np.random.default_rng(5).standard_normal((2, LATENT)).astype(np.float32)
    plans = drawn_plans(spec, count)
    cost, gradient = autograd(spec, modules, seen, goal, plans)
    agent = pyjepa.Agent(engine_model(spec, modules), threads=2)
    agent.configure(goal=goal)
    agent.observe(seen)
    found_cost, found = agent.gradient(plans)
    np.testing.assert_allclose(found_cost, cost, rtol=1e-4)
    np.testing.assert_allclose(agent.evaluate(plans), cost, rtol=1e-4)
    error = np.linalg.norm((found - gradient).reshape(count, -1), axis=1)
    assert (error <= 1e-4 * np.linalg.norm(gradient.reshape(count, -1), axis=1)).all()
    assert np.abs(gradient).max() > 1e-3


def test_gradients_of_a_batch_are_its_members():
    spec = state_spec(norm="layer", activation="mish")
    model = engine_model(spec, networks(spec))
    seen = np.random.default_rng(1).standard_normal((6, LATENT)).astype(np.float32)
    plans = drawn_plans(spec, 3 * 30).reshape(3, 30, STEPS, ACTIONS)
    batch, single = pyjepa.Agent(model, threads=2), pyjepa.Agent(model)
    batch.configure(goal=seen[3:])
    batch.observe(seen[:3])
    cost, gradient = batch.gradient(plans)
    for e in range(3):
        single.configure(goal=seen[3 + e])
        single.observe(seen[e])
        alone_cost, alone = single.gradient(plans[e])
        np.testing.assert_array_equal(alone_cost, cost[e])
        np.testing.assert_array_equal(alone, gradient[e])


def test_every_instruction_set_agrees(tmp_path):
    spec = state_spec(norm="layer", activation="gelu")
    agent_file.save(tmp_path / "a.safetensors", spec, weights(networks(spec)))
    np.save(tmp_path / "plans.npy", drawn_plans(spec, 29))
    code = """
import sys, numpy as np, pyjepa
agent = pyjepa.load(sys.argv[1])
agent.configure(goal=np.full(24, 0.5, np.float32))
agent.observe(np.zeros(24, np.float32))
print(agent.gradient(np.load(sys.argv[2]))[1].tobytes().hex())
"""
    outputs = [run_on(isa, code, str(tmp_path / "a.safetensors"), str(tmp_path / "plans.npy")) for isa in ISAS]
    found = [np.frombuffer(bytes.fromhex(out), np.float32) for out in outputs if out is not None]
    assert found
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("planner", ["gradient", "hybrid"])
def test_descending_beats_sampling_with_fewer_rollouts(planner):
    spec = state_spec(activation="silu")
    agent = pyjepa.Agent(engine_model(spec, networks(spec)))
    seen, goal = np.random.default_rng(5).standard_normal((2, LATENT)).astype(np.float32)
    agent.configure(goal=goal, planner="cem", candidates=200, iterations=10, elites=20)
    sampled, rollouts = agent.plan(seen).cost, agent.settings["flops"]
    agent.configure(goal=goal, planner=planner)
    assert agent.plan(seen).cost <= sampled * 1.001
    assert agent.settings["flops"] < rollouts


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_descent_through_knots_ends_where_no_direction_helps(interpolation):
    """At the plan found, the slope along every knot that is not at a bound has all but vanished."""
    spec = dataclasses.replace(
        state_spec(activation="tanh"), cost=(CostTerm(kind="goal_distance", metric="squared_l2"),)
    )
    agent = pyjepa.Agent(engine_model(spec, networks(spec)))
    seen, goal = np.random.default_rng(5).standard_normal((2, LATENT)).astype(np.float32)
    agent.configure(
        goal=goal, planner="gradient", knots=3, interpolation=interpolation, iterations=400, learning_rate=0.05
    )
    plan = agent.plan(seen)
    best = plan.cost
    rng = np.random.default_rng(0)
    low, high = (np.array(b, np.float32) for b in (spec.actions.low, spec.actions.high))
    curve = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]], np.float32)
    if interpolation == "cubic":
        curve[1], curve[3] = [0.4375, 0.625, -0.0625], [-0.0625, 0.625, 0.4375]
    nearby = plan.actions + 0.02 * np.einsum("sk,nkd->nsd", curve, rng.standard_normal((200, 3, ACTIONS)))
    assert agent.evaluate(np.clip(nearby, low, high)).min() > best - 1e-3 * abs(best)


def test_what_has_no_gradient_is_named():
    spec = state_spec()
    modules = networks(spec)
    goal = np.zeros(LATENT, np.float32)
    low = pyjepa.Model.from_bytes(agent_file.to_bytes(spec, weights(modules)), precision="bf16")
    if low.precision == "bf16":
        with pytest.raises(pyjepa.UnsupportedError, match="gradient needs fp32 weights"):
            pyjepa.Agent(low).configure(goal=goal, planner="gradient")
    agent = pyjepa.Agent(engine_model(spec, modules))
    for planner in ("gradient", "hybrid"):
        with pytest.raises(pyjepa.UnsupportedError, match="callback rollout has no gradient"):
            agent.configure(planner=planner, rollout=lambda s, g, a: np.zeros(a.shape[:2]))
    agent.configure(goal=goal)
    agent.observe(goal)
    with pytest.raises(pyjepa.InvalidArgumentError, match=r"plans have shape \(2, 5, 4\), expected \(2, 5, 3\)"):
        agent.gradient(np.zeros((2, 5, 4)))
    with pytest.raises(pyjepa.InvalidArgumentError, match="plans are not finite"):
        agent.gradient(np.full((1, STEPS, ACTIONS), np.nan))


def test_only_the_predictor_needs_a_gradient():
    picture = Spec(
        observation=Observation(shape=(1, 4, 4)),
        actions=Actions(low=(-1.0,), high=(1.0,)),
        modules={
            "encoder": Module(inputs=("observation",), blocks=(Conv(layers=(ConvLayer(out=1, kernel=1),)),)),
            "predictor": Module(inputs=("state", "action"), blocks=(Mlp(layers=(Layer(out=16),)),)),
        },
        levels=(Level(encoder="encoder", predictor="predictor"),),
        planner=Planner(horizon=4),
    )
    encoder = Network(picture.modules["encoder"], {"observation": (1, 4, 4)})
    predictor = Network(picture.modules["predictor"], {"state": (16,), "action": (1,)})
    tensors = {
        **{f"encoder.{k}": v.detach().numpy() for k, v in encoder.state_dict().items()},
        **{f"predictor.{k}": v.detach().numpy() for k, v in predictor.state_dict().items()},
    }
    agent = pyjepa.Agent(pyjepa.Model.from_bytes(agent_file.to_bytes(picture, tensors)))
    agent.configure(goal=np.zeros((1, 4, 4), np.float32), planner="gradient")
    agent.observe(np.ones((1, 4, 4), np.float32))
    assert np.isfinite(agent.plan().cost)
