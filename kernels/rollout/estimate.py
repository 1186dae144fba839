"""What a rollout moves and computes at the sizes people plan with, and what a data sheet makes of that.

Counted, not measured: bytes to and from the device's memory (weights once, candidates in, costs out; stepwise also
every activation, and the weights at every launch), operations of the matrix products, and the roofline estimate
max(bytes / bandwidth, operations / peak) with the peak scaled by the share of compute units that have a block of rows.
"""

from __future__ import annotations

from typing import NamedTuple

from .description import Gru, Layer, Mlp, Program, Term, choose, flops, networks, weight_count
from .description import program as described_by

GOAL = (Term("goal_distance"),)
WORKLOADS: dict[str, tuple[Program, int]] = {
    "W0s": (
        described_by(Mlp(64, 2, (Layer(64, "none", "relu"),) * 2 + (Layer(64),), residual=True), GOAL),
        10,
    ),
    "W0": (described_by(Mlp(32, 2, (Layer(128, "none", "relu"),) * 2 + (Layer(32),), residual=True), GOAL), 10),
    "W0L": (described_by(Mlp(64, 2, (Layer(256, "none", "relu"),) * 2 + (Layer(64),), residual=True), GOAL), 10),
    "W1-like": (
        described_by(Mlp(512, 6, (Layer(512, "layer", "mish"),) * 2 + (Layer(512, "layer+simnorm"),)), GOAL),
        3,
    ),
    "GRU": (described_by(Gru(128, 2), GOAL), 10),
}
"""Planning workloads by name: program and predictor steps. W1-like: TD-MPC2's dynamics, with distance as its cost."""

CANDIDATES = (64, 256, 1024, 8192)
UNITS = {"sm_80": 108, "sm_90": 132, "sm_100": 148, "gfx942": 304}
"""Compute units of the parts whose data sheets are used."""


class Estimate(NamedTuple):
    """One workload with so many candidates on one target, fp32 weights."""

    workload: str
    candidates: int
    target: str
    way: str
    bytes: int
    flops: int
    roofline_us: float


def moved(program: Program, rows: int, steps: int, *, stepwise: bool, element_size: int = 4) -> int:
    """Bytes to and from memory of a forward rollout without states."""
    size, side = program.dynamics.state, program.dynamics.side
    weights = element_size * sum(weight_count(network) for network in networks(program))
    ends = 4 * (rows * (steps * side + 1) + 2 * size)
    if not stepwise:
        return weights + ends
    widths = [layer.out for layer in program.dynamics.layers] if isinstance(program.dynamics, Mlp) else [size]
    activations = sum(2 * width for width in widths) + size + 2  # each written and read; the state and cost again
    return steps * (weights + 4 * rows * activations) + ends


def estimates(bandwidth: dict[str, float], peak: dict[str, float], block: int) -> list[Estimate]:
    """Every workload at every number of candidates; `bandwidth` (bytes/s) and `peak` (flop/s) by target; `block` rows
    are one program's.
    """
    rows = []
    for name, (program, steps) in WORKLOADS.items():
        way = choose(program, 4).way
        for candidates in CANDIDATES:
            size, work = (
                moved(program, candidates, steps, stepwise=way == "stepwise"),
                flops(program, candidates, steps),
            )
            for target, units in UNITS.items():
                busy = min(1.0, -(-candidates // block) / units)
                seconds = max(size / bandwidth[target], work / (peak[target] * busy))
                rows.append(Estimate(name, candidates, target, way, size, work, round(1e6 * seconds, 3)))
    return rows
