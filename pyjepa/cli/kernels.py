"""``pyjepa kernels``: compile the GPU kernels ahead of time and report what they need; no GPU involved."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the report to FILE.", metavar="FILE")
@click.option("--committed", is_flag=True, help="Report the committed table instead of compiling.")
@click.option("--check", is_flag=True, help="Compile, and fail unless the committed table says the same.")
def command(path: Path | None, committed: bool, check: bool) -> None:
    """Compile the GPU kernels and report their resources: registers, spills, shared memory, matrix instructions.

    Compiles every kernel and shipped configuration for sm_80, sm_90, sm_100 and gfx942, about a second each. Bytes,
    flops and rooflines are estimates. Fails if a kernel spills, needs more than a part has, or misses its matrix
    instruction.
    """
    from pyjepa.atomic import write_text
    from pyjepa.kernels import aot

    if committed and check:
        raise click.UsageError("--check compares a fresh compilation with the committed table: leave --committed out")
    report = aot.committed() if committed else aot.compile_all()
    if path is not None:
        write_text(path, json.dumps(report, indent=1) + "\n")
    columns = ("registers", "spills", "shared_bytes", "matrix_count", "bytes", "flops", "roofline_us")
    width = max(len(row["kernel"]) for row in report["rows"])
    click.echo(f"triton {report['triton']}; {report['estimate']}")
    click.echo(f"{'kernel':{width}s} {'target':7s} {'dtype':5s} " + " ".join(f"{name:>12s}" for name in columns)
               + "  matrix instruction, shape, configuration")  # fmt: skip
    for row in report["rows"]:
        values = " ".join(f"{value:>12g}" for value in aot.numbers(row))
        click.echo(
            f"{row['kernel']:{width}s} {row['target']:7s} {row['dtype']:5s} {values}  "
            f"{row['matrix_instruction'] or '-'}, {row['shape']}, {row['config']}"
        )
    found = aot.problems(report["rows"])
    if check:
        found += aot.differences(report, aot.committed())
    if found:
        raise ValueError("; ".join(found))
