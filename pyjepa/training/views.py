"""Two views of an image, and the transformation that leads from one to the other: what a JEPA on images predicts.

A view is one affine map, one elastic displacement, a gain and noise. The affine part is known: it is the action that
the predictor is told (as in image world models, Garrido et al. 2024, arXiv:2403.00504); the rest is not, so the state
had better not depend on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.training.image_config import Views

ACTIONS = ("shift x", "shift y", "rotation", "scale x", "scale y", "shear")
"""What is known of a view, each in units of its range: in [-1, 1]."""


def view(images: Tensor, settings: Views, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A view of each image (N, C, H, W), and its affine parameters (N, 6), see `ACTIONS`."""
    n, channels, height, width = images.shape

    def symmetric(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    parameters = symmetric(n, len(ACTIONS))
    grid = functional.affine_grid(_affine(parameters, settings, height, width), [n, 1, height, width], False)
    if settings.elastic:
        bends = torch.randn(n, 2, 3, 3, generator=generator)
        bends *= settings.elastic * 2 / torch.tensor([width, height])[:, None, None]
        bends = functional.interpolate(bends, size=(height, width), mode="bicubic", align_corners=True)
        grid = grid + bends.permute(0, 2, 3, 1)
    moved = functional.grid_sample(images, grid, mode="bilinear", padding_mode=settings.padding, align_corners=False)
    common, own = symmetric(n, 1, 1, 1), symmetric(n, channels, 1, 1)
    gain = 1 + settings.brightness * ((1 - settings.colour) * common + settings.colour * own)
    return moved * gain + 255 * settings.noise * torch.randn(moved.shape, generator=generator), parameters


def two_views(images: Tensor, settings: Views, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Two views of each image (N, C, H, W) in 0 ... 255, and the action (N, 6) that leads from the first to the second.

    The action is the difference of their affine parameters: in [-2, 2]. The way back is its negative.
    """
    images = images.float()
    if settings.flip:
        flipped = torch.rand(len(images), generator=generator) < settings.flip
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    first, before = view(images, settings, generator)
    second, after = view(images, settings, generator)
    return first, second, after - before


def _affine(parameters: Tensor, settings: Views, height: int, width: int) -> Tensor:
    """What `affine_grid` takes (N, 2, 3), in coordinates from -1 to 1."""
    x, y, rotation, scale_x, scale_y, shear = parameters.unbind(1)
    angle = rotation * settings.rotation * math.pi / 180
    wide, high, slant = 1 + scale_x * settings.scale, 1 + scale_y * settings.scale, shear * settings.shear
    rows = [
        torch.stack([angle.cos() * wide, slant - angle.sin() * high, x * settings.shift * 2 / width], dim=1),
        torch.stack([angle.sin() * wide, angle.cos() * high, y * settings.shift * 2 / height], dim=1),
    ]
    return torch.stack(rows, dim=1)
