"""Batched latent rollouts: the whole horizon of every candidate in one launch, costs out."""

from __future__ import annotations

from .description import Choice, Gru, Layer, Mlp, Term
from .op import rollout, rollout_way
from .reference import Rollout, rollout_reference

__all__ = ["Choice", "Gru", "Layer", "Mlp", "Rollout", "Term", "rollout", "rollout_reference", "rollout_way"]
