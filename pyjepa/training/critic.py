"""The trainable critic (paper section 3.3): from memory, what a state will still cost on the way to a goal.

Targets are sums of future intrinsic costs over a window, closed by the critic's own estimate where the way goes on
(window 1: TD(0); a window longer than any episode: Monte-Carlo). With hindsight every state that was reached later in
an episode serves as a goal, so that each episode teaches many ways, and teaches the right thing even where it failed.

Symbols: ``Q`` pairs of a state and a goal, ``L`` latent dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjepa.cost import intrinsic_cost
from pyjepa.memory import Memory
from pyjepa.training.fit import Progress, fit
from pyjepa.world_model import WorldModel


@dataclass(frozen=True)
class Pairs:
    """States on their way to goals; tensors (Q, ...)."""

    states: Tensor
    """(Q, L)."""
    goals: Tensor
    """(Q, L)."""
    costs: Tensor
    """(Q,): the discounted intrinsic costs of the next ``window`` states, without the state's own."""
    ahead: Tensor
    """(Q, L): the state after the window, whose estimate closes the sum..."""
    factor: Tensor
    """(Q,): ... discounted by this; 0 where the goal was reached before."""

    def __len__(self) -> int:
        """Q."""
        return len(self.costs)


def pairs(
    memory: Memory,
    cost: Callable[[Tensor, Tensor], Tensor],
    *,
    window: int,
    discount: float = 1.0,
    hindsight: bool = True,
) -> Pairs:
    """What a memory has to teach. ``cost``: intrinsic costs (Q,) of states (Q, L) beside goals (Q, L).

    The goals are each episode's later states, which count as reached where they were; without ``hindsight`` the
    episode's own goal, which is never known to be reached. Raises
    ValueError for a window below 1 or a memory without an episode of two states.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    ways = [way for episode in memory.trajectories() for way in _ways(episode, hindsight)]
    if not ways:
        raise ValueError("the memory has no episode of two states, so there is nothing to learn from")
    states = torch.from_numpy(np.concatenate([path for path, _, _ in ways]))
    goals = torch.from_numpy(np.concatenate([np.broadcast_to(goal, path.shape) for path, goal, _ in ways]))
    own = cost(states, goals)
    costs, ahead = torch.zeros(len(own)), torch.zeros(len(own), dtype=torch.long)
    factor = torch.zeros(len(own))
    first, kept = 0, torch.ones(len(own), dtype=torch.bool)
    for path, _, reached in ways:
        last = len(path) - 1
        for i in range(last + 1):
            end = min(i + window, last)
            following = own[first + i + 1 : first + end + 1]
            costs[first + i] = (following * discount ** torch.arange(end - i)).sum()
            ahead[first + i] = first + end
            factor[first + i] = 0.0 if reached and end == last else discount ** (end - i)
        kept[first + last] = reached  # else its sum would be closed by itself
        first += len(path)
    return Pairs(states[kept], goals[kept], costs[kept], states[ahead][kept], factor[kept])


def _ways(episode: Memory, hindsight: bool) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], bool]]:
    """(path, goal, whether its last state is the goal): to the episode's later states, or to its own goal."""
    if len(episode) < 2:
        return
    if hindsight:
        for end in range(1, len(episode)):
            yield episode.states[: end + 1], episode.states[end], True
    elif np.isfinite(episode.goals[0]).all():
        yield episode.states, episode.goals[0], False


def train_critic(
    model: WorldModel,
    memory: Memory,
    *,
    steps: int = 3000,
    batch: int = 512,
    learning_rate: float = 2e-3,
    window: int = 1000,
    seed: int = 0,
    progress: Progress = lambda step, loss: None,
) -> float:
    """Fits the critic of ``model`` (its spec names one that reads state and goal) to a memory; returns the last loss.

    The loss is Huber's, in standard deviations of the targets' sums. Raises ValueError for a model without such a
    critic and where there is nothing to learn from.
    """
    spec = model.spec
    if spec.critic is None or set(spec.modules[spec.critic].inputs) != {"state", "goal"}:
        raise ValueError("the spec names no critic of state and goal")
    with torch.no_grad():
        taught = pairs(
            memory, lambda states, goals: intrinsic_cost(model, states, goals), window=window, discount=spec.discount
        )
    network = model.get_submodule(spec.critic)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()  # what it was may be in other units
    average = copy.deepcopy(network)  # closes the sums: an exponential average, so that targets move slowly
    mean, std = taught.costs.mean(), taught.costs.std().clamp_min(1e-6)
    closed = bool((taught.factor > 0).any())

    def loss(chosen: Tensor) -> Tensor:
        goals, target = taught.goals[chosen], taught.costs[chosen]
        if closed:
            with torch.no_grad():
                rest = average({"state": taught.ahead[chosen], "goal": goals})[:, 0] * std + mean
                target = target + taught.factor[chosen] * rest
                for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)
        found = network({"state": taught.states[chosen], "goal": goals})[:, 0]
        return functional.smooth_l1_loss(found, (target - mean) / std)

    last = fit(
        network, loss, len(taught), steps=steps, batch=batch, learning_rate=learning_rate, seed=seed, progress=progress
    )
    _in_units(network, float(mean), float(std))
    return last


def _in_units(network: nn.Module, mean: float, std: float) -> None:
    """Folds the targets' normalisation into the last layer, so that the network puts out costs."""
    layer = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        layer.weight.mul_(std)
        layer.bias.mul_(std).add_(mean)
