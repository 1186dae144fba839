"""Test and measure the kernels on this machine's GPU, and write one file with the device's name in it.

Run: python benchmarks/on_gpu.py [RESULT.json]

Runs tests/kernels (compiled there, not interpreted), then `pyjepa bench vicreg --device cuda` over the grid, and writes
benchmarks/results/vicreg-<device>.json with the benchmark's results and the outcome of the tests. Ends with the tests'
exit code.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU that torch can use", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name()
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / f"vicreg-{name}.json"
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", str(ROOT / "tests" / "kernels")],
        cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    print(tests.stdout)
    measured = subprocess.run(
        [sys.executable, "-m", "pyjepa", "bench", "vicreg", "--device", "cuda", "--json", str(path)]
    )
    if measured.returncode != 0:
        return measured.returncode
    document = json.loads(path.read_text())
    document["tests"] = {"exit_code": tests.returncode, "summary": tests.stdout.strip().splitlines()[-1]}
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{device}: {path}")
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main())
