"""Every kernel and shipped configuration compiles for every target without spills, and the table says so."""

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("triton")

from pyjepa.kernels import aot

from pyjepa.cli.kernels import command


def test_the_committed_table_is_within_every_limit():
    rows = aot.committed()["rows"]
    assert aot.problems(rows) == []
    names = {row["kernel"] for row in rows}
    for form in ("gram", "primal"):
        for phase in ("forward", "backward"):
            assert any(name.startswith(f"vicreg.{form}.{phase}.") for name in names)
    assert any(name.startswith("sigreg.forward.") for name in names)
    assert any(name.startswith("sigreg.backward.") for name in names)
    assert {f"rollout.{kind}.{way}" for kind in ("mlp", "normed", "gru") for way in ("forward", "backward")} <= names
    stepwise = ("dense", "dense_normed", "cell", "dense_backward", "action_gradient", "through_layer", "through_cell")
    assert {f"rollout.stepwise.{kernel}" for kernel in stepwise} <= names
    assert {row["target"] for row in rows} == set(aot.TARGETS)


def test_the_committed_table_covers_every_shipped_configuration():
    for op in ("vicreg", "sigreg", "rollout"):
        configs = json.loads((aot.files(aot.__package__) / op / "configs.json").read_text())
        items = [c.items() for entries in configs.values() for c in entries]
        shipped = {" ".join(f"{k}={v}" for k, v in each if k not in aot.WHERE) for each in items}
        listed = {row["config"] for row in aot.committed()["rows"] if row["kernel"].startswith(op)}
        assert shipped == listed


def check(targets):
    fresh = aot.compile_all(targets)
    assert {row["target"] for row in fresh["rows"]} == set(targets)
    assert aot.problems(fresh["rows"]) == []
    assert aot.differences(fresh, aot.committed()) == []


def test_a_fresh_compilation_for_sm_90_is_the_committed_one():
    check(["sm_90"])


@pytest.mark.slow
def test_a_fresh_compilation_for_every_target_is_the_committed_one():
    check([*aot.TARGETS])


def test_estimates_follow_from_sizes_and_data_sheets():
    found = {(row.workload, row.candidates, row.target): row for row in aot.rollout_estimates()}
    w0l = found["W0L", 8192, "sm_90"]
    weights = 66 * 256 + 256 * 256 + 256 * 64
    assert w0l.way == "fused"
    assert w0l.flops == 2 * 8192 * 10 * weights
    assert w0l.bytes == 4 * (weights + 8192 * (10 * 2 + 1) + 2 * 64)
    assert w0l.roofline_us == round(1e6 * w0l.flops / aot.TARGETS["sm_90"].dot_peak, 3)
    few = found["W0L", 64, "sm_90"]  # four blocks of rows for 132 compute units
    assert few.roofline_us == round(1e6 * few.flops / (aot.TARGETS["sm_90"].dot_peak * 4 / 132), 3)
    assert {row.way for row in found.values() if row.workload == "W1-like"} == {"stepwise"}


def test_problems_and_differences_are_found():
    report = aot.committed()
    bad = json.loads(json.dumps(report))
    row = next(row for row in bad["rows"] if row["uses_dot"])
    row |= {"spills": 4, "registers": 513, "shared_bytes": 1 << 20, "matrix_instruction": None}
    assert len(aot.problems(bad["rows"])) == 4
    assert len(aot.differences(bad, report)) == 4
    assert "not in the table" in aot.differences(report, {**report, "rows": report["rows"][1:]})[0]
    assert "only in the table" in aot.differences({**report, "rows": report["rows"][1:]}, report)[0]
    assert "make it anew" in aot.differences({**report, "triton": "0"}, report)[0]


def test_the_command_prints_and_writes_the_committed_table(tmp_path):
    run = CliRunner().invoke(command, ["--committed", "--json", str(tmp_path / "rows.json")])
    assert run.exit_code == 0, run.output
    assert json.loads((tmp_path / "rows.json").read_text()) == aot.committed()
    assert len(run.output.splitlines()) == 2 + len(aot.committed()["rows"])
    assert "wgmma.mma_async" in run.output
