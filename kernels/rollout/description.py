"""What a rollout computes, as data: the dynamics, the cost, and the rule that says which way it runs.

Nothing here touches a device. Descriptions are hashable, so that a launch can be specialised on them, and turn into
text and back (`encode`, `decode`), so that an operator can take them.

Symbols: L latent, D what the dynamics read of an action each step, S steps, N rows (candidates of all environments).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

NORMS = ("none", "layer", "simnorm", "layer+simnorm")
ACTIVATIONS = ("none", "relu", "gelu", "silu", "mish", "tanh")
KINDS = ("goal_distance", "action_size", "action_change", "value")
METRICS = ("l2", "squared_l2", "l1", "cosine")

Way: TypeAlias = Literal["fused", "stepwise", "eager"]


@dataclass(frozen=True)
class Layer:
    """``activation(norm(W x + b))`` with ``out`` outputs; ``group`` is simnorm's.

    LayerNorm has affine weights and eps 1e-5; simnorm is softmax within groups (TD-MPC2). Raises ValueError.
    """

    out: int
    norm: str = "none"
    activation: str = "none"
    group: int = 8

    def __post_init__(self) -> None:
        """Refuse what no back end computes."""
        if self.out < 1:
            raise ValueError(f"a layer needs out >= 1, not {self.out}")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, not {self.norm!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")
        if self.grouped and (self.group < 1 or self.out % self.group):
            raise ValueError(f"simnorm groups of {self.group} do not divide {self.out} outputs")

    @property
    def normed(self) -> bool:
        """Whether the layer has a LayerNorm, and so two parameters more."""
        return self.norm in ("layer", "layer+simnorm")

    @property
    def grouped(self) -> bool:
        """Whether the layer has a simnorm."""
        return self.norm in ("simnorm", "layer+simnorm")


@dataclass(frozen=True)
class Mlp:
    """Dense layers on a state (``state``,) and a side input (``side``,) concatenated, the state added if ``residual``.

    The side input of dynamics is the action, that of a critic the goal, or nothing (0); ``side_first`` says which of
    the two the first layer's weight reads first. Parameters, layer by layer: weight (out, in), bias (out,) and, with a
    LayerNorm, its weight and bias (out,).
    """

    state: int
    side: int
    layers: tuple[Layer, ...]
    residual: bool = False
    side_first: bool = False

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        if self.state < 1 or self.side < 0 or not self.layers:
            raise ValueError(f"an mlp needs a state, a side input >= 0 and a layer, not {self}")
        if self.residual and self.out != self.state:
            raise ValueError(f"residual: {self.out} outputs are no state of {self.state}")

    @property
    def out(self) -> int:
        """How many numbers it puts out."""
        return self.layers[-1].out

    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of its parameters, in order."""
        shapes: list[tuple[int, ...]] = []
        inputs = self.state + self.side
        for layer in self.layers:
            shapes += [(layer.out, inputs), (layer.out,)] + [(layer.out,)] * (2 if layer.normed else 0)
            inputs = layer.out
        return shapes


@dataclass(frozen=True)
class Gru:
    """A GRU cell whose hidden state is the latent and whose input is the action, as `torch.nn.GRUCell` computes it.

    With ``normalise`` a LayerNorm follows, whose output is the next hidden state (EB-JEPA). Parameters: GRUCell's
    weight_ih (3L, D), weight_hh (3L, L), bias_ih, bias_hh (3L,), then the LayerNorm's weight and bias (L,).
    """

    state: int
    side: int
    normalise: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be."""
        if self.state < 1 or self.side < 1:
            raise ValueError(f"a gru needs a state and an action, not {self}")

    @property
    def out(self) -> int:
        """How many numbers it puts out."""
        return self.state

    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of its parameters, in order."""
        n = self.state
        shapes: list[tuple[int, ...]] = [(3 * n, self.side), (3 * n, n), (3 * n,), (3 * n,)]
        return shapes + ([(n,), (n,)] if self.normalise else [])


Dynamics: TypeAlias = Mlp | Gru


@dataclass(frozen=True)
class Term:
    """One term of the cost. At step t = 0 … S - 1 it counts ``discount ** t`` times its weight then: ``stage``, and at
    the last step ``terminal``.

    goal_distance: of the reached state from the goal, in a ``metric``; with a ``reach`` over 0 in units of it, and 1
    beyond. action_size: the squared norm of the normalised action; action_change: of its difference to the one before.
    value: the critic's output at the reached state. Weights and reach are run-time numbers: other ones compile nothing.
    """

    kind: str
    stage: float = 1.0
    terminal: float = 1.0
    metric: str = "l2"
    reach: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no back end computes."""
        if self.kind not in KINDS:
            raise ValueError(f"a cost term's kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {self.metric!r}")


@dataclass(frozen=True)
class Program:
    """A rollout but for its numbers: what a kernel is compiled for."""

    dynamics: Dynamics
    terms: tuple[tuple[str, str, bool], ...] = ()
    """(kind, metric, has a reach) of each cost term."""
    critic: Mlp | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        size = self.dynamics.state
        if self.dynamics.out != size:
            raise ValueError(f"the dynamics put out {self.dynamics.out} numbers for a state of {size}")
        if any(kind == "value" for kind, _, _ in self.terms) != (self.critic is not None):
            raise ValueError("a critic and a cost term of kind value come together")
        if self.critic is not None and (
            self.critic.state != size or self.critic.side not in (0, size) or self.critic.out != 1
        ):
            raise ValueError(f"a critic reads a state of {size}, perhaps a goal, and puts out one number")

    @property
    def needs_goal(self) -> bool:
        """Whether the cost reads a goal."""
        return any(kind == "goal_distance" for kind, _, _ in self.terms) or bool(self.critic and self.critic.side)


def program(dynamics: Dynamics, terms: Sequence[Term] = (), critic: Mlp | None = None) -> Program:
    """The program behind dynamics and cost terms. Raises ValueError where they do not fit together."""
    return Program(dynamics, tuple((t.kind, t.metric, t.reach > 0.0) for t in terms), critic)


def encode(described: Program) -> str:
    """A program as text."""
    kind = "mlp" if isinstance(described.dynamics, Mlp) else "gru"
    return json.dumps([kind, dataclasses.asdict(described)], sort_keys=True)


@functools.lru_cache(maxsize=256)
def decode(text: str) -> Program:
    """The program behind text that `encode` made."""
    kind, data = json.loads(text)
    dynamics = _mlp(data["dynamics"]) if kind == "mlp" else Gru(**data["dynamics"])
    critic = None if data["critic"] is None else _mlp(data["critic"])
    return Program(dynamics, tuple((k, m, r) for k, m, r in data["terms"]), critic)


def _mlp(data: dict[str, object]) -> Mlp:
    layers = tuple(Layer(**layer) for layer in data.pop("layers"))  # type: ignore[attr-defined]
    return Mlp(**data, layers=layers)  # type: ignore[arg-type]


def weight_count(network: Dynamics) -> int:
    """How many numbers its weight matrices hold."""
    return sum(prod(shape) for shape in network.shapes() if len(shape) == 2)


def flops(described: Program, rows: int, steps: int) -> int:
    """Operations of the matrix products of a forward rollout, two per multiply-add."""
    per_step = weight_count(described.dynamics) + (0 if described.critic is None else weight_count(described.critic))
    return 2 * rows * steps * per_step


# ---- which way a rollout runs ------------------------------------------------------------------------------------

FUSED_WEIGHT_BYTES = 1 << 20
"""Weights that every program streams from the second-level cache at every step."""
FUSED_WIDTH = 256
"""Columns of one activation: it stays in registers, a row block of 16."""
FUSED_TILES = 128
"""Weight tiles of 64 x 64: each is unrolled into its own products."""
BACKWARD_TILES = 64
"""The same for the reverse kernel, which does every product twice."""
BACKWARD_COLUMNS = 576
"""Columns that the reverse kernel keeps of a step's layers: registers again."""
BACKWARD_GRU = 128
"""Columns of a GRU's state there, with its gates and their derivatives."""
STEPWISE_ROW = 512
"""Columns of a row that one program takes whole: normed ones, states, and what a gradient of actions is summed in."""
SIMNORM_GROUPS = (1, 2, 4, 8, 16)
"""Groups that never straddle two tiles."""


@dataclass(frozen=True)
class Choice:
    """Which way a rollout runs, and why not one higher up (fused, stepwise, eager)."""

    way: Way
    reason: str = ""


def choose(described: Program, element_size: int, *, backward: bool = False, triton: bool = True) -> Choice:
    """The way a rollout of ``element_size``-byte weights runs: fused, stepwise or eager.

    ``backward``: the way back through it, which takes smaller networks in one launch. ``triton``: whether Triton runs
    here at all. A pure function: what falls back, and the reason in words, can be known without a device.
    """
    if not triton:
        return Choice("eager", "Triton does not run here")
    reason = _not_at_all(described)
    if reason:
        return Choice("eager", reason)
    reason = _not_fused(described, element_size, backward)
    if not reason:
        return Choice("fused")
    wide = _too_wide_a_row(described)
    return Choice("eager", f"{reason}; {wide}") if wide else Choice("stepwise", reason)


def networks(described: Program) -> list[Dynamics]:
    """The dynamics and, if there is one, the critic."""
    return [described.dynamics] + ([] if described.critic is None else [described.critic])


def _not_at_all(described: Program) -> str:
    for network in networks(described):
        for j, layer in enumerate(network.layers if isinstance(network, Mlp) else ()):
            if layer.grouped and layer.group not in SIMNORM_GROUPS:
                return f"layer {j}: simnorm groups of {layer.group}, the kernels take {SIMNORM_GROUPS}"
    return ""


def _widths(network: Dynamics) -> list[int]:
    return [network.state, network.side] + ([layer.out for layer in network.layers] if isinstance(network, Mlp) else [])


def _kept(network: Dynamics) -> int:
    layers = network.layers if isinstance(network, Mlp) else ()
    return sum(max(16, 1 << (layer.out - 1).bit_length()) for layer in layers)


def tiles(network: Dynamics) -> int:
    """How many weight tiles of at most 64 x 64 it has."""

    def count(n: int) -> int:
        return -(-n // 64)

    if isinstance(network, Gru):
        return 3 * count(network.state) * (count(network.state) + count(network.side))
    total, inputs = 0, count(network.state) + count(network.side)
    for layer in network.layers:
        total += inputs * count(layer.out)
        inputs = count(layer.out)
    return total


def _not_fused(described: Program, element_size: int, backward: bool) -> str:
    size = element_size * sum(weight_count(network) for network in networks(described))
    if size > FUSED_WEIGHT_BYTES:
        return f"weights of {size} bytes, fused at most {FUSED_WEIGHT_BYTES}"
    widest = max(width for network in networks(described) for width in _widths(network))
    if widest > FUSED_WIDTH:
        return f"a width of {widest}, fused at most {FUSED_WIDTH}"
    if backward and isinstance(described.dynamics, Gru) and widest > BACKWARD_GRU:
        return f"a gru's state of {widest}, fused at most {BACKWARD_GRU} in a backward pass"
    kept = max(map(_kept, networks(described)))
    if backward and kept > BACKWARD_COLUMNS:
        return f"{kept} columns to keep, fused at most {BACKWARD_COLUMNS} in a backward pass"
    total, most = sum(map(tiles, networks(described))), BACKWARD_TILES if backward else FUSED_TILES
    if total > most:
        return f"{total} weight tiles, fused at most {most}{' in a backward pass' if backward else ''}"
    return ""


def _too_wide_a_row(described: Program) -> str:
    rows = {"a state": described.dynamics.state, "an action": described.dynamics.side}
    normed = [
        layer.out for n in networks(described) if isinstance(n, Mlp) for layer in n.layers if layer.norm != "none"
    ]
    rows["a normed row"] = max(normed, default=0)
    name = max(rows, key=lambda key: rows[key])
    return f"{name} of {rows[name]}, stepwise at most {STEPWISE_ROW}" if rows[name] > STEPWISE_ROW else ""
