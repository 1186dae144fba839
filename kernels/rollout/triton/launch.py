"""What every launch of a rollout kernel needs: its arguments, its arithmetic, its configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ...runtime import dot_precision, interpreted
from ..layout import Packed

CONFIGS: dict[str, list[dict[str, Any]]] = json.loads((files(__package__).parent / "configs.json").read_text())  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Given:
    """What a rollout is given, on its way forward and back. Contiguous, on one device. N rows, `per` an environment."""

    packed: Packed
    actions: Tensor
    """(N, S, D)."""
    goal: Tensor | None
    """(E, L)."""
    previous: Tensor
    """(E, D), or more rows; NaN: there was none."""
    center: Tensor
    scale: Tensor
    """(D,)."""
    coefficients: Tensor
    """(T, 3): of each term its stage weight, its terminal weight, its reach."""
    discount: float
    per: int

    @property
    def constants(self) -> dict[str, Any]:
        """The program, as the kernels' compile-time constants."""
        return dict(self.packed.layout.constants)

    @property
    def aims(self) -> bool:
        """Whether a cost term measures the distance to the goal."""
        return any(kind == 0 for kind, _, _ in self.constants["TERMS"])

    @property
    def arithmetic(self) -> dict[str, Any]:
        """The constants that say how kernels compute: in fp64, or in fp32 whatever the weights are."""
        double = self.packed.vectors.dtype == torch.float64
        return {
            "WIDEN": interpreted(),
            "IP": dot_precision(self.packed.vectors),
            "ACC": tl.float64 if double else tl.float32,
        }

    def config(self, kernel: str) -> dict[str, Any]:
        """The launch configuration: the first entry for this device, this program, so many candidates and bytes per
        weight. Entries marked ``mlp`` are for an mlp without a critic, which leaves registers for more rows.
        """
        rows, size = self.actions.shape[0], self.packed.weights.element_size()
        here: dict[str, Any] = {"backend": "cuda" if torch.version.hip is None else "hip"}
        here["mlp"] = not self.packed.layout.critic and not self.constants["GRU"]
        for entry in CONFIGS[kernel]:
            fits = rows >= entry.get("from", 0) and size <= entry.get("bytes", size)
            if fits and all(entry.get(name, value) == value for name, value in here.items()):
                return {name: value for name, value in entry.items() if name not in ("backend", "mlp", "from", "bytes")}
        raise AssertionError(f"no configuration of {kernel} for {rows} rows")

    def new(self, *shape: int) -> Tensor:
        """An empty tensor in the dtype of the arithmetic."""
        return self.packed.vectors.new_empty(shape)
