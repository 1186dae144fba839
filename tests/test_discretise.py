"""A discrete agent made from a continuous one predicts what that one predicts for the table's actions."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file

import pyjepa
from pyjepa import agent_file, agents
from pyjepa.discretise import discretise
from pyjepa.envs.two_rooms_discrete import MOVES
from pyjepa.spec import (
    Actions,
    ActivationScale,
    CostTerm,
    Impala,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Quantisation,
    Spec,
)


def box_agent(*, hold, order=("state", "action")):
    """Three numbers seen, two actions of uneven ranges, blocks of three."""
    spec = Spec(
        observation=Observation(shape=(3,)),
        actions=Actions(low=(-1.0, 0.0), high=(2.0, 8.0)),
        modules={
            "predictor": Module(inputs=order, blocks=(Mlp(layers=(Layer(out=7, activation="tanh"), Layer(out=3))),)),
            "policy": Module(inputs=("state",), blocks=(Mlp(layers=(Layer(out=2),)),)),
        },
        levels=(Level(predictor="predictor", action_block=3, hold=hold),),
        planner=Planner(horizon=6),
        policy="policy",
    )
    rng = np.random.default_rng(0)
    reads = 3 + 2 * (1 if hold else 3)
    shapes = {
        "predictor.0.linear0.weight": (7, reads), "predictor.0.linear0.bias": (7,),
        "predictor.0.linear1.weight": (3, 7), "predictor.0.linear1.bias": (3,),
        "policy.0.linear0.weight": (2, 3), "policy.0.linear0.bias": (2,),
    }  # fmt: skip
    return spec, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("order", [("state", "action"), ("action", "state")])
def test_both_predict_the_same(hold, order):
    spec, tensors = box_agent(hold=hold, order=order)
    table = np.array([(-1.0, 0.0), (2.0, 8.0), (0.3, 5.0), (1.0, 1.0), (0.0, 8.0)])
    discrete, changed = discretise(spec, tensors, table)
    one = pyjepa.Model.from_bytes(agent_file.to_bytes(spec, tensors))
    other = pyjepa.Model.from_bytes(agent_file.to_bytes(discrete, changed))
    rng = np.random.default_rng(1)
    states, index = rng.normal(size=(64, 3)), rng.integers(0, 5, (64, 1 if hold else 3))
    normalised = ((table - [0.5, 4.0]) / [1.5, 4.0])[index].reshape(64, -1)
    one_hot = np.eye(5)[index].reshape(64, -1)

    def predict(model, actions):
        inputs = {"state": states, "action": actions}
        return model.forward("predictor", np.concatenate([inputs[name] for name in order], axis=1))

    np.testing.assert_allclose(predict(other, one_hot), predict(one, normalised), rtol=1e-5, atol=1e-5)
    assert discrete.policy is None
    assert discrete.planner.algorithm == "categorical-cem"
    np.testing.assert_array_equal(
        tensors["predictor.0.linear0.weight"], box_agent(hold=hold)[1]["predictor.0.linear0.weight"]
    )


def test_heads_and_critic_stay_without_the_policy():
    """Of an ensemble every member is composed; scales for int8 said something of the old inputs."""
    spec, tensors = box_agent(hold=True)
    head = Module(inputs=("goal", "action", "state"), ensemble=2, blocks=(Mlp(layers=(Layer(out=1),)),))
    critic = Module(inputs=("state", "goal"), blocks=(Mlp(layers=(Layer(out=1),)),))
    scales = Quantisation(weights="int8", activations=(ActivationScale(scale=(0.1,)), ActivationScale(scale=(0.2,))))
    predictor = dataclasses.replace(spec.modules["predictor"], quantisation=scales)
    spec = dataclasses.replace(
        spec,
        modules={**spec.modules, "predictor": predictor, "reward": head, "critic": critic},
        policy_head="deterministic",
        critic="critic",
        cost=(
            CostTerm(kind="goal_distance", reach=4.0),
            CostTerm(kind="reward", module="reward"),
            CostTerm(kind="critic", stage=0.0, estimates="cost"),
        ),
        planner=Planner(horizon=6, policy_candidates=1),
    )
    rng = np.random.default_rng(3)
    shapes = {
        "reward.0.linear0.weight": (2, 1, 8), "reward.0.linear0.bias": (2, 1),
        "critic.0.linear0.weight": (1, 6), "critic.0.linear0.bias": (1,),
    }  # fmt: skip
    tensors |= {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    table = np.array([(-1.0, 0.0), (2.0, 8.0), (0.3, 5.0)])
    discrete, changed = discretise(spec, tensors, table)
    assert set(discrete.modules) == {"predictor", "reward", "critic"}
    assert (discrete.critic, discrete.policy, discrete.planner.policy_candidates) == ("critic", None, 0)
    assert discrete.modules["predictor"].quantisation is None
    one = pyjepa.Model.from_bytes(agent_file.to_bytes(spec, tensors))
    other = pyjepa.Model.from_bytes(agent_file.to_bytes(discrete, changed))
    goal, state, index = rng.normal(size=(20, 3)), rng.normal(size=(20, 3)), np.arange(20) % 3
    continuous = np.concatenate([goal, ((table - [0.5, 4.0]) / [1.5, 4.0])[index], state], axis=1)
    found = other.forward("reward", np.concatenate([goal, np.eye(3)[index], state], axis=1))
    np.testing.assert_allclose(found, one.forward("reward", continuous), rtol=1e-5, atol=1e-5)
    both = np.concatenate([state, goal], axis=1)
    np.testing.assert_array_equal(other.forward("critic", both), one.forward("critic", both))
    acting = dataclasses.replace(critic, inputs=("state", "action"))
    with pytest.raises(ValueError, match="judges the action of the policy"):
        discretise(dataclasses.replace(spec, modules={**spec.modules, "critic": acting}), tensors, table)


def test_the_discrete_agent_of_two_rooms_predicts_what_the_shipped_one_does():
    other, one = agents.two_rooms_discrete(), pyjepa.Model.load(agents.path("two_rooms"))
    assert other.spec.name == "two-rooms-discrete"
    assert other.spec.actions == Actions(kind="discrete", count=8)
    states = np.random.default_rng(0).normal(size=(80, 48))
    index = np.arange(80) % 8
    expected = one.forward("predictor", np.concatenate([states, MOVES[index] / 3.0], axis=1))
    found = other.forward("predictor", np.concatenate([states, np.eye(8)[index]], axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_named():
    spec, tensors = box_agent(hold=True)
    for table, message in [
        (np.zeros((4, 3)), r"expected shape \(count, 2\), got \(4, 3\)"),
        (np.zeros((0, 2)), r"got \(0, 2\)"),
        ([(0.0, 9.0)], "outside of the agent's bounds"),
        ([(np.nan, 1.0)], "outside of the agent's bounds"),
    ]:
        with pytest.raises(ValueError, match=message):
            discretise(spec, tensors, table)
    table = [(0.0, 1.0), (1.0, 0.0)]
    judged = dataclasses.replace(spec, cost=(CostTerm(kind="action_size"),))
    with pytest.raises(ValueError, match="action_size judges continuous actions"):
        discretise(judged, tensors, table)
    with pytest.raises(ValueError, match="discrete already"):
        discretise(*discretise(spec, tensors, table), table)
    blocks = (Impala(channels=(4,)), *spec.modules["predictor"].blocks)
    odd = dataclasses.replace(spec.modules["predictor"], blocks=blocks)
    with pytest.raises(ValueError, match="must begin with an mlp"):
        discretise(dataclasses.replace(spec, modules={**spec.modules, "predictor": odd}), tensors, table)


def test_the_shipped_file_is_left_as_it_is():
    before = load_file(agents.path("two_rooms"))
    agents.two_rooms_discrete()
    after = load_file(agents.path("two_rooms"))
    assert all(np.array_equal(before[name], after[name]) for name in before)
