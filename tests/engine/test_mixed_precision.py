"""Precisions layer by layer: what the engine runs, and how they are chosen."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
import safetensors.numpy

from pyjepa import agent_file, agents
from pyjepa.agent import Agent, Model
from pyjepa.bench.eb_jepa import eb_jepa
from pyjepa.bench.lewm import lewm
from pyjepa.envs.two_rooms import TwoRooms, evaluation_episodes
from pyjepa.mixed_precision import choose, layers, with_precisions, without_precisions
from pyjepa.quantise import Situation, calibrate
from pyjepa.spec import AdalnTransformer, Layer, Mlp, Module, Planner, Quantisation

PATH = agents.path("two_rooms")


def situations(count, seed=0):
    world = TwoRooms(count)
    world.begin(evaluation_episodes(count, seed=seed))
    return [Situation(*pair) for pair in zip(world.observation, world.goal_observation, strict=True)]


@pytest.fixture(scope="module")
def tensors():
    return safetensors.numpy.load_file(PATH)


@pytest.fixture(scope="module")
def spec():
    if Model.load(PATH, precision="int8").precision != "int8" or Model.load(PATH, precision="bf16").precision != "bf16":
        pytest.skip("this machine has no bf16 or int8 instructions")
    return Model.load(PATH).spec


def of_predictor(spec, precisions):
    stored = spec.modules["predictor"].quantisation or Quantisation(weights="int8")
    predictor = dataclasses.replace(
        spec.modules["predictor"], quantisation=dataclasses.replace(stored, precisions=tuple(precisions))
    )
    return dataclasses.replace(spec, modules={**spec.modules, "predictor": predictor})


def loaded(spec, tensors, precision="int8"):
    return Model.from_bytes(agent_file.to_bytes(spec, tensors), precision=precision)


def inputs(rows=70):
    return np.random.default_rng(0).normal(size=(rows, 50)).astype(np.float32)


def test_a_layer_runs_in_the_higher_of_two_precisions(spec, tensors):
    x = inputs()
    plain = {name: Model.load(PATH, precision=name).forward("predictor", x) for name in ("fp32", "bf16", "int8")}
    order = ["fp32", "bf16", "int8"]
    for limit, wanted in itertools.product(order, order):
        got = loaded(of_predictor(spec, [limit] * 3), tensors, wanted).forward("predictor", x)
        higher = min(limit, wanted, key=order.index)
        np.testing.assert_array_equal(got, plain[higher], err_msg=f"{limit} loaded in {wanted}")


def bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def test_every_mix_is_its_statement_in_numpy(spec, tensors):
    calibrated = calibrate(Model.load(PATH), tensors, situations(6, seed=1))
    scales = calibrated.modules["predictor"].quantisation.activations
    model = Model.load(PATH)
    state = model.encode(np.stack([s.observation for s in situations(50)]))
    x = np.concatenate([state, np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)], axis=1)
    for mix in itertools.product(["fp32", "bf16", "int8"], repeat=3):
        y = x.astype(np.float64)
        for j, (precision, scale) in enumerate(zip(mix, scales, strict=True)):
            weight, bias = (tensors[f"predictor.0.linear{j}.{part}"].astype(np.float64) for part in ("weight", "bias"))
            if precision == "bf16":
                y, weight = bf16(y), bf16(weight)
            elif precision == "int8":
                weight = weight * np.array(scale.scale)
                step = np.abs(weight).max(axis=1, keepdims=True) / 127
                weight = np.rint(weight / step) * step
                y = np.clip(np.rint(y / scale.scale) + scale.zero, 0, 255) - scale.zero
            y = y.astype(np.float64) @ weight.T.astype(np.float64) + bias
            if j + 1 < len(mix):
                y = np.maximum(y, 0.0)
        got = loaded(of_predictor(calibrated, mix), tensors).forward("predictor", x)
        difference = np.abs(got - (state + y)) / np.abs(y).max()
        # A sum that falls on the edge between two steps may round the other way in the engine.
        assert np.quantile(difference, 0.9) < (2e-3 if "int8" in mix else 2e-4 if "bf16" in mix else 1e-5), mix
        assert difference.max() < 2e-2, mix


@pytest.mark.parametrize("seed", range(12))
def test_whatever_mix_stays_near_fp32(spec, tensors, seed):
    """Norms, activations, widths that are no multiple of a panel, several blocks: the scratch fits them all."""
    rng = np.random.default_rng(seed)
    mine = {k: v for k, v in tensors.items() if not k.startswith("predictor")}
    blocks, size = [], 50
    for i in range(2):
        widths = [int(n) for n in rng.integers(3, 200, size=rng.integers(1, 4))] + ([48] if i == 1 else [])
        made = []
        for j, out in enumerate(widths):
            norm, act = rng.choice(["none", "layer"]), rng.choice(["none", "relu", "gelu", "tanh"])
            made.append(Layer(out=out, norm=str(norm), activation=str(act)))
            mine[f"predictor.{i}.linear{j}.weight"] = (rng.normal(size=(out, size)) / np.sqrt(size)).astype(np.float32)
            mine[f"predictor.{i}.linear{j}.bias"] = rng.normal(size=out).astype(np.float32) * np.float32(0.1)
            if norm == "layer":
                mine[f"predictor.{i}.norm{j}.weight"] = np.ones(out, np.float32)
                mine[f"predictor.{i}.norm{j}.bias"] = np.zeros(out, np.float32)
            size = out
        blocks.append(Mlp(layers=tuple(made)))
    module = Module(inputs=("state", "action"), blocks=tuple(blocks), residual=True)
    own = dataclasses.replace(spec, modules={**spec.modules, "predictor": module})
    count = sum(len(block.layers) for block in blocks)
    mix = [str(p) for p in rng.choice(["fp32", "bf16", "int8"], size=count)]
    x = inputs()
    full = loaded(own, mine, "fp32").forward("predictor", x) - x[:, :48]
    mixed = loaded(of_predictor(own, mix), mine).forward("predictor", x) - x[:, :48]
    assert np.linalg.norm(mixed - full) < 0.05 * np.linalg.norm(full), mix
    assert np.array_equal(mixed, full) == (set(mix) == {"fp32"})


def test_a_cell_keeps_to_its_precision():
    workload = eb_jepa("tiny", pixels=9, channels=(4,), latent=64, planner=Planner(horizon=4, candidates=20, elites=4))
    if workload.model("bf16").precision != "bf16":
        pytest.skip("this machine has no bf16")
    x = np.random.default_rng(0).normal(size=(5, 66)).astype(np.float32)
    assert [each.name for each in layers(workload.spec)] == ["predictor.0.weight_hh"]
    for limit in ("fp32", "bf16"):
        got = loaded(with_precisions(workload.spec, [limit]), workload.tensors).forward("predictor", x)
        np.testing.assert_array_equal(got, workload.model(limit).forward("predictor", x))


def test_each_layer_of_a_transformer_keeps_to_its_precision():
    workload = lewm(
        "tiny",
        transformer=AdalnTransformer(window=3, depth=2, width=32, heads=2, head_dim=16, hidden=48, embedding=40),
        projector=40,
        block=2,
        planner=Planner(horizon=10, candidates=40, iterations=3, elites=5, std=1 / 3),
    )
    if workload.model("int8").precision != "int8":
        pytest.skip("this machine has no int8 instructions")
    found = [layer.name.removeprefix("predictor.") for layer in layers(workload.spec)]
    inside = [f"0.layer{d}.{part}" for d in (0, 1) for part in ("qkv", "out", "linear0", "linear1")]
    assert found == ["0.action1", "0.modulation", *inside, "1.linear0", "1.linear1"]
    full = Agent(workload.model())
    full.configure(goal=workload.goal)
    full.observe(workload.observation)
    plans = np.random.default_rng(0).uniform(-1, 1, (30, 5, 4)).astype(np.float32)
    costs, errors = full.evaluate(plans), []
    for alone in range(len(found)):
        mix = ["int8" if i == alone else "fp32" for i in range(len(found))]
        agent = Agent(loaded(with_precisions(workload.spec, mix), workload.tensors))
        agent.configure(goal=workload.goal)
        agent.observe(workload.observation)
        errors.append(float(np.abs(agent.evaluate(plans) - costs).max()))
    assert all(error > 0 for error in errors), "every name is a layer of its own"
    assert len(set(errors)) == len(errors)
    choice = choose(workload.spec, workload.tensors, [Situation(workload.observation, workload.goal)], target=0.02)
    assert choice.rise <= 0.02
    assert len(choice.precisions) == len(found)


def outlier(tensors):
    """The shipped weights with one weight of the middle layer so large that int8 has few steps for the others."""
    weight = tensors["predictor.0.linear1.weight"].copy()
    weight[:, 0] = 40 * np.abs(weight).max()
    feeds = tensors["predictor.0.linear0.weight"].copy()
    bias = tensors["predictor.0.linear0.bias"].copy()
    feeds[0], bias[0] = 0.0, -1.0  # the input it multiplies is never above 0: fp32 predicts the same as without
    return {
        **tensors,
        "predictor.0.linear1.weight": weight,
        "predictor.0.linear0.weight": feeds,
        "predictor.0.linear0.bias": bias,
    }


def test_the_layer_with_outliers_stays_above_int8(spec, tensors):
    hard = outlier(tensors)
    done = []
    choice = choose(spec, hard, situations(30), target=0.02, progress=lambda doing, of: done.append((doing, of)))
    errors = dict(zip([layer.name for layer in choice.layers], choice.errors["int8"], strict=True))
    assert max(errors, key=errors.get) == "predictor.0.linear1"
    assert choice.rise_int8 > 0.02 >= choice.rise
    chosen = dict(zip([layer.name for layer in choice.layers], choice.precisions, strict=True))
    assert chosen["predictor.0.linear1"] == "bf16"
    assert "int8" in choice.precisions
    # What the file says is what a second measurement finds.
    stored = json.loads(choice.spec.provenance["quantisation"])
    assert {row["layer"]: row["precision"] for row in stored["layers"]} == chosen
    assert (stored["target"], stored["states"], stored["seed"]) == (0.02, 30, 0)
    data = agent_file.to_bytes(choice.spec, hard)
    assert Model.from_bytes(data).spec == choice.spec
    judge, mixed = Agent(Model.from_bytes(data)), Agent(Model.from_bytes(data, precision="int8"))
    costs = {judge: [], mixed: []}
    for i, situation in enumerate(situations(30)):
        for agent, found in costs.items():
            agent.configure(goal=situation.goal, seed=i)
            plan = agent.plan(situation.observation).actions
            judge.configure(goal=situation.goal)
            judge.observe(situation.observation)
            found.append(judge.evaluate(plan.reshape(1, -1, 2)[:, :: spec.levels[0].action_block])[0])
    assert np.mean(costs[mixed]) / np.mean(costs[judge]) - 1 == pytest.approx(stored["rise"], abs=1e-4)
    # Every step announced is taken.
    for doing, of in set(done):
        assert done.count((doing, of)) == of


def test_a_target_of_nothing_is_met_in_fp32(spec, tensors):
    choice = choose(spec, tensors, situations(10), target=0.0)
    assert choice.rise <= 0.0
    assert choice == choose(spec, tensors, situations(10), target=0.0)
    loose = choose(spec, tensors, situations(10), target=1.0)
    assert set(loose.precisions) == {"int8"}
    assert loose.rise == loose.rise_int8
    assert all(m.quantisation is None for m in without_precisions(loose.spec).modules.values())


def test_an_encoders_layers_are_chosen_for_where_wanted(spec, tensors):
    without = choose(spec, tensors, situations(4), target=1.0)
    choice = choose(spec, tensors, situations(4), target=1.0, encoder=True)
    assert without.spec.modules["encoder"].quantisation is None
    extra = len(choice.layers) - len(without.layers)
    assert [layer.module for layer in choice.layers].count("encoder") == extra > 0
    assert set(choice.precisions) == {"int8"}
    assert choice.spec.modules["encoder"].quantisation.precisions == ("int8",) * extra
    errors = [e for layer, e in zip(choice.layers, choice.errors["int8"], strict=True) if layer.module == "encoder"]
    assert min(errors) > 0, "every name is a layer of its own"
    seen = np.stack([each.observation for each in situations(4)])
    states = [loaded(each.spec, tensors).encode(seen) for each in (without, choice)]
    assert 0 < np.linalg.norm(states[1] - states[0]) < 0.1 * np.linalg.norm(states[0])
    assert choice.rise != without.rise


def test_what_cannot_be_chosen_is_said(spec, tensors):
    with pytest.raises(ValueError, match="target must be a fraction"):
        choose(spec, tensors, situations(1), target=-0.1)
    with pytest.raises(ValueError, match="no situations"):
        choose(spec, tensors, [], target=0.1)
    free = dataclasses.replace(spec, cost=tuple(dataclasses.replace(t, stage=0.0, terminal=0.0) for t in spec.cost))
    with pytest.raises(ValueError, match="plans cost nothing"):
        choose(free, tensors, situations(1), target=0.1)
