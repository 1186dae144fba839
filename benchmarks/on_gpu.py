"""Test and measure the kernels on this machine's GPU, and write result files with the device's name in them.

Run: python benchmarks/on_gpu.py [--folder DIR] [--rehearse]

Runs the tests of the kernels and of planning over them (compiled there, not interpreted), then `pyjepa bench vicreg`,
`sigreg` and `rollouts` on the GPU over their grids, and writes benchmarks/results/<benchmark>-<device>.json with its
results and the outcome of the tests.
Ends with the tests' exit code. --rehearse does the same in small on the CPU, to see that the command works.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "vicreg": ["--shape", "16x8"],
    "sigreg": ["--shape", "16x8x4"],
    "rollouts": [
        "--workload",
        "W0s",
        "--candidates",
        "2",
        "--horizon",
        "1",
        "--provider",
        "fused",
        "--provider",
        "torch",
    ],
}
"""What a rehearsal measures of every benchmark."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "results", help="where results go")
    parser.add_argument("--rehearse", action="store_true", help="a small run on the CPU")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        print("no GPU that torch can use", file=sys.stderr)
        return 2
    device = "the CPU" if options.rehearse else torch.cuda.get_device_name()
    name = "rehearsal" if options.rehearse else re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        + (["-k", "opcheck and sigreg"] if options.rehearse else [])
        + [str(ROOT / "tests" / "kernels"), str(ROOT / "tests" / "engine" / "test_device.py")],
        cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    print(tests.stdout)
    for benchmark, little in SMALL.items():
        path = options.folder / f"{benchmark}-{name}.json"
        where = ["--device", "cpu", *little, "--seconds", "0"] if options.rehearse else ["--device", "cuda"]
        measured = subprocess.run(
            [sys.executable, "-m", "pyjepa", "bench", benchmark, *where, "--json", str(path)],
            env={**os.environ, "TRITON_INTERPRET": "1"} if options.rehearse else None,
        )
        if measured.returncode != 0:
            return measured.returncode
        document = json.loads(path.read_text(encoding="utf-8"))
        document["tests"] = {"exit_code": tests.returncode, "summary": tests.stdout.strip().splitlines()[-1]}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"{device}: {path}")
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
