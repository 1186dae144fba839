"""What holds for every test: the installed package is tested, and slow tests run only where asked for (``-m slow``).

``python -m pytest`` puts the working directory first on the path, and ./pyjepa there has no extension.
"""

import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr:
        config.option.markexpr = "not slow"
