"""``pyjepa bench memory``: what loading and planning take of a machine's memory."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from pyjepa.cli.options import ResultFile

PRECISIONS = ("fp32", "bf16", "int8")


@click.command("memory")
@click.argument("source", metavar="[FILE|WORKLOAD]", default="W3")
@click.option("--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS), help="Again for more. [all]")
@click.option("--json", "path", type=ResultFile(), metavar="FILE", help="Write the result to FILE.")
def memory(source: str, precisions: tuple[str, ...], path: str | None) -> None:
    """Measure the memory of a process that loads an agent file and plans with it once, on one thread.

    The agent is FILE, or a WORKLOAD of `pyjepa bench` written to a file first; W3, LeWM's model with its encoder, if
    left out. What it sees, and its goal, are noise. The peak is the whole process's, interpreter included.
    """
    from pyjepa import agent_file
    from pyjepa.atomic import write_text
    from pyjepa.bench.machine import describe
    from pyjepa.bench.memory import measure
    from pyjepa.bench.workloads import WORKLOADS
    from pyjepa.errors import UnsupportedError

    notes = Console(stderr=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(source)
        if source in WORKLOADS:
            workload = WORKLOADS[source]()
            file = Path(folder) / f"{source}.safetensors"
            agent_file.save(file, workload.spec, workload.tensors)
        elif not file.is_file():
            raise click.UsageError(f"{source}: neither a file nor a workload ({', '.join(WORKLOADS)})")
        name, size = agent_file.validate(file).name or file.name, file.stat().st_size
        for precision in dict.fromkeys(precisions or PRECISIONS):
            try:
                rows.append(asdict(measure(file, precision)))  # type: ignore[arg-type]
            except UnsupportedError as error:
                notes.print(f"{precision}: {error}", style="yellow", markup=False, highlight=False)
    if not rows:
        raise click.ClickException("nothing could be measured")
    table = Table(
        "precision", "before MB", "loaded", "peak", "of the file", "load ms", title=f"{name}, {size / 1e6:.1f} MB"
    )
    for row in rows:
        sizes = (f"{row[key] / 1e6:.1f}" for key in ("before", "loaded", "peak"))
        table.add_row(row["precision"], *sizes, f"{row['peak'] / size:.2f}", f"{row['load_ms']:.1f}")
    Console().print(table)
    if path is not None:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        result = {"machine": describe(), "date": date, "agent": name, "file_bytes": size, "rows": rows}
        write_text(path, json.dumps(result, indent=1) + "\n")
