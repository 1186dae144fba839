"""Makes `benchmarks/results/energy-lab.json` of the folder that `pyjepa energy-lab --out FOLDER` wrote.

Run: python benchmarks/energy_lab.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pyjepa.atomic import write_text

RESULT = Path(__file__).resolve().parent / "results" / "energy-lab.json"


def main(folder: Path) -> None:
    document = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("results", "details")}
    document["ranks"] = {
        name: json.loads((folder / "units" / f"collapse-{name}.json").read_text("utf-8"))["ranks"]
        for name in document["results"]["collapse"]
    }
    write_text(RESULT, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
