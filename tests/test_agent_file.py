"""The agent file: what is written loads, what is damaged is refused with a message that says what is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import pyjepa
from pyjepa import _engine, agent_file
from pyjepa.errors import AgentFileError, PyjepaError, UnsupportedError
from pyjepa.spec import Actions, Layer, Level, Mlp, Module, Observation, Planner, Spec

GOLDEN = Path(__file__).parent / "golden"
Header = dict[str, Any]

SPEC = Spec(
    observation=Observation(shape=(3,)),
    actions=Actions(low=(-1.0,), high=(1.0,)),
    modules={
        "encoder": Module(inputs=("observation",), blocks=(Mlp(layers=(Layer(out=2, norm="layer"),)),)),
        "predictor": Module(inputs=("state", "action"), blocks=(Mlp(layers=(Layer(out=2),)),), residual=True),
    },
    levels=(Level(encoder="encoder", predictor="predictor"),),
)
TENSORS = {
    "encoder.0.linear0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "encoder.0.linear0.bias": np.zeros(2, np.float32),
    "encoder.0.norm0.weight": np.ones(2, np.float32),
    "encoder.0.norm0.bias": np.zeros(2, np.float32),
    "predictor.0.linear0.weight": np.full((2, 3), 0.5, np.float32),
    "predictor.0.linear0.bias": np.zeros(2, np.float32),
}


def unpack(data: bytes) -> tuple[Header, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def pack(header: Header | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def sound() -> bytes:
    return agent_file.to_bytes(SPEC, TENSORS)


# ---- faults: each makes a bad file from a sound one, and says what the message must say ---------------------------


@dataclasses.dataclass(frozen=True)
class Fault:
    make: Callable[[], bytes]
    message: str
    error: type[PyjepaError] = AgentFileError


def in_header(change: Callable[[Header], object]) -> Callable[[], bytes]:
    def make() -> bytes:
        header, data = unpack(sound())
        change(header)
        return pack(header, data)

    return make


def in_spec(old: str, new: str) -> Callable[[], bytes]:
    def change(header: Header) -> None:
        text = header["__metadata__"]["pyjepa"]
        assert old in text, f"{old} is not in {text}"
        header["__metadata__"]["pyjepa"] = text.replace(old, new, 1)

    return in_header(change)


def in_text(old: bytes, new: bytes) -> Callable[[], bytes]:
    """A change of the header's text that JSON objects in Python cannot express."""

    def make() -> bytes:
        header, data = unpack(sound())
        text = json.dumps(header).encode()
        assert old in text
        return pack(text.replace(old, new, 1), data)

    return make


def weights(**changes: np.ndarray[Any, Any]) -> Callable[[], bytes]:
    def make() -> bytes:
        tensors: dict[str, Any] = {**TENSORS, **{f"encoder.0.linear0.{k}": v for k, v in changes.items()}}
        return safetensors.numpy.save(tensors, metadata={"pyjepa": SPEC.to_json()})

    return make


def shifted(header: Header) -> None:
    tensor = max((v for k, v in header.items() if k != "__metadata__"), key=lambda v: v["data_offsets"])
    tensor["data_offsets"] = [offset - 4 for offset in tensor["data_offsets"]]


def gap() -> bytes:
    header, data = unpack(sound())
    for name, tensor in header.items():
        if name != "__metadata__":
            tensor["data_offsets"] = [offset + 4 for offset in tensor["data_offsets"]]
    return pack(header, bytes(4) + data)


def misaligned_data() -> bytes:
    header, data = unpack(sound())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + 2)
    return struct.pack("<Q", len(text)) + text + data


NAN = np.array([0.0, np.nan], np.float32)
INFINITE = np.array([0.0, -np.inf], np.float32)
WEIGHT, BIAS = "encoder.0.linear0.weight", "encoder.0.linear0.bias"

FAULTS = {
    "empty": Fault(lambda: b"", "file: empty"),
    "truncated length": Fault(lambda: sound()[:5], "file: truncated"),
    "truncated header": Fault(lambda: sound()[:50], "header: truncated"),
    "truncated data": Fault(lambda: sound()[:-1], "truncated: ends at byte"),
    "trailing": Fault(lambda: sound() + b"more", "4 trailing bytes"),
    "oversized header": Fault(lambda: b"\xff" * 8 + sound()[8:], "header: oversized"),
    "not safetensors": Fault(lambda: b"PK\x03\x04" + bytes(100), "header: oversized"),
    "pickle": Fault(lambda: b"\x80\x04\x95" + bytes(61), "header:"),
    "no json": Fault(lambda: pack(b"hello   ", b""), "header: not a JSON object"),
    "bad json": Fault(lambda: pack(b'{"a":}', b""), "header: not valid JSON at byte"),
    "bad utf-8": Fault(lambda: pack(b'{"\xff":0}', b""), "ill-formed UTF-8"),
    "nan in json": Fault(in_spec('"scale": 1.0', '"scale": NaN'), "spec: not valid JSON"),
    "huge number": Fault(in_spec('"scale": 1.0', '"scale": 1e999'), "a number is too large"),
    "huge float": Fault(
        in_spec('"scale": 1.0', '"scale": 1e300'), "spec.observation.scale: .* does not fit in float32"
    ),
    "deep header": Fault(lambda: pack(b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", b""), "nested deeper than 32"),
    "deep spec": Fault(in_spec('"name": ""', '"name": ' + "[" * 40 + "]" * 40), "spec: JSON nested deeper than 32"),
    "overlap": Fault(in_header(shifted), "overlaps tensor"),
    "gap": Fault(gap, "gap: bytes 0 to 4 before it belong to no tensor"),
    "misaligned tensor": Fault(
        in_header(lambda h: h[WEIGHT].update(data_offsets=[o + 1 for o in h[WEIGHT]["data_offsets"]])), "misaligned"
    ),
    "misaligned data": Fault(misaligned_data, "header: misaligned"),
    "negative offset": Fault(in_header(lambda h: h[WEIGHT].update(data_offsets=[-4, 20])), "-4 is not between"),
    "wrong dtype": Fault(weights(weight=np.zeros((2, 3))), "wrong dtype 'F64'"),
    "half dtype": Fault(weights(weight=np.zeros((2, 3), np.float16)), "wrong dtype 'F16'"),
    "wrong shape": Fault(
        weights(weight=np.zeros((3, 2), np.float32)), r"wrong shape \[3, 2\], the spec calls for \[2, 3\]"
    ),
    "absurd shape": Fault(
        in_header(lambda h: h[WEIGHT].update(shape=[1 << 24, 1 << 24, 1 << 24])), "the tensor's size overflows"
    ),
    "boolean shape": Fault(in_header(lambda h: h[WEIGHT].update(shape=[True, 6])), "expected an integer, got boolean"),
    "missing tensor": Fault(in_header(lambda h: h.update(surprise=h.pop(BIAS))), f"tensor '{BIAS}': missing"),
    "unknown tensor": Fault(
        lambda: safetensors.numpy.save({**TENSORS, "more": TENSORS[BIAS]}, {"pyjepa": SPEC.to_json()}),
        "tensor 'more': unknown",
    ),
    "nan weight": Fault(weights(bias=NAN), f"tensor '{BIAS}': non-finite value nan at element 1"),
    "infinite weight": Fault(weights(bias=INFINITE), f"tensor '{BIAS}': non-finite value -inf at element 1"),
    "no metadata": Fault(in_header(lambda h: h.pop("__metadata__")), "'__metadata__' is missing"),
    "other metadata": Fault(in_header(lambda h: h["__metadata__"].update(format="pt")), "unknown key 'format'"),
    "duplicate tensor": Fault(
        in_text(b'"encoder.0.norm0.bias"', b'"encoder.0.norm0.weight"'),
        "header: duplicate key 'encoder.0.norm0.weight'",
    ),
    "duplicate spec key": Fault(in_spec('"name": ""', '"name": "", "name": ""'), "spec: duplicate key 'name'"),
    "unknown spec key": Fault(in_spec('"provenance": {}', '"origin": {}'), "spec: unknown key 'origin'"),
    "absurd size": Fault(in_spec('"shape": [3]', '"shape": [4611686018427387904]'), r"spec.observation.shape\[0\]"),
    "absurd product": Fault(in_spec('"shape": [3]', '"shape": [1048576, 1048576]'), "more than 16777216 elements"),
    "dangling module": Fault(in_spec('"encoder": "encoder"', '"encoder": "coder"'), "there is no module 'coder'"),
    "later version": Fault(in_spec('"version": 1', '"version": 2'), "unknown version 2", UnsupportedError),
    "reserved latent": Fault(
        in_spec('"latent": null', '"latent": {"kind": "gaussian", "size": 2}'),
        r"module 'encoder': a latent variable is not available in the C\+\+ engine",
        UnsupportedError,
    ),
    "discrete with bounds": Fault(in_spec('"box"', '"discrete"'), "spec.actions.low: discrete actions have a count"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    data = fault.make()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(fault.error, match=fault.message):
        pyjepa.load(path)
    with pytest.raises(fault.error, match=fault.message):
        _engine.Model.parse(data)
    with pytest.raises(fault.error, match=fault.message):
        agent_file.validate(path)

    result = inspect(path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(f"Error: .*bad.safetensors: .*{fault.message}.*\n", result.stderr)


def inspect(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "from pyjepa.cli import main; main()", "inspect", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_what_is_not_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(OSError, match="cannot read"):
        pyjepa.load(path)
    result = inspect(path)
    assert result.returncode == 2
    assert re.fullmatch("Error: cannot read .*\n", result.stderr)


def test_every_truncation_is_refused() -> None:
    data = sound()
    for size in range(len(data)):
        with pytest.raises(AgentFileError, match="truncated" if size else "empty"):
            _engine.Model.parse(data[:size])


@settings(deadline=None, max_examples=500)
@given(st.data())
def test_random_damage_never_crashes(draw: st.DataObject) -> None:
    data = bytearray(sound())
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, len(data) - 1))
        kind = draw.draw(st.sampled_from(["set", "flip", "remove", "insert"]))
        if kind == "set":
            data[place] = draw.draw(st.integers(0, 255))
        elif kind == "flip":
            data[place] ^= 1 << draw.draw(st.integers(0, 7))
        elif kind == "remove":
            del data[place : place + draw.draw(st.integers(1, 8))]
        else:
            data[place:place] = draw.draw(st.binary(min_size=1, max_size=8))
    try:
        model = _engine.Model.parse(bytes(data))
    except (AgentFileError, UnsupportedError) as error:
        assert str(error).isprintable()  # noqa: PT017 - any of many messages
    else:
        # What the engine takes, Python reads, too, and writes again so that the engine takes it.
        again = agent_file.to_bytes(Spec.from_json(model.spec), safetensors.numpy.load(bytes(data)))
        _engine.Model.parse(again)


# ---- writing ------------------------------------------------------------------------------------------------------


def test_saved_file_loads_and_its_spec_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    agent_file.save(path, SPEC, TENSORS)
    pyjepa.load(path)
    model = _engine.Model.load(str(path))
    assert model.spec == SPEC.to_json()
    assert agent_file.validate(path) == SPEC
    assert Spec.from_json(SPEC.to_json(indent=2)) == SPEC
    assert model.module_sizes("encoder") == (3, 2)
    assert model.module_sizes("predictor") == (3, 2)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Sound specs of mlp agents."""
    sizes = st.integers(1, 6)
    norms = st.sampled_from(["none", "layer", "simnorm", "layer+simnorm"])
    activations = st.sampled_from(["none", "relu", "gelu", "silu", "mish", "tanh"])

    def mlp(*, out: int | None = None) -> Mlp:
        group = draw(st.integers(1, 3))
        layers = [
            Layer(out=group * draw(sizes), norm=draw(norms), activation=draw(activations))
            for _ in range(draw(st.integers(0 if out else 1, 2)))
        ]
        if out:
            layers.append(Layer(out=out, activation=draw(activations)))
        return Mlp(layers=tuple(layers), simnorm_group=group)

    encoder = Module(inputs=("observation",), blocks=tuple(mlp() for _ in range(draw(st.integers(1, 2)))))
    latent = encoder.blocks[-1].layers[-1].out
    actions, discrete = draw(sizes), draw(st.booleans())
    box = Actions(low=(-1.0,) * actions, high=(draw(st.floats(0, 100)),) * actions)
    predictor = Module(
        inputs=draw(st.sampled_from([("state", "action"), ("action", "state")])),
        blocks=(mlp(out=latent),),
        residual=draw(st.booleans()),
    )
    block = draw(st.integers(1, 4))
    candidates = draw(st.integers(1, 1000))
    return Spec(
        observation=Observation(
            shape=tuple(draw(st.lists(sizes, min_size=1, max_size=3))),
            dtype=draw(st.sampled_from(["float32", "uint8"])),
            scale=draw(st.floats(-2, 2, width=32)),
        ),
        actions=Actions(kind="discrete", count=actions) if discrete else box,
        modules={"encoder": encoder, "predictor": predictor},
        levels=(Level(encoder="encoder", predictor="predictor", action_block=block, hold=draw(st.booleans())),),
        planner=Planner(
            horizon=block * draw(st.integers(1, 5)),
            candidates=candidates,
            elites=draw(st.integers(1, candidates)),
            algorithm=draw(
                st.sampled_from(
                    ["categorical-cem", "tree"] if discrete else ["cem", "mppi", "predictive-sampling", "tree"]
                )
            ),
        ),
        name=draw(st.text(max_size=20)),
        provenance=draw(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)),
    )


def tensors_of(spec: Spec) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors that the format's description calls for, reckoned independently of the engine."""
    level = spec.levels[0]
    latent = spec.modules["encoder"].blocks[-1].layers[-1].out
    actions = spec.actions.size * (1 if level.hold else level.action_block)
    size = {"encoder": int(np.prod(spec.observation.shape)), "predictor": latent + actions}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in spec.modules.items():
        for i, block in enumerate(module.blocks):
            assert isinstance(block, Mlp)
            for j, layer in enumerate(block.layers):
                shapes[f"{name}.{i}.linear{j}.weight"] = (layer.out, size[name])
                shapes[f"{name}.{i}.linear{j}.bias"] = (layer.out,)
                if layer.norm.startswith("layer"):
                    shapes[f"{name}.{i}.norm{j}.weight"] = shapes[f"{name}.{i}.norm{j}.bias"] = (layer.out,)
                size[name] = layer.out
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@settings(deadline=None, max_examples=200)
@given(specs())
def test_any_sound_spec_round_trips(spec: Spec) -> None:
    model = _engine.Model.parse(agent_file.to_bytes(spec, tensors_of(spec)))
    assert Spec.from_json(model.spec) == spec
    assert model.module_sizes("encoder")[0] == np.prod(spec.observation.shape)


def test_bytes_are_deterministic_and_aligned() -> None:
    backwards = dict(reversed(TENSORS.items()))
    assert agent_file.to_bytes(SPEC, backwards) == sound()
    (length,) = struct.unpack("<Q", sound()[:8])
    assert length % 8 == 0


def test_strided_tensors_are_written_by_value(tmp_path: Path) -> None:
    weight = np.asfortranarray(TENSORS[WEIGHT])
    assert agent_file.to_bytes(SPEC, {**TENSORS, WEIGHT: weight}) == sound()
    path = tmp_path / "agent.safetensors"
    path.write_bytes(agent_file.to_bytes(SPEC, {**TENSORS, WEIGHT: TENSORS[WEIGHT][::-1]}))
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)[WEIGHT], TENSORS[WEIGHT][::-1])


def test_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    agent_file.save(path, SPEC, TENSORS)
    before = path.read_bytes()
    with pytest.raises(AgentFileError, match="non-finite"):
        agent_file.save(path, SPEC, {**TENSORS, BIAS: NAN})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_save_replaces_a_file_but_not_a_link_to_it(tmp_path: Path) -> None:
    path, link = tmp_path / "agent.safetensors", tmp_path / "latest"
    path.write_bytes(b"old")
    link.symlink_to(path)
    umask = os.umask(0o027)
    try:
        agent_file.save(link, SPEC, TENSORS)
    finally:
        os.umask(umask)
    assert link.is_symlink()
    assert path.read_bytes() == sound()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_save_into_nowhere_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        agent_file.save(tmp_path / "no" / "agent.safetensors", SPEC, TENSORS)


def test_the_documented_spec_is_sound() -> None:
    document = (Path(__file__).parents[1] / "docs" / "agent-file.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```json\n(.+?)```", document, re.DOTALL)
    with pytest.raises(AgentFileError, match=r"tensor 'encoder\.0\.stage0\.conv\.weight': missing"):
        agent_file.to_bytes(Spec.from_json(text), {})  # all that is wrong with it is that it has no weights


# ---- golden files: they load for ever -----------------------------------------------------------------------------

GOLDEN_FILES = {
    "version-1": "a382dcd9eb0d19be187dd664a92bc0be91596d91097e859d11fb985d886085b6",
    "version-1-image": "aaa01bdab034585e73c76cea44bc15b42d4669e0012cdfed34a879d7e54dbd92",
    "version-1-heads": "854167d896df007eabd4b5accdfff43eb4e355ae97308e0a00b4afa1387edecd",
    "version-1-discrete": "dc18e655b64c35be60b4abb2bb17dcc73488e0fb82525fb00239752dc8ecfcc2",
    "version-1-quantised": "2df96aa43017bece32866a38ce73d4cd8644808d7540bebd47f3cc4f35d4476c",
    "version-1-mixed": "73fe3ffe678c16d4bb962af81d4dcc7140d3ae50fbccdd01dfcf1dcccc80bccf",
    "version-1-recurrent": "f28222e873d70573b30fbe0f00a162009aaac69608634408567b77ff5e900f6b",
    "version-1-vit": "e8b166df0f889c7047284251d4a6f2eb3ab04f24f86b73bf27af7e68c212cfb7",
    "version-1-vit-mixed": "37cba89d1f617865631017c726e84e87761ba6d19615822c68f6ac307d199cb7",
    "version-1-eb-jepa": "14d14567ee20082446ba3766a4a02d8b4009a44b85331fd733f0e723bfec3ccd",
    "version-1-adaln": "51c366234c058d857a06623cba512f27cb365208b7899bb8a062698719f51447",
}


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_golden_file_loads_and_computes_the_same(name: str) -> None:
    path = GOLDEN / f"{name}.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == GOLDEN_FILES[name], "golden files are never rewritten: add one for a new version"
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    pyjepa.load(path)
    model = _engine.Model.load(str(path))
    assert json.loads(model.spec) == expected["spec"]
    assert Spec.from_json(model.spec) == Spec.from_json(json.dumps(expected["spec"]))
    for module, io in expected["forward"].items():
        output = model.forward(module, np.array(io["input"], np.float32))
        np.testing.assert_allclose(output, np.array(io["output"]), rtol=1e-4, atol=1e-5)


def test_golden_file_that_looks_back_rolls_out_the_same() -> None:
    path = GOLDEN / "version-1-adaln.safetensors"
    rollout = json.loads(path.with_suffix(".json").read_text())["rollout"]
    agent = pyjepa.load(path)
    plan, states = (np.array(rollout[key], np.float32) for key in ("plan", "states"))
    for reached in range(1, 6):  # the cost is a distance to where the plan leads after so many steps
        agent.configure(goal=states[reached - 1], horizon=2 * reached, weights={"goal_distance": 1.0})
        agent.observe(np.array(rollout["start"], np.float32))
        (cost,) = agent.evaluate(plan[None, :reached])
        expected = 0.5 * np.square(states[: reached - 1] - states[reached - 1]).sum()
        np.testing.assert_allclose(cost, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "module", "zeros"),
    [
        ("version-1-quantised", "predictor", [128, 0, 0]),
        ("version-1-mixed", "predictor", [128, 0, 0]),
        ("version-1-vit-mixed", "encoder", []),
    ],
)
def test_golden_file_for_int8_computes_the_same_in_int8(name: str, module: str, zeros: list[int]) -> None:
    path = GOLDEN / f"{name}.safetensors"
    expected = json.loads(path.with_suffix(".json").read_text())
    quantisation = expected["spec"]["modules"][module]["quantisation"]
    assert [scale["zero"] for scale in quantisation["activations"]] == zeros
    model = _engine.Model.load(str(path), "int8")
    if model.dims["precision"] != "int8" or _engine.Model.load(str(path), "bf16").dims["precision"] != "bf16":
        pytest.skip("this machine has no bf16 or int8 instructions")
    io = expected["forward"][module]
    output = model.forward(module, np.array(io["input"], np.float32))
    np.testing.assert_allclose(output, np.array(io["int8"]), rtol=1e-4, atol=1e-5)
    error = np.abs(output - np.array(io["output"])).max()
    assert 0 < error < 0.03, "other numbers than fp32's, and near them"


# ---- pyjepa inspect -----------------------------------------------------------------------------------------------


def test_inspect_shows_what_the_file_holds() -> None:
    result = inspect(GOLDEN / "version-1.safetensors")
    assert result.returncode == 0, result.stderr
    for text in [
        "golden version 1",
        "actor",
        "encoder.0.linear0.weight",
        "12 × 5",
        "goal_distance",
        "mppi",
        "loads for",
    ]:
        assert text in result.stdout
    assert "mlp 8 (+ state)" in result.stdout
    recurrent = inspect(GOLDEN / "version-1-recurrent.safetensors").stdout
    assert "gru 5 the encoder's layer" in recurrent
    assert "2 of: gru 5 layer" in recurrent
    adaln = inspect(GOLDEN / "version-1-adaln.safetensors").stdout
    assert "adaln_transformer 2 layers of 4-7" in adaln
    eb_jepa = inspect(GOLDEN / "version-1-eb-jepa.safetensors").stdout
    assert "impala 3 → 4, ReLU after the sum" in eb_jepa


def test_inspect_json_is_for_machines() -> None:
    path = GOLDEN / "version-1-image.safetensors"
    result = inspect(path, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    expected = json.loads((GOLDEN / "version-1-image.json").read_text())
    assert Spec.from_json(json.dumps(report["spec"])) == Spec.from_json(json.dumps(expected["spec"]))
    assert report["bytes"] == path.stat().st_size
    assert report["latent_size"] == 6
    assert report["modules"]["predictor"]["input_size"] == 7
    tensors = safetensors.numpy.load_file(path)
    assert {name: tensor["shape"] for name, tensor in report["tensors"].items()} == {
        name: list(tensor.shape) for name, tensor in tensors.items()
    }
    assert report["parameters"] == sum(tensor.size for tensor in tensors.values())


def test_inspect_prints_strange_text_literally(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    strange = "\x1b[31m[bold red]x[/]\x07\u202e\u009b2J"
    agent_file.save(path, dataclasses.replace(SPEC, name=strange, provenance={strange: strange}), TENSORS)
    result = inspect(path)
    assert result.returncode == 0, result.stderr
    assert all(c.isprintable() or c == "\n" for c in result.stdout)
    assert "[bold red]x[/]" in result.stdout
    assert json.loads(inspect(path, "--json").stdout)["spec"]["name"] == strange

    path.write_bytes(in_header(lambda h: h["__metadata__"].update({strange: ""}))())
    result = inspect(path)
    assert result.returncode == 2
    assert result.stderr.removesuffix("\n").isprintable()
