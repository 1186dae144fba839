"""``pyjepa bench vicreg`` and ``pyjepa bench sigreg``: a loss beside the published formulas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pyjepa.atomic import write_text
from pyjepa.bench.losses import MODES, SIGREG, VICREG, Family, Row, compare, machine


def _shapes(family: Family, values: Sequence[str]) -> list[tuple[int, ...]]:
    shapes = []
    for value in values:
        numbers = value.split("x")
        if len(numbers) not in map(len, family.symbols) or not all(n.isdigit() for n in numbers):
            forms = " or ".join("x".join(letters.upper()) for letters in family.symbols)
            raise click.BadParameter(f"{value!r} is not {forms}")
        shapes.append(tuple(map(int, numbers)))
    return shapes


def _command(family: Family, title: str) -> click.Command:
    @click.command(name=family.name, help=f"Compare {title}: median and p99 time, peak memory, and ratios.")
    @click.option(
        "--shape",
        "grid",
        multiple=True,
        callback=lambda _, __, values: _shapes(family, values),
        metavar="x".join(family.symbols[0].upper()),
        help="A batch; again for more. [a grid]",
    )
    @click.option("--provider", "names", multiple=True, help="A loss to measure; again for more. [all]")
    @click.option(
        "--mode", "modes", multiple=True, type=click.Choice(MODES), help="What to run; again for more. [both]"
    )
    @click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
    @click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="torch threads.")
    @click.option("--seconds", default=2.0, show_default=True, help="Time to spend on a shape and mode.")
    @click.option("--least", default=3, show_default=True, type=click.IntRange(1), help="Runs of each loss at least.")
    @click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory too.")
    @click.option("--json", "path", type=click.Path(path_type=Path), metavar="FILE", help="Write the results to FILE.")
    def command(
        grid: list[tuple[int, ...]],
        names: tuple[str, ...],
        modes: tuple[str, ...],
        device: str,
        threads: int,
        seconds: float,
        least: int,
        memory: bool,
        path: Path | None,
    ) -> None:
        known = family.providers()
        unknown = set(names) - set(known)
        if unknown:
            raise click.UsageError(f"no such loss: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        shapes, chosen = grid or family.grid, modes or MODES
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(family.name, total=len(shapes) * len(chosen))
            rows = compare(
                family,
                shapes,
                names=names or None,
                modes=chosen,
                device=device,
                threads=threads,
                seconds=seconds,
                least=least,
                memory=memory,
                progress=lambda done: bar.update(task, advance=1, description=done),
            )
        if path is not None:
            document = {"kernel": family.name, "machine": machine(device, threads), "results": rows}
            write_text(path, json.dumps(document, indent=1) + "\n")
        _print(family, rows)

    return command


def _print(family: Family, rows: Sequence[Row]) -> None:
    letters = tuple(dict.fromkeys("".join(reversed(family.symbols))))

    def place(row: Row) -> tuple[object, ...]:
        return (*(row.get(letter) for letter in letters), row["mode"])

    click.echo(
        "".join(f"{letter.upper():>5s} " for letter in letters)
        + f"{'mode':16s} {'loss':18s} {'median ms':>10s} {'p99 ms':>10s} {'MiB':>7s} {'ratio':>7s}"
    )
    ours = {place(row): row["median_s"] for row in rows if row["provider"] == "pyjepa"}
    for row in rows:
        size = "-" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:.0f}"
        ratio = f"{row['median_s'] / ours[place(row)]:.2f}" if place(row) in ours else "-"
        click.echo(
            "".join(f"{row.get(letter, ''):>5} " for letter in letters)
            + f"{row['mode']:16s} {row['provider']:18s} {row['median_s'] * 1e3:10.3f} "
            f"{row['p99_s'] * 1e3:10.3f} {size:>7s} {ratio:>7s}"
        )


vicreg = _command(VICREG, "VICReg losses")
sigreg = _command(SIGREG, "SIGReg with its statement in plain torch")
