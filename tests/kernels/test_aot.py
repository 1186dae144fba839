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
    assert {row["target"] for row in rows} == set(aot.TARGETS)


def test_the_committed_table_covers_every_shipped_configuration():
    for op in ("vicreg", "sigreg"):
        configs = json.loads((aot.files(aot.__package__) / op / "configs.json").read_text())
        shipped = {" ".join(f"{k}={v}" for k, v in c.items() if k != "up_to") for cs in configs.values() for c in cs}
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


def test_problems_and_differences_are_found():
    report = aot.committed()
    bad = json.loads(json.dumps(report))
    row = next(row for row in bad["rows"] if row["uses_dot"])
    row |= {"spills": 4, "registers": 256, "shared_bytes": 1 << 20, "matrix_instruction": None}
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
