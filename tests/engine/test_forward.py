"""Every block forward in C++ against torch: 1e-5 relative 2-norm on N(0, 1) inputs and random weights, on every isa."""

import itertools

import numpy as np
import pytest
import torch
from sample import ISAS, engine_model, networks, run_on, weights

from pyjepa import Model, agent_file
from pyjepa.spec import (
    Actions,
    AdalnTransformer,
    Conv,
    ConvLayer,
    Gru,
    Impala,
    Layer,
    Level,
    Mlp,
    Module,
    Observation,
    Planner,
    Spec,
    Vit,
)

NORMS = ("none", "layer", "simnorm", "layer+simnorm")
ACTIVATIONS = ("none", "relu", "gelu", "silu", "mish", "tanh")


def encoder(shape, *blocks):
    return Spec(
        observation=Observation(shape=shape),
        actions=Actions(low=(-1.0,), high=(1.0,)),
        modules={"encoder": Module(inputs=("observation",), blocks=blocks)},
        levels=(Level(encoder="encoder"),),
    )


def predictor(inputs, latent, action, block, hold, residual, *layers):
    """A predictor of a state-based agent: the observation is the state."""
    return Spec(
        observation=Observation(shape=(latent,)),
        actions=Actions(low=(-1.0,) * action, high=(1.0,) * action),
        modules={"predictor": Module(inputs=inputs, residual=residual, blocks=(Mlp(layers=layers),))},
        levels=(Level(predictor="predictor", action_block=block, hold=hold),),
        planner=Planner(horizon=12),
    )


def recurrent(inputs, latent, action, norm="none", *, residual=False, after=()):
    """A GRU cell as predictor; with an encoder where its norm is tied to that."""
    cell = Module(inputs=inputs, combine="cell", residual=residual, blocks=(Gru(hidden=latent, norm=norm), *after))
    modules, encoder_name = {"predictor": cell}, None
    if norm == "tied":
        layers = (Layer(out=latent, norm="layer"),)
        modules, encoder_name = (
            {"encoder": Module(inputs=("observation",), blocks=(Mlp(layers=layers),)), "predictor": cell},
            "encoder",
        )
    return Spec(
        observation=Observation(shape=(latent,)),
        actions=Actions(low=(-1.0,) * action, high=(1.0,) * action),
        modules=modules,
        levels=(Level(encoder=encoder_name, predictor="predictor"),),
        planner=Planner(horizon=12),
    )


def looking_back(inputs, latent, action, width=None, *, heads=2, head_dim=16, residual=False):
    """A transformer as predictor, and an mlp after it where it is not as wide as the state."""
    block = AdalnTransformer(
        window=3, depth=2, width=width or latent, heads=heads, head_dim=head_dim, hidden=50, embedding=20
    )
    after = () if width is None else (Mlp(layers=(Layer(out=33, activation="gelu"), Layer(out=latent))),)
    return Spec(
        observation=Observation(shape=(latent,)),
        actions=Actions(low=(-1.0,) * action, high=(1.0,) * action),
        modules={
            "predictor": Module(inputs=inputs, combine="adaln", residual=residual, blocks=(block, *after)),
        },
        levels=(Level(predictor="predictor"),),
        planner=Planner(horizon=12),
    )


def vit(patch, width, depth, heads, *, hidden=None, pool="cls", norm_eps=1e-5):
    return Vit(
        patch=patch, width=width, depth=depth, heads=heads, hidden=hidden or 4 * width, pool=pool, norm_eps=norm_eps
    )


def cases():
    for norm, activation in itertools.product(NORMS, ACTIVATIONS):
        layers = (Layer(out=40, norm=norm, activation=activation), Layer(out=72, norm=norm, activation=activation))
        yield f"mlp-{norm}-{activation}", encoder((37,), Mlp(layers=layers))
    yield "mlp-one-layer", encoder((5,), Mlp(layers=(Layer(out=1),)))
    yield "mlp-two-blocks", encoder((9,), Mlp(layers=(Layer(out=33, activation="relu"),)), Mlp(layers=(Layer(out=7),)))
    yield "mlp-group-3", encoder((9,), Mlp(layers=(Layer(out=33, norm="simnorm"),), simnorm_group=3))
    yield "mlp-wide", encoder((300,), Mlp(layers=(Layer(out=515, norm="layer", activation="mish"), Layer(out=129))))
    yield "mlp-on-image", encoder((3, 5, 7), Mlp(layers=(Layer(out=11),)))
    for kernel, stride, padding in ((1, 1, 0), (3, 1, 1), (3, 2, 1), (4, 2, 0), (5, 3, 4), (8, 4, 2)):
        layer = ConvLayer(out=10, kernel=kernel, stride=stride, padding=padding, activation="gelu")
        yield f"conv-{kernel}-{stride}-{padding}", encoder((3, 17, 13), Conv(layers=(layer,)))
    pyramid = Conv(
        layers=(
            ConvLayer(out=16, kernel=8, stride=4, padding=2, activation="relu"),
            ConvLayer(out=24, kernel=3, stride=2, padding=1, activation="silu"),
        )
    )
    yield "conv-mlp", encoder((2, 32, 40), pyramid, Mlp(layers=(Layer(out=50, activation="tanh"), Layer(out=20))))
    yield "conv-conv", encoder((2, 32, 40), pyramid, Conv(layers=(ConvLayer(out=5, kernel=3, padding=1),)))
    yield "impala", encoder((2, 33, 21), Impala(channels=(8, 12)))
    yield "impala-after", encoder((2, 33, 21), Impala(channels=(8, 12), preactivation=False))
    yield "impala-mlp", encoder((2, 65, 65), Impala(channels=(16, 32, 32)), Mlp(layers=(Layer(out=64, norm="layer"),)))
    yield "conv-impala", encoder((2, 32, 40), pyramid, Impala(channels=(6,)))
    yield "vit", encoder((3, 28, 42), vit(14, 24, 2, 3))
    yield "vit-mean", encoder((1, 15, 10), vit(5, 20, 1, 4, hidden=33, pool="mean"))
    yield "vit-eps", encoder((2, 12, 12), vit(2, 64, 2, 1, norm_eps=1e-12), Mlp(layers=(Layer(out=7),)))
    yield "vit-wide-heads", encoder((2, 8, 8), vit(4, 200, 1, 2, norm_eps=1e-6))
    yield "vit-many-tokens", encoder((1, 34, 18), vit(2, 16, 2, 2))
    yield "conv-vit", encoder((2, 32, 32), pyramid, vit(2, 12, 1, 2, pool="mean"))
    wide, last = Layer(out=40, norm="layer", activation="mish"), Layer(out=24)
    yield "predictor", predictor(("state", "action"), 24, 2, 1, False, False, wide, last)
    yield "predictor-residual", predictor(("state", "action"), 24, 2, 4, True, True, wide, last)
    yield "predictor-action-first", predictor(("action", "state"), 24, 2, 3, False, True, wide, last)
    yield (
        "predictor-simnorm",
        predictor(("state", "action"), 24, 3, 1, False, False, wide, Layer(out=24, norm="layer+simnorm")),
    )
    yield (
        "predictor-residual-norm",
        predictor(("state", "action"), 24, 3, 1, False, True, Layer(out=24, norm="layer", activation="gelu")),
    )
    yield "gru", recurrent(("state", "action"), 24, 2)
    yield "gru-small", recurrent(("state", "action"), 3, 1, "layer")
    yield "gru-action-first", recurrent(("action", "state"), 71, 5, "layer")
    yield "gru-residual", recurrent(("state", "action"), 130, 3, residual=True)
    yield "gru-wide", recurrent(("state", "action"), 512, 2, "tied")
    yield "gru-mlp", recurrent(("state", "action"), 40, 70, "layer", after=(Mlp(layers=(wide, Layer(out=40))),))
    yield "adaln", looking_back(("state", "action"), 24, 2)
    yield "adaln-odd", looking_back(("state", "action"), 37, 5, heads=3, head_dim=7)
    yield "adaln-action-first", looking_back(("action", "state"), 24, 10, width=40)
    yield "adaln-residual", looking_back(("state", "action"), 19, 1, width=11, heads=1, head_dim=64, residual=True)


CASES = dict(cases())


def module_of(spec):
    """The module that a case is about."""
    return "predictor" if "predictor" in spec.modules else "encoder"


def inputs_of(spec, name, count=7):
    size = int(np.prod(spec.observation.shape))
    if name == "predictor":
        level, action = spec.levels[0], len(spec.actions.low)
        size += action if level.hold else action * level.action_block
    return np.random.default_rng(1).standard_normal((count, size)).astype(np.float32)


def torch_forward(spec, modules, name, inputs):
    """The module's output in double precision."""
    x = torch.from_numpy(inputs).double()
    with torch.no_grad():
        if name == "encoder":
            return modules.double()[name]({"observation": x.reshape(-1, *spec.observation.shape)}).numpy()
        parts, at = {}, 0
        latent = spec.observation.shape[0]
        for part in spec.modules[name].inputs:
            size = latent if part == "state" else inputs.shape[1] - latent
            parts[part] = x[:, at : at + size]
            at += size
        return modules.double()[name](parts).numpy()


def relative(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_torch(case):
    spec = CASES[case]
    name = module_of(spec)
    model = networks(spec)
    engine = engine_model(spec, model)
    inputs = inputs_of(spec, name)
    expected = torch_forward(spec, model, name, inputs)
    got = engine.forward(name, inputs)
    assert got.shape == expected.shape
    assert relative(got, expected) < 1e-5


@pytest.mark.parametrize("isa", ISAS)
def test_forward_equals_torch_on_every_isa(isa, tmp_path):
    expected = {}
    for case, spec in CASES.items():
        name = module_of(spec)
        model = networks(spec)
        agent_file.save(tmp_path / f"{case}.safetensors", spec, weights(model))
        inputs = inputs_of(spec, name)
        np.save(tmp_path / f"{case}.npy", inputs)
        expected[case] = torch_forward(spec, model, name, inputs)
    code = """
import pathlib, sys, numpy as np, pyjepa
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    model = pyjepa.Model.load(file)
    name = "predictor" if "predictor" in model.spec.modules else "encoder"
    np.save(str(file) + ".out.npy", model.forward(name, np.load(file.with_suffix(".npy"))))
print(pyjepa._engine.isa())
"""
    ran = run_on(isa, code, str(tmp_path))
    if ran is None:
        pytest.skip(f"this machine has no {isa}")
    assert ran.strip() == isa
    for case in CASES:
        assert relative(np.load(tmp_path / f"{case}.safetensors.out.npy"), expected[case]) < 1e-5, case


@pytest.mark.parametrize(("precision", "error"), [("bf16", 0.01), ("int8", 0.02)])
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("gru")])
def test_a_gru_in_lower_precision_is_near(case, precision, error):
    spec = CASES[case]
    model = networks(spec)
    low = Model.from_bytes(agent_file.to_bytes(spec, weights(model)), precision=precision)
    if low.precision != precision:
        pytest.skip(f"this machine has no {precision}")
    inputs = inputs_of(spec, "predictor")
    expected = torch_forward(spec, model, "predictor", inputs)
    if precision == "int8" and case == "gru-small":
        error = 0.05  # three numbers of state: nothing averages out
    assert 0 < relative(low.forward("predictor", inputs), expected) < error


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("case", ["gru", "gru-small", "gru-residual", "gru-wide"])
def test_a_gru_computes_the_same_for_candidates_in_one_state(case, precision):
    """What rows in the same state share changes no bit."""
    spec = CASES[case]
    engine = Model.from_bytes(agent_file.to_bytes(spec, weights(networks(spec))), precision=precision)
    inputs = inputs_of(spec, "predictor", count=61)
    inputs[:, : spec.observation.shape[0]] = inputs[0, : spec.observation.shape[0]]
    alone = np.concatenate([engine.forward("predictor", row[None]) for row in inputs])
    np.testing.assert_array_equal(engine.forward("predictor", inputs), alone)


def test_encode_equals_torch_on_uint8():
    spec = encoder(
        (2, 12, 12),
        Conv(layers=(ConvLayer(out=6, kernel=3, stride=2, activation="relu"),)),
        Mlp(layers=(Layer(out=9),)),
    )
    spec = Spec(
        observation=Observation(shape=(2, 12, 12), dtype="uint8", scale=1 / 255, offset=-0.25),
        actions=spec.actions,
        modules=spec.modules,
        levels=spec.levels,
    )
    modules = networks(spec)
    seen = np.random.default_rng(0).integers(0, 256, (5, 2, 12, 12), dtype=np.uint8)
    with torch.no_grad():
        expected = modules["encoder"]({"observation": torch.from_numpy(seen).float() / 255 - 0.25}).numpy()
    assert relative(engine_model(spec, modules).encode(seen), expected) < 1e-5


def test_forward_names_wrong_sizes():
    spec = CASES["mlp-one-layer"]
    engine = engine_model(spec, networks(spec))
    with pytest.raises(ValueError, match="maps 5 to 1 values, got 4"):
        engine.forward("encoder", np.zeros((2, 4)))
    with pytest.raises(ValueError, match="no module 'decoder'"):
        engine.forward("decoder", np.zeros((2, 5)))
    with pytest.raises(ValueError, match="shape"):
        engine.forward("encoder", np.zeros(5))
