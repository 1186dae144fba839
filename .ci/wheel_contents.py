"""Compares the files in a wheel with tests/wheel-contents.txt; ``--write`` makes the list from the wheel instead."""

import re
import sys
import zipfile
from pathlib import Path

LIST = Path(__file__).resolve().parents[1] / "tests" / "wheel-contents.txt"


def contents(wheel: Path) -> list[str]:
    """The wheel's files, without what differs between versions and machines."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    names = [re.sub(r"^([\w.]+?)-[^/]+\.dist-info/", r"\1.dist-info/", name) for name in names]
    return sorted(re.sub(r"(_engine)\.[^/]+\.so$", r"\1.so", name) for name in names)


def main(wheel: Path, *, write: bool) -> int:
    """0 where the wheel holds what the list says."""
    found = contents(wheel)
    if write:
        LIST.write_text("\n".join(found) + "\n", encoding="utf-8")
        return 0
    listed = LIST.read_text(encoding="utf-8").split("\n")[:-1]
    for name in sorted(set(listed) - set(found)):
        print(f"{LIST.name}: not in the wheel: {name}")
    for name in sorted(set(found) - set(listed)):
        print(f"{LIST.name}: in the wheel but not listed: {name}")
    print(f"{wheel.name}: {len(found)} files")
    return int(found != listed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), write="--write" in sys.argv[2:]))
