"""Masked prediction learns on digits and on clips of Two Rooms, and stays away from collapse."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pyjepa.diagnostics import effective_rank
from pyjepa.masking import MaskError, Masks, block_masks, causal_masks, random_masks
from pyjepa.objectives.ema import momentum_at
from pyjepa.objectives.masked import MaskedPrediction
from pyjepa.training.collection import collect_two_rooms
from pyjepa.training.dataset import EpisodeReader, WindowSampler
from pyjepa.transformer import MaskedPredictor, VisionTransformer


def build(shape, patch, condition_dim=None):
    torch.manual_seed(0)
    encoder = VisionTransformer(shape, patch, width=32, depth=2, heads=2)
    predictor = MaskedPredictor(encoder.grid, 32, inner=32, depth=2, heads=2, condition_dim=condition_dim)
    return MaskedPrediction(encoder, predictor)


def train(jepa, batches, steps):
    parameters = [p for p in jepa.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.02)
    for step in range(steps):
        x, masks, conditions = batches(step)
        optimiser.zero_grad()
        jepa(x, masks, conditions).backward()
        optimiser.step()
        jepa.update(momentum_at(step + 1, steps, base=0.95))


def judge(jepa, x, masks, conditions=None):
    """The loss over that of always saying the targets' mean, and the rank of the encoder's features."""
    with torch.no_grad():
        targets = jepa.targets(x, masks)
        mean = targets.mean(dim=(0, 1, 2)).expand_as(targets)
        relative = jepa(x, masks, conditions) / functional.smooth_l1_loss(mean, targets)
        return float(relative), effective_rank(jepa.target(x).mean(dim=1))


def test_the_loss_by_its_parts():
    jepa = build((1, 8, 8), (2, 2))
    x, masks = torch.randn(3, 1, 8, 8), random_masks(16, 3, generator=torch.Generator().manual_seed(0))
    tokens = jepa.target.module(x)
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = torch.stack([normed[b][masks.targets[b]] for b in range(3)])
    assert torch.allclose(jepa.targets(x, masks), expected, atol=1e-5)
    difference = (jepa.predict(x, masks) - expected).abs()
    smooth = torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).mean()
    loss = jepa(x, masks)
    assert loss.item() == pytest.approx(smooth.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in jepa.target.parameters())
    assert all(p.grad is not None for p in (*jepa.encoder.parameters(), *jepa.predictor.parameters()))


def test_blocks_of_digits_are_predicted():
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images / 16).float()[:, None]
    jepa, generator = build((1, 8, 8), (2, 2)), torch.Generator().manual_seed(0)

    def batches(step):
        rows = torch.randint(1500, (32,), generator=generator)
        return images[rows], block_masks((4, 4), 32, generator=generator), None

    held_out, masks = images[1500:], block_masks((4, 4), 297, generator=torch.Generator().manual_seed(1))
    train(jepa, batches, 80)
    relative, rank = judge(jepa, held_out, masks)
    assert relative < 0.75
    assert rank > 4


def test_the_future_of_clips_is_predicted_from_the_past_and_the_actions(tmp_path):
    collect_two_rooms(tmp_path / "data.h5", episodes=80, seed=0, steps=4)
    with EpisodeReader(tmp_path / "data.h5") as reader:
        training = WindowSampler(reader, steps=3, batch=16, seed=0, episodes=range(64))
        held_out = WindowSampler(reader, steps=3, batch=16, seed=0, episodes=range(64, 80))

        def clips(sampler, step):
            batch = sampler.batch(step)
            frames = torch.from_numpy(batch["observation"]).transpose(1, 2).float() / 255  # (B, C, T, H, W)
            return frames, torch.from_numpy(batch["action"]).float()

        jepa = build((2, 4, 64, 64), (1, 16, 16), condition_dim=2)

        def batches(step):
            frames, actions = clips(training, step)
            generator = torch.Generator().manual_seed(step)
            return frames, causal_masks((4, 4, 4), 16, context_steps=(1, 3), generator=generator), actions

        x, actions = clips(held_out, 0)
        masks = causal_masks((4, 4, 4), 16, context_steps=2)
        train(jepa, batches, 60)
        relative, rank = judge(jepa, x, masks, actions)
    assert relative < 0.75
    assert rank > 2


def test_masks_that_do_not_fit_are_named_errors():
    jepa, x = build((1, 8, 8), (2, 2)), torch.zeros(2, 1, 8, 8)
    good = random_masks(16, 2)
    with pytest.raises(MaskError, match="keep: no tokens: the mask hides everything"):
        jepa(x, Masks(good.context[:, :0], good.targets))
    with pytest.raises(MaskError, match="targets: no tokens: the mask hides nothing"):
        jepa(x, Masks(good.context, good.targets[..., :0]))
    with pytest.raises(MaskError, match="token numbers must be from 0 to 15"):
        jepa(x, random_masks(64, 2))
    assert np.isfinite(jepa(x, good).item())
