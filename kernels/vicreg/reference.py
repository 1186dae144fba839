"""VICReg in plain torch: the statement every other implementation here is tested against.

Bardes, Ponce, LeCun: VICReg (ICLR 2022), equations 1-6. The implementations in use differ only in scale; `CONVENTIONS`
names those scales and `vicreg_reference` states each of them in the form its authors publish (through the D x D
covariance matrix, diagonal dropped). It is written to be read, not to be fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Convention = Literal["vicreg", "vicregl", "solo", "eb"]
VarianceAxis = Literal["batch", "time"]


@dataclass(frozen=True)
class Scales:
    """Scales that tell one published VICReg from another.

    variance: factor on v(x) + v(y). covariance: factor on c(x) + c(y), where c = sum of squared off-diagonal
    covariances / D. pairs: divide by the D (D - 1) off-diagonal pairs instead of by D (EB-JEPA's mean).
    weights: default (invariance, variance, covariance) weights.
    """

    variance: float
    covariance: float
    pairs: bool
    weights: tuple[float, float, float]

    def covariance_for(self, features: int) -> float:
        """Return the factor on c(x) + c(y) for D = `features`; D = 1 has no off-diagonal pair and gives 0."""
        if not self.pairs:
            return self.covariance
        return self.covariance / (features - 1) if features > 1 else 0.0


CONVENTIONS: dict[str, Scales] = {
    # facebookresearch/vicreg, lightly, pytorch-metric-learning, stable-pretraining
    "vicreg": Scales(variance=0.5, covariance=1.0, pairs=False, weights=(25.0, 25.0, 1.0)),
    # facebookresearch/VICRegL: halves the covariance, one covariance per position of (T, N, D)
    "vicregl": Scales(variance=0.5, covariance=0.5, pairs=False, weights=(25.0, 25.0, 1.0)),
    # solo-learn
    "solo": Scales(variance=1.0, covariance=1.0, pairs=False, weights=(25.0, 25.0, 1.0)),
    # EB-JEPA, stable-worldmodel: the mean of the off-diagonal squares
    "eb": Scales(variance=1.0, covariance=1.0, pairs=True, weights=(1.0, 1.0, 80.0)),
}


class VICRegTerms(NamedTuple):
    """What `vicreg` returns: four scalars of the arithmetic dtype (fp32, or fp64 for fp64 inputs).

    loss = w0 invariance + w1 variance + w2 covariance; the three terms are unweighted, in the convention's scale, and
    differentiable themselves.
    """

    loss: Tensor
    invariance: Tensor
    variance: Tensor
    covariance: Tensor

    @property
    def terms(self) -> dict[str, Tensor]:
        """The three unweighted terms by name."""
        return {"invariance": self.invariance, "variance": self.variance, "covariance": self.covariance}


def vicreg_reference(
    x: Tensor,
    y: Tensor,
    *,
    weights: tuple[float, float, float] | None = None,
    convention: Convention = "vicreg",
    gamma: float = 1.0,
    eps: float = 1e-4,
    variance_over: VarianceAxis = "batch",
    upcast: bool = True,
) -> VICRegTerms:
    """State VICReg in plain torch, through autograd and the full D x D matrix.

    x, y: (N, D), or (T, N, D) for one loss per time step, averaged over T. `upcast` computes 16-bit inputs in fp32;
    without it every intermediate keeps the input's dtype ("torch's own same-dtype" result of the error rule).
    """
    scales = CONVENTIONS[convention]
    w = scales.weights if weights is None else weights
    if upcast and x.dtype in (torch.float16, torch.bfloat16):
        x, y = x.float(), y.float()
    n, d = x.shape[-2:]
    xs, ys = x.reshape(-1, n, d), y.reshape(-1, n, d)

    def hinge(z: Tensor) -> Tensor:
        axis = 0 if variance_over == "time" else 1
        return torch.relu(gamma - torch.sqrt(z.var(axis) + eps)).mean()

    def covariance(z: Tensor) -> Tensor:
        z = z - z.mean(1, keepdim=True)
        c = z.transpose(1, 2) @ z / (n - 1)
        off = ~torch.eye(d, dtype=torch.bool, device=z.device)
        return (c * off).square().sum((1, 2)).mean() / d

    invariance = (xs - ys).square().mean()
    variance = scales.variance * (hinge(xs) + hinge(ys))
    cov = scales.covariance_for(d) * (covariance(xs) + covariance(ys))
    return VICRegTerms(w[0] * invariance + w[1] * variance + w[2] * cov, invariance, variance, cov)
