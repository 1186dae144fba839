"""A vision transformer over the visible tokens, and a predictor of the masked ones (I-JEPA, V-JEPA), in torch.

One code for sequences (C, T), images (C, H, W) and clips (C, T, H, W): what differs is the number of axes that are cut
into patches. Symbols: B batch, N tokens on the grid, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjepa.errors import InvalidArgumentError
from pyjepa.masking import MaskError, Masks
from pyjepa.spec import Vit


def sincos_positions(grid: Sequence[int], width: int) -> Tensor:
    """Fixed sine-cosine embeddings (N, width) of the places on a grid, each axis in its own share of the width.

    Frequencies as in Vaswani et al. 2017; what the axes leave over of the width is zero. Raises InvalidArgumentError
    where an axis would have none.
    """
    half = width // (2 * len(grid))
    if half < 1:
        raise InvalidArgumentError(f"width {width} is too small for {len(grid)} axes: 2 for each are needed")
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid)).view(-1, len(grid))
    angles = places[..., None] * frequencies
    embedded = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return functional.pad(embedded, (0, width - embedded.shape[1])).float()


class Patches(nn.Module):
    """Cut (B, C, *extent) into patches, embed each: (B, N, W)."""

    def __init__(self, shape: Sequence[int], patch: Sequence[int], width: int) -> None:
        """``shape`` is (C, *extent), ``patch`` one size for every axis of the extent, each a divisor."""
        super().__init__()
        channels, *extent = shape
        if len(patch) != len(extent) or any(p < 1 or n % p for n, p in zip(extent, patch, strict=True)):
            raise InvalidArgumentError(f"patch {tuple(patch)} does not divide {tuple(extent)}")
        self.shape, self.patch = tuple(shape), tuple(patch)
        self.grid = tuple(n // p for n, p in zip(extent, patch, strict=True))
        self.linear = nn.Linear(channels * math.prod(patch), width)

    def forward(self, x: Tensor) -> Tensor:
        """Raises InvalidArgumentError for other shapes."""
        if x.dim() != len(self.shape) + 1 or x.shape[1:] != self.shape:
            raise InvalidArgumentError(f"expected (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        axes = len(self.grid)
        split = x.reshape(*x.shape[:2], *(n for pair in zip(self.grid, self.patch, strict=True) for n in pair))
        outer, inner = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        patches = split.permute(0, *outer, 1, *inner).flatten(1 + axes).flatten(1, axes)
        tokens: Tensor = self.linear(patches)
        return tokens


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, *, hidden: int | None = None, eps: float = 1e-5) -> None:
        """``hidden``: the MLP's units, four times the width if left out; ``eps``: the norms'.

        Raises InvalidArgumentError unless ``heads`` divides ``width``.
        """
        super().__init__()
        if heads < 1 or width % heads:
            raise InvalidArgumentError(f"heads {heads} do not divide width {width}")
        self.heads = heads
        hidden = hidden or 4 * width
        self.norm0, self.norm1 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.linear0, self.linear1 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, W) -> (B, N, W)."""
        q, k, v = self.qkv(self.norm0(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        mixed: Tensor = x + self.linear1(functional.gelu(self.linear0(self.norm1(x))))
        return mixed


class VisionTransformer(nn.Module):
    """Tokens of the patches that are seen, each with its place; a LayerNorm at the end (Dosovitskiy et al. 2021)."""

    def __init__(
        self, shape: Sequence[int], patch: Sequence[int], *, width: int = 192, depth: int = 6, heads: int = 3
    ) -> None:
        """``shape``: (C, T), (C, H, W) or (C, T, H, W); ``patch``: one size for each axis but the first."""
        super().__init__()
        self.patches = Patches(shape, patch, width)
        self.grid, self.width = self.patches.grid, width
        self.register_buffer("_places", sincos_positions(self.grid, width), persistent=False)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    @property
    def tokens(self) -> int:
        """N."""
        return math.prod(self.grid)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Inputs (B, *shape) -> tokens (B, N, W); of the tokens ``keep`` (B, C) alone: (B, C, W).

        Tokens that are not kept are not looked at. Raises `MaskError` for token numbers that are none, or no tokens.
        """
        tokens = self.patches(x) + self.get_buffer("_places")
        if keep is not None:
            check_tokens(keep, (len(x),), self.tokens, "keep")
            tokens = gather(tokens, keep)
        encoded: Tensor = self.norm(self.blocks(tokens))
        return encoded


class VitBlock(nn.Module):
    """A vision transformer as the spec has it: one vector of an image. See `pyjepa.spec.Vit`."""

    def __init__(self, block: Vit, shape: Sequence[int]) -> None:
        """``shape``: (C, H, W).

        Raises InvalidArgumentError where ``patch`` does not divide it, or ``heads`` the width.
        """
        super().__init__()
        if len(shape) != 3 or shape[1] % block.patch or shape[2] % block.patch:
            raise InvalidArgumentError(f"vit: patch {block.patch} does not divide an image {tuple(shape)}")
        self.block = block
        self.patch = nn.Conv2d(shape[0], block.width, block.patch, stride=block.patch)
        places = sincos_positions((shape[1] // block.patch, shape[2] // block.patch), block.width)
        if block.pool == "cls":
            self.cls = nn.Parameter(0.02 * torch.randn(block.width))
            places = functional.pad(places, (0, 0, 1, 0))
        self.position = nn.Parameter(places)
        for d in range(block.depth):
            layer = TransformerBlock(block.width, block.heads, hidden=block.hidden, eps=block.norm_eps)
            self.add_module(f"layer{d}", layer)
        self.norm = nn.LayerNorm(block.width, eps=block.norm_eps)
        self.output_shape = (block.width,)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, W)."""
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        if self.block.pool == "cls":
            tokens = torch.cat([self.cls.expand(len(x), 1, -1), tokens], dim=1)
        tokens = tokens + self.position
        for d in range(self.block.depth):
            tokens = self.get_submodule(f"layer{d}")(tokens)
        if self.block.pool == "cls":
            first: Tensor = self.norm(tokens[:, 0])
            return first
        mean: Tensor = self.norm(tokens).mean(dim=1)
        return mean


class MaskedPredictor(nn.Module):
    """What stands at masked places, from the tokens that were seen: mask tokens with places join them (I-JEPA).

    With ``condition_dim`` every prediction is also told K vectors - the actions taken, for clips - as tokens of their
    own, with their order for a place.
    """

    def __init__(
        self,
        grid: Sequence[int],
        width: int,
        *,
        inner: int = 96,
        depth: int = 3,
        heads: int = 3,
        condition_dim: int | None = None,
    ) -> None:
        """``width`` is the encoder's, ``inner`` the predictor's own."""
        super().__init__()
        self.tokens = math.prod(grid)
        self.register_buffer("_places", sincos_positions(grid, inner), persistent=False)
        self.embed = nn.Linear(width, inner)
        self.mask = nn.Parameter(torch.randn(inner) * 0.02)
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, inner)
        self.blocks = nn.Sequential(*(TransformerBlock(inner, heads) for _ in range(depth)))
        self.norm, self.project = nn.LayerNorm(inner), nn.Linear(inner, width)

    def forward(self, context: Tensor, masks: Masks, conditions: Tensor | None = None) -> Tensor:
        """Encoded context (B, C, W), and conditions (B, K, E) where there are any -> predictions (B, M, K', W)."""
        if (conditions is None) != (self.condition is None):
            raise InvalidArgumentError("conditions are given if and only if the predictor has a condition_dim")
        check_tokens(masks.context, context.shape[:1], self.tokens, "context")
        check_tokens(masks.targets, context.shape[:1], self.tokens, "targets")
        places = self.get_buffer("_places")
        seen = self.embed(context) + places[masks.context]
        if self.condition is not None and conditions is not None:
            order = sincos_positions((conditions.shape[1],), seen.shape[-1]).to(seen)
            seen = torch.cat([seen, self.condition(conditions) + order], dim=1)
        sets = masks.targets.shape[1]
        asked = (self.mask + places[masks.targets]).flatten(0, 1)
        joined = torch.cat([seen.repeat_interleave(sets, dim=0), asked], dim=1)
        answers = self.norm(self.blocks(joined)[:, seen.shape[1] :])
        predicted: Tensor = self.project(answers).unflatten(0, (-1, sets))
        return predicted


def gather(tokens: Tensor, numbers: Tensor) -> Tensor:
    """Of tokens (B, N, W) those of ``numbers`` (B, ...): (B, ..., W)."""
    rows = torch.arange(len(tokens), device=tokens.device).view(-1, *(1,) * (numbers.dim() - 1))
    return tokens[rows, numbers]


def check_tokens(numbers: Tensor, batch: Sequence[int], tokens: int, name: str) -> None:
    """Raise `MaskError` unless these are numbers, (B, ...), of tokens that there are, and not all or none of them."""
    if numbers.dtype != torch.int64 or numbers.dim() < 2 or numbers.shape[0] != batch[0]:
        raise MaskError(f"{name}: expected int64 ({batch[0]}, ...), got {tuple(numbers.shape)} {numbers.dtype}")
    if numbers.numel() == 0:
        raise MaskError(f"{name}: no tokens: the mask hides {'nothing' if name == 'targets' else 'everything'}")
    if int(numbers.min()) < 0 or int(numbers.max()) >= tokens:
        raise MaskError(f"{name}: token numbers must be from 0 to {tokens - 1}")
