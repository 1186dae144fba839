"""`pyjepa quantise`: the command line."""

import json

import numpy as np
import pytest
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
    found = run(SHIPPED, "--output", str(output), "--calibrate", "2", "--states", "2", "--episodes", "1",
                "--json", str(figures))  # fmt: skip
    assert found.exit_code == 0, found.output
    before, after = Model.load(SHIPPED), Model.load(output)
    scales = after.spec.modules["predictor"].quantisation
    assert scales.weights == "int8"
    assert len(scales.activations) == 3
    x = np.ones((1, 50), np.float32)
    np.testing.assert_array_equal(before.forward("predictor", x), after.forward("predictor", x))
    result = json.loads(figures.read_text())
    assert result["agent"] == "two-rooms"
    assert (result["states"], result["calibrated_on"]) == (2, 2)
    for row in result["rows"]:
        assert row["episodes"] == 1
        assert row["spearman_least"] <= row["spearman"] <= 1.0
        assert row["success_change_95"][0] <= row["success_change"] <= row["success_change_95"][1]


def test_episodes_of_ones_own(tmp_path):
    h5py = pytest.importorskip("h5py")
    assert h5py
    data = tmp_path / "episodes.h5"
    collected = CliRunner().invoke(main, ["collect", "two-rooms", "--out", str(data), "--episodes", "3"])
    assert collected.exit_code == 0, collected.output
    found = run(SHIPPED, "--data", str(data), "--calibrate", "1", "--states", "1", "--json", "-")
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
