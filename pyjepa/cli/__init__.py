"""The command line: ``pyjepa COMMAND``. Each command is a file here that defines a click command named ``command``.

A command is imported when it runs, not before, so that ``pyjepa --help`` stays quick.
"""

from __future__ import annotations

import errno
import importlib
from pathlib import Path
from typing import Any

import click

from pyjepa.cli import folders
from pyjepa.cli.text import printable
from pyjepa.errors import PyjepaError

# In the order of `pyjepa --help`; those without a file are not there (yet).
COMMANDS = {
    "demo": "Play Two Rooms with the trained agent that ships with the package.",
    "collect": "Record episodes to train from.",
    "train": "Train a world model and write an agent file.",
    "distil": "Practise: train a critic and a policy from plans.",
    "quantise": "Calibrate int8 and say what lower precisions cost.",
    "import": "Write an agent file from stable-worldmodel's weights.",
    "inspect": "Say what an agent file holds, or what is wrong with it.",
    "info": "Say what this installation can do on this machine.",
    "energy-lab": "Train every energy-based method and see what collapses.",
    "bench": "Measure planning time.",
    "kernels": "Compile the GPU kernels and report their resources.",
}


class _Failure(click.ClickException):
    """One line on standard error and exit code 2, like click's own usage errors."""

    exit_code = 2


class _Commands(click.Group):
    """Finds commands by file and turns expected errors into one line without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        here = Path(__file__).parent
        return [name for name in COMMANDS if (here / f"{_module(name)}.py").is_file()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(f"pyjepa.cli.{_module(cmd_name)}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (PyjepaError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of a pipe left; click ends quietly
            raise _Failure(printable(str(error)) or type(error).__name__) from error


def _module(name: str) -> str:
    """The name of the file that holds a command."""
    return "import_model" if name == "import" else name.replace("-", "_")  # no module can be called import


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pyjepa-engine", prog_name="pyjepa")
def main() -> None:
    """Train JEPA world models, and perceive, act and plan with them."""


main.params.extend(folders.options())
