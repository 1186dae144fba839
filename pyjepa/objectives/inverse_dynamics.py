"""Inverse dynamics: which action led from one state to the next? (Pathak et al. 2017; PLDM, Sobal et al. 2025.)

It forces the encoder to represent what actions change, however small that is in the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class InverseDynamics(nn.Module):
    """A small network that reads two consecutive states and tells the normalised action in between."""

    def __init__(self, latent_dim: int, action_dim: int, *, hidden: int = 128) -> None:
        """``hidden`` is the width of its one hidden layer."""
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2 * latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, action_dim))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """The mean squared error for states (B, T + 1, L) and normalised actions (B, T, A); a scalar."""
        predicted = self.network(torch.cat([states[:, :-1], states[:, 1:]], dim=-1))
        return functional.mse_loss(predicted, actions)


def chance(actions: Tensor) -> Tensor:
    """What a blind guess (the mean action) scores on normalised actions (B, T, A); a scalar."""
    return actions.flatten(0, -2).var(dim=0, correction=0).mean()
