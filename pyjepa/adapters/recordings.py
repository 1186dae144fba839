"""Recordings of real machines: evenly sampled rows, every number finite, or an error that names what is wrong.

The one that is used here is the flight of an A320 in the samples of the package ``traffic`` (Olive 2019,
https://github.com/xoolive/traffic), from its flight data recorder: 11,808 rows at 1 Hz, anonymised. The package is
located, not imported; the file is JSON.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyjepa.errors import MissingPackageError, PyjepaError

OBSERVED = ("altitude", "CAS", "groundspeed", "track", "drift", "vertical_acceleration")
"""ft, kt, kt, degrees (unwrapped: no jump from 180 to -180), degrees, g."""
CONTROLS = ("pitch", "roll", "fuelflow")
"""degrees, degrees, kg/h of both engines: attitudes and a stand-in for thrust, not what the pilot's hand did."""
SAMPLE = "fuelflow_a320.json.gz"


class RecordingError(PyjepaError, ValueError):
    """The recording is missing, damaged or not evenly sampled; the message names the file, sensor and row."""


@dataclass(frozen=True)
class Flight:
    """Rows of a flight, one a second."""

    observed: NDArray[np.float64]
    """(T, 6): `OBSERVED`."""
    controls: NDArray[np.float64]
    """(T, 3): `CONTROLS`."""

    def __len__(self) -> int:
        return len(self.observed)


def a320_sample() -> Path:
    """Where the package ``traffic`` keeps the flight. Raises `MissingPackageError` where it is not installed."""
    try:
        found = distribution("traffic")
    except PackageNotFoundError as error:
        raise MissingPackageError(
            "the flight needs traffic: pip install --no-deps traffic (or pip install 'pyjepa-engine[envs]')"
        ) from error
    for file in found.files or ():
        if file.name == SAMPLE:
            return Path(str(found.locate_file(file)))
    raise RecordingError(f"traffic {found.version} has no sample {SAMPLE} (2.13 has)")


def read_a320(path: str | os.PathLike[str] | None = None) -> Flight:
    """The flight in a file of the sample's form: a JSON object (gzip) of sensors, each an object of rows.

    Raises `RecordingError` for a missing sensor, a number that is none, or rows that are not a second apart, and
    FileNotFoundError.
    """
    source = a320_sample() if path is None else Path(path)
    try:
        with gzip.open(source) as file:
            columns = json.loads(file.read())
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise RecordingError(f"{source.name}: no gzipped JSON ({error})") from error
    if not isinstance(columns, dict) or not all(isinstance(column, dict) for column in columns.values()):
        raise RecordingError(f"{source.name}: expected an object of sensors, each an object of rows")
    missing = [name for name in ("timestamp", *OBSERVED, *CONTROLS) if name not in columns]
    if missing:
        raise RecordingError(f"{source.name}: no sensor {missing[0]!r} (there are: {', '.join(columns)})")
    rows = list(columns["timestamp"])
    values = {}
    for name in ("timestamp", *OBSERVED, *CONTROLS):
        if list(columns[name]) != rows:
            raise RecordingError(f"{source.name}: sensor {name!r} has other rows than 'timestamp'")
        values[name] = np.array([_number(value) for value in columns[name].values()])
        check_finite(values[name], f"{source.name}: sensor {name!r}")
    check_sampling(values["timestamp"], 1000.0, source.name)
    values["track"] = np.unwrap(values["track"], period=360.0)
    return Flight(_stack(values, OBSERVED), _stack(values, CONTROLS))


def check_finite(values: NDArray[np.floating], name: str) -> None:
    """Raises `RecordingError` naming the first row that is not finite."""
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise RecordingError(f"{name}: row {bad[0]} is not a finite number ({len(bad)} such rows of {len(values)})")


def check_sampling(times: NDArray[np.floating], interval: float, name: str, *, tolerance: float = 1e-3) -> None:
    """Raises `RecordingError` naming the first row that does not come ``interval`` after the one before it."""
    steps = np.diff(times)
    bad = np.flatnonzero(np.abs(steps - interval) > tolerance * interval)
    if len(bad):
        raise RecordingError(
            f"{name}: unequal sampling: row {bad[0] + 1} comes {steps[bad[0]]:g} after the one before it, "
            f"expected {interval:g}"
        )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _stack(values: dict[str, NDArray[np.float64]], names: Sequence[str]) -> NDArray[np.float64]:
    return np.stack([values[name] for name in names], axis=1)
