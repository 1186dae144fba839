"""Masks: what is seen and what is predicted never meet, and none hides everything or nothing."""

import pytest

torch = pytest.importorskip("torch")

from pyjepa.errors import PyjepaError  # noqa: E402
from pyjepa.masking import MaskError, block_masks, causal_masks, masks_from, random_masks  # noqa: E402

KINDS = {
    "random": lambda g: random_masks(50, 8, hidden=0.6, generator=g),
    "block": lambda g: block_masks((8, 10), 8, generator=g),
    "tube": lambda g: block_masks((3, 8, 10), 8, targets=2, target_scale=(0.3, 0.3), generator=g),
    "causal": lambda g: causal_masks((5, 2, 5), 8, context_steps=(1, 4), generator=g),
}
TOKENS = {"random": 50, "block": 80, "tube": 240, "causal": 50}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_context_and_targets_never_meet(kind, seed):
    masks = KINDS[kind](seeded(seed))
    assert masks.context.shape[0] == masks.targets.shape[0] == 8
    assert masks.context.shape[1] >= 1
    assert masks.targets.shape[2] >= 1
    for context, targets in zip(masks.context.tolist(), masks.targets.tolist(), strict=True):
        assert context == sorted(set(context))
        assert set(context) <= set(range(TOKENS[kind]))
        for target in targets:
            assert target == sorted(set(target))
            assert set(target) <= set(range(TOKENS[kind]))
            assert not set(target) & set(context)


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_one_mask(kind):
    one, same, other = (KINDS[kind](seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.context, same.context)
    assert torch.equal(one.targets, same.targets)
    assert one.context.shape != other.context.shape or not torch.equal(one.targets, other.targets) or kind == "causal"


def test_targets_are_rectangles_of_the_asked_size():
    masks = block_masks((14, 14), 16, generator=seeded(0))
    assert masks.targets.shape[1] == 4
    for target in masks.targets.flatten(0, 1):
        rows, columns = target // 14, target % 14
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert height * width == len(target)
        assert 0.12 <= len(target) / 196 <= 0.24
        assert 0.6 <= height / width <= 1.8


def test_tubes_last_for_the_whole_clip():
    masks = KINDS["tube"](seeded(3))
    for part in (masks.context, masks.targets):
        by_step = part.unflatten(-1, (3, -1))
        for step in range(3):
            assert torch.equal(by_step[..., step, :] - 80 * step, by_step[..., 0, :])


def test_causal_masks_see_the_first_steps():
    masks = causal_masks((4, 3), 2, context_steps=1)
    assert masks.context.tolist() == [[0, 1, 2]] * 2
    assert masks.targets.tolist() == [[list(range(3, 12))]] * 2
    drawn = {causal_masks((9,), 1, context_steps=(2, 4), generator=seeded(s)).context.shape[1] for s in range(30)}
    assert drawn == {2, 3, 4}


def test_masks_of_ones_own():
    hidden = torch.tensor([[True, False, True, False], [False, False, True, True]])
    masks = masks_from(hidden)
    assert masks.context.tolist() == [[1, 3], [0, 1]]
    assert masks.targets.tolist() == [[[0, 2]], [[2, 3]]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_masks(16, 2, hidden=0.0), "hidden 0 of 16 tokens hides nothing"),
        (lambda: random_masks(16, 2, hidden=0.99), "hidden 0.99 of 16 tokens hides everything"),
        (lambda: random_masks(16, 2, hidden=1.5), r"share in \[0, 1\]"),
        (lambda: random_masks(16, 0), "batch must be at least 1"),
        (lambda: block_masks((4, 4), 2, target_scale=(1.0, 1.0), target_aspect=(1.0, 1.0)), "hide everything"),
        (lambda: block_masks((4, 4), 2, least_context=17), "hide everything: fewer than 17"),
        (lambda: block_masks((1, 1), 2), "hide everything"),
        (lambda: block_masks((4,), 2), r"grid: expected \(H, W\)"),
        (lambda: block_masks((4, 0), 2), r"grid\[1\] must be at least 1"),
        (lambda: block_masks((4, 4), 2, targets=0), "targets must be at least 1"),
        (lambda: block_masks((4, 4), 2, target_scale=(0.0, 0.1)), "target_scale: expected 0 < low"),
        (lambda: block_masks((4, 4), 2, target_aspect=(2.0, 1.0)), "target_aspect"),
        (lambda: causal_masks((4, 3), 2, context_steps=0), "context_steps 0 hides everything"),
        (lambda: causal_masks((4, 3), 2, context_steps=4), "context_steps 4 of 4 steps hides nothing"),
        (lambda: causal_masks((4, 3), 2, context_steps=(3, 2)), "expected low <= high"),
        (lambda: masks_from(torch.ones(1, 4, dtype=torch.bool)), "row 0 hides everything"),
        (lambda: masks_from(torch.tensor([[True, False], [False, False]])), "row 1 hides nothing"),
        (lambda: masks_from(torch.tensor([[1, 0, 0], [1, 1, 0]]).bool()), "from 1 to 2 tokens"),
        (lambda: masks_from(torch.zeros(2, 3)), "expected bool"),
    ],
)
def test_masks_that_cannot_be_are_named_errors(call, message):
    with pytest.raises(MaskError, match=message) as caught:
        call()
    assert isinstance(caught.value, PyjepaError)
