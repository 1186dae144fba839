"""Targets from an exponential moving average of the encoder (BYOL, Grill et al. 2020; I-JEPA, Assran et al. 2023).

The cure for collapse that nothing in the loss explains: the online branch predicts, through a predictor of its own,
what a slowly following copy of it says, and no gradient reaches the copy. Here for comparison with the regularised
methods, and because masked prediction is usually trained so.
"""

from __future__ import annotations

import copy
import math
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

Online = TypeVar("Online", bound=nn.Module)


class EMATarget(nn.Module, Generic[Online]):
    """A copy of a module that follows it: ``target <- momentum * target + (1 - momentum) * online``.

    Its parameters take no gradient, and its outputs none to their inputs; buffers are copied. It begins as the online
    module is.
    """

    def __init__(self, online: Online) -> None:
        super().__init__()
        self.module: Online = copy.deepcopy(online).requires_grad_(False)

    @torch.no_grad()
    def update(self, online: Online, momentum: float) -> None:
        """Follow ``online`` (after the optimiser's step). Raises ValueError unless 0 <= momentum <= 1."""
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        theirs = dict(online.named_parameters())
        for name, mine in self.module.named_parameters():
            mine.lerp_(theirs[name].detach(), 1.0 - momentum)
        buffers = dict(online.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """What the followed module would say; no gradient."""
        output: Tensor = self.module(*inputs)
        return output


def momentum_at(
    step: int, steps: int, *, base: float = 0.996, final: float = 1.0, schedule: Literal["cosine", "linear"] = "cosine"
) -> float:
    """The momentum after ``step`` of ``steps``: from ``base`` to ``final`` on a cosine (BYOL) or a line (I-JEPA).

    Raises ValueError unless 0 <= step <= steps, steps >= 1, and 0 <= base <= final <= 1.
    """
    if not (0 <= step <= steps and steps >= 1):
        raise ValueError(f"step: expected 0 <= step <= steps and steps >= 1, got {step} of {steps}")
    if not 0.0 <= base <= final <= 1.0:
        raise ValueError(f"expected 0 <= base <= final <= 1, got base {base}, final {final}")
    if schedule not in ("cosine", "linear"):
        raise ValueError(f"schedule must be 'cosine' or 'linear', not {schedule!r}")
    done = step / steps
    left = (math.cos(math.pi * done) + 1) / 2 if schedule == "cosine" else 1 - done
    return final - (final - base) * left


def byol(prediction: Tensor, target: Tensor) -> Tensor:
    """``mean_i ||p_i/|p_i| - t_i/|t_i|||^2 = 2 - 2 cos`` of (N, D) predictions and targets; a scalar in [0, 4].

    BYOL, equation 2. No gradient reaches the target. Raises ValueError for other shapes.
    """
    if prediction.dim() != 2 or prediction.shape != target.shape or min(prediction.shape) < 1:
        raise ValueError(
            f"prediction and target: expected two (N, D), got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    with torch.autocast(prediction.device.type, enabled=False):
        dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
        cosine = functional.cosine_similarity(prediction.to(dtype), target.detach().to(dtype), dim=1)
        return 2 - 2 * cosine.mean()
