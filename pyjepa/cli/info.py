"""``pyjepa info``: what this installation can do on this machine."""

from __future__ import annotations

import importlib.util
import json

import click

EXTRAS = {
    "train": ("torch", "triton", "gymnasium", "h5py", "pydantic", "sklearn", "tensorboard", "PIL"),
    "gif": ("PIL",),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Say what this installation can do on this machine: version, instruction set, CPU, extras."""
    from pyjepa.bench.machine import describe

    facts = describe()
    extras = {
        extra: {module: importlib.util.find_spec(module) is not None for module in modules}
        for extra, modules in EXTRAS.items()
    }
    if as_json:
        click.echo(json.dumps({**facts, "extras": extras}, indent=2))
        return
    facts["precisions"] = ", ".join(f"{name} {isa}" for name, isa in facts["precisions"].items())
    for name, value in facts.items():
        click.echo(f"{name:14s}{value}")
    for extra, modules in extras.items():
        missing = [module for module, there in modules.items() if not there]
        click.echo(f"{'[' + extra + ']':14s}{'complete' if not missing else 'missing: ' + ', '.join(missing)}")
