"""What a measurement was taken on, in words that name no one's machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

import pyjepa
from pyjepa import _engine


def cpu_model() -> str:
    """The processor's name as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def session_niceness() -> int | None:
    """The priority of this session among others where Linux schedules by session (autogroup); None elsewhere."""
    try:
        return int(Path("/proc/self/autogroup").read_text(encoding="ascii").split()[-1])
    except (OSError, ValueError, IndexError):
        return None


def describe() -> dict[str, Any]:
    """CPU, cores, instruction set and versions."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "isa": _engine.isa(),
        "precisions": {name: _engine.precision_isa(name) or "as fp32" for name in ("fp32", "bf16", "int8")},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyjepa": pyjepa.__version__,
    }
