"""Where a plan's time goes, and what that allows: instructions of the inner loops, time by part, bounds.

Run: python benchmarks/bounds.py build/.../libpyjepa.so.0 --json benchmarks/results/bounds.json

Takes a library that has its symbols (as CMake leaves it; an installed one has none), Linux's perf and binutils'
objdump. Each workload and precision plans alone on one thread: first undisturbed, for the time, then sampled by perf,
for the shares of its functions. No hardware counters are needed, which virtual machines seldom have: instructions are
counted in the code of the innermost loops, which run as often as the shapes say.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pyjepa import _engine
from pyjepa.bench import machine
from pyjepa.bench.engine import Planning
from pyjepa.bench.workloads import WORKLOADS
from pyjepa.spec import Mlp

CELLS = [(w, p) for w in ("W0s", "W0", "W0L") for p in ("fp32", "bf16", "int8", "int8-static")]

MULTIPLY = {"fp32": "vfmadd231ps", "bf16": "vdpbf16ps", "int8": "vpdpbusd"}
PER_LANE = {"fp32": 1, "bf16": 2, "int8": 4}
"""Products summed into one of an instruction's sixteen lanes."""

PARTS: Mapping[str, str] = {
    "layers": r"[Tt]ile<|::dense|::panels|::strip|::rest<|::finish\(|store_part",
    "to narrow": r"quantise|to_bytes|::convert\(|::convert$",
    "candidates": r"gaussian|perturb|simd::.*::clamp|normalise|Planner::(draw|fill|snapshot)|noise_key|Knots|philox",
    "costs": r"_distance|Cost::add|GoalDistance|CostTerm",
    "refit": r"cheapest|refit|introselect|nth_element|sort|Cem::|for_each_drawn|diagnose",
}
"""Which functions make which part, by the first pattern that finds something; all others are the rest."""


def dense_shapes(name: str) -> list[tuple[int, int]]:
    """(in, out) of the predictor's layers."""
    spec = WORKLOADS[name]().spec
    (block,) = spec.modules[spec.levels[0].predictor or ""].blocks
    assert isinstance(block, Mlp)
    sizes = [block.layers[-1].out + len(spec.actions.low), *(layer.out for layer in block.layers)]
    return list(pairwise(sizes))


def products(name: str, precision: str) -> float:
    """Multiply-accumulate instructions for one candidate and step, padding included."""
    per = PER_LANE[precision]
    return sum(-(-inputs // per) * -(-outputs // 16) for inputs, outputs in dense_shapes(name))


def inner_loops(library: Path) -> list[dict[str, Any]]:
    """What the innermost loops of the kernels' usual tiles are made of."""
    text = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(library)], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, dict[str, Any]] = {}
    for function in re.split(r"\n\n", text):
        head = re.match(r"([0-9a-f]+) <(.*)>:\n", function)
        if head is None or not re.search(r"avx512.*[Tt]ile<", head[2]):
            continue
        lines = re.findall(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$", function, re.MULTILINE)
        at = {address: index for index, (address, _, _) in enumerate(lines)}
        for index, (_, name, operands) in enumerate(lines):
            target = re.match(r"([0-9a-f]+) ", operands) if name.startswith("j") else None
            first = at.get(target[1]) if target else None
            if first is None or first > index:
                continue
            loop = lines[first : index + 1]
            if any(other.startswith("j") for _, other, _ in loop[:-1]):
                continue
            precision = next((p for p, op in MULTIPLY.items() if sum(o == op for _, o, _ in loop) >= 6), None)
            if precision is None:
                continue
            sums = sum(o == MULTIPLY[precision] for _, o, _ in loop)
            loads = sum("(" in operand for _, _, operand in loop)
            shape = re.search(r"[Tt]ile<(\d+), (\d+)>", head[2])
            assert shape is not None
            key = f"{precision} {shape[1]}x{shape[2]}"
            row = {
                "precision": precision,
                "rows": int(shape[1]),
                "vectors": int(shape[2]),
                "instructions": len(loop),
                "products": sums,
                "loads": loads,
            }
            if key not in found or found[key]["instructions"] > len(loop):
                found[key] = row
    wanted = {("fp32", 6, 4), ("bf16", 6, 4), ("int8", 6, 4), ("int8", 3, 8)}
    return [row for row in found.values() if (row["precision"], row["rows"], row["vectors"]) in wanted]


def child(name: str, precision: str, seconds: float, control: str) -> None:
    """Plans for so long; prints the time that the quickest tenth keeps to, which other work disturbs least, and the
    peak measured meanwhile."""
    planning = Planning(WORKLOADS[name](), 1, precision=precision.removesuffix("-static"), static="-" in precision)  # type: ignore[arg-type]
    for _ in range(5):
        planning.plan()
    took, peak = [], 0.0
    if control:
        with open(control, "w", encoding="ascii") as pipe:
            pipe.write("enable\n")
        time.sleep(0.1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        planning.plan()
        took.append(planning.elapsed)
        if not control and len(took) % 50 == 1:
            peak = max(peak, _engine.measure_peak(precision.removesuffix("-static"), 0.005))
    if control:
        with open(control, "w", encoding="ascii") as pipe:
            pipe.write("disable\n")
    print(json.dumps({"seconds": sorted(took)[len(took) // 10], "peak": peak}))


def run_child(library: Path, arguments: list[str], before: list[str] | None = None) -> Any:
    """The last line that a child printed."""
    own = [sys.executable, "-P", str(Path(__file__).resolve()), str(library), "--child", *arguments]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    done = subprocess.run([*(before or []), *own], check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.strip().splitlines()[-1])


def shares(library: Path, name: str, precision: str, seconds: float) -> dict[str, float]:
    """How a plan's samples divide between the parts."""
    with tempfile.TemporaryDirectory() as folder:
        data, control = f"{folder}/perf.data", f"{folder}/control"
        os.mkfifo(control)
        perf = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "4000", "-D", "-1", "--control", f"fifo:{control}"]
        run_child(library, [name, precision, str(seconds), control], [*perf, "-o", data, "--"])
        report = subprocess.run(
            ["perf", "report", "-i", data, "--no-children", "--stdio", "-F", "sample,dso,symbol", "-t", "\t"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    count: Counter[str] = Counter()
    for line in report.splitlines():
        columns = line.strip().split("\t")
        if line.startswith("#") or len(columns) != 3 or "pyjepa" not in columns[1] + columns[2]:
            continue  # Python's own, and the kernel's
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, columns[2])), "rest")
        count[part] += int(columns[0])
    total = count.total()
    if total < 500:
        raise SystemExit(f"{name} {precision}: only {total} samples in {library}: has it its symbols?")
    return {part: count[part] / total for part in (*PARTS, "rest")}


def main() -> None:
    """Measures all cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, precision, seconds, *control = arguments.child
        child(name, precision, float(seconds), control[0] if control else "")
        return
    library = arguments.library.resolve()
    rows = []
    for name, precision in CELLS:
        settings = WORKLOADS[name]().spec.planner
        steps = (settings.candidates or 0) * settings.horizon * (settings.iterations or 0)
        timed = run_child(library, [name, precision, str(arguments.seconds)])
        part = shares(library, name, precision, arguments.seconds)
        kind = precision.removesuffix("-static")
        each = timed["seconds"] / steps * 1e9
        rows.append(
            {
                "workload": name,
                "precision": precision,
                "ns": round(each, 2),
                "peak_gflops": round(timed["peak"], 1),
                "operations": sum(2 * a * b for a, b in dense_shapes(name)),
                "product_instructions": products(name, kind),
                "product_ns": round(products(name, kind) * 32 * PER_LANE[kind] / timed["peak"], 2),
                "part_ns": {name_: round(share * each, 2) for name_, share in part.items()},
            }
        )
        print(rows[-1], flush=True)
    document = {
        "machine": {**machine.describe(), "load": os.getloadavg()[0]},
        "date": datetime.date.today().isoformat(),
        "loops": inner_loops(library),
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
