"""Inverse dynamics, temporal similarity and variance over time."""

import math

import pytest
import torch

from pyjepa.objectives.inverse_dynamics import InverseDynamics, chance
from pyjepa.objectives.temporal import temporal_similarity, temporal_variance
from pyjepa.objectives.vicreg import variance


def test_inverse_dynamics_learns_what_actions_change_and_beats_chance():
    torch.manual_seed(0)
    actions = torch.rand(64, 5, 2) * 2 - 1
    states = torch.cat([torch.zeros(64, 1, 2), actions.cumsum(1)], dim=1)
    head = InverseDynamics(2, 2, hidden=32)
    optimiser = torch.optim.Adam(head.parameters(), 1e-2)
    before = head(states, actions).detach()
    for _ in range(200):
        optimiser.zero_grad()
        head(states, actions).backward()
        optimiser.step()
    assert before > 0.5 * chance(actions)
    assert head(states, actions) < 0.05 * chance(actions)


def test_chance_is_what_the_mean_action_scores():
    actions = torch.rand(10, 4, 2)
    blind = ((actions - actions.mean(dim=(0, 1))) ** 2).mean()
    assert math.isclose(chance(actions), blind, rel_tol=1e-5)


def test_temporal_similarity_is_the_mean_squared_step():
    states = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]]])
    assert math.isclose(temporal_similarity(states), (1 + 4) / 4)


def test_variance_over_time_sees_a_collapse_that_variance_over_the_batch_does_not():
    # Every clip stays at a place of its own: the trap with a door that varies by episode.
    torch.manual_seed(0)
    still = torch.randn(256, 1, 8).expand(256, 7, 8) * 2
    assert variance(still[:, 0]) < 0.01
    assert math.isclose(temporal_variance(still, target=0.5), 0.5 - 0.01, rel_tol=1e-3)
    assert temporal_variance(still + torch.randn(256, 7, 8), target=0.5) == 0


def test_variance_over_time_needs_two_steps():
    with pytest.raises(ValueError, match="T >= 2"):
        temporal_variance(torch.zeros(4, 1, 8), target=0.5)
