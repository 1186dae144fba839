"""Terms on a clip's states over time: similarity of neighbours, and variance within each clip.

Both regularise (B, T, L), as PLDM and EB-JEPA do over time. They pull apart: similarity alone would reward a state
that never changes, which the variance over time forbids. The latter is what keeps an encoder from describing only
what is constant within an episode: such a state has all the variance over the batch that VICReg asks for.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from pyjepa.objectives.vicreg import EPSILON


def temporal_similarity(states: Tensor) -> Tensor:
    """The mean squared difference of consecutive states (B, T, L); a scalar."""
    return functional.mse_loss(states[:, 1:], states[:, :-1])


def temporal_variance(states: Tensor, *, target: float) -> Tensor:
    """``mean_j relu(target - std_j)`` of the deviation of states (B, T, L) from each clip's mean over time.

    Raises ValueError for T < 2.
    """
    if states.shape[1] < 2:
        raise ValueError(f"states: expected (B, T, L) with T >= 2, got {tuple(states.shape)}")
    std = (states.float().var(dim=1).mean(dim=0) + EPSILON).sqrt()
    return functional.relu(target - std).mean()
