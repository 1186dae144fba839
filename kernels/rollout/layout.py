"""How parameters lie in memory for the kernels: transposed, padded with zeros, one after the other.

Every width is padded to a power of two of at least 16, as a matrix unit and Triton want it; zeros keep the kernels free
of masks over weights, and padded columns at zero. Weights keep their dtype; biases, norms and the weights that a
backward pass reads are in the dtype of the arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .description import ACTIVATIONS, KINDS, METRICS, Dynamics, Gru, Program

NETWORK = tuple[tuple[int, ...], ...]
"""Per layer: columns of the state, of the side input and of the output, the same three padded, has LayerNorm, simnorm
group or 0, activation, offset of its weights, of its vectors. A gru is one such row.
"""


@dataclass(frozen=True)
class Layout:
    """A program as the kernels' compile-time constants, and the sizes of the buffers its parameters take."""

    constants: tuple[tuple[str, Any], ...]
    weights: int
    vectors: int
    dynamics: NETWORK
    critic: NETWORK


def padded(columns: int) -> int:
    """The width of a tile that holds so many columns: a power of two, at least 16."""
    return max(16, 1 << (columns - 1).bit_length())


@functools.lru_cache(maxsize=256)
def layout(program: Program) -> Layout:
    """Where everything lies.

    A layer of an mlp: the state's columns of its weight, the side input's, then bias and norm. A gru: its state's
    columns for the gates r, u, n, its action's for the three, then six vectors: the biases of r and u (both added up),
    of n for the action and for the state, the norm's two.
    """
    weights = vectors = 0

    def lay(network: Dynamics) -> NETWORK:
        nonlocal weights, vectors
        rows = []
        state, side = network.state, network.side
        if isinstance(network, Gru):
            width, of_side = padded(state), padded(side)
            rows.append((state, side, state, width, of_side, width, int(network.normalise), 0, 0, weights, vectors))
            weights += 3 * width * (width + of_side)
            vectors += 6 * width
            return tuple(rows)
        for layer in network.layers:
            sizes = (padded(state), padded(side) if side else 0, padded(layer.out))
            kind = (int(layer.normed), layer.group if layer.grouped else 0, ACTIVATIONS.index(layer.activation))
            rows.append((state, side, layer.out, *sizes, *kind, weights, vectors))
            weights += sizes[2] * (sizes[0] + sizes[1])
            vectors += 3 * sizes[2]
            state, side = layer.out, 0
        return tuple(rows)

    dynamics = lay(program.dynamics)
    critic = () if program.critic is None else lay(program.critic)
    gru = isinstance(program.dynamics, Gru)
    constants = {
        "L": program.dynamics.state,
        "LP": padded(program.dynamics.state),
        "D": program.dynamics.side,
        "DP": padded(program.dynamics.side),
        "GRU": gru,
        "RESIDUAL": not gru and program.dynamics.residual,  # type: ignore[union-attr]
        "NET": dynamics,
        "CRITIC": critic,
        "TERMS": tuple((KINDS.index(kind), METRICS.index(metric), int(reach)) for kind, metric, reach in program.terms),
    }
    return Layout(tuple(constants.items()), weights, vectors, dynamics, critic)


@dataclass(frozen=True)
class Packed:
    """Parameters as the kernels read them; valid until the parameters change."""

    layout: Layout
    weights: Tensor
    vectors: Tensor
    transposed: Tensor | None
    """For a backward pass: every matrix the other way round, at the same place."""


def pack(
    program: Program,
    parameters: Sequence[Tensor],
    critic: Sequence[Tensor],
    compute: torch.dtype,
    *,
    backward: bool = False,
) -> Packed:
    """Lay the parameters of the dynamics and the critic out: a few small copies."""
    lay = layout(program)
    like = parameters[0]
    weights = torch.zeros(lay.weights, dtype=like.dtype, device=like.device)
    vectors = torch.zeros(lay.vectors, dtype=compute, device=like.device)
    transposed = torch.zeros(lay.weights, dtype=compute, device=like.device) if backward else None

    def matrix(at: int, block: Tensor, rows: int, columns: int) -> int:
        out, inputs = block.shape
        weights[at : at + rows * columns].view(rows, columns)[:inputs, :out] = block.t()
        if transposed is not None:
            transposed[at : at + rows * columns].view(columns, rows)[:out, :inputs] = block
        return at + rows * columns

    def vector(at: int, values: Tensor, width: int) -> int:
        vectors[at : at + len(values)] = values
        return at + width

    def place(network: Dynamics, rows: NETWORK, given: Sequence[Tensor]) -> None:
        left = iter(given)
        if isinstance(network, Gru):
            w_ih, w_hh, b_ih, b_hh, *norm = given
            *_, width, side, _, _, _, _, at, v = rows[0]
            for gate in w_hh.chunk(3):
                at = matrix(at, gate, width, width)
            for gate in w_ih.chunk(3):
                at = matrix(at, gate, side, width)
            (ir, iu, new), (hr, hu, hidden) = b_ih.to(compute).chunk(3), b_hh.to(compute).chunk(3)
            for values in (ir + hr, iu + hu, new, hidden, *norm):
                v = vector(v, values, width)
            return
        for j, layer in enumerate(network.layers):
            state, side, _, height, of_side, width, _, _, _, at, v = rows[j]
            weight = next(left)
            if side:
                sizes = [side, state] if network.side_first else [state, side]
                first, second = torch.split(weight, sizes, dim=1)
                weight, action = (second, first) if network.side_first else (first, second)
                matrix(at + height * width, action, of_side, width)
            matrix(at, weight, height, width)
            for _ in range(3 if layer.normed else 1):
                v = vector(v, next(left), width)

    with torch.no_grad():
        place(program.dynamics, lay.dynamics, parameters)
        if program.critic is not None:
            place(program.critic, lay.critic, critic)
    return Packed(lay, weights, vectors, transposed)
