"""Types of options that several commands share."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click


class Positive(click.FloatRange):
    """A finite number above 0."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuses what is not finite, too."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class ResultFile(click.Path):
    """A file that will be written when all is done (``-``: standard output); refused now if it cannot be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuses folders, and files in folders that are not there or cannot be written to."""
        path = os.fsdecode(super().convert(value, param, ctx))
        if path == "-":
            return path
        folder = Path(os.path.realpath(path)).parent
        if Path(path).is_dir():
            self.fail(f"'{path}' is a folder.", param, ctx)
        if not folder.is_dir():
            self.fail(f"'{path}' is in no folder that exists.", param, ctx)
        if not os.access(folder, os.W_OK):
            self.fail(f"'{path}' cannot be written.", param, ctx)
        return path
