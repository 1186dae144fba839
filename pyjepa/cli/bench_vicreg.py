"""``pyjepa bench vicreg``: the loss beside the published formulas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pyjepa.bench.vicreg import GRID, MODES, compare, machine, providers
from pyjepa.cli.atomic import write_text


def _shapes(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[tuple[int, int]]:
    shapes = []
    for value in values:
        n, cross, d = value.partition("x")
        if not (cross and n.isdigit() and d.isdigit()):
            raise click.BadParameter(f"{value!r} is not NxD, as in 256x2048")
        shapes.append((int(n), int(d)))
    return shapes


@click.command()
@click.option(
    "--shape", "grid", multiple=True, callback=_shapes, metavar="NxD", help="A batch; again for more. [a grid]"
)
@click.option("--provider", "names", multiple=True, help="A loss to measure; again for more. [all]")
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES), help="What to run; again for more. [both]")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--threads", default=1, show_default=True, help="torch threads.")
@click.option("--seconds", default=2.0, show_default=True, help="Time to spend on a shape and mode.")
@click.option("--least", default=3, show_default=True, help="Runs of each loss at least.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory too.")
@click.option("--json", "path", type=click.Path(path_type=Path), metavar="FILE", help="Write the results to FILE.")
def command(
    grid: list[tuple[int, int]],
    names: tuple[str, ...],
    modes: tuple[str, ...],
    device: str,
    threads: int,
    seconds: float,
    least: int,
    memory: bool,
    path: Path | None,
) -> None:
    """Compare VICReg losses: median and p99 time, peak memory, and how much faster this package's is."""
    unknown = set(names) - set(providers())
    if unknown:
        raise click.UsageError(f"no such loss: {', '.join(sorted(unknown))}; there are {', '.join(providers())}")
    shapes, chosen = grid or GRID, modes or MODES
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("VICReg losses", total=len(shapes) * len(chosen))
        results = compare(
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
        document = {"kernel": "vicreg", "machine": machine(device, threads), "results": results}
        write_text(path, json.dumps(document, indent=1) + "\n")
    click.echo(
        f"{'N':>5s} {'D':>5s} {'mode':16s} {'loss':18s} {'median ms':>10s} {'p99 ms':>10s} {'MiB':>7s} {'ratio':>7s}"
    )
    ours = {(r["n"], r["d"], r["mode"]): r["median_s"] for r in results if r["provider"] == "pyjepa"}
    for r in results:
        size = "-" if r["memory_bytes"] is None else f"{r['memory_bytes'] / 2**20:.0f}"
        base = ours.get((r["n"], r["d"], r["mode"]))
        ratio = "-" if base is None else f"{r['median_s'] / base:.2f}"
        click.echo(
            f"{r['n']:5d} {r['d']:5d} {r['mode']:16s} {r['provider']:18s} {r['median_s'] * 1e3:10.3f} "
            f"{r['p99_s'] * 1e3:10.3f} {size:>7s} {ratio:>7s}"
        )
