"""Which tokens of an image or a clip are seen, and which are to be predicted (I-JEPA, V-JEPA).

Tokens lie on a grid, (H, W) for images, (T, H, W) for clips, (T,) for sequences, and are numbered in C order. All
functions draw from a generator, so that the same seed gives the same masks. A mask that hides everything, or nothing,
is a `MaskError`: there would be nothing to predict from, or nothing to predict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyjepa.errors import PyjepaError

ATTEMPTS = 50
"""How often `block_masks` draws anew where target blocks leave too little context."""


class MaskError(PyjepaError, ValueError):
    """A mask hides everything or nothing, or does not fit its grid."""


@dataclass(frozen=True)
class Masks:
    """For each of B samples, what is seen and M sets of tokens to predict; token numbers, int64."""

    context: Tensor
    """(B, C), ascending."""
    targets: Tensor
    """(B, M, K), each ascending; none of them in the context."""

    def to(self, device: torch.device | str) -> Masks:
        """On another device."""
        return Masks(self.context.to(device), self.targets.to(device))


def random_masks(tokens: int, batch: int, *, hidden: float = 0.75, generator: torch.Generator | None = None) -> Masks:
    """Hide a share of the tokens, each sample's own (He et al. 2022): M = 1.

    Raises `MaskError` where the share, rounded to tokens, is all of them or none.
    """
    _positive(batch=batch, tokens=tokens)
    if not 0.0 <= hidden <= 1.0:
        raise MaskError(f"hidden must be a share in [0, 1], got {hidden}")
    count = round(hidden * tokens)
    if count in (0, tokens):
        raise MaskError(f"hidden {hidden:g} of {tokens} tokens hides {'nothing' if count == 0 else 'everything'}")
    order = torch.rand(batch, tokens, generator=generator).argsort(dim=1)
    return Masks(order[:, count:].sort(dim=1).values, order[:, None, :count].sort(dim=2).values)


def block_masks(
    grid: Sequence[int],
    batch: int,
    *,
    targets: int = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    least_context: int = 1,
    generator: torch.Generator | None = None,
) -> Masks:
    """Predict ``targets`` rectangles from one large block less these rectangles (I-JEPA, Assran et al. 2023).

    ``grid`` is (H, W), or (T, H, W), where rectangles last for the whole clip (V-JEPA, Bardes et al. 2024). Scales are
    shares of the image's area, aspects height over width. One size of rectangle and one of context is drawn for the
    batch, places for each sample; contexts are cut to the batch's smallest, at random, so that they stack.

    Raises `MaskError` for ranges that are none, and where ``least_context`` tokens cannot be left to see.
    """
    if len(grid) not in (2, 3):
        raise MaskError(f"grid: expected (H, W) or (T, H, W), got {tuple(grid)}")
    _positive(
        batch=batch, targets=targets, least_context=least_context, **{f"grid[{i}]": n for i, n in enumerate(grid)}
    )
    for name, (low, high) in (("target_scale", target_scale), ("context_scale", context_scale)):
        if not 0.0 < low <= high <= 1.0:
            raise MaskError(f"{name}: expected 0 < low <= high <= 1, got {(low, high)}")
    if not 0.0 < target_aspect[0] <= target_aspect[1] < math.inf:
        raise MaskError(f"target_aspect: expected 0 < low <= high, got {target_aspect}")
    height, width = grid[-2:]
    draw = _Draw(generator)
    block = _size(height, width, draw.between(*target_scale), draw.between(*target_aspect))
    large = _size(height, width, draw.between(*context_scale), 1.0)
    seen, predicted = [], []
    for _ in range(batch):
        for _ in range(ATTEMPTS):
            rectangles = torch.stack([draw.rectangle(height, width, *block) for _ in range(targets)])
            context = draw.rectangle(height, width, *large) & ~rectangles.any(dim=0)
            if int(context.sum()) >= least_context:
                break
        else:
            raise MaskError(
                f"{targets} targets of {block[0]}x{block[1]} on {height}x{width} tokens hide everything: fewer than "
                f"{least_context} are left to see in {ATTEMPTS} attempts"
            )
        seen.append(context.flatten().nonzero()[:, 0])
        predicted.append(torch.stack([rectangle.flatten().nonzero()[:, 0] for rectangle in rectangles]))
    smallest = min(map(len, seen))
    cut = [s[torch.randperm(len(s), generator=generator)[:smallest]].sort().values for s in seen]
    masks = Masks(torch.stack(cut), torch.stack(predicted))
    return masks if len(grid) == 2 else _through_time(masks, grid[0], height * width)


def causal_masks(
    grid: Sequence[int], batch: int, *, context_steps: int | tuple[int, int], generator: torch.Generator | None = None
) -> Masks:
    """See the first steps of a clip (T, ...), predict all later ones: M = 1.

    ``context_steps`` is a number, or the range (inclusive) from which the batch's is drawn. Raises `MaskError` unless
    it is at least 1 and less than T.
    """
    _positive(batch=batch, **_sides(grid))
    low, high = (context_steps, context_steps) if isinstance(context_steps, int) else context_steps
    steps = grid[0]
    if low < 1:
        raise MaskError(f"context_steps {low} hides everything: at least one step must be seen")
    if high >= steps:
        raise MaskError(f"context_steps {high} of {steps} steps hides nothing")
    if low > high:
        raise MaskError(f"context_steps: expected low <= high, got {(low, high)}")
    count = int(torch.randint(low, high + 1, (), generator=generator)) * math.prod(grid[1:])
    tokens = torch.arange(math.prod(grid)).expand(batch, -1)
    return Masks(tokens[:, :count], tokens[:, None, count:])


def masks_from(hidden: Tensor) -> Masks:
    """Masks of your own: bool (B, N), True where a token is hidden: M = 1.

    Raises `MaskError` for a row that hides everything or nothing, or rows that hide different numbers of tokens.
    """
    if hidden.dim() != 2 or hidden.dtype != torch.bool or 0 in hidden.shape:
        raise MaskError(f"hidden: expected bool (B, N), got {tuple(hidden.shape)} {hidden.dtype}")
    counts = hidden.sum(dim=1)
    for row, count in enumerate(counts.tolist()):
        if count in (0, hidden.shape[1]):
            raise MaskError(f"hidden: row {row} hides {'nothing' if count == 0 else 'everything'}")
    if counts.min() != counts.max():
        raise MaskError(f"hidden: rows hide from {int(counts.min())} to {int(counts.max())} tokens; they must agree")
    batch = len(hidden)
    return Masks((~hidden).nonzero()[:, 1].view(batch, -1), hidden.nonzero()[:, 1].view(batch, 1, -1))


@dataclass(frozen=True)
class _Draw:
    generator: torch.Generator | None

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def rectangle(self, height: int, width: int, h: int, w: int) -> Tensor:
        """A bool (H, W) that is true in one h x w rectangle."""
        top = int(torch.randint(height - h + 1, (), generator=self.generator))
        left = int(torch.randint(width - w + 1, (), generator=self.generator))
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[top : top + h, left : left + w] = True
        return inside


def _size(height: int, width: int, scale: float, aspect: float) -> tuple[int, int]:
    """Height and width of a block, in tokens, at least one each and at most the grid's."""
    area = height * width * scale
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(h, 1), height), min(max(w, 1), width)


def _through_time(masks: Masks, steps: int, tokens: int) -> Masks:
    """The same tokens of every step."""
    starts = torch.arange(steps)[:, None] * tokens
    context, targets = (part[..., None, :] + starts for part in (masks.context, masks.targets))
    return Masks(context.flatten(-2), targets.flatten(-2))


def _sides(grid: Sequence[int]) -> dict[str, int]:
    return {f"grid[{axis}]": side for axis, side in enumerate(grid)}


def _positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise MaskError(f"{name} must be at least 1, got {number}")
