"""Prints a command of the README: the ``sh`` block after the comment ``<!-- command: NAME -->``."""

import re
import sys
from pathlib import Path


def readme_command(readme: str, name: str) -> str:
    """The text of the named block; raises `SystemExit` unless there is exactly one."""
    blocks = re.findall(rf"^<!-- command: {re.escape(name)} -->\n+```sh\n(.+?)^```$", readme, re.MULTILINE | re.DOTALL)
    if len(blocks) != 1:
        sys.exit(f"README.md: expected one sh block after <!-- command: {name} -->, found {len(blocks)}")
    return str(blocks[0])


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    sys.stdout.write(readme_command((root / "README.md").read_text(encoding="utf-8"), sys.argv[1]))
