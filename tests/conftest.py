"""What holds for every test: the installed package is tested, by one thread, and slow tests run only where asked for
(``-m slow``).

``python -m pytest`` puts the working directory first on the path, and ./pyjepa there has no extension.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]

# Networks here are so small that torch's threads would wait for one another most of the time. Before torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if all(importlib.util.find_spec(name) is not None for name in ("torch", "triton")):
    import torch

    if not torch.cuda.is_available():
        # Triton reads this when it is imported and when a kernel is defined, so before any test module is collected.
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr:
        config.option.markexpr = "not slow"
