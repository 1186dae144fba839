"""``python -m pyjepa`` is the command ``pyjepa``."""

from pyjepa.cli import main

main(prog_name="python -m pyjepa")
