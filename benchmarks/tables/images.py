"""Images: what benchmarks/images.py wrote."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tables.planning import load, markdown

Row = dict[str, Any]
TITLES = {
    "vicreg": "VICReg",
    "sigreg": "SIGReg",
    "barlow_twins": "Barlow Twins",
    "ema": "EMA target",
    "none": "nothing",
}


def percent(values: list[float]) -> str:
    """The mean, and the least and the most."""
    mean, least, most = (100 * value for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean:.1f} ({least:.1f}-{most:.1f})"


def title(row: Row) -> str:
    """A row's name in the table."""
    if row["features"] == "jepa":
        return f"JEPA with {TITLES[row['objective']]}"
    return {"pixels": "raw pixels", "pca": "PCA"}.get(row["features"], "the same network, random weights")


def images(results: Path) -> str:
    """Accuracies of every representation over the splits."""
    document = load(results, "images")
    rows = document["rows"]
    lines = []
    for name in sorted({title(row) for row in rows}, key=lambda name: (not name.startswith("JEPA"), name)):
        own = [row for row in rows if title(row) == name]
        heads = [row["heads"]["predicted"] for row in own if "heads" in row]
        cells = [percent([row[key] for row in own]) for key in ("linear", "knn", "few")]
        lines.append([name, *cells, percent(heads) if heads else ""])
    machine = document["machine"]
    splits = len({row["split"] for row in rows})
    about = (
        f"Accuracy in %, mean (least-most) of {splits} stratified splits into {document['images']['training']} and "
        f"{document['images']['test']} digits, after {document['steps']} steps ({machine['cpu']}, one thread, torch "
        f"{machine['torch']}).\n"
    )
    headings = ["features", "linear probe", "k-NN", "linear, 10 labels a class", "head on predicted states"]
    return markdown(headings, lines) + "\n" + about


TABLES = {"images": images}
