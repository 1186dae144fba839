"""Losses: what `pyjepa bench vicreg` and `pyjepa bench sigreg` wrote."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from tables.planning import load, markdown, milliseconds

Row = dict[str, Any]
LETTERS = "tndk"


def shape(row: Row) -> tuple[int, ...]:
    """(N, D), (T, N, D) or (N, D, K)."""
    return tuple(row[letter] for letter in LETTERS if letter in row)


def source(document: Any) -> str:
    """What a measurement was taken on."""
    machine = document["machine"]
    threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return f"{machine['device']}, {threads}, torch {machine['torch']}"


def cell(row: Row | None, base: Row) -> str:
    """Time, memory and ratio of one loss."""
    if row is None:
        return ""
    memory = "" if row["memory_bytes"] is None else f", {row['memory_bytes'] / 2**20:.0f} MiB"
    times = "" if row is base else f", {row['median_s'] / base['median_s']:.1f}×"
    return f"{milliseconds(row['median_s'] * 1e3)} ({milliseconds(row['p99_s'] * 1e3)}){memory}{times}"


def losses(results: Path, name: str) -> str:
    """Every loss at every shape."""
    document = load(results, name)
    rows = document["results"]
    names = list(dict.fromkeys(row["provider"] for row in rows))
    found = {(shape(row), row["mode"], row["provider"]): row for row in rows}
    lines = []
    for size, mode in dict.fromkeys((shape(row), row["mode"]) for row in rows):
        base = found[size, mode, "pyjepa"]
        lines.append([str(size), mode, *(cell(found.get((size, mode, name)), base) for name in names)])
    about = (
        f"Median (p99) in ms, peak memory beyond inputs and gradients, and how many times pyjepa's median; "
        f"{source(document)}.\n"
    )
    return about + "\n" + markdown(["shape", "mode", *names], lines, left=2)


def gpus(results: Path) -> str:
    """The same for every GPU that a result was sent of."""
    found = [*results.glob("vicreg-*.json"), *results.glob("sigreg-*.json")]
    files = sorted(file.stem for file in found if not file.stem.endswith("-cpu"))
    if not files:
        return "No GPU has been measured yet.\n"
    return "\n".join(
        f"**{file.split('-')[0]}, {load(results, file)['machine']['device']}**\n\n{losses(results, file)}"
        for file in files
    )


def headline(results: Path) -> str:
    """Forward and backward beside the official formula, in a sentence."""
    document = load(results, "vicreg-cpu")
    found = {(shape(row), row["provider"]): row for row in document["results"] if row["mode"] == "forward+backward"}
    sizes = list(dict.fromkeys(size for size, _ in found if len(size) == 2))

    def ratio(size: tuple[int, ...]) -> float:
        return float(found[size, "official"]["median_s"] / found[size, "pyjepa"]["median_s"])

    least = min(sizes, key=ratio)
    parts = [f"{ratio(size):.3g} times at {size}" for size in ((256, 2048), (256, 8192), (2048, 8192))]
    parts.append(f"{ratio(least):.2g} times at {least}, the least of the grid")
    memory = {name: f"{row['memory_bytes'] / 2**20:.0f}" for (size, name), row in found.items() if size == (2048, 8192)}
    return (
        f"Forward and backward, as many times as fast as the official formula: {', '.join(parts)}. At (2048, 8192) "
        f"VICReg takes {memory['pyjepa']} MiB beyond inputs and gradients, the official formula {memory['official']}, "
        f"lightly's {memory['lightly']}, solo-learn's {memory['solo-learn']} ({source(document)}).\n"
    )


def training(results: Path) -> str:
    """What the loss costs in Two Rooms' training."""
    rows = [row for row in load(results, "vicreg-cpu")["results"] if shape(row) == (3, 128, 48)]
    times = {row["provider"]: row["median_s"] * 1e3 for row in rows if row["mode"] == "forward+backward"}
    ours, official = (milliseconds(times[name]) for name in ("pyjepa", "official"))
    return (
        f"In Two Rooms' training (three regularised steps a clip, batches of 128, 48 features) VICReg and its "
        f"gradients take {ours} ms, the official formula step by step {official} ms. Either is a small part of a "
        "training step, so training is not noticeably faster; it gained the same arithmetic in 16-bit autocast, and "
        "`group=` for several processes.\n"
    )


def plot(results: Path, path: Path) -> None:
    """Median time of forward and backward over D, one panel an N."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    document = json.loads((results / "vicreg-cpu.json").read_text(encoding="utf-8"))
    rows = [row for row in document["results"] if row["mode"] == "forward+backward" and "t" not in row]
    sizes = sorted({row["n"] for row in rows})
    figure, axes = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 3.2), squeeze=False)
    for axis, n in zip(axes[0], sizes, strict=True):
        for name in dict.fromkeys(row["provider"] for row in rows):
            points = sorted(
                (row["d"], row["median_s"] * 1e3) for row in rows if (row["n"], row["provider"]) == (n, name)
            )
            axis.loglog(*zip(*points, strict=True), marker="o", label=name)
        axis.set(title=f"N = {n}", xlabel="D", ylabel="forward + backward, ms")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


TABLES = {
    "vicreg": partial(losses, name="vicreg-cpu"),
    "vicreg-headline": headline,
    "vicreg-training": training,
    "gpus": gpus,
    "sigreg": partial(losses, name="sigreg-cpu"),
}
PLOTS = {"docs/results/vicreg-cpu.png": plot}
