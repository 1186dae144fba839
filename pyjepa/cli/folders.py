"""Where the headers, the shared library and its package files for C and C++ programs were installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

FOLDERS = {
    "cmakedir": ("lib/cmake/pyjepa", "Print the folder of pyjepaConfig.cmake and exit."),
    "includedir": ("include", "Print the folder of the C and C++ headers and exit."),
    "libdir": ("lib", "Print the folder of the shared library and exit."),
    "pkgconfigdir": ("lib/pkgconfig", "Print the folder of pyjepa.pc and exit."),
}


def folder(option: str) -> Path:
    """The folder that ``--cmakedir`` and the others print. Raises FileNotFoundError where it was not installed.

    It lies beside the compiled extension, which in an editable installation is not where the Python sources are.
    """
    engine = importlib.util.find_spec("pyjepa._engine")
    if engine is None or engine.origin is None:
        raise FileNotFoundError("the extension pyjepa._engine is not installed")
    found = Path(engine.origin).parent / FOLDERS[option][0]
    if not found.is_dir():
        raise FileNotFoundError(f"not installed: {found}")
    return found


def _print(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        assert parameter.name is not None
        click.echo(folder(parameter.name))
        context.exit()


def options() -> list[click.Option]:
    """One option per folder, each of which prints it and ends the program."""
    return [
        click.Option([f"--{name}"], is_flag=True, is_eager=True, expose_value=False, callback=_print, help=help_text)
        for name, (_, help_text) in FOLDERS.items()
    ]
