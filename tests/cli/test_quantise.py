"""`pyjepa quantise`: the command line."""

import json

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from pyjepa import agent_file, agents
from pyjepa.agent import Model
from pyjepa.bench.workloads import WORKLOADS
from pyjepa.cli import main

SHIPPED = str(agents.path("two_rooms"))


def run(*arguments):
    return CliRunner().invoke(main, ["quantise", *arguments])


def test_writes_a_calibrated_file_and_the_figures(tmp_path):
    output, figures = tmp_path / "out.safetensors", tmp_path / "figures.json"
    found = run(SHIPPED, "--output", str(output), "--calibrate", "2", "--choose", "2", "--states", "2",
                "--episodes", "1", "--json", str(figures))  # fmt: skip
    assert found.exit_code == 0, found.output
    before, after = Model.load(SHIPPED), Model.load(output)
    scales = after.spec.modules["predictor"].quantisation
    assert scales.weights == "int8"
    assert len(scales.activations) == 3
    x = np.ones((1, 50), np.float32)
    np.testing.assert_array_equal(before.forward("predictor", x), after.forward("predictor", x))
    assert len(scales.precisions) == 3
    result = json.loads(figures.read_text())
    assert result["choice"] == json.loads(after.spec.provenance["quantisation"])
    assert result["choice"]["target"] == 0.02
    assert result["agent"] == "two-rooms"
    assert (result["states"], result["calibrated_on"]) == (2, 2)
    for row in result["rows"]:
        assert row["episodes"] == 1
        assert row["spearman_least"] <= row["spearman"] <= 1.0
        assert row["success_change_95"][0] <= row["success_change"] <= row["success_change_95"][1]


def test_a_target_is_met_and_chosen_anew(tmp_path):
    """From a file with precisions, as from one without."""
    hard, output, again = (tmp_path / f"{name}.safetensors" for name in ("hard", "output", "again"))
    tensors = safetensors.numpy.load_file(SHIPPED)
    for name, outlier in {"linear0.weight": 0.0, "linear0.bias": -1.0, "linear1.weight": 900.0}.items():
        tensor = tensors[f"predictor.0.{name}"].copy()
        tensor[(slice(None), 0) if name == "linear1.weight" else 0] = outlier  # it multiplies what is never above 0
        tensors[f"predictor.0.{name}"] = tensor
    agent_file.save(hard, Model.load(SHIPPED).spec, tensors)
    settings = ("--calibrate", "2", "--choose", "10", "--states", "1")
    found = run(str(hard), "--output", str(output), *settings, "--json", "-")
    assert found.exit_code == 0, found.output
    if Model.load(SHIPPED, precision="int8").precision != "int8":
        pytest.skip("this machine has no int8 instructions")
    choice = json.loads(Model.load(output).spec.provenance["quantisation"])
    assert choice["rise_int8"] > 0.02 >= choice["rise"]
    assert {row["precision"] for row in choice["layers"]} & {"bf16", "fp32"}
    assert '"int8 mixed"' in found.output
    found = run(str(output), "--output", str(again), "--target", "1000%", *settings)
    assert found.exit_code == 0, found.output
    assert set(Model.load(again).spec.modules["predictor"].quantisation.precisions) == {"int8"}
    for wrong in ("some", "-1%", "nan", "1e999"):
        found = run(SHIPPED, "--target", wrong)
        assert found.exit_code == 2
        assert "is no percentage" in found.output


def test_the_encoder_goes_lower_where_wanted(tmp_path):
    output = tmp_path / "out.safetensors"
    found = run(SHIPPED, "--encoder", "--output", str(output), "--calibrate", "1", "--choose", "2", "--states", "1",
                "--json", "-")  # fmt: skip
    assert found.exit_code == 0, found.output
    if Model.load(SHIPPED, precision="int8").precision != "int8":
        pytest.skip("this machine has no int8 instructions")
    assert "int8" in Model.load(output).spec.modules["encoder"].quantisation.precisions
    assert '"int8 mixed"' in found.output
    assert '"layer": "encoder.0.' in found.output


def test_episodes_of_ones_own(tmp_path):
    h5py = pytest.importorskip("h5py")
    assert h5py
    data = tmp_path / "episodes.h5"
    collected = CliRunner().invoke(main, ["collect", "two-rooms", "--out", str(data), "--episodes", "3"])
    assert collected.exit_code == 0, collected.output
    found = run(SHIPPED, "--data", str(data), "--calibrate", "1", "--choose", "1", "--states", "1", "--json", "-")
    assert found.exit_code == 0, found.output
    assert '"states": 1' in found.output


def test_what_cannot_be_is_said(tmp_path):
    assert run(str(tmp_path / "none.safetensors")).exit_code == 2
    found = run(SHIPPED, "--output", str(tmp_path / "no" / "where"))
    assert found.exit_code == 2
    assert "there is no folder" in found.output
    workload = WORKLOADS["W0s"]()
    other = tmp_path / "other.safetensors"
    agent_file.save(other, workload.spec, workload.tensors)
    assert "--data is needed" in run(str(other)).output
    assert "not made for Two Rooms" in run(str(other), "--episodes", "3").output
    data = tmp_path / "not.h5"
    data.write_bytes(b"no")
    assert run(SHIPPED, "--data", str(data)).exit_code == 2


def test_data_of_another_world_is_refused(tmp_path):
    pytest.importorskip("h5py")
    data = tmp_path / "episodes.h5"
    CliRunner().invoke(main, ["collect", "two-rooms", "--out", str(data), "--episodes", "2"])
    workload = WORKLOADS["W0s"]()
    other = tmp_path / "other.safetensors"
    agent_file.save(other, workload.spec, workload.tensors)
    found = run(str(other), "--data", str(data))
    assert found.exit_code == 2
    assert "observations are uint8 (2, 64, 64)" in found.output
