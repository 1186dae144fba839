"""The optimiser's loop of what learns from stored experience."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Progress = Callable[[int, float], None]
"""Told the number of steps and the last one's loss."""


def fit(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    examples: int,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    progress: Progress,
) -> float:
    """Fits a network by AdamW, its rate after one cycle (Smith and Topin 2019); returns the last loss.

    ``loss`` gets the indices (batch,) of examples, drawn with repetition from ``examples`` of them by ``seed``.
    """
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    draw = torch.Generator().manual_seed(seed)
    last = float("nan")
    for step in range(steps):
        found = loss(torch.randint(examples, (batch,), generator=draw))
        optimiser.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        last = found.item()
        progress(step + 1, last)
    return last
