"""Plain torch, eager, with weights and activations in bfloat16 (the latent state and the costs in float32)."""

from __future__ import annotations

import torch

from pyjepa.bench.peers import Prepared
from pyjepa.bench.peers.torch import prepare_with, tolerance_of_bf16
from pyjepa.bench.workloads import PlanningProblem

ALGORITHMS = {"cem": ("",), "mppi": ("",), "td-mpc2": ("",), "cem-gru": ("",), "cem-adaln": ("",)}


def prepare(problem: PlanningProblem, threads: int, variant: str) -> Prepared:
    """See `pyjepa.bench.peers`."""
    return prepare_with(problem, threads, torch.bfloat16, "bf16", tolerance_of_bf16(problem))
