"""Barlow Twins against its official statement, by hand, and by finite differences."""

import math

import pytest
import torch

from pyjepa.objectives import BarlowTwins
from pyjepa.objectives.barlow_twins import barlow_twins


def official(x, y, weight):
    """facebookresearch/barlowtwins, main.py, with its BatchNorm1d(affine=False)."""
    norm = torch.nn.BatchNorm1d(x.shape[1], affine=False, dtype=x.dtype)
    c = norm(x).T @ norm(y) / len(x)
    on = (torch.diagonal(c) - 1).pow(2).sum()
    off = c.masked_select(~torch.eye(len(c), dtype=torch.bool)).pow(2).sum()
    return on + weight * off


@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 5), (30, 8), (8, 30)])
def test_it_is_the_official_one(n, d):
    torch.manual_seed(0)
    x = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    y = (x.detach() + torch.randn(n, d)).requires_grad_()
    found, expected = barlow_twins(x, y, off_diagonal=0.3), official(x, y, 0.3)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(found, (x, y)), torch.autograd.grad(expected, (x, y)), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    assert barlow_twins(x.float(), y.float(), off_diagonal=0.3).item() == pytest.approx(expected.item(), rel=1e-4)


def test_by_hand():
    one = torch.tensor([[1.0], [-1.0]])
    assert barlow_twins(one, one).item() == pytest.approx(0, abs=1e-9)
    assert barlow_twins(one, -one).item() == pytest.approx(4, rel=1e-4)  # C = -1
    square = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    assert barlow_twins(square, square).item() == pytest.approx(0, abs=1e-8)
    swapped = square.flip(1)  # C = [[0, 1], [1, 0]]
    assert barlow_twins(square, swapped, off_diagonal=0.25).item() == pytest.approx(2 + 0.25 * 2, rel=1e-4)
    twice = one.expand(2, 2)  # both dimensions say the same: C = 1 everywhere
    assert BarlowTwins(off_diagonal=0.5)(twice, twice).item() == pytest.approx(0.5 * 2, rel=1e-4)


def test_its_gradient_is_right():
    torch.manual_seed(0)
    x, y = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(barlow_twins, (x, y))


def test_a_collapsed_batch_has_a_finite_loss_and_gradient():
    x = torch.ones(8, 4, requires_grad=True)
    loss = barlow_twins(x, x)
    loss.backward()
    assert loss.item() == 4
    assert torch.isfinite(x.grad).all()


def test_half_precision_computes_in_float32():
    torch.manual_seed(0)
    x = torch.randn(64, 8) * 300
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert barlow_twins(x, x).item() == barlow_twins(x, x).item() < 0.1
    assert math.isfinite(barlow_twins(x.half(), x.half()))
    assert barlow_twins(x, x).item() == pytest.approx(official(x.double(), x.double(), 0.0051).item(), rel=1e-3)


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((4,), (4,)), ((4, 3), (4, 2)), ((4, 0), (4, 0))])
def test_wrong_shapes_are_errors(shapes):
    with pytest.raises(ValueError, match=r"expected two \(N, D\)"):
        barlow_twins(*map(torch.zeros, shapes))


def test_a_negative_weight_is_an_error():
    with pytest.raises(ValueError, match="off_diagonal must be >= 0"):
        BarlowTwins(off_diagonal=-1.0)
