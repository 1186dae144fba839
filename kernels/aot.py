"""Ahead-of-time compilation of every kernel and shipped configuration, and what each costs. Needs no GPU.

`compile_all()` compiles for sm_80, sm_90, sm_100 and gfx942 in a process of its own (a process with TRITON_INTERPRET
set cannot compile) with an empty cache, and returns one row per kernel, configuration and target. `resources.json`
holds the rows as committed; `problems` says what breaks the rules: no spills, registers and shared memory within the
part, and the target's matrix instruction wherever the kernel uses a dot.

bytes and flops are counted from the algorithm for the row's `shape` (each input read once, each output written once,
both branches of VICReg; a multiply-add is two). roofline_us is an estimate, max(bytes / bandwidth, flops / peak) with
the vendors' peaks below, not a measurement: 3 x TF32 dots get a third of the TF32 peak.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from .rollout.estimate import Estimate


class Row(TypedDict):
    """One kernel, compiled with one configuration for one target."""

    kernel: str
    config: str
    target: str
    dtype: str
    registers: int
    spills: int
    shared_bytes: int
    uses_dot: bool
    matrix_instruction: str | None
    matrix_count: int
    shape: str
    bytes: int
    flops: int
    roofline_us: float
    roofline_part: str


class Report(TypedDict):
    """Rows and the compiler that made them; `estimate` says which columns were not measured."""

    triton: str
    estimate: str
    rows: list[Row]


@dataclass(frozen=True)
class Target:
    """A compilation target: its limits, its matrix instruction and the data-sheet peaks of its usual part.

    registers: that a thread may have (on AMD of both kinds).

    bandwidth in bytes/s; dot_peak is the fp32-accurate dot rate in flop/s (TF32 / 3 on NVIDIA, fp32 matrix on AMD).
    """

    backend: str
    arch: int | str
    warp: int
    registers: int
    shared_limit: int
    matrix: str
    part: str
    bandwidth: float
    dot_peak: float
    vector_peak: float


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 255, 163 << 10, "mma.sync", "A100 SXM 80GB", 2.04e12, 156e12 / 3, 19.5e12),
    "sm_90": Target("cuda", 90, 32, 255, 227 << 10, "wgmma.mma_async", "H100 SXM", 3.35e12, 495e12 / 3, 67e12),
    "sm_100": Target("cuda", 100, 32, 255, 227 << 10, "tcgen05.mma", "B200", 8.0e12, 1100e12 / 3, 75e12),
    "gfx942": Target("hip", "gfx942", 64, 512, 64 << 10, "v_mfma", "MI300X", 5.3e12, 163e12, 163e12),
}
WHERE = ("backend", "mlp", "up_to", "from", "bytes")
"""Keys of a configuration that say where it applies."""


@dataclass(frozen=True)
class Plan:
    """What to compile: `function` of `<op>/triton` with one configuration."""

    name: str
    op: str
    function: str
    config: dict[str, Any]
    constants: dict[str, Any]
    shape: tuple[int, ...]
    bytes: int
    flops: int
    uses_dot: bool
    dtype: str = "fp32"
    strided: dict[str, int] = field(default_factory=dict)

    def matrix(self, target: Target) -> str:
        """The target's matrix instruction for the plan's row blocks: the wide ones of NVIDIA take 64 rows."""
        narrow = self.op == "rollout" and target.backend == "cuda" and self.config["BM"] < 64
        return "mma.sync" if narrow else target.matrix


def _vicreg_cost(function: str, n: int, d: int, config: dict[str, Any]) -> tuple[int, int]:
    """Return (bytes, flops) of one launch at (N, D), fp32, both branches."""
    m = min(n, d)
    if function == "moments":
        return 4 * (2 * n * d + 4 * d), 13 * n * d
    if function == "symmetric":
        side = math.ceil(m / config["BT"])
        return 4 * (2 * n * d + 2 * m * m), 2 * side * (side + 1) * config["BT"] ** 2 * max(n, d)
    if function == "finish":
        return 4 * 2 * d, 2 * 5 * d
    if function == "gradient":
        return 4 * (4 * n * d + 2 * m * m), 2 * (2 * n * d * m + 8 * n * d)
    return 2 * 256, 0  # streamed_*: on the common path every program reads one flag and leaves


def _vicreg_plans(configs: dict[str, list[dict[str, Any]]]) -> list[Plan]:
    launches = {
        "gram": [
            ("forward", "moments", "moments", {}),
            ("forward", "symmetric", "symmetric", {"GRAM": True}),
            ("forward", "finish_flag", "finish", {"GRAM": True, "LAST": False}),
            ("forward", "streamed_sum", "streamed_sum", {}),
            ("forward", "finish_last", "finish", {"GRAM": True, "LAST": True}),
            ("backward", "gradient", "gradient", {"GRAM": True}),
            ("backward", "streamed_gradient", "streamed_gradient", {}),
        ],
        "primal": [
            ("forward", "moments", "moments", {}),
            ("forward", "symmetric", "symmetric", {"GRAM": False}),
            ("forward", "finish_last", "finish", {"GRAM": False, "LAST": True}),
            ("backward", "gradient", "gradient", {"GRAM": False}),
        ],
    }
    shapes = {"gram": ((256, 2048), (2048, 8192)), "primal": ((2048, 512), (8192, 2048))}
    plans = []
    for form, steps in launches.items():
        for phase, label, function, constants in steps:
            for index, config in enumerate(configs[function]):
                shape = shapes[form][index]
                dot = function not in ("moments", "finish")
                # 16-bit inputs compile to other code; one configuration of each dot kernel shows it.
                for dtype in ("fp32", "bf16") if dot and index == 0 and form == "gram" else ("fp32",):
                    name = f"vicreg.{form}.{phase}.{label}"
                    cost = _vicreg_cost(function, *shape, config)
                    strided = {"sx_d": 1, "sy_d": 1}
                    plans.append(Plan(name, "vicreg", function, config, constants, shape, *cost, dot, dtype, strided))
    return plans


def _sigreg_plans(configs: dict[str, list[dict[str, Any]]]) -> list[Plan]:
    n, d, k, t = shape = (2048, 512, 1024, 17)
    partials = 2 * t * k * math.ceil(n / configs["project"][0]["BN"])
    # A knot costs a rotation (6) and two sums forward, a rotation and two multiply-adds backward.
    costs = {
        "project": ("forward", 4 * (n * d + d * k + n * k + partials), 2 * n * d * k + 8 * n * k * t, True),
        "combine": ("forward", 4 * (partials + 2 * t * k), 2 * partials, False),
        "unproject": ("backward", 4 * (n * k + d * k + 2 * t * k + n * d), 2 * n * d * k + 10 * n * k * t, True),
    }
    strided = {"s_d": 1, "s_k": 1}
    return [
        Plan(f"sigreg.{phase}.{function}", "sigreg", function, config, {}, shape, size, flops, dot, dtype, strided)
        for function, (phase, size, flops, dot) in costs.items()
        for config in configs[function]
        for dtype in (("fp32", "bf16") if dot else ("fp32",))
    ]


def _rollout_plans(configs: dict[str, list[dict[str, Any]]]) -> list[Plan]:
    """Fused: each kind of dynamics both ways, near the most that the fused rule takes. Stepwise: every kernel."""
    from .rollout.description import Gru, Layer, Mlp, Program, Term, flops, networks, weight_count
    from .rollout.estimate import WORKLOADS, moved
    from .rollout.layout import layout

    terms = (Term("goal_distance"), Term("action_size"), Term("action_change"))

    def normed(width: int) -> Mlp:
        return Mlp(width, 6, (Layer(width, "layer", "mish"),) * 2 + (Layer(width, "layer+simnorm"),))

    def critic(width: int) -> Mlp:
        return Mlp(width, width, (Layer(128, "layer", "mish"),) * 2 + (Layer(1),))

    w0l, gru = WORKLOADS["W0L"][0].dynamics, Gru(128, 2)
    kinds = [
        ("mlp.forward", w0l, None),
        ("mlp.backward", w0l, None),
        ("normed.forward", normed(256), None),
        ("normed.backward", normed(128), None),
        ("gru.forward", Gru(256, 2), None),
        ("gru.backward", gru, None),
        ("mlp_critic.forward", w0l, critic(64)),
        ("mlp_critic.backward", w0l, critic(64)),
        ("gru_critic.forward", gru, critic(128)),
        ("gru_critic.backward", gru, critic(128)),
    ]
    rows, steps = 1024, 10
    plans = []
    for kind, dynamics, value in kinds:
        charged = terms if value is None else (*terms, Term("value"))
        program = Program(dynamics, tuple((t.kind, t.metric, False) for t in charged), value)
        common = dict(layout(program).constants) | {"GOAL": True, "PATH": True, "WIDEN": False}
        path = 4 * rows * (steps + 1) * dynamics.state
        size, work = moved(program, rows, steps, stepwise=False) + path, flops(program, rows, steps)
        shape = (rows, steps, dynamics.state)
        if kind.endswith("backward"):
            # Recomputes the step, then goes back through it; reads the path and its derivatives, writes the adjoints.
            both, size = common | {"ADJOINTS": True}, size + 4 * weight_count(dynamics) + 2 * path
            plans += [
                Plan(f"rollout.{kind}", "rollout", "reverse", config, both, shape, size, 2 * work, True, dtype)
                for dtype in (("fp32", "bf16") if value else ("fp32",))
                for config in configs["reverse"]
            ]
            continue
        plain = isinstance(dynamics, Mlp) and value is None
        for config in configs["roll"]:
            if config.get("mlp", plain) != plain:
                continue
            dtype = "bf16" if config.get("bytes") == 2 else "fp32"
            saved = weight_count(dynamics) * 2 if dtype == "bf16" else 0
            plans.append(
                Plan(f"rollout.{kind}", "rollout", "roll", config, common, shape, size - saved, work, True, dtype)
            )
    wide, (w1, _) = Program(Mlp(1024, 6, (Layer(1024, "none", "relu"),))), WORKLOADS["W1-like"]
    recurrent = Program(Gru(512, 2), tuple((t.kind, t.metric, False) for t in terms))
    step = dict(layout(recurrent).constants)

    def one(
        program: Program, function: str, label: str, constants: dict[str, Any], width: int, weights: int | None = None
    ) -> None:
        """`weights` that a launch reads: all by default; without any there is no dot."""
        dot = weights != 0
        weights = sum(weight_count(network) for network in networks(program)) if weights is None else weights
        work = 2 * rows * weights if dot else 8 * rows * width
        name = f"rollout.stepwise.{label}"
        for dtype, size in (("fp32", 4), ("bf16", 2)) if function in ("dense", "cell") else (("fp32", 4),):
            moves = size * weights + 4 * 2 * rows * width
            plans.extend(
                Plan(name, "rollout", function, config, constants, (rows, width), moves, work, dot, dtype)
                for config in configs.get(label, configs[function])
            )

    layered = {"BY_ENVIRONMENT": False, "WIDEN": False, "KEEP": False}
    one(wide, "dense", "dense", layered | {"NET": layout(wide).dynamics, "j": 0, "RESIDUAL": True}, 1024)
    one(
        w1,
        "dense",
        "dense_normed",
        layered | {"NET": layout(w1).dynamics, "j": 2, "RESIDUAL": False, "BN": 512},
        512,
        512 * 512,
    )
    one(recurrent, "cell", "cell", {"NET": step["NET"], "WIDEN": False, "KEEP": False}, 512)
    one(recurrent, "norm", "norm", {"L": 512, "LP": 512, "V": 0}, 512, 0)
    priced = {name: step[name] for name in ("L", "LP", "D", "DP", "TERMS")} | {"GOAL": True}
    one(recurrent, "charge", "charge", priced, 512, 0)
    # The way back: through a layer whose activation has the longest slope, and through a GRU's gates.
    back = {"W": 0, "SHORTCUT": True}
    deep = Program(Mlp(1024, 6, (Layer(1024, "none", "mish"),)))
    one(deep, "dense_backward", "dense_backward", back | {"K": 1024, "OUT": 1024, "NP": 1024, "ACT": 4}, 1024, 1024**2)
    gated = back | {"K": 3 * 512, "OUT": 512, "NP": 512, "ACT": 0}
    one(recurrent, "dense_backward", "gates_backward", gated, 512, 3 * 512**2)
    side = {"K": 512, "W": 0, "ACT": 4, "D": 512, "DP": 512, "TERMS": step["TERMS"]}
    one(Program(Gru(512, 512)), "action_gradient", "action_gradient", side, 512, 512**2)
    one(w1, "through_layer", "through_layer", {"NET": layout(w1).dynamics, "j": 0}, 512, 0)
    one(recurrent, "through_cell", "through_cell", {"NET": step["NET"]}, 512, 0)
    slopes = {name: step[name] for name in ("L", "LP", "TERMS")} | {"GOAL": True, "PATH": True, "ADJOINTS": True}
    one(recurrent, "charge_backward", "charge_backward", slopes, 512, 0)
    return plans


# Arguments in the dtype of the input; other pointers hold the arithmetic dtype.
_INPUTS = {"x", "y", "gx", "gy", "z", "out:unproject"}
_SCALARS = {"w_inv", "w_var", "w_cov", "s_var", "s_cov", "gamma", "eps", "cancellation", "first:f", "step", "scale"}
_SIZES = {"N", "D", "M", "B", "K", "T", "blocks", "tiles", "programs", "columns", "first:i"}


def _argument_type(plan: Plan, name: str) -> tuple[str, bool]:
    """Return (Triton type, divisible by 16?) of a run-time argument."""
    if plan.op == "rollout":
        if name in ("discount", "factor"):
            return "fp32", False
        if name in ("N", "per", "S", "t", "zero") or name.endswith("stride"):
            return "i32", name.endswith("stride") and name != "action_stride"
        return f"*{plan.dtype if name == 'weights' else 'fp32'}", True
    if name == "first":
        name = "first:f" if plan.op == "sigreg" else "first:i"
    if name in _SCALARS:
        return "fp32", False
    if name in _SIZES:
        return "i32", name in ("D", "M", "K")
    if name.startswith(("sx_", "sy_", "s_")):
        return "i64", True
    if name == "streamed":
        return "*i8", True
    inputs = name in _INPUTS or f"{name}:{plan.function}" in _INPUTS
    return f"*{plan.dtype if inputs else 'fp32'}", True


def _binary(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _nvidia_resources(asm: dict[str, Any], target: Target, folder: Path) -> tuple[int, int]:
    """Return (registers, bytes spilled) of a cubin: cuobjdump reads the one, ptxas says the other."""
    cubin, ptx = folder / "kernel.cubin", folder / "kernel.ptx"
    cubin.write_bytes(asm["cubin"])
    ptx.write_text(asm["ptx"])
    usage = subprocess.run(
        [_binary("cuobjdump"), "--dump-resource-usage", str(cubin)], check=True, capture_output=True, text=True
    ).stdout
    registers, stack = re.search(r"REG:(\d+)", usage), re.search(r"STACK:(\d+)", usage)
    if registers is None or stack is None:
        raise RuntimeError(f"no resource usage in the output of cuobjdump:\n{usage}")
    if int(stack[1]) == 0:  # spills live on the stack: no stack, none, and no second run of the assembler
        return int(registers[1]), 0
    blackwell = Path(_binary("ptxas-blackwell"))
    assembler = str(blackwell) if target.arch == 100 and blackwell.exists() else _binary("ptxas")
    suffix = "a" if target.arch in (90, 100) else ""
    said = subprocess.run(
        [assembler, "-v", f"-arch=sm_{target.arch}{suffix}", str(ptx), "-o", os.devnull],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    spilled = re.findall(r"(\d+) bytes spill", said.stderr + said.stdout)
    if not spilled:
        raise RuntimeError(f"no spill counts in the output of ptxas:\n{said.stderr}")
    return int(registers[1]), sum(map(int, spilled))


def _amd_resources(assembly: str) -> tuple[int, int]:
    """Return (vector registers, registers spilled to memory) from the metadata at the end of AMD assembly.

    Scalar registers are spilled to lanes of vector registers; they count where the kernel has a stack at all.
    """

    def value(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"no .{name} in the AMD assembly")
        return int(found[1])

    in_memory = value("private_segment_fixed_size") > 0
    return value("vgpr_count"), value("vgpr_spill_count") + (value("sgpr_spill_count") if in_memory else 0)


def _compile(plan: Plan, kernels: Any, name: str, folder: Path) -> Row:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = TARGETS[name]
    function = getattr(kernels, plan.function)
    constants = {key: value for key, value in plan.config.items() if key.isupper()}
    constants |= {**plan.constants, **plan.strided}
    constants |= {"ACC": tl.float32, "IP": "tf32x3" if target.backend == "cuda" else "ieee"}
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, argument in enumerate(function.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
            constexprs[(index,)] = constants[argument]
            continue
        signature[argument], divisible = _argument_type(plan, argument)
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constexprs, attrs=attributes),
        target=GPUTarget(target.backend, target.arch, target.warp),
        options={key: plan.config[key] for key in ("num_warps", "num_stages")},
    )
    if target.backend == "cuda":
        code = compiled.asm["ptx"]
        registers, spills = _nvidia_resources(compiled.asm, target, folder)
    else:
        code = compiled.asm["amdgcn"]
        registers, spills = _amd_resources(code)
    matrix = plan.matrix(target)
    count = code.count(matrix)
    peak = target.dot_peak if plan.uses_dot else target.vector_peak
    return Row(
        kernel=plan.name,
        config=" ".join(f"{key}={value}" for key, value in plan.config.items() if key not in WHERE),
        target=name,
        dtype=plan.dtype,
        registers=registers,
        spills=spills,
        shared_bytes=compiled.metadata.shared,
        uses_dot=plan.uses_dot,
        matrix_instruction=matrix if count else None,
        matrix_count=count,
        shape="x".join(map(str, plan.shape)),
        bytes=plan.bytes,
        flops=plan.flops,
        roofline_us=round(1e6 * max(plan.bytes / target.bandwidth, plan.flops / peak), 3),
        roofline_part=target.part,
    )


def _compile_here(targets: Sequence[str]) -> Report:
    import triton

    from .rollout import triton as rollout_kernels
    from .sigreg import triton as sigreg_kernels
    from .vicreg import triton as vicreg_kernels

    kernels = {"vicreg": vicreg_kernels, "sigreg": sigreg_kernels, "rollout": rollout_kernels}
    plans = [
        *_vicreg_plans(vicreg_kernels.CONFIGS),
        *_sigreg_plans(sigreg_kernels.CONFIGS),
        *_rollout_plans(rollout_kernels.CONFIGS),
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            _compile(plan, kernels[plan.op], target, Path(folder))
            for plan in plans
            for target in targets
            if plan.config.get("backend") in (None, TARGETS[target].backend)
        ]
    return Report(
        triton=triton.__version__, estimate="bytes, flops and roofline_us are estimates, not measurements", rows=rows
    )


def compile_all(targets: Sequence[str] = tuple(TARGETS)) -> Report:
    """Compile everything afresh for `targets` in a process of its own, about a second a row.

    Raises RuntimeError with the compiler's words if anything does not compile.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        environment["TRITON_CACHE_DIR"] = folder
        run = subprocess.run(
            [sys.executable, "-m", f"{__package__}.aot", *targets],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
    if run.returncode != 0:
        raise RuntimeError(f"the kernels do not compile:\n{run.stderr.strip()}")
    report: Report = json.loads(run.stdout)
    return report


def rollout_estimates() -> list[Estimate]:
    """Return what rollouts of the usual sizes move and compute, fp32, with a roofline estimate for every target."""
    from .rollout.estimate import estimates

    block = json.loads((files(__package__) / "rollout" / "configs.json").read_text())["roll"][-1]["BM"]
    peaks = {name: target.dot_peak for name, target in TARGETS.items()}
    return estimates({name: target.bandwidth for name, target in TARGETS.items()}, peaks, block)


def committed() -> Report:
    """Return the rows as committed with the package."""
    report: Report = json.loads((files(__package__) / "resources.json").read_text())
    return report


def problems(rows: list[Row]) -> list[str]:
    """Return one line for every row that spills, needs too much, or misses its matrix instruction."""
    lines = []
    for row in rows:
        where = f"{row['kernel']} ({row['config']}, {row['dtype']}) on {row['target']}"
        target = TARGETS[row["target"]]
        if row["spills"]:
            lines.append(f"{where}: spills {row['spills']}")
        if row["registers"] > target.registers:
            lines.append(f"{where}: {row['registers']} registers, at most {target.registers}")
        if row["shared_bytes"] > target.shared_limit:
            lines.append(f"{where}: {row['shared_bytes']} bytes of shared memory, at most {target.shared_limit}")
        if row["uses_dot"] and row["matrix_instruction"] is None:
            lines.append(f"{where}: no matrix instruction although it uses a dot")
    return lines


def numbers(row: Row) -> tuple[float, ...]:
    """Return a row's numbers, in the order of the report."""
    return (
        row["registers"],
        row["spills"],
        row["shared_bytes"],
        row["matrix_count"],
        row["bytes"],
        row["flops"],
        row["roofline_us"],
    )


def differences(fresh: Report, table: Report) -> list[str]:
    """Return one line for every row of `fresh` that `table` lacks or states otherwise, and for every row it has extra.

    Only rows of the targets in `fresh` count. Another Triton allocates other registers, so that comes first.
    """
    if fresh["triton"] != table["triton"]:
        return [f"compiled with triton {fresh['triton']}, the table with {table['triton']}: make it anew"]

    def keyed(report: Report) -> dict[tuple[str, ...], Row]:
        return {(r["kernel"], r["config"], r["shape"], r["dtype"], r["target"]): r for r in report["rows"]}

    new, old = keyed(fresh), keyed(table)
    targets = {row["target"] for row in fresh["rows"]}
    lines = [f"{' '.join(key)}: not in the table" for key in new.keys() - old.keys()]
    lines += [f"{' '.join(key)}: only in the table" for key in old.keys() - new.keys() if key[-1] in targets]
    for key in new.keys() & old.keys():
        lines += [
            f"{' '.join(key)}: {name} is {value}, {old[key].get(name)} in the table"
            for name, value in new[key].items()
            if old[key].get(name) != value
        ]
    return sorted(lines)


if __name__ == "__main__":
    json.dump(_compile_here(sys.argv[1:]), sys.stdout)
