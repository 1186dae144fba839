"""``pyjepa energy-lab``: the paper's argument from energy-based models, run and judged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pyjepa.atomic import write_text
from pyjepa.cli.train import require_training

if TYPE_CHECKING:
    from pyjepa.energy.lab import Figures, Unit


@click.command("energy-lab", short_help="Train every energy-based method and see what collapses.")
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder for index.html, results.json and details.json; new, or one to go on with.",
)
@click.option(
    "--methods", metavar="LIST", help="Rows of the paper's Table 1, with commas between them: 1,5,6a. [all eleven]"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of data, weights and chains.")
@click.option("--quick", is_flag=True, help="Fewer steps: within 3 minutes on two cores instead of 15.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=lambda: min(2, os.cpu_count() or 1),
    show_default="2",
    help="Processes, of one thread each; figures do not depend on it.",
)
def command(folder: Path, methods: str | None, seed: int, quick: bool, workers: int) -> None:
    """Train every contrastive method and every architecture on small problems, and write a page that compares them.

    The problems: two mixtures of Gaussians in the plane, whose density is known, and scikit-learn's digits, where the
    right half of an image goes with the left. The verdicts: does a method match the density (rows 1 to 4) or separate
    data from corrupted data (rows 5 to 10), which architectures collapse, and which cures help. A run that was
    interrupted goes on where it stopped, with the same command.
    """
    require_training("torch", "sklearn", "matplotlib")
    from pyjepa.energy import lab
    from pyjepa.energy.methods import METHODS
    from pyjepa.energy.page import page

    chosen = list(METHODS) if methods is None else [key.strip() for key in methods.split(",") if key.strip()]
    settings = lab.Settings.quick(seed) if quick else lab.Settings(seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=len(lab.units(dict.fromkeys(chosen))))

        def done(unit: Unit, figures: Figures, again: bool) -> None:
            kind, name = unit
            bar.update(task, advance=1, description=f"{'method ' if kind == 'methods' else ''}{name}")

        results = lab.run(folder, methods=chosen, settings=settings, workers=workers, done=done)
    write_text(folder / "index.html", page(lab.load(folder, chosen), settings))
    for key, result in results["methods"].items():
        click.echo(f"{key:3s} {METHODS[key].name:28s} {result['verdict']}")
    for name, result in results["collapse"].items():
        click.echo(f"{name:32s} effective rank {result['effective_rank']:5.1f}: {result['verdict']}")
    click.echo(f"{folder / 'index.html'}")
