"""SIGReg (Balestriero and LeCun 2025, LeJEPA) as a module, over `pyjepa.kernels.sigreg`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from pyjepa.kernels import sigreg

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from pyjepa.kernels.runtime import Backend
    from pyjepa.kernels.sigreg.reference import Variant


class SIGReg(nn.Module):
    """How far embeddings are from an isotropic standard normal, along ``directions`` random ones.

    Each call in training mode draws new directions, from a counter that is part of the state dict, so that ranks agree
    and a resumed run continues; in evaluation mode the directions stay. ``knots``, ``t_max``, ``variant`` ("lejepa",
    or "bcs" as in EB-JEPA), ``group`` and ``backend`` are those of `pyjepa.kernels.sigreg`.
    """

    def __init__(
        self,
        *,
        directions: int = 1024,
        knots: int | None = None,
        t_max: float = 3.0,
        seed: int = 0,
        variant: Variant = "lejepa",
        group: ProcessGroup | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.directions = directions
        self.knots = knots
        self.t_max = t_max
        self.seed = seed
        self.variant = variant
        self.group = group
        self.backend = backend
        self.calls = 0

    def get_extra_state(self) -> int:
        """The number of training calls so far, for the state dict."""
        return self.calls

    def set_extra_state(self, state: int) -> None:
        """Continue after that many training calls."""
        self.calls = state

    def forward(self, z: Tensor) -> Tensor:
        """The statistic of z (N, D); a scalar."""
        value = sigreg(
            z,
            directions=self.directions,
            knots=self.knots,
            t_max=self.t_max,
            seed=self.seed + self.calls,
            variant=self.variant,
            group=self.group,
            backend=self.backend,
        )
        if self.training:
            self.calls += 1
        return value

    def extra_repr(self) -> str:
        """The options that differ between instances."""
        return f"directions={self.directions}, variant={self.variant!r}, seed={self.seed}"
