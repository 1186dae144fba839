"""Calibration of int8, and what is said about lower precisions, against plain NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from pyjepa import agent_file, agents
from pyjepa.agent import Agent, Model
from pyjepa.bench.eb_jepa import eb_jepa
from pyjepa.bench.lewm import lewm
from pyjepa.bench.workloads import WORKLOADS
from pyjepa.envs.two_rooms import TwoRooms, evaluation_episodes
from pyjepa.errors import AgentFileError, UnsupportedError
from pyjepa.quantise import Predictor, Situation, best_scale, calibrate, compare, layer_inputs, spearman
from pyjepa.spec import ActivationScale, AdalnTransformer, Layer, Mlp, Module, Planner, Quantisation

PATH = agents.path("two_rooms")


def situations(count, seed=0):
    world = TwoRooms(count)
    world.begin(evaluation_episodes(count, seed=seed))
    return [Situation(*pair) for pair in zip(world.observation, world.goal_observation, strict=True)]


@pytest.fixture(scope="module")
def model():
    return Model.load(PATH)


@pytest.fixture(scope="module")
def tensors():
    return safetensors.numpy.load_file(PATH)


@pytest.fixture(scope="module")
def calibrated(model, tensors):
    return calibrate(model, tensors, situations(6, seed=1))


def test_layer_inputs_are_what_the_layers_read(model, tensors):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, model.latent_dim + 2)).astype(np.float32)
    expected = x
    taps = layer_inputs(model.spec, tensors)
    assert len(taps) == 3
    for j, tap in enumerate(taps):
        np.testing.assert_allclose(tap(x), expected, rtol=2e-5, atol=2e-5)
        weight, bias = (tensors[f"predictor.0.linear{j}.{part}"] for part in ("weight", "bias"))
        expected = np.maximum(expected @ weight.T + bias, 0.0)


def test_layer_inputs_through_norms_and_blocks(model, tensors):
    rng = np.random.default_rng(0)
    blocks = (
        Mlp(layers=(Layer(out=16, norm="layer+simnorm"), Layer(out=12, activation="gelu"))),
        Mlp(layers=(Layer(out=48, norm="layer"),)),
    )
    spec = dataclasses.replace(
        model.spec, modules={**model.spec.modules, "predictor": Module(inputs=("state", "action"), blocks=blocks)}
    )
    sizes = {"0.linear0": (16, 50), "0.linear1": (12, 16), "1.linear0": (48, 12)}
    mine = {k: v for k, v in tensors.items() if not k.startswith("predictor")}
    for name, shape in sizes.items():
        mine[f"predictor.{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        mine[f"predictor.{name}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    for name, size in {"0.norm0": 16, "1.norm0": 48}.items():
        mine[f"predictor.{name}.weight"] = np.ones(size, np.float32)
        mine[f"predictor.{name}.bias"] = np.zeros(size, np.float32)
    whole = Model.from_bytes(agent_file.to_bytes(spec, mine))
    x = rng.normal(size=(5, 50)).astype(np.float32)
    taps = layer_inputs(spec, mine)
    assert [tap(x).shape[1] for tap in taps] == [50, 16, 12]
    np.testing.assert_allclose(taps[1](x).reshape(5, 2, 8).sum(axis=2), 1.0, rtol=1e-5)  # simnorm
    y = taps[2](x) @ mine["predictor.1.linear0.weight"].T + mine["predictor.1.linear0.bias"]
    y = (y - y.mean(axis=1, keepdims=True)) / np.sqrt(y.var(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(whole.forward("predictor", x), y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("inputs", [("state", "action"), ("action", "state")])
def test_layer_inputs_through_a_cell(inputs):
    workload = eb_jepa("tiny", pixels=9, channels=(4,), latent=16, planner=Planner(horizon=4, candidates=20, elites=4))
    mlp = Mlp(layers=(Layer(out=20, activation="mish"), Layer(out=16)))
    module = dataclasses.replace(workload.spec.modules["predictor"], inputs=inputs)
    module = dataclasses.replace(module, blocks=(*module.blocks, mlp))
    spec = dataclasses.replace(workload.spec, modules={**workload.spec.modules, "predictor": module})
    rng = np.random.default_rng(0)
    tensors = dict(workload.tensors)
    for j, shape in enumerate(((20, 16), (16, 20))):
        tensors[f"predictor.1.linear{j}.weight"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"predictor.1.linear{j}.bias"] = rng.normal(size=shape[0]).astype(np.float32)
    whole = Model.from_bytes(agent_file.to_bytes(spec, tensors))
    state, action = rng.normal(size=(7, 16)).astype(np.float32), rng.normal(size=(7, 2)).astype(np.float32)
    x = np.concatenate([state, action] if inputs[0] == "state" else [action, state], axis=1)
    taps = layer_inputs(spec, tensors)
    assert [tap(x).shape[1] for tap in taps] == [16, 16, 20]
    np.testing.assert_array_equal(taps[0](x), state)
    y = taps[2](x) @ tensors["predictor.1.linear1.weight"].T + tensors["predictor.1.linear1.bias"]
    np.testing.assert_allclose(whole.forward("predictor", x), y, rtol=1e-4, atol=1e-4)


def test_a_calibrated_cell_plans_in_int8():
    workload = eb_jepa("tiny", pixels=9, channels=(4,), latent=64, planner=Planner(horizon=6, candidates=60, elites=6))
    stated = workload.calibrated().spec
    scales = stated.modules["predictor"].quantisation
    assert scales is not None
    assert [len(each.scale) for each in scales.activations] == [64]
    low = Model.from_bytes(agent_file.to_bytes(stated, workload.tensors), precision="int8")
    dynamic = workload.model("int8")
    if low.precision != "int8":
        pytest.skip("this machine has no int8")
    agent = Agent(workload.model())
    agent.configure(goal=workload.goal)
    plan = agent.plan(workload.observation)
    x = np.concatenate([plan.states[:-1], plan.actions], axis=1)
    full = workload.model().forward("predictor", x)
    found = low.forward("predictor", x)
    assert not np.array_equal(found, dynamic.forward("predictor", x))
    for other in (found, dynamic.forward("predictor", x)):
        assert np.linalg.norm(other - full) < 0.03 * np.linalg.norm(full)
    agents_ = {
        name: Model.from_bytes(agent_file.to_bytes(stated, workload.tensors), precision=name)
        for name in ("bf16", "int8")
    }
    report = compare(workload.model(), agents_, [Situation(workload.observation, workload.goal)])
    assert all(each["spearman"] > 0.97 for each in report.values())


def test_states_and_costs_are_those_of_a_plan(model):
    (situation,) = situations(1)
    predictor, agent = Predictor(model), Agent(model)
    agent.configure(goal=situation.goal)
    plan = agent.plan(situation.observation)
    states = predictor.roll_out(agent.state, predictor.actions(plan.actions[None]))
    np.testing.assert_allclose(states[0], plan.states, rtol=1e-4, atol=1e-4)
    assert agent.evaluate(predictor.blocks(plan.actions[None]))[0] == pytest.approx(plan.cost, rel=1e-5)


@pytest.mark.parametrize("low", [0.0, -1.0, -5.0])
def test_best_scale_loses_least(low):
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(100_000, 2)), low)
    x[0, 0] = 20.0  # worth clipping
    x[:, 1] *= 0.1
    chosen = best_scale(x)
    assert (chosen.zero == 0) == (low == 0.0)
    assert 0 <= chosen.zero <= 255
    assert chosen.scale[0] * 255 < 19.0

    def error(scale, zero):
        b = np.clip(np.rint(x / scale) + zero, 0, 255)
        return np.square(((b - zero) * scale - x) / scales).sum()

    scales = np.array(chosen.scale)
    for factor in (0.7, 1.5):
        assert error(scales, chosen.zero) < error(scales * factor, round(chosen.zero / factor))


def test_every_input_fills_the_same_range():
    x = np.random.default_rng(0).uniform(-1, 1, (1000, 3)) * [1.0, 30.0, 1e-9]
    scale = np.array(best_scale(x).scale)
    reach = np.abs(x).max(axis=0)
    np.testing.assert_allclose(scale[:2] / reach[:2], scale[1] / reach[1], rtol=1e-2)
    assert scale[2] == pytest.approx(0.01 * scale[1])  # not blown up out of nothing


def test_best_scale_of_nothing_but_zeros():
    assert best_scale(np.zeros((5, 3))) == ActivationScale(scale=(1.0,), zero=0)


def test_spearman_shares_the_ranks_of_equals():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: by hand.
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))
    assert spearman([1.0, np.inf, np.inf], [1.0, 5.0, 5.0]) == pytest.approx(1.0)
    assert spearman([1, 1], [1, 2]) == 1.0


def test_calibrated_files_load_and_hold_their_scales(model, tensors, calibrated, tmp_path):
    path = tmp_path / "calibrated.safetensors"
    agent_file.save(path, calibrated, tensors)
    loaded = Model.load(path)
    scales = loaded.spec.modules["predictor"].quantisation.activations
    assert scales == calibrated.modules["predictor"].quantisation.activations
    assert len(scales) == 3
    assert scales[0].zero > 0  # latents and actions have both signs
    assert scales[1].zero == scales[2].zero == 0  # after ReLU
    assert calibrate(model, tensors, situations(6, seed=1)) == calibrated
    # fp32 does not look at them.
    x = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    np.testing.assert_array_equal(loaded.forward("predictor", x), model.forward("predictor", x))


def test_static_int8_is_its_statement_in_numpy(model, tensors, calibrated):
    quantised = Model.from_bytes(agent_file.to_bytes(calibrated, tensors), precision="int8")
    if quantised.precision != "int8":
        pytest.skip("this machine has no int8 instructions")
    scales = calibrated.modules["predictor"].quantisation.activations
    state = model.encode(np.stack([s.observation for s in situations(50)]))
    x = np.concatenate([state, np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)], axis=1)
    y = x.astype(np.float64)
    for j, input_scale in enumerate(scales):
        weight, bias = (tensors[f"predictor.0.linear{j}.{part}"].astype(np.float64) for part in ("weight", "bias"))
        weight = weight * np.array(input_scale.scale)
        step = np.abs(weight).max(axis=1, keepdims=True) / 127
        bytes_ = np.clip(np.rint(y / input_scale.scale) + input_scale.zero, 0, 255)
        y = (bytes_ - input_scale.zero) @ (np.rint(weight / step) * step).T + bias
        if j + 1 < len(scales):
            y = np.maximum(y, 0.0)
    got = quantised.forward("predictor", x)
    # A sum that falls on the edge between two bytes may round the other way in the engine.
    difference = np.abs(got - (state + y)) / np.abs(y).max()
    assert np.quantile(difference, 0.9) < 2e-3
    assert difference.max() < 2e-2


def test_what_lower_precisions_cost_on_the_shipped_agent(model, tensors, calibrated):
    others = {
        "bf16": Model.load(PATH, precision="bf16"),
        "dynamic": Model.load(PATH, precision="int8"),
        "static": Model.from_bytes(agent_file.to_bytes(calibrated, tensors), precision="int8"),
    }
    if any(each.precision == "fp32" for each in others.values()):
        pytest.skip("this machine has no bf16 or int8 instructions")
    rows = compare(model, {"itself": model, **others}, situations(12))
    assert rows["itself"]["spearman"] == 1.0
    assert rows["itself"]["state_error"] == rows["itself"]["final_cost_change"] == 0.0
    for name in others:
        assert rows[name]["spearman"] > 0.97, name
        assert abs(rows[name]["final_cost_change"]) < 0.04, name
        assert rows[name]["state_error"] < 0.1, name
    assert rows["bf16"]["spearman"] > 0.998


def test_what_cannot_be_quantised_is_named(model, tensors):
    bare = dataclasses.replace(model.spec, levels=(dataclasses.replace(model.spec.levels[0], predictor=None),))
    with pytest.raises(UnsupportedError, match="no predictor"):
        layer_inputs(bare, tensors)
    with pytest.raises(ValueError, match="no situations"):
        compare(model, {}, [])
    wrong = dataclasses.replace(
        model.spec.modules["predictor"],
        quantisation=Quantisation(weights="int8", activations=(ActivationScale(scale=(1.0,)),)),
    )
    spec = dataclasses.replace(model.spec, modules={**model.spec.modules, "predictor": wrong})
    with pytest.raises(AgentFileError, match="has 1 items, but the module's blocks have 3 layers"):
        agent_file.to_bytes(spec, tensors)


def test_every_workload_calibrates():
    workload = WORKLOADS["W0s"]()
    model = workload.model()
    spec = calibrate(model, workload.tensors, [Situation(workload.observation, workload.goal)])
    data = agent_file.to_bytes(spec, workload.tensors)
    assert Model.from_bytes(data).spec == spec


def test_a_predictor_that_looks_back_is_compared_by_costs_and_has_no_scales():
    transformer = AdalnTransformer(window=3, depth=1, width=8, heads=2, head_dim=4, hidden=8, embedding=8)
    planner = Planner(horizon=10, candidates=32, iterations=2, elites=4)
    workload = lewm("tiny", transformer=transformer, projector=8, planner=planner)
    situations = [Situation(workload.observation, workload.goal)]
    tensors = {name: tensor.copy() for name, tensor in workload.tensors.items()}
    tensors["predictor.0.layer0.qkv.weight"] *= np.float32(1.5)
    models = {
        "itself": workload.model(),
        "another": Model.from_bytes(agent_file.to_bytes(workload.spec, tensors)),
    }
    rows = compare(workload.model(), models, situations)
    assert rows["itself"]["spearman"] == 1.0
    assert rows["itself"]["final_cost_change"] == 0.0
    assert 0.5 < rows["another"]["spearman"] < 1.0
    assert rows["another"]["final_cost_change"] >= 0.0
    assert "state_error" not in rows["itself"], "its states cannot be followed one by one"
