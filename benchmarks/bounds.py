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
from collections import Counter, defaultdict
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
    "layers": r"[Tt]iles?<|::dense|::panels|::strip|::rest<|::finish\(|store_part",
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


def products_of(inputs: int, outputs: int, per_lane: int) -> int:
    """Multiply-accumulate instructions of a layer for one row, padding included."""
    return -(-inputs // per_lane) * -(-outputs // 16)


def products(name: str, precision: str) -> int:
    """Of all layers, for one candidate and step."""
    return sum(products_of(*shape, PER_LANE[precision]) for shape in dense_shapes(name))


def disassemble(library: Path) -> str:
    """The library's instructions, function by function."""
    return subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(library)], check=True, capture_output=True, text=True
    ).stdout


Instruction = tuple[str, str, str]
"""Address, name, operands."""


def instructions(function: str) -> list[Instruction]:
    """Of a function of `disassemble`, in order."""
    return re.findall(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)$", function, re.MULTILINE)


def loops_of(lines: list[Instruction]) -> list[set[int]]:
    """Every loop: the instructions that lead back to its first without passing it, which all come by it."""
    at = {address: index for index, (address, _, _) in enumerate(lines)}
    jumps: list[tuple[int, int]] = []
    before: list[list[int]] = [[] for _ in lines]
    for index, (_, name, operands) in enumerate(lines):
        target = re.match(r"([0-9a-f]+) ", operands) if name.startswith("j") else None
        to = at.get(target[1]) if target else None
        if to is not None:
            jumps.append((index, to))
            before[to].append(index)
        if index + 1 < len(lines) and not name.startswith(("jmp", "ret")):
            before[index + 1].append(index)
    found: dict[int, set[int]] = {}
    heads = {to for _, to in jumps}
    jumps += [
        (index, index + 1) for index in range(len(lines) - 1) if index + 1 in heads and index in before[index + 1]
    ]
    for source, head in jumps:
        body, open_ = {head, source}, [source] if source != head else []
        while open_:
            new = [index for index in before[open_.pop()] if index not in body]
            body.update(new)
            open_ += new
        if 0 not in body or head == 0:
            found[head] = found.get(head, set()) | body
    return list(found.values())


PORTS: Mapping[str, str] = {
    "multiply": r"vfn?m(add|sub)|vmulps|vpdpbusd|vdivps",
    "shuffle": r"vpack|vshuf|vperm|vpmovus|vpunpck|vinsert|vextract",
    "add": r"vaddps|vsubps|vmaxps|vminps|vcvt|vcmp",
    "other": r"vp(max|min|and|or|xor|add|sub|blend|ternlog|mov|test|s[lr])|vblend|vmovaps %|vmovdqa(32|64)? %|k",
}
"""Vector instructions by where they run, by the first pattern that fits (Zen 5, measured with one kind alone and beside
products): multiplications on two of four pipes, additions, comparisons and conversions on the other two, packs and
shuffles on one of each, integers on all four. Moves between registers and zeros cost no pipe."""


WIDTH = 8
"""Instructions that the processor (Zen 5) takes on in a cycle."""


def tile_ends(text: str) -> dict[str, dict[str, float]]:
    """By int8 kernel, per row of a tile: the instructions outside its innermost loops, by port."""
    found: dict[str, dict[str, float]] = {}
    for function in re.split(r"\n\n", text):
        head = re.match(r"[0-9a-f]+ <(.*)>:\n", function)
        shape = re.search(r"avx512_vnni.*(Tile|TwoTiles)<(\d+), (\d+)>::run", head[1]) if head else None
        if head is None or shape is None:
            continue
        job = re.search(r"run<.*::(\w+)(<.*)?> *>?\(", head[1])
        part = re.search(r"\(.*To\)(\d)", head[1])
        name = f"{shape[1]} {shape[2]}x{shape[3]} {job[1] if job else ''}{part[1] if part else ''}".strip()
        if name in found and re.search(r"DynamicNext<.*, false>", head[1]):
            continue  # for more numbers than the workloads' actions have
        lines = instructions(function)
        loops = loops_of(lines)
        products = [loop for loop in loops if not any(other < loop for other in loops) and len(loop) < 60]
        products = [loop for loop in products if any(lines[index][1] == "vpdpbusd" for index in loop)]
        # The loop over tiles: the smallest that has such loops in it.
        outer = [loop for loop in loops if sum(inner < loop for inner in products) >= 2]
        if not outer:
            continue
        inside = min(outer, key=len).difference(*products)
        count: Counter[str] = Counter()
        for index in sorted(inside):
            _, op, operands = lines[index]
            count["instructions"] += 1
            operands = re.sub(r"\s*[#<].*", "", operands)
            if op.startswith("v") and "(" in operands:
                count["store" if re.search(r"\)(\{%k\d\})?$", operands) else "load"] += 1
            port = next((port for port, pattern in PORTS.items() if re.match(pattern, op)), None)
            if port is not None and not op.startswith("vmov") and not op.startswith("vpxor"):
                count[port] += 1
        found[name] = {port: count[port] / int(shape[2]) for port in ("instructions", "load", "store", *PORTS)}
    return found


def ends_of(name: str, precision: str) -> list[tuple[str, float, float]]:
    """For every layer of a predictor in int8: the kernel that ends its tiles, how often for a row, its products."""
    layers, found = dense_shapes(name), []
    for index, (inputs, outputs) in enumerate(layers):
        vectors = -(-outputs // 16)
        tile = "3x4" if vectors >= 4 else "6x2"
        quads = products_of(inputs, outputs, 4)
        panels = -(-vectors // 4)
        if index + 1 == len(layers):
            kernel = f"Tile {tile} {'StaticNext' if precision == 'int8-static' else 'DynamicNext'}1"
        elif precision == "int8-static":
            kernel = f"Tile {tile} StaticToBytes"
        elif panels == 1:
            kernel = f"Tile {tile} Rows"
        elif panels == 2:
            kernel, panels = "TwoTiles 3x4", 1  # both at once
        else:
            kernel = f"Tile {tile} Dynamic0"
        found.append((kernel, panels, quads))
    return found


def least_cycles(name: str, precision: str, ends: dict[str, dict[str, float]]) -> dict[str, float]:
    """A candidate's step through its int8 layers: instructions by port, and the cycles that those take at least.

    Left out: what is done once a call, and where it is not in the tiles, making bytes of floats. Counted in, though it
    seldom runs: what tells rows with different zeros apart.
    """
    total: defaultdict[str, float] = defaultdict(float)
    for kernel, times, multiplications in ends_of(name, precision):
        for port, count in ends[kernel].items():
            total[port] += times * count
        total["products"] += multiplications
        total["instructions"] += multiplications * (26 if "6x2" in kernel else 23) / 12
    on_multipliers = total["products"] + total["multiply"]
    everything = on_multipliers + total["add"] + total["shuffle"] + total["other"]
    limits = {
        "multipliers": on_multipliers / 2,
        "vector pipes": everything / 4,
        "stores": total["store"],
        "instructions": total["instructions"] / WIDTH,
    }
    return {**{port: round(count, 1) for port, count in total.items()}, "cycles": round(max(limits.values()), 1)}


def inner_loops(text: str) -> list[dict[str, Any]]:
    """What the innermost loops of the kernels' usual tiles are made of."""
    found: dict[str, dict[str, Any]] = {}
    for function in re.split(r"\n\n", text):
        head = re.match(r"([0-9a-f]+) <(.*)>:\n", function)
        if head is None or not re.search(r"avx512.*[Tt]ile<", head[2]):
            continue
        lines = instructions(function)
        for body in loops_of(lines):
            loop = [lines[index] for index in sorted(body)]
            if any(name.startswith("j") for _, name, _ in loop[:-1]):
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
    wanted = {("fp32", 6, 4), ("bf16", 6, 4), ("int8", 3, 4), ("int8", 6, 2)}
    return [row for row in found.values() if (row["precision"], row["rows"], row["vectors"]) in wanted]


def child(name: str, precision: str, seconds: float, control: str) -> None:
    """Plans for so long; prints the time that the quickest tenth keeps to, which other work disturbs least, and the
    peak measured meanwhile. A plan's time is the engine's own or, where others had the processor in between, its
    thread's."""
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
        before = time.thread_time()
        planning.plan()
        took.append(min(planning.elapsed, time.thread_time() - before))
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
    text = disassemble(library)
    ends = tile_ends(text)
    rows: list[dict[str, Any]] = []
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
        if kind == "int8":
            least = least_cycles(name, precision, ends)
            # The products alone take half a cycle each, at the rate just measured.
            rows[-1]["ports"] = {**least, "ns": round(least["cycles"] * 2 * 32 * PER_LANE[kind] / timed["peak"], 2)}
        print(rows[-1], flush=True)
    document = {
        "machine": {**machine.describe(), "load": os.getloadavg()[0]},
        "date": datetime.date.today().isoformat(),
        "loops": inner_loops(text),
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
