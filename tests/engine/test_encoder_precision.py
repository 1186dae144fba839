"""Encoders in bf16 and int8: each layer that the file lets go lower, against its statement in torch and fp32."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from sample import networks, run_on, weights
from test_forward import CASES, encoder, inputs_of, relative, torch_forward, vit
from torch import nn
from torch.nn import functional

import pyjepa
from pyjepa import Model, _engine, agent_file
from pyjepa.mixed_precision import layers, with_precisions
from pyjepa.spec import ActivationScale, Conv, ConvLayer, Impala, Layer, Level, Mlp, Module, Observation, Quantisation

SMOOTH = Conv(layers=(ConvLayer(out=16, kernel=4, stride=2, padding=1, activation="gelu"), ConvLayer(out=9, kernel=3)))
# The statement rounds queries' weights as they are, the engine divided by the root of the head's size: a power of two.
SPECS = {
    "conv": encoder((3, 17, 13), SMOOTH),
    "conv-mlp": CASES["conv-mlp"],
    "impala": CASES["impala"],
    "impala-mlp": CASES["impala-mlp"],
    "vit": encoder((3, 28, 42), vit(14, 64, 2, 4)),
    "vit-mean": encoder((1, 15, 10), vit(5, 48, 1, 3, hidden=33, pool="mean"), Mlp(layers=(Layer(out=20),))),
    "vit-many-tokens": encoder((1, 34, 18), vit(2, 16, 2, 1)),
    "conv-vit": encoder((2, 32, 32), SMOOTH, vit(7, 32, 1, 2, pool="mean")),
}


def lowered(spec, *precisions):
    """The spec whose encoder's layers may go as low as these, or all as low as one."""
    count = len(layers(spec, encoder=True))
    return with_precisions(spec, precisions * count if len(precisions) == 1 else precisions, encoder=True)


def loaded(spec, tensors, precision):
    model = Model.from_bytes(agent_file.to_bytes(spec, tensors), precision=precision)
    if model.precision != precision:
        pytest.skip(f"this machine has no {precision}")
    return model


def narrow(x, weight, precision, scale=None):
    """What a layer multiplies: rows (..., n) and weights (out, n) in double precision as bf16, or as bytes."""
    if precision == "bf16":
        return x.bfloat16().double(), weight.bfloat16().double()
    if scale is not None:
        steps = torch.tensor(scale.scale, dtype=torch.float64)
        unit = (weight * steps).abs().amax(dim=1, keepdim=True) / 127
        rounded = (weight * steps / unit).round() * unit
        return (x / steps).round().add(scale.zero).clamp(0, 255).sub(scale.zero), rounded
    unit = weight.abs().amax(dim=1, keepdim=True) / 127
    signed = (x < 0).any(dim=-1, keepdim=True)
    step = x.abs().amax(dim=-1, keepdim=True) / torch.where(signed, 127.0, 255.0)
    step = torch.where(step == 0, 1.0, step)
    return (x / step).round() * step, (weight / unit).round() * unit


def statement(spec, modules, inputs, precisions, scales=()):
    """The encoder's output (N, L) in double precision, but for what its dense layers multiply, and what attention does
    where such a layer made queries, keys and values.
    """
    modules = modules.double()
    handles = []
    narrowed = [False]

    def attention(q, k, v):
        if not narrowed[0] or not _engine.precision_isa("bf16"):
            return exact_attention(q, k, v)
        q, k, v = (x.bfloat16().double() for x in (q * q.shape[-1] ** -0.5, k, v))
        return (q @ k.transpose(-1, -2)).softmax(dim=-1).bfloat16().double() @ v

    def seen(precision):
        narrowed[0] = precision != "fp32"

    def linear(module, given, _, precision, scale):
        x, weight = narrow(given[0], module.weight, precision, scale)
        return functional.linear(x, weight, module.bias)

    def convolution(module, given, _, precision, scale):
        kernel = module.kernel_size
        patches = functional.unfold(given[0], kernel, padding=module.padding, stride=module.stride).transpose(1, 2)
        x, weight = narrow(patches, module.weight.flatten(1), precision, scale)
        height = (given[0].shape[2] + 2 * module.padding[0] - kernel[0]) // module.stride[0] + 1
        return functional.linear(x, weight, module.bias).transpose(1, 2).unflatten(2, (height, -1))

    for i, (layer, precision) in enumerate(zip(layers(spec, encoder=True), precisions, strict=True)):
        module = modules.get_submodule(layer.name)
        if layer.name.endswith(".qkv"):
            handles.append(module.register_forward_pre_hook(lambda m, x, p=precision: seen(p)))
        if precision == "fp32":
            continue
        hook = linear if isinstance(module, nn.Linear) else convolution
        scale = scales[i] if scales else None
        handles.append(module.register_forward_hook(lambda m, x, y, h=hook, p=precision, s=scale: h(m, x, y, p, s)))
    exact_attention = functional.scaled_dot_product_attention
    try:
        with mock.patch.object(functional, "scaled_dot_product_attention", attention):
            return torch_forward(spec, modules, "encoder", inputs)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("case", SPECS)
def test_lower_precisions_are_their_statement(case, precision):
    spec = SPECS[case]
    modules = networks(spec)
    model = loaded(lowered(spec, precision), weights(modules), precision)
    inputs = inputs_of(spec, "encoder")
    exact = torch_forward(spec, modules, "encoder", inputs)
    stated = statement(spec, modules, inputs, [precision] * len(layers(spec, encoder=True)))
    got = model.forward("encoder", inputs)
    # A number on the edge between two steps may round the other way, and what follows from it in all later layers.
    assert relative(got, stated) < 0.7 * relative(stated, exact)
    assert 0 < relative(got, exact) < {"bf16": 0.01, "int8": 0.04}[precision]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("case", SPECS)
def test_every_layer_keeps_to_its_own(case, precision):
    """One layer at a time: nothing but its own products is rounded."""
    spec = SPECS[case]
    modules = networks(spec)
    inputs = inputs_of(spec, "encoder", count=3)
    tensors = {name: value.copy() for name, value in weights(modules).items()}
    exact = torch_forward(spec, modules, "encoder", inputs)
    count = len(layers(spec, encoder=True))
    for alone in range(count):
        mix = [precision if i == alone else "fp32" for i in range(count)]
        got = loaded(lowered(spec, *mix), tensors, precision).forward("encoder", inputs)
        stated = statement(spec, modules, inputs, mix)
        assert relative(got, stated) < 0.2 * relative(stated, exact), layers(spec, encoder=True)[alone]


@pytest.mark.parametrize("case", SPECS)
def test_known_scales_are_used(case):
    """Static int8: one scale for a layer's inputs, or one for each, in torch's order whatever the engine's is."""
    spec = SPECS[case]
    modules = networks(spec)
    found = layers(spec, encoder=True)
    rng = np.random.default_rng(3)
    scales = []
    for i, layer in enumerate(found):
        inputs = modules.get_submodule(layer.name).weight[0].numel()
        each = rng.uniform(0.03, 0.06, inputs if i % 2 == 0 else 1)
        scales.append(ActivationScale(scale=tuple(float(np.float32(s)) for s in each), zero=128))
    inputs = inputs_of(spec, "encoder", count=3)
    tensors = {name: value.copy() for name, value in weights(modules).items()}
    exact = torch_forward(spec, modules, "encoder", inputs)
    for alone in range(len(found)):
        mix = ["int8" if i == alone else "fp32" for i in range(len(found))]
        quantisation = Quantisation(weights="int8", activations=tuple(scales), precisions=tuple(mix))
        static = dataclasses.replace(spec.modules["encoder"], quantisation=quantisation)
        model = loaded(dataclasses.replace(spec, modules={"encoder": static}), tensors, "int8")
        stated = statement(spec, modules, inputs, mix, scales)
        assert relative(model.forward("encoder", inputs), stated) < 0.1 * relative(stated, exact), found[alone]


@pytest.mark.parametrize("case", SPECS)
def test_an_encoder_stays_in_fp32_unless_the_file_says_otherwise(case):
    spec = SPECS[case]
    tensors, inputs = weights(networks(spec)), inputs_of(spec, "encoder")
    full = Model.from_bytes(agent_file.to_bytes(spec, tensors)).forward("encoder", inputs)
    for stored, precision in (
        (spec, "int8"),
        (lowered(spec, "fp32"), "int8"),
        (lowered(spec, "bf16"), "fp32"),
        (lowered(spec, "int8"), "fp32"),
    ):
        np.testing.assert_array_equal(loaded(stored, tensors, precision).forward("encoder", inputs), full)
    bf16 = loaded(lowered(spec, "bf16"), tensors, "bf16").forward("encoder", inputs)
    for stored, precision in ((lowered(spec, "int8"), "bf16"), (lowered(spec, "bf16"), "int8")):
        np.testing.assert_array_equal(loaded(stored, tensors, precision).forward("encoder", inputs), bf16)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("case", ["impala-mlp", "vit-many-tokens", "conv-vit"])
def test_a_batch_equals_single_images_whatever_the_threads(case, precision):
    """Through the agent, whose scratch begins behind observations of any size."""
    seeing = SPECS[case]
    latent = int(np.prod(networks(seeing)["encoder"].output_shape))
    predictor = Module(inputs=("state", "action"), blocks=(Mlp(layers=(Layer(out=latent),)),))
    spec = dataclasses.replace(
        seeing,
        modules={**lowered(seeing, "int8").modules, "predictor": predictor},
        levels=(Level(encoder="encoder", predictor="predictor"),),
        planner=dataclasses.replace(seeing.planner, horizon=2, candidates=4, elites=2, iterations=1),
    )
    made = networks(dataclasses.replace(spec, modules={**seeing.modules, "predictor": predictor}))
    model = loaded(spec, weights(made), precision)
    seen = np.random.default_rng(2).standard_normal((5, *spec.observation.shape)).astype(np.float32)
    expected = model.encode(seen)
    for threads in (1, 2):
        agent = pyjepa.Agent(model, threads=threads)
        agent.configure(goal=seen[::-1])
        plan = agent.plan(seen)
        np.testing.assert_array_equal(plan.states[:, 0], expected)
    np.testing.assert_array_equal(np.concatenate([model.encode(each[None]) for each in seen]), expected)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_vnni"])
def test_a_machine_without_the_instructions_takes_the_next_higher(isa, tmp_path):
    """fp32 where there is neither; with VNNI alone, bytes, but fp32 for what is to be bf16."""
    spec = SPECS["vit"]
    modules = networks(spec)
    names = {"fp32": spec, "bf16": lowered(spec, "bf16"), "int8": lowered(spec, "int8")}
    for name, each in names.items():
        agent_file.save(tmp_path / f"{name}.safetensors", each, weights(modules))
    inputs = inputs_of(spec, "encoder")
    np.save(tmp_path / "inputs.npy", inputs)
    code = """
import pathlib, sys, warnings, numpy as np, pyjepa
warnings.simplefilter("ignore")
folder = pathlib.Path(sys.argv[1])
for name in ("fp32", "bf16", "int8"):
    model = pyjepa.Model.load(folder / f"{name}.safetensors", precision="int8")
    np.save(folder / f"{name}.npy", model.forward("encoder", np.load(folder / "inputs.npy")))
"""
    if run_on(isa, code, str(tmp_path)) is None:
        pytest.skip(f"this machine has no {isa}")
    fp32, bf16, int8 = (np.load(tmp_path / f"{name}.npy") for name in names)
    np.testing.assert_array_equal(bf16, fp32)
    assert np.array_equal(int8, fp32) == (isa != "avx512_vnni")
    assert relative(int8, torch_forward(spec, modules, "encoder", inputs)) < 0.04


def test_too_wide_a_patch_for_bytes_stays_in_fp32():
    """int32 holds sums of 2^15 products."""
    spec = encoder((1, 184, 184), Conv(layers=(ConvLayer(out=3, kernel=184),)), Mlp(layers=(Layer(out=2),)))
    modules = networks(spec)
    inputs = inputs_of(spec, "encoder")
    got = loaded(lowered(spec, "int8", "fp32"), weights(modules), "int8").forward("encoder", inputs)
    full = Model.from_bytes(agent_file.to_bytes(spec, weights(modules))).forward("encoder", inputs)
    np.testing.assert_array_equal(got, full)


@pytest.mark.parametrize(
    ("block", "count"), [(SMOOTH, 2), (Impala(channels=(4, 5)), 10), (vit(4, 24, 2, 3, pool="mean"), 9)]
)
def test_wrong_counts_are_named(block, count):
    spec = dataclasses.replace(encoder((3, 16, 16), block), observation=Observation(shape=(3, 16, 16)))
    tensors = weights(networks(spec))
    agent_file.to_bytes(lowered(spec, *["int8"] * count), tensors)

    def stored(**quantisation):
        module = dataclasses.replace(spec.modules["encoder"], quantisation=Quantisation(weights="int8", **quantisation))
        return dataclasses.replace(spec, modules={"encoder": module})

    with pytest.raises(pyjepa.AgentFileError, match=f"has 1 items, but the module's blocks have {count} layers"):
        agent_file.to_bytes(stored(precisions=("int8",)), tensors)
    one, two = ActivationScale(scale=(0.1,)), ActivationScale(scale=(0.1, 0.2))
    inputs = tensors[layers(spec, encoder=True)[-1].name + ".weight"][0].size
    with pytest.raises(
        pyjepa.AgentFileError,
        match=rf"activations\[{count - 1}\].scale: has 2 items, but the layer has {inputs} inputs",
    ):
        agent_file.to_bytes(stored(activations=(one,) * (count - 1) + (two,)), tensors)
