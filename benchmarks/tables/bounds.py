"""Where a plan's time goes and what bounds it: what `benchmarks/bounds.py` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tables.planning import load, markdown

PARTS = ("to narrow", "candidates", "costs", "refit", "rest")


def reached(row: dict[str, Any], nanoseconds: float) -> str:
    """The fraction of the peak that a candidate's step would be at, in so many nanoseconds."""
    return f"{100 * row['operations'] / nanoseconds / row['peak_gflops']:.0f} %"


def bounds(results: Path) -> str:
    """By workload and precision: nanoseconds by part, and fractions of the peak without some of them."""
    document = load(results, "bounds")
    lines = []
    for row in document["rows"]:
        part, least = row["part_ns"], row["product_ns"]
        ends = max(0.0, part["layers"] - least)
        others = sum(part[name] for name in PARTS)
        lines.append(
            [
                row["workload"],
                row["precision"],
                f"{row['product_instructions']:.0f}",
                f"{least:.1f}",
                f"{ends:.1f}",
                *(f"{part[name]:.1f}" for name in PARTS),
                reached(row, row["ns"]),
                reached(row, part["layers"]),
                reached(row, least + others),
            ]
        )
    headings = [
        "workload",
        "precision",
        "products",
        "at the peak, ns",
        "tiles' ends",
        "to narrow",
        "candidates",
        "costs",
        "refit",
        "rest",
        "of peak",
        "layers alone",
        "free ends",
    ]
    machine = document["machine"]
    return markdown(headings, lines, left=2) + (
        f"\n{machine['cpu']}, {machine['isa']}, one thread; load average {machine['load']:.1f}; {document['date']}.\n"
    )


def loops(results: Path) -> str:
    """What the innermost loops are made of."""
    lines = [
        [
            row["precision"],
            f"{row['rows']} x {16 * row['vectors']}",
            str(row["instructions"]),
            str(row["products"]),
            str(row["loads"]),
        ]
        for row in load(results, "bounds")["loops"]
    ]
    return markdown(["precision", "tile", "instructions", "products", "loads"], lines, left=2)


def ports(results: Path) -> str:
    """What an int8 candidate's step through the layers is made of, and the time it takes through the ports at least."""
    lines = []
    for row in load(results, "bounds")["rows"]:
        if "ports" not in row:
            continue
        least, part = row["ports"], row["part_ns"]
        others = sum(part[name] for name in PARTS)
        kinds = ("instructions", "products", "multiply", "add", "shuffle", "other", "store")
        lines.append(
            [
                row["workload"],
                row["precision"],
                *(f"{least[kind]:.0f}" for kind in kinds),
                f"{least['cycles']:.0f}",
                f"{least['ns']:.1f}",
                f"{part['layers']:.1f}",
                reached(row, row["ns"]),
                reached(row, least["ns"] + others),
            ]
        )
    headings = [
        "workload",
        "precision",
        "instructions",
        "products",
        "multiply",
        "add",
        "shuffle",
        "integer",
        "stores",
        "cycles at least",
        "ns at least",
        "layers, ns",
        "of peak",
        "bound",
    ]
    return markdown(headings, lines, left=2)


TABLES = {"bounds": bounds, "loops": loops, "ports": ports}
