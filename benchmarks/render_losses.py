"""Render the tables and plots of the losses from benchmarks/results/vicreg-*.json.

Run: python benchmarks/render_losses.py [FOLDER]   (default docs/results: losses.md, and one PNG a result file)
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def table(document: dict) -> str:
    """A Markdown table: rows are shapes, columns the losses' median, p99 and memory."""
    machine, results = document["machine"], document["results"]
    names = list(dict.fromkeys(row["provider"] for row in results))
    found = {(row["n"], row["d"], row["mode"], row["provider"]): row for row in results}
    lines = [
        f"{machine['device']}, {machine['threads']} thread(s), torch {machine['torch']}. "
        "Median (p99) in ms; peak memory beyond inputs and gradients in MiB; × is how many times pyjepa's median.",
        "",
        "| (N, D) | mode | " + " | ".join(names) + " |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    for n, d, mode in dict.fromkeys((row["n"], row["d"], row["mode"]) for row in results):
        base = found[n, d, mode, "pyjepa"]["median_s"]
        cells = []
        for name in names:
            row = found.get((n, d, mode, name))
            if row is None:
                cells.append("-")
                continue
            memory = "" if row["memory_bytes"] is None else f", {row['memory_bytes'] / 2**20:.0f} MiB"
            times = "" if name == "pyjepa" else f", {row['median_s'] / base:.2f}×"
            cells.append(f"{row['median_s'] * 1e3:.3g} ({row['p99_s'] * 1e3:.3g}){memory}{times}")
        lines.append(f"| ({n}, {d}) | {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(document: dict, path: Path) -> None:
    """Median time of forward+backward over D, one panel an N."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in document["results"] if row["mode"] == "forward+backward"]
    sizes = sorted({row["n"] for row in rows})
    figure, axes = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 3.2), squeeze=False)
    for axis, n in zip(axes[0], sizes, strict=True):
        for name in dict.fromkeys(row["provider"] for row in rows):
            points = sorted(
                (row["d"], row["median_s"] * 1e3) for row in rows if (row["n"], row["provider"]) == (n, name)
            )
            axis.loglog(*zip(*points, strict=True), marker="o", label=name) if points else None
        axis.set(title=f"N = {n}", xlabel="D", ylabel="forward + backward, ms")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "results"
    target.mkdir(parents=True, exist_ok=True)
    parts = [
        "# VICReg losses\n\nMade by `python benchmarks/render_losses.py` from `benchmarks/results/vicreg-*.json`.\n"
    ]
    for path in sorted((ROOT / "benchmarks" / "results").glob("vicreg-*.json")):
        document = json.loads(path.read_text())
        parts.append(f"## {path.stem.removeprefix('vicreg-')}\n\n{table(document)}\n![{path.stem}]({path.stem}.png)\n")
        plot(document, target / f"{path.stem}.png")
    (target / "losses.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
