"""SIGReg in plain torch: the statement every other implementation here is tested against.

Balestriero, LeCun: LeJEPA (2025), the sketched isotropic Gaussian regulariser: project on random unit directions and
compare each projection's empirical characteristic function with the standard normal's (Epps-Pulley).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Variant = Literal["lejepa", "bcs"]
# Knots each variant integrates over when none are asked for.
KNOTS: dict[str, int] = {"lejepa": 17, "bcs": 10}


def sigreg_directions(
    features: int, count: int, *, seed: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draw `count` unit directions, (D, K), from a seed: the same on every rank of a job with one kind of device.

    Raises ValueError for D < 1 or K < 1.
    """
    if features < 1 or count < 1:
        raise ValueError(f"need D >= 1 features and K >= 1 directions, not D = {features}, K = {count}")
    generator = torch.Generator(device=device).manual_seed(seed)
    directions = torch.randn(features, count, generator=generator, device=device, dtype=dtype)
    return directions.div_(directions.norm(dim=0))


def sigreg_reference(
    z: Tensor,
    directions: Tensor,
    *,
    variant: Variant = "lejepa",
    knots: int | None = None,
    t_max: float = 3.0,
    upcast: bool = True,
) -> Tensor:
    """State SIGReg in plain torch, with the N x K x T arrays that the kernels avoid. z: (N, D), directions: (D, K).

    "lejepa" integrates t over [0, t_max] with doubled trapezoid weights and multiplies by N; "bcs" (EB-JEPA) over
    [-t_max, t_max] and does not. `upcast` computes 16-bit inputs in fp32.
    """
    count = KNOTS[variant] if knots is None else knots
    if upcast and z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    directions = directions.to(z.dtype)
    t = torch.linspace(0.0 if variant == "lejepa" else -t_max, t_max, count, dtype=z.dtype, device=z.device)
    step = (t[1] - t[0]).item()
    weights = torch.full_like(t, 2.0 * step if variant == "lejepa" else step)
    weights[0] = weights[-1] = weights[0] / 2
    window = torch.exp(-t.square() / 2)
    angles = (z @ directions)[:, :, None] * t
    error = (angles.cos().mean(0) - window).square() + angles.sin().mean(0).square()
    statistic = (error @ (weights * window)).mean()
    return statistic * z.shape[0] if variant == "lejepa" else statistic
