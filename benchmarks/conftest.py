"""The installed package is measured: ``python -m pytest`` puts the root first on the path, where ./pyjepa lies."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]
