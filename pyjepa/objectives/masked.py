"""Masked prediction in latent space: I-JEPA (Assran et al. 2023) on images, V-JEPA (Bardes et al. 2024) on clips.

The encoder sees the context tokens, the predictor says what a moving-average encoder makes of the hidden ones. That
encoder sees everything, so that targets are described in their surroundings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjepa.masking import Masks
from pyjepa.objectives.ema import EMATarget
from pyjepa.transformer import MaskedPredictor, VisionTransformer, gather


class MaskedPrediction(nn.Module):
    """Encoder, predictor, and the EMA encoder that gives the targets; `update` lets it follow after every step."""

    def __init__(self, encoder: VisionTransformer, predictor: MaskedPredictor) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor
        self.target = EMATarget(encoder)

    def predict(self, x: Tensor, masks: Masks, conditions: Tensor | None = None) -> Tensor:
        """Inputs (B, *shape) -> what the tokens of the targets should be: (B, M, K, W)."""
        predicted: Tensor = self.predictor(self.encoder(x, masks.context), masks, conditions)
        return predicted

    @torch.no_grad()
    def targets(self, x: Tensor, masks: Masks) -> Tensor:
        """What they are, by the EMA encoder, each token normalised over its width: (B, M, K, W)."""
        tokens: Tensor = self.target(x)
        return gather(functional.layer_norm(tokens, tokens.shape[-1:]), masks.targets)

    def forward(self, x: Tensor, masks: Masks, conditions: Tensor | None = None) -> Tensor:
        """The mean smooth L1 distance (as I-JEPA's code) of predictions and targets; a scalar.

        Raises `pyjepa.masking.MaskError` for masks that hide everything or nothing, or do not fit.
        """
        return functional.smooth_l1_loss(self.predict(x, masks, conditions), self.targets(x, masks))

    def update(self, momentum: float) -> None:
        """Let the target follow the encoder; see `pyjepa.objectives.ema.momentum_at`."""
        self.target.update(self.encoder, momentum)
