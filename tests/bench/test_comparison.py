"""Measuring: workers answer, rows hold what they should, what cannot run is said, neighbours end."""

import dataclasses
import json
import os
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny import CEM, tiny, tiny_eb_jepa, tiny_lewm, tiny_tdmpc2

from pyjepa.bench import comparison
from pyjepa.bench.comparison import Settings, measure
from pyjepa.bench.worker import Contestant, Worker, WorkerError
from pyjepa.bench.workloads import mode1, residual_mlp
from pyjepa.spec import Layer, Mlp

QUICK = Settings(seconds=0.1, rounds=2, plans_for_cost=3)


def run(workloads=None, *, threads=(1,), precisions=("fp32",), peers=(), settings=QUICK):
    notes = []
    result = measure(
        workloads or [tiny()],
        threads=threads,
        precisions=precisions,
        chosen_peers=peers,
        settings=settings,
        problem_found=notes.append,
    )
    return result, notes


def test_rows_hold_times_speed_and_cost():
    result, notes = run(threads=(1, 2))
    assert not notes
    assert [(row["workload"], row["threads"], row["precision"]) for row in result["rows"]] == [
        ("tiny", 1, "fp32"),
        ("tiny", 2, "fp32"),
    ]
    peak = result["machine"]["peak_gflops"]["fp32"]
    assert peak > 1
    for row in result["rows"]:
        assert row["impl"].startswith("pyjepa ")
        assert 0 < row["plan_ms_p50"] <= row["plan_ms_p99"] <= row["plan_ms_p99_9"]
        assert row["n"] >= row["undisturbed"]["n"] >= 0
        flops = 2 * (10 * 16 + 16 * 16 + 16 * 8) * 4 * 48 * 3
        assert row["gflops"] == pytest.approx(flops / row["plan_ms_p50"] / 1e6, rel=0.05, abs=0.01)
        assert row["fraction_of_peak"] == pytest.approx(row["gflops"] / peak / row["threads"], abs=1e-3)
    first, second = (row["final_cost"] for row in result["rows"])
    assert first == second  # as many threads as you like: the same plans
    text = json.dumps(result)
    assert os.uname().nodename not in text
    assert str(os.getcwd()) not in text


def test_int8_runs_with_and_without_scales_found_beforehand():
    wide = residual_mlp("wide", latent=32, hidden=(64, 64), planner=CEM)
    result, notes = run([wide], precisions=("int8", "int8-static"))
    if notes:
        assert len(notes) == 2
        assert all("no int8 instructions" in note for note in notes)
        pytest.skip("this machine has no int8 instructions")
    dynamic, static = result["rows"]
    assert (dynamic["precision"], static["precision"]) == ("int8", "int8")
    assert (dynamic.get("variant", ""), static["variant"]) == ("", "static")
    for row in (dynamic, static):
        assert row["fraction_of_peak"] == pytest.approx(
            row["gflops"] / result["machine"]["peak_gflops"]["int8"], abs=1e-3
        )
    assert dynamic["final_cost"] != static["final_cost"], "other bytes, other plans"
    assert dynamic["final_cost"] == pytest.approx(static["final_cost"], rel=0.1)


def test_rows_say_how_far_a_deadline_was_overrun():
    result, notes = run(settings=dataclasses.replace(QUICK, deadline=1e-4))
    assert not notes
    (row,) = result["rows"]
    for part in (row, row["undisturbed"]):
        shares = [part[f"overrun_us_{share}"] for share in ("p50", "p99", "p99_9", "max") if part["n"]]
        assert shares == sorted(shares)
    assert row["overrun_us_p50"] > -100, "no plan ends before it began"
    assert 0 < row["tile_us"] < 1e6
    generous, _ = run(settings=dataclasses.replace(QUICK, deadline=10.0))
    assert generous["rows"][0]["overrun_us_max"] < 0
    plain, _ = run()
    assert not [key for key in plain["rows"][0] if "overrun" in key or key == "tile_us"]


def test_a_peer_runs_beside_the_engine_and_plans_as_well():
    pytest.importorskip("torch")
    result, notes = run(peers=("torch",))
    assert not notes
    ours, theirs = result["rows"]
    assert theirs["impl"].startswith("torch ")
    assert theirs["final_cost"] == pytest.approx(ours["final_cost"], rel=0.05)


def test_tdmpc2_runs_beside_torch_in_every_precision():
    pytest.importorskip("torch")
    result, notes = run([tiny_tdmpc2()], precisions=("fp32", "bf16", "int8"), peers=("torch", "torch-bf16", "numba"))
    missing = [precision for precision, peak in result["machine"]["peak_gflops"].items() if peak is None]
    assert all(f"no {precision} instructions" in note for precision, note in zip(missing, notes, strict=True))
    rows = {(row["peer"], row["precision"]): row for row in result["rows"]}
    assert set(rows) == {("pyjepa", p) for p in ("fp32", "bf16", "int8") if p not in missing} | {
        ("torch", "fp32"),
        ("torch-bf16", "bf16"),
    }
    assert all(row["final_cost"] < 0 for row in rows.values())


def test_a_recurrent_workload_is_also_measured_with_its_encoding():
    pytest.importorskip("torch")
    result, notes = run([tiny_eb_jepa()], peers=("torch",))
    assert not notes
    rows = {(row["peer"], row.get("operation")): row for row in result["rows"]}
    assert set(rows) == {(peer, what) for peer in ("pyjepa", "torch") for what in (None, "encode and plan")}
    alone, both = rows["pyjepa", None], rows["pyjepa", "encode and plan"]
    assert both["plan_ms_p50"] > alone["plan_ms_p50"]
    theirs = rows["torch", "encode and plan"]
    assert theirs["gflops"] * theirs["plan_ms_p50"] == pytest.approx(both["gflops"] * both["plan_ms_p50"], rel=0.05)
    assert rows["torch", None]["final_cost"] == pytest.approx(alone["final_cost"], rel=0.1)


def test_a_workload_that_looks_back_is_measured_beside_torch():
    pytest.importorskip("torch")
    result, notes = run([tiny_lewm()], peers=("torch", "torch-bf16"))
    assert not notes
    rows = {row["peer"]: row for row in result["rows"]}
    assert set(rows) == {"pyjepa", "torch", "torch-bf16"}
    assert len([row for row in result["rows"] if row.get("operation") == "encode and plan"]) == 3
    assert rows["torch"]["final_cost"] == pytest.approx(rows["pyjepa"]["final_cost"], rel=0.1)


def test_what_cannot_run_is_said_and_left_out():
    workload = tiny()
    module = workload.spec.modules["predictor"]
    block = Mlp(layers=(Layer(out=16, activation="gelu"), Layer(out=16), Layer(out=8)))
    spec = dataclasses.replace(workload.spec, modules={"predictor": dataclasses.replace(module, blocks=(block,))})
    result, notes = run([dataclasses.replace(workload, spec=spec)], peers=("onnxruntime",))
    assert [row["peer"] for row in result["rows"]] == ["pyjepa"]
    (note,) = notes
    reason = "no ONNX operator for gelu" if find_spec("onnx") else "pip install onnxruntime onnx"
    assert note.startswith("tiny, 1 thread: onnxruntime: ")
    assert reason in note


def test_mode1_measures_calls():
    result, notes = run([mode1()], threads=(1, 2))
    assert not notes
    operations = {row["operation"]: row for row in result["rows"]}
    assert set(operations) == {"act", "act, 2-2 policy", "observe", "observe and act"}
    assert operations["act"]["plan_ms_p50"] < operations["observe and act"]["plan_ms_p50"] < 50
    assert operations["act"]["final_cost"] is None


def test_a_loop_too_slow_for_its_clock_misses_ticks():
    result, _ = run(settings=dataclasses.replace(QUICK, pace=100_000.0))
    (row,) = result["rows"]
    assert row["ticks"] == 10_000
    assert row["missed"] >= row["ticks"] - row["n"] > 0
    relaxed, _ = run(settings=dataclasses.replace(QUICK, pace=20.0, seconds=0.5))
    (row,) = relaxed["rows"]
    assert row["ticks"] == 10
    assert row["n"] + row["missed"] >= 10
    assert row["plan_ms_p50"] <= row["tick_ms_p50"] <= row["tick_ms_max"]


def test_the_neighbour_works_and_leaves():
    def busy(process):
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return int(fields[11]) / os.sysconf("SC_CLK_TCK")

    with comparison._neighbour(True) as spinning:
        stop = time.monotonic() + 60
        while busy(spinning) < 0.2 and time.monotonic() < stop:
            time.sleep(0.05)
        assert busy(spinning) >= 0.2
        assert spinning.poll() is None
    assert spinning.poll() is not None


def test_a_worker_that_dies_is_an_error_with_its_exit_code():
    worker = Worker(Contestant("", 1), processors=None)
    worker.prepare(tiny())
    worker._process.kill()
    with pytest.raises(WorkerError, match=r"pyjepa died \(exit code -9\)"):
        worker.run("plan", 0.01)
    worker.close()


def test_a_worker_runs_where_it_is_told_and_ends_when_closed():
    worker = Worker(Contestant("", 1), processors=[min(os.sched_getaffinity(0))])
    worker.prepare(tiny())
    assert os.sched_getaffinity(worker._process.pid) == {min(os.sched_getaffinity(0))}
    samples = worker.run("plan", 10.0, most=7)
    assert len(samples.seconds) == len(samples.switches) == 7
    worker.close()
    assert not worker._process.is_alive()


def test_the_environment_is_left_as_it_was(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    Worker(Contestant("torch", 1), processors=None).close()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ
