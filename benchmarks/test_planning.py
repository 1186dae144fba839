"""pytest-benchmark suite of planning: the engine, and torch where it is installed, on one thread.

Run: python -m pytest benchmarks/test_planning.py
"""

import dataclasses
import time
from importlib.util import find_spec

import pytest

from pyjepa import _engine
from pyjepa.bench import engine, peers
from pyjepa.bench.workloads import WORKLOADS, Problem, problem_of
from pyjepa.errors import UnsupportedError
from pyjepa.quantise import Situation, calibrate

PLANNED = [name for name in WORKLOADS if name != "mode1"]


@pytest.mark.parametrize("precision", engine.PRECISIONS)
@pytest.mark.parametrize("name", PLANNED)
def test_engine(benchmark, name, precision):
    try:
        planning = engine.Planning(WORKLOADS[name](), threads=1, precision=precision)
    except UnsupportedError as error:
        pytest.skip(str(error))
    benchmark.group = name
    benchmark(planning.plan)


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("name", PLANNED)
def test_torch(benchmark, name):
    prepared = peers.prepare("torch", problem_of(WORKLOADS[name]()), threads=1)
    benchmark.group = name
    benchmark(prepared.plan)


@pytest.mark.parametrize("operation", ["act", "act, 2-2 policy", "observe", "observe and act"])
def test_mode1(benchmark, operation):
    benchmark.group = "mode1"
    benchmark(engine.reflex_operations(WORKLOADS["mode1"]())[operation].call)


@pytest.mark.parametrize(
    ("name", "precision", "floor"),
    [
        ("W0", "fp32", 0.65),
        ("W0L-mppi", "fp32", 0.65),
        ("W0L-mppi", "bf16", 0.65),
        ("W0L-mppi", "int8", 0.45),
        ("W0L-mppi", "int8 static", 0.55),
    ],
)
def test_the_kernels_are_as_fast_as_they_were(name, precision, floor):
    """A compiler that spills accumulators halves the speed without failing anything else.

    Best against best, so that a busy machine does not matter much.
    """
    workload = WORKLOADS[name]()
    flops = Problem.of(workload).flops
    precision, _, static = precision.partition(" ")
    if static:
        situation = Situation(workload.observation, workload.goal)
        workload = dataclasses.replace(workload, spec=calibrate(workload.model(), workload.tensors, [situation]))
    try:
        planning = engine.Planning(workload, threads=1, precision=precision)
    except UnsupportedError as error:
        pytest.skip(str(error))
    best, peak = float("inf"), 0.0
    for _ in range(40):
        started = time.perf_counter()
        planning.plan()
        best = min(best, time.perf_counter() - started)
        peak = max(peak, _engine.measure_peak(precision, 0.002))
    assert flops / best / 1e9 > floor * peak
