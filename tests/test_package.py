"""The installed package: what importing it costs, what it says of itself."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import subprocess
import sys

import pyjepa

HEAVY = ("torch", "triton", "click", "rich", "safetensors", "h5py", "gymnasium", "sklearn", "matplotlib", "pydantic")


def python(code: str, *arguments: str) -> str:
    """The standard output of a fresh interpreter (-P: without the working directory on its path)."""
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = python(f"import pyjepa, sys; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_import_is_quick() -> None:
    code = "import numpy, time; start = time.perf_counter(); import pyjepa; print(time.perf_counter() - start)"
    assert min(float(python(code)) for _ in range(5)) < 0.1


def test_command_line_help_loads_no_command() -> None:
    heavy = tuple(name for name in HEAVY if name != "click")
    code = (
        "import sys; from pyjepa.cli import main; main(['--help'], standalone_mode=False); "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    output = python(code)
    assert "inspect" in output
    assert output.splitlines()[-1] == "[]"


def test_versions_agree() -> None:
    version = importlib.metadata.version("pyjepa-engine")
    assert pyjepa.__version__ == version
    assert python("from pyjepa.cli import main; main()", "--version") == f"pyjepa, version {version}\n"


def test_unknown_commands_and_missing_files_are_one_line_errors() -> None:
    for arguments in (["frobnicate"], ["inspect"], ["inspect", "no-such-file"]):
        command = [sys.executable, "-P", "-c", "from pyjepa.cli import main; main()", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert result.returncode == 2
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        assert "Traceback" not in result.stderr


def test_every_listed_command_exists() -> None:
    code = (
        "import click; from pyjepa.cli import main; context = click.Context(main); "
        "print(all(main.get_command(context, name).name for name in main.list_commands(context)))"
    )
    assert python(code) == "True\n"


def test_package_is_typed() -> None:
    files = importlib.resources.files("pyjepa")
    assert (files / "py.typed").is_file()
    assert (files / "_engine.pyi").is_file()


def test_metadata() -> None:
    metadata = importlib.metadata.metadata("pyjepa-engine")
    assert metadata["Name"] == "pyjepa-engine"
    assert metadata["License-Expression"] == "Apache-2.0"
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="pyjepa")
    assert script.value == "pyjepa.cli:main"
