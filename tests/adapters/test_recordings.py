"""The reader of the A320's flight, on small files of the same form, and on the flight itself where it is installed."""

import gzip
import importlib.metadata
import json

import numpy as np
import pytest

from pyjepa.adapters.recordings import CONTROLS, OBSERVED, RecordingError, a320_sample, check_sampling, read_a320
from pyjepa.errors import MissingPackageError


def columns(rows=20):
    rng = np.random.default_rng(0)
    index = [str(600 + i) for i in range(rows)]
    values = {name: rng.standard_normal(rows).round(3).tolist() for name in (*OBSERVED, *CONTROLS, "weight")}
    values["track"] = (((175.0 + np.arange(rows)) + 180) % 360 - 180).tolist()
    values["timestamp"] = [1_311_427_389_000 + 1000 * i for i in range(rows)]
    return {name: dict(zip(index, column, strict=True)) for name, column in values.items()}


def written(folder, content):
    path = folder / "flight.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return path


def test_a_flight_is_read_and_its_track_unwrapped(tmp_path):
    data = columns()
    flight = read_a320(written(tmp_path, data))
    assert flight.observed.shape == (20, 6)
    assert flight.controls.shape == (20, 3)
    assert len(flight) == 20
    assert np.array_equal(flight.observed[:, OBSERVED.index("CAS")], list(data["CAS"].values()))
    assert np.array_equal(flight.controls[:, CONTROLS.index("pitch")], list(data["pitch"].values()))
    assert np.array_equal(np.diff(flight.observed[:, OBSERVED.index("track")]), np.ones(19))


def changed(change):
    data = columns()
    change(data)
    return data


def set_row(sensor, row, value):
    def change(data):
        data[sensor][str(600 + row)] = value

    return lambda: changed(change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (set_row("CAS", 7, None), r"sensor 'CAS': row 7 is not a finite number \(1 such rows of 20\)"),
        (set_row("altitude", 3, float("nan")), "sensor 'altitude': row 3"),
        (set_row("roll", 0, "left"), "sensor 'roll': row 0"),
        (set_row("timestamp", 5, 1_311_427_394_500), "unequal sampling: row 5 comes 1500 after"),
        (lambda: changed(lambda data: data.pop("drift")), "no sensor 'drift'"),
        (lambda: changed(lambda data: data["pitch"].pop("610")), "sensor 'pitch' has other rows"),
        (lambda: [1, 2], "expected an object of sensors"),
    ],
)
def test_bad_sensors_are_named(tmp_path, make, message):
    with pytest.raises(RecordingError, match=message):
        read_a320(written(tmp_path, make()))


def test_what_is_no_recording_is_an_error(tmp_path):
    path = tmp_path / "flight.json.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(RecordingError, match="no gzipped JSON"):
        read_a320(path)
    path.write_bytes(gzip.compress(b"{}")[:-6])
    with pytest.raises(RecordingError, match="no gzipped JSON"):
        read_a320(path)
    with pytest.raises(FileNotFoundError):
        read_a320(tmp_path / "nothing")


def test_a_missing_package_says_what_to_install(monkeypatch):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("pyjepa.adapters.recordings.distribution", none)
    with pytest.raises(MissingPackageError, match=r"needs traffic: pip install --no-deps traffic .*\[envs\]"):
        a320_sample()


def test_sampling_may_be_off_by_little():
    check_sampling(np.array([0.0, 1.0, 2.0005]), 1.0, "clock")
    with pytest.raises(RecordingError, match="clock: unequal sampling: row 2 comes 2 after"):
        check_sampling(np.array([0.0, 1.0, 3.0]), 1.0, "clock")


def test_the_flight_itself():
    try:
        path = a320_sample()
    except MissingPackageError:
        pytest.skip("traffic is not installed")
    flight = read_a320(path)
    assert flight.observed.shape == (11_808, 6)
    assert flight.observed[:, OBSERVED.index("altitude")].max() == 36_052
