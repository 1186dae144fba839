"""What `pyjepa energy-lab` found: `benchmarks/results/energy-lab.json`, and the table of methods from the code itself.

`python benchmarks/energy_lab.py FOLDER` makes the result file of a run's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tables.planning import load, markdown


def methods(results: Path) -> str:
    """The paper's Table 1 as the package has it."""
    from pyjepa.energy.methods import table

    return table()


def figures(results: Path) -> str:
    """Verdicts and figures of every method."""
    from pyjepa.energy.methods import METHODS

    document = load(results, "energy-lab")
    lines = []
    for key, row in document["results"]["methods"].items():
        tasks = document["details"]["methods"][key]["tasks"].values()
        above = max(task["nll"] - task["true_nll"] for task in tasks if "nll" in task)
        lines.append(
            [
                key,
                METHODS[key].name,
                f"{above:.2f}",
                f"{row['auroc']:.3f}",
                f"{row['effective_rank']:.1f}",
                row["verdict"].split(":")[0],
            ]
        )
    return markdown(["#", "method", "NLL above", "AUROC", "rank", "verdict"], lines, left=2) + "\n" + source(document)


def collapse(results: Path) -> str:
    """Which architectures collapsed."""
    document = load(results, "energy-lab")
    lines = [
        [
            name,
            f"{row['effective_rank']:.1f} of {row['dimensions']}",
            "" if row["relative_gap"] is None else f"{row['relative_gap']:z.2f}",
            row["verdict"],
        ]
        for name, row in document["details"]["collapse"].items()
    ]
    return markdown(["", "effective rank", "energy gap", "verdict"], lines, left=1) + "\n" + source(document)


def source(document: Any) -> str:
    """What a run was."""
    settings = document["details"]["settings"]
    return (
        f"`pyjepa energy-lab`, seed {settings['seed']}, {settings['plane_steps']} steps on the plane, "
        f"{settings['digits_steps']} on digits, {settings['collapse_steps']} an architecture; "
        f"torch {document['details']['torch']}.\n"
    )


def plot(results: Path, path: Path) -> None:
    """Effective rank along the training of each architecture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.6))
    for name, curve in load(results, "energy-lab")["ranks"].items():
        axis.plot(*zip(*curve, strict=True), label=name)
    axis.axhline(1, color="black", linewidth=0.5)
    axis.set(xlabel="step", ylabel="effective rank (RankMe)", yscale="log")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


TABLES = {"energy-methods": methods, "energy-lab": figures, "energy-collapse": collapse}
PLOTS = {"docs/results/energy-lab.png": plot}
