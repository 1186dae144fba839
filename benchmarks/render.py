"""Renders every measured number of README.md and docs/ from benchmarks/results.

Run: python benchmarks/render.py            writes what has changed, and draws the plots
     python benchmarks/render.py --check    writes nothing; exits with 1 if a document would change

A document asks for a table by name:

    <!-- render: plan -->
    <!-- /render -->

What lies between the two lines is replaced. To add a table: a function from the folder of results to Markdown in a file
of benchmarks/tables, under its name in that file's TABLES. A plot is a function from the folder of results and the file
to write, under that file's path in PLOTS.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tables import bounds, energy, images, losses, outside, planners, planning, rollouts

ROOT = Path(__file__).resolve().parents[1]

TABLES: Mapping[str, Callable[[Path], str]] = {
    **bounds.TABLES,
    **energy.TABLES,
    **images.TABLES,
    **losses.TABLES,
    **outside.TABLES,
    **planners.TABLES,
    **planning.TABLES,
    **rollouts.TABLES,
}
PLOTS: Mapping[str, Callable[[Path, Path], None]] = {
    **losses.PLOTS,
    **energy.PLOTS,
    **outside.PLOTS,
    **planners.PLOTS,
}

_PLACE = re.compile(r"^<!-- render: (?P<name>\S+) -->\n(?P<old>.*?)^<!-- /render -->$", re.MULTILINE | re.DOTALL)


def rendered(text: str, results: Path) -> str:
    """A document's text with its tables made anew. Raises `ValueError` for an unknown table or a marker alone."""

    def table(place: re.Match[str]) -> str:
        name = place["name"]
        if name not in TABLES:
            raise ValueError(f"no table called {name!r} (known: {', '.join(sorted(TABLES))})")
        return f"<!-- render: {name} -->\n{TABLES[name](results).strip()}\n<!-- /render -->"

    made = _PLACE.sub(table, text)
    for marker in (r"^<!-- render: ", r"^<!-- /render"):
        if len(re.findall(marker, made, re.MULTILINE)) != len(_PLACE.findall(made)):
            raise ValueError("a render marker without its other half")
    return made


def documents(root: Path) -> list[Path]:
    """Where tables may stand."""
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("examples/**/*.md")])


def main(arguments: list[str], root: Path = ROOT) -> int:
    """0 where all is up to date (or has been brought there)."""
    stale = 0
    for document in documents(root):
        old = document.read_text(encoding="utf-8")
        try:
            new = rendered(old, root / "benchmarks" / "results")
        except (ValueError, KeyError, OSError) as error:
            sys.exit(f"{document.relative_to(root)}: {type(error).__name__}: {error}")
        if new == old:
            continue
        stale += 1
        print(f"{document.relative_to(root)}: {'out of date' if '--check' in arguments else 'rendered'}")
        if "--check" not in arguments:
            document.write_text(new, encoding="utf-8")
    if "--check" not in arguments:
        for path, plot in PLOTS.items():
            if (root / path).parent.is_dir():
                plot(root / "benchmarks" / "results", root / path)
    return int("--check" in arguments and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
