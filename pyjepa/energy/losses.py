"""Contrastive losses: the rows of the paper's Table 1 (section 4.3), as functions of energies alone.

``positive`` are the energies `F(x, y)` of data, (B,). ``negative`` are those of contrastive samples `F(x, ŷ)`: (B,),
or (B, K) where a method sums over candidates. ``margin`` is `m(y, ŷ)`, (B,). All return the mean over B, a scalar.
Where the ŷ come from is `pyjepa.energy.contrast`; which goes with which is `pyjepa.energy.methods`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.errors import InvalidArgumentError


def maximum_likelihood(positive: Tensor, negative: Tensor) -> Tensor:
    """Row 1: `F(x, y) + log Σ_y' exp(-F(x, y'))`, positive (B,) and negative (B, K) over all K values of y'."""
    _candidates(positive, negative)
    return (positive + torch.logsumexp(-negative, dim=-1)).mean()


def info_nce(energies: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al. 2018): row 1 with the batch as the values of y; `F(x_i, y_j)` of all pairs, (B, B).

    `exp(-F)` is the usual similarity: pass `-similarity / temperature`.
    """
    if energies.dim() != 2 or energies.shape[0] != energies.shape[1] or len(energies) < 2:
        raise InvalidArgumentError(f"energies: expected (B, B) with B >= 2, got {tuple(energies.shape)}")
    return maximum_likelihood(energies.diagonal(), energies)


def integrated_likelihood(positive: Tensor, negative: Tensor, log_weights: Tensor) -> Tensor:
    """Row 2: `F(x, y) + log ∫ exp(-F(x, y')) dy'` with the integral as a weighted sum over K points.

    positive (B,), negative (B, K), ``log_weights`` the logarithms of the quadrature's weights, (K,).
    """
    _candidates(positive, negative)
    return (positive + torch.logsumexp(log_weights - negative, dim=-1)).mean()


def energy_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """Rows 3 and 4: `F(x, y) - F(x, ŷ)`, whose gradient is the likelihood's where the ŷ are samples of the model."""
    _pairs(positive, negative)
    return (positive - negative).mean()


def pairwise_hinge(positive: Tensor, negative: Tensor, margin: Tensor) -> Tensor:
    """Row 5: `[F(x, y) - F(x, ŷ) + m(y, ŷ)]₊`."""
    _pairs(positive, negative, margin)
    return functional.relu(positive - negative + margin).mean()


def min_hinge(positive: Tensor, negative: Tensor, margin: Tensor) -> Tensor:
    """Row 6a: `F(x, y) + [m(y, ŷ) - F(x, ŷ)]₊` of energies that are positive."""
    _pairs(positive, negative, margin)
    return (positive + functional.relu(margin - negative)).mean()


def square_hinge(positive: Tensor, negative: Tensor, margin: Tensor) -> Tensor:
    """Row 6b: `F(x, y)² + [m(y, ŷ) - F(x, ŷ)]₊²` of energies that are divergences."""
    _pairs(positive, negative, margin)
    return (positive.square() + functional.relu(margin - negative).square()).mean()


def square_exp(positive: Tensor, negative: Tensor, *, beta: float = 1.0) -> Tensor:
    """Row 7: `F(x, y)² + exp(-β F(x, ŷ))`. Raises InvalidArgumentError unless beta > 0."""
    _pairs(positive, negative)
    if beta <= 0:
        raise InvalidArgumentError(f"beta: expected > 0, got {beta}")
    return (positive.square() + torch.exp(-beta * negative)).mean()


def logistic(positive: Tensor, negative: Tensor) -> Tensor:
    """Row 8: `log(1 + exp(F(x, y) - F(x, ŷ)))`."""
    _pairs(positive, negative)
    return functional.softplus(positive - negative).mean()


def gan(positive: Tensor, negative: Tensor, margin: Tensor) -> Tensor:
    """Row 9, `H(F(x, y), F(x, ŷ), m(y, ŷ)) = log(1 + exp(F(x, y))) + log(1 + exp(m - F(x, ŷ)))`, for the energy.

    With m = 0 the cross-entropy of the discriminator `1 / (1 + exp(F))` (Goodfellow et al. 2014); with a margin a
    smooth form of the energy-based GAN's hinge (Zhao et al. 2017). The generator that makes ŷ descends `F(x, ŷ)`:
    `generator`.
    """
    _pairs(positive, negative, margin)
    return (functional.softplus(positive) + functional.softplus(margin - negative)).mean()


def generator(negative: Tensor) -> Tensor:
    """Row 9, what the generator of ŷ (B,) minimises: `F(x, ŷ)`."""
    return negative.mean()


def denoising(distances: Tensor) -> Tensor:
    """Row 10: `D(y, g(ŷ))`, the distances (B,) of data from what the auto-encoder makes of its corruption."""
    if not distances.numel():
        raise InvalidArgumentError("distances: expected at least one, got none")
    return distances.mean()


def _pairs(positive: Tensor, negative: Tensor, margin: Tensor | None = None) -> None:
    if not positive.numel() or not negative.numel():
        raise InvalidArgumentError(f"no contrast: {positive.numel()} energies of data and {negative.numel()} of ŷ")
    if positive.shape != negative.shape:
        raise InvalidArgumentError(
            f"expected one ŷ for each y, got energies {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    if margin is None:
        return
    if margin.shape not in (positive.shape, ()):
        raise InvalidArgumentError(f"margin: expected {tuple(positive.shape)} or a scalar, got {tuple(margin.shape)}")
    if bool((margin < 0).any()):
        raise InvalidArgumentError(f"margin: expected >= 0, got {float(margin.min())}")


def _candidates(positive: Tensor, negative: Tensor) -> None:
    if not positive.numel() or not negative.numel():
        raise InvalidArgumentError(
            f"no contrast: energies of data {tuple(positive.shape)}, of candidates {tuple(negative.shape)}"
        )
    if negative.dim() != positive.dim() + 1 or negative.shape[:-1] not in (positive.shape, (1,) * positive.dim()):
        raise InvalidArgumentError(
            f"expected energies of data (B,) and of candidates (B, K), got "
            f"{tuple(positive.shape)} and {tuple(negative.shape)}"
        )
