"""Latent rollouts in Triton: kernels, then the launchers that `op.py` calls.

    arithmetic.py           products, activations, norms, rows in and out
    mlp.py, gru.py          a network on rows in registers, forward and backward
    cost.py                 what a step costs, and the slopes of that
    fused.py                the whole horizon in one launch, forward and backward
    stepwise.py             a step in a few launches
    stepwise_backward.py    the same backwards
    launch.py               configurations

A row of an environment e reads start, goal and previous action of e = row // per. No atomics; a kernel never reads what
it wrote. Rows do not depend on each other. Every width is padded to a power of two (`layout.py`); padded columns are 0.
`zero` is 0 at run time: loops that the compiler cannot count stay loops, unrolled ones load all weights at once and
spill (measured ahead of time: W0L on sm_80, 8676 bytes).
"""

from __future__ import annotations

from torch import Tensor

from ...runtime import device_of
from ..layout import Packed
from . import fused, stepwise, stepwise_backward
from .fused import reverse, roll
from .launch import CONFIGS, Given
from .stepwise import cell, charge, dense, norm
from .stepwise_backward import action_gradient, charge_backward, dense_backward, through_cell, through_layer

__all__ = [
    "CONFIGS",
    "action_gradient",
    "backward",
    "cell",
    "charge",
    "charge_backward",
    "dense",
    "dense_backward",
    "forward",
    "norm",
    "reverse",
    "roll",
    "through_cell",
    "through_layer",
]


def forward(
    packed: Packed, start: Tensor, actions: Tensor, goal: Tensor | None, previous: Tensor | None, center: Tensor,
    scale: Tensor, coefficients: Tensor, discount: float, *, per: int, way: str, keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Costs (N,) and, where `keep`, the states (N, S + 1, L), else an empty tensor. All contiguous, on one device."""
    rows, steps, _ = actions.shape
    with device_of(start):
        given = _given(packed, actions, goal, previous, center, scale, coefficients, discount, per)
        cost, path = given.new(rows), given.new(*((rows, steps + 1, start.shape[1]) if keep else (0,)))
        (fused if way == "fused" else stepwise).forward(given, start, cost, path)
    return cost, path


def backward(
    packed: Packed, path: Tensor, actions: Tensor, goal: Tensor | None, previous: Tensor | None, center: Tensor,
    scale: Tensor, coefficients: Tensor, of_cost: Tensor, of_path: Tensor | None, discount: float, *, per: int,
    way: str, adjoints: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Derivatives with respect to actions (N, S, D), start (N, L) and, where `adjoints`, the states (N, S, L)."""
    rows, steps, _ = actions.shape
    latent = path.shape[2]
    with device_of(path):
        given = _given(packed, actions, goal, previous, center, scale, coefficients, discount, per)
        of_actions, of_start = given.new(*actions.shape), given.new(rows, latent)
        of_states = given.new(*((rows, steps, latent) if adjoints else (0,)))
        (fused if way == "fused" else stepwise_backward).backward(
            given, path, of_cost, of_path, of_actions, of_start, of_states
        )  # fmt: skip
    return of_actions, of_start, of_states


def _given(
    packed: Packed, actions: Tensor, goal: Tensor | None, previous: Tensor | None, center: Tensor, scale: Tensor,
    coefficients: Tensor, discount: float, per: int,
) -> Given:  # fmt: skip
    if previous is None:  # as many rows as there may be environments
        previous = packed.vectors.new_full((actions.shape[0], actions.shape[2]), float("nan"))
    return Given(packed, actions, goal, previous, center, scale, coefficients, discount, per)
