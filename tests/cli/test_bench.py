"""`pyjepa bench`: the command line."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pyjepa import agents
from pyjepa.bench import comparison
from pyjepa.bench.workloads import WORKLOADS
from pyjepa.cli import main
from pyjepa.cli.bench import command


def parsed(*arguments):
    return command.make_context("bench", list(arguments)).params


def test_options_take_several_values_wherever_they_stand():
    found = parsed(
        "W0s", "--threads", "1", "2", "W0", "--precision", "fp32", "int8", "--peers", "torch", "jax", "--json", "f"
    )
    assert found["workloads"] == ("W0s", "W0")
    assert found["threads"] == (1, 2)
    assert found["precision"] == ("fp32", "int8")
    assert found["peers"] == ("torch", "jax")
    assert found["json_file"] == "f"
    assert parsed("--peers", "torch", "--peers", "jax")["peers"] == ("torch", "jax")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threads", "0"), "'--threads'"),
        (("--threads", "1000000"), "'--threads'"),
        (("--threads",), "'--threads' requires an argument"),
        (("--threads", "--json", "f"), "'--threads'"),
        (("--precision", "fp64"), "'fp64' is not one of"),
        (("--peers", "matlab"), "'matlab' is not one of"),
        (("W7",), "'W7' is not one of"),
        (("--seconds", "0"), "'--seconds'"),
        (("--seconds", "nan"), "nan is not a finite number"),
        (("--json", "/no/such/folder/x.json"), "is in no folder that exists"),
        (("--json", "/"), "is a folder"),
        (("--cost-plans", "0"), "'--cost-plans'"),
        (("--paced", "-1"), "'--paced'"),
        (("mode1", "--paced", "200"), "mode1 does not"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message):
    done = CliRunner().invoke(main, ["bench", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr.splitlines()[-1]


def test_it_measures_and_writes_json(tmp_path):
    file = tmp_path / "result.json"
    done = CliRunner().invoke(main, ["bench", "W0s", "--seconds", "0.05", "--rounds", "1", "--json", str(file)])
    assert done.exit_code == 0, done.output
    result = json.loads(file.read_text())
    assert result["rows"][0]["workload"] == "W0s"
    assert set(result["machine"]["peak_gflops"]) == {"fp32", "bf16", "int8"}
    assert "W0s" in done.stdout
    streamed = CliRunner().invoke(main, ["bench", "W0s", "--seconds", "0.05", "--rounds", "1", "--json", "-"])
    assert json.loads(streamed.stdout)["rows"][0]["workload"] == "W0s"


def test_without_any_row_it_fails_and_writes_nothing(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise comparison.WorkerError("pyjepa: nothing works today")

    monkeypatch.setattr(comparison.Worker, "prepare", refuse)
    file = tmp_path / "result.json"
    done = CliRunner().invoke(main, ["bench", "W0s", "--json", str(file)])
    assert done.exit_code == 1
    assert "nothing works today" in done.stderr
    assert not file.exists()


def test_every_workload_is_in_the_help():
    text = CliRunner().invoke(main, ["bench", "--help"]).stdout
    assert all(name in text for name in WORKLOADS)


def test_the_loss_has_a_command_line_of_its_own():
    context = click.Context(main)
    found = command.make_context("bench", ["vicreg", "--help"], parent=context, resilient_parsing=True)
    assert found.command is not command
    assert CliRunner().invoke(main, ["bench", "vicreg", "--help"]).exit_code == 0


def test_memory_of_a_workload_and_of_a_file(tmp_path):
    if not Path("/proc/self/status").is_file():
        pytest.skip("the system does not tell a process's memory")
    file = tmp_path / "memory.json"
    done = CliRunner().invoke(main, ["bench", "memory", "W0L", "--precision", "fp32", "--json", str(file)])
    assert done.exit_code == 0, done.output
    result = json.loads(file.read_text())
    (row,) = result["rows"]
    assert result["agent"] == "W0L"
    assert 4 * (66 * 256 + 256 * 256 + 256 * 64) < result["file_bytes"] < 1e6
    assert 0 < row["before"] <= row["loaded"] <= row["peak"] < 1e9
    done = CliRunner().invoke(main, ["bench", "memory", str(agents.path("two_rooms")), "--precision", "fp32"])
    assert done.exit_code == 0, done.output
    assert "fp32" in done.stdout
    done = CliRunner().invoke(main, ["bench", "memory", "W7"])
    assert done.exit_code == 2
    assert "W7: neither a file nor a workload" in done.stderr
    (tmp_path / "broken.safetensors").write_bytes(b"no agent")
    done = CliRunner().invoke(main, ["bench", "memory", str(tmp_path / "broken.safetensors")])
    assert done.exit_code == 2
    assert "is this a safetensors file?" in done.stderr
