"""The command for the day a GPU is there: rehearsed on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "on_gpu.py"


def test_it_tests_measures_and_writes_a_file_for_each_benchmark(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rehearse", "--folder", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for loss in ("vicreg", "sigreg"):
        document = json.loads((tmp_path / f"{loss}-rehearsal.json").read_text())
        assert document["kernel"] == loss
        assert document["tests"]["exit_code"] == 0
        assert " passed" in document["tests"]["summary"]
        assert all(row["median_s"] > 0 for row in document["results"])
    document = json.loads((tmp_path / "rollouts-rehearsal.json").read_text())
    assert [row["provider"] for row in document["results"]] == ["fused", "torch"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in document["results"])
    assert document["tests"]["exit_code"] == 0


def test_without_a_gpu_it_says_so(tmp_path):
    code = (
        "import runpy, sys, torch; torch.cuda.is_available = lambda: False;"
        f"sys.argv = ['on_gpu.py', '--folder', {str(tmp_path)!r}]; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no GPU that torch can use" in done.stderr
    assert not list(tmp_path.iterdir())
