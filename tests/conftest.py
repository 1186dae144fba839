"""Keeps the checkout off the path, so that the installed package is tested.

``python -m pytest`` puts the working directory first, and ./pyjepa there has no extension.
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]
