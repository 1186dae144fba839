"""What loading an agent file and planning with it takes: memory at its peak, and time, in a process of its own.

Peaks are the whole process's (VmHWM), with the interpreter and NumPy: what a machine must have to spare.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa.agent import Agent, Model, Precision
from pyjepa.errors import PyjepaError, UnsupportedError
from pyjepa.spec import Observation

STATUS = Path("/proc/self/status")
LOADS = 9
"""Times that the file is loaded to say how long it takes."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of resident memory, and milliseconds."""

    precision: str
    before: int
    """When all is imported."""
    loaded: int
    """With the model's weights packed."""
    peak: int
    """The most until a plan was made."""
    load_ms: float
    """Median of `LOADS` loads, the file in the system's cache."""
    load_cpu_ms: float
    """The least processor time of them."""


def measure(file: str | Path, precision: Precision, *, iterations: int | None = None) -> Footprint:
    """Loads ``file`` in a new process, perceives noise and plans once on one thread.

    ``iterations``: of the planner; None: as many as the file says. Raises `UnsupportedError` where the system does not
    tell a process's memory or the machine lacks the precision, and `PyjepaError` where the file cannot be planned with.
    """
    import subprocess  # not where memory is counted

    if not STATUS.is_file():
        raise UnsupportedError(f"this system has no {STATUS}, which tells a process's memory")
    arguments = [str(file), precision, "" if iterations is None else str(iterations)]
    child = subprocess.run(
        [sys.executable, "-P", "-m", "pyjepa.bench.memory", *arguments], capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise PyjepaError(f"{file}: {(child.stderr.strip().splitlines() or [f'exit code {child.returncode}'])[-1]}")
    found = json.loads(child.stdout)
    if found["precision"] != precision:
        raise UnsupportedError(f"this machine has no {precision} instructions")
    return Footprint(**found)


def _resident(key: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))


def _noise(observation: Observation, rng: np.random.Generator) -> npt.NDArray[Any]:
    if observation.dtype == "uint8":
        return rng.integers(0, 256, observation.shape, dtype=np.uint8)
    return rng.standard_normal(observation.shape, dtype=np.float32)


def _child(arguments: Sequence[str]) -> None:
    file, precision, iterations = arguments
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a precision that is not there: the parent says so
        before = _resident("VmRSS")
        model = Model.load(file, precision=precision)  # type: ignore[arg-type]
        loaded = _resident("VmRSS")
        agent = Agent(model)
        goal = _noise(model.spec.observation, rng) if model.spec.reads_goal else None
        if iterations:
            agent.configure(goal=goal, iterations=int(iterations))
        else:
            agent.configure(goal=goal)
        agent.plan(_noise(model.spec.observation, rng))
        peak = _resident("VmHWM")
        wall, processor = [], []
        for _ in range(LOADS):
            begun = time.perf_counter(), time.process_time()
            Model.load(file, precision=precision)  # type: ignore[arg-type]
            wall.append(time.perf_counter() - begun[0])
            processor.append(time.process_time() - begun[1])
    found = Footprint(
        precision=model.precision,
        before=before,
        loaded=loaded,
        peak=peak,
        load_ms=round(float(np.median(wall)) * 1e3, 2),
        load_cpu_ms=round(min(processor) * 1e3, 2),
    )
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _child(sys.argv[1:])
