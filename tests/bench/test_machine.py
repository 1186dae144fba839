"""What a measurement says of its machine."""

import pytest

from pyjepa import _engine
from pyjepa.bench import machine
from pyjepa.bench.worker import Contestant, Worker, stolen_seconds
from pyjepa.errors import InvalidArgumentError


def test_the_peak_is_a_speed_and_its_arguments_are_checked():
    peak = max(_engine.measure_peak("fp32", 0.05) for _ in range(3))
    assert 0.1 < peak < 1e4
    with pytest.raises(InvalidArgumentError, match="fp32, bf16 or int8"):
        _engine.measure_peak("fp64", 0.01)
    with pytest.raises(InvalidArgumentError, match="seconds"):
        _engine.measure_peak("fp32", 11.0)


def test_workers_measure_the_peak_where_the_machine_can():
    worker = Worker(Contestant("", 1), processors=None)
    found = {precision: worker.peak(precision, 0.02) for precision in ("fp32", "bf16", "int8")}
    worker.close()
    assert found["fp32"] > 0.1
    assert all(peak is None or peak > found["fp32"] for precision, peak in found.items() if precision != "fp32")


def test_a_session_has_a_priority_or_none():
    priority = machine.session_niceness()
    assert priority is None or -20 <= priority <= 19
    assert stolen_seconds() >= 0.0
