"""The vision transformer and the masked predictor: against torch's own attention, and what they must not see."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from pyjepa.errors import InvalidArgumentError  # noqa: E402
from pyjepa.masking import MaskError, Masks, block_masks, causal_masks, random_masks  # noqa: E402
from pyjepa.transformer import (  # noqa: E402
    MaskedPredictor,
    Patches,
    TransformerBlock,
    VisionTransformer,
    gather,
    sincos_positions,
)


def vit(shape, patch, **sizes):
    torch.manual_seed(0)
    return VisionTransformer(shape, patch, **{"width": 24, "depth": 2, "heads": 3, **sizes})


@pytest.mark.parametrize(("shape", "patch"), [((2, 6), (3,)), ((3, 4, 6), (2, 3)), ((2, 4, 6, 4), (2, 3, 2))])
def test_patches_are_cut_in_c_order(shape, patch):
    patches = Patches(shape, patch, 5)
    x = torch.randn(2, *shape)
    cuts = x
    for axis, size in enumerate(patch):
        cuts = cuts.unfold(2 + axis, size, size)  # (B, C, *grid, *patch)
    axes = len(patch)
    expected = cuts.permute(0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
    expected = expected.reshape(2, -1, shape[0] * torch.tensor(patch).prod())
    assert patches.grid == tuple(n // p for n, p in zip(shape[1:], patch, strict=True))
    assert torch.allclose(patches(x), patches.linear(expected), atol=1e-6)


def test_places_differ_and_follow_the_formula():
    places = sincos_positions((4, 5), 19)
    assert places.shape == (20, 19)
    assert len(torch.unique(places, dim=0)) == 20
    assert (places[:, 16:] == 0).all()
    row, column = 3, 2
    frequencies = 10_000.0 ** (-torch.arange(4) / 4)
    expected = [(row * frequencies).sin(), (row * frequencies).cos(), (column * frequencies).sin()]
    assert torch.allclose(places[row * 5 + column, :12], torch.cat(expected), atol=1e-5)


def test_attention_is_torchs():
    torch.manual_seed(0)
    block = TransformerBlock(12, 3)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(block.qkv.weight)
        theirs.in_proj_bias.copy_(block.qkv.bias)
        theirs.out_proj.weight.copy_(block.out.weight)
        theirs.out_proj.bias.copy_(block.out.bias)
    x = torch.randn(2, 7, 12)
    normed = block.norm0(x)
    y = x + theirs(normed, normed, normed)[0]
    assert torch.allclose(block(x), y + block.linear1(functional.gelu(block.linear0(block.norm1(y)))), atol=1e-6)


def test_what_is_hidden_is_not_looked_at():
    encoder = vit((1, 8, 8), (2, 2))
    masks = random_masks(16, 3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 1, 8, 8, requires_grad=True)
    seen = encoder(x, masks.context)
    assert seen.shape == (3, masks.context.shape[1], 24)
    (gradient,) = torch.autograd.grad(seen.square().sum(), x)
    touched = gradient.view(3, 4, 2, 4, 2).abs().sum(dim=(2, 4)).flatten(1) > 0
    for row, context in zip(touched, masks.context, strict=True):
        assert row.nonzero()[:, 0].tolist() == context.tolist()


def test_keeping_all_tokens_is_keeping_none_back():
    encoder = vit((2, 6, 4), (2, 2))
    x = torch.randn(2, 2, 6, 4)
    order = torch.randperm(6).expand(2, -1)
    assert torch.allclose(encoder(x, order), gather(encoder(x), order), atol=1e-5)


def test_predictions_do_not_depend_on_the_future_and_differ_by_place():
    encoder = vit((2, 4, 4, 4), (1, 2, 2))
    predictor = MaskedPredictor(encoder.grid, 24, inner=12, depth=2, heads=2, condition_dim=3)
    masks = causal_masks(encoder.grid, 2, context_steps=2)
    x = torch.randn(2, 2, 4, 4, 4, requires_grad=True)
    actions = torch.randn(2, 3, 3, requires_grad=True)
    predicted = predictor(encoder(x, masks.context), masks, actions)
    assert predicted.shape == (2, 1, 8, 24)
    past, told = torch.autograd.grad(predicted.square().sum(), (x, actions))
    assert (past[:, :, 2:] == 0).all()
    assert (past[:, :, :2] != 0).any()
    assert (told != 0).all(dim=2).all()
    assert len(torch.unique(predicted[0, 0].detach(), dim=0)) == 8


def test_targets_are_predicted_apart_from_one_another():
    encoder = vit((1, 8, 8), (2, 2))
    predictor = MaskedPredictor(encoder.grid, 24, inner=12, depth=1, heads=2)
    masks = block_masks(encoder.grid, 2, generator=torch.Generator().manual_seed(1))
    seen = encoder(torch.randn(2, 1, 8, 8), masks.context)
    together = predictor(seen, masks)
    for m in range(masks.targets.shape[1]):
        alone = predictor(seen, Masks(masks.context, masks.targets[:, m : m + 1]))
        assert torch.allclose(together[:, m : m + 1], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vit((1, 8, 8), (3, 2)), InvalidArgumentError, r"patch \(3, 2\) does not divide \(8, 8\)"),
        (lambda: vit((1, 8, 8), (2,)), InvalidArgumentError, "does not divide"),
        (lambda: vit((1, 8, 8), (2, 2), heads=5), InvalidArgumentError, "heads 5 do not divide width 24"),
        (lambda: vit((1, 8, 8), (2, 2), width=3, heads=1), InvalidArgumentError, "width 3 is too small"),
        (lambda: vit((1, 8, 8), (2, 2))(torch.zeros(2, 1, 8, 9)), InvalidArgumentError, r"expected \(B, 1, 8, 8\)"),
        (
            lambda: vit((1, 8, 8), (2, 2))(torch.zeros(2, 1, 8, 8), torch.full((2, 3), 16)),
            MaskError,
            "keep: token numbers must be from 0 to 15",
        ),
        (
            lambda: vit((1, 8, 8), (2, 2))(torch.zeros(2, 1, 8, 8), torch.zeros(2, 0, dtype=torch.int64)),
            MaskError,
            "keep: no tokens: the mask hides everything",
        ),
        (
            lambda: MaskedPredictor((4,), 8, inner=6, depth=1, heads=1)(
                torch.zeros(2, 1, 8), Masks(torch.zeros(2, 1).long(), torch.zeros(2, 1, 0).long())
            ),
            MaskError,
            "targets: no tokens: the mask hides nothing",
        ),
        (
            lambda: MaskedPredictor((4,), 8, inner=6, depth=1, heads=1)(
                torch.zeros(2, 1, 8), random_masks(4, 2), torch.zeros(2, 1, 3)
            ),
            InvalidArgumentError,
            "condition_dim",
        ),
        (
            lambda: vit((1, 8, 8), (2, 2))(torch.zeros(2, 1, 8, 8), torch.zeros(3, 1).long()),
            MaskError,
            "keep: expected",
        ),
    ],
)
def test_what_does_not_fit_is_a_named_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
