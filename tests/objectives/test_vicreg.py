"""VICReg against a plain statement of the official formulas, and where implementations go wrong."""

import math

import pytest
import torch

from pyjepa.objectives.vicreg import VICReg, covariance, terms, variance


def official(x, y):
    """facebookresearch/vicreg, main_vicreg.py, in float64."""
    x, y = x.double(), y.double()
    n, d = x.shape
    invariance = ((x - y) ** 2).mean()
    x, y = x - x.mean(0), y - y.mean(0)
    std_x, std_y = (torch.sqrt(v.var(dim=0) + 0.0001) for v in (x, y))
    std = torch.relu(1 - std_x).mean() / 2 + torch.relu(1 - std_y).mean() / 2
    cov_x, cov_y = (v.T @ v / (n - 1) for v in (x, y))
    off = 1 - torch.eye(d, dtype=torch.float64)
    return invariance, std, ((cov_x * off) ** 2).sum() / d + ((cov_y * off) ** 2).sum() / d


def pair(n, d, scale=0.7):
    generator = torch.Generator().manual_seed(n * 1000 + d)
    x = torch.randn(n, d, generator=generator) * scale
    return x, x + 0.3 * torch.randn(n, d, generator=generator)


@pytest.mark.parametrize(("n", "d"), [(2, 1), (2, 7), (63, 32), (128, 48), (16, 127)])
def test_the_terms_are_the_official_ones(n, d):
    x, y = pair(n, d)
    for found, expected in zip(terms(x, y), official(x, y), strict=True):
        assert math.isclose(found, expected, rel_tol=2e-5, abs_tol=1e-7)
    invariance, std, cov = official(x, y)
    assert math.isclose(VICReg()(x, y), 25 * invariance + 25 * std + cov, rel_tol=2e-5)
    assert math.isclose(
        VICReg(invariance=1, variance=2, covariance=3)(x, y), invariance + 2 * std + 3 * cov, rel_tol=2e-5
    )


def test_the_gradient_is_the_derivative_of_the_official_loss():
    x, y = (v.requires_grad_() for v in pair(20, 6))
    found = torch.autograd.grad(VICReg()(x, y), (x, y))
    invariance, std, cov = official(x, y)
    expected = torch.autograd.grad(25 * invariance + 25 * std + cov, (x, y))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_collapsed_batch_has_a_finite_loss_and_gradient():
    x = torch.ones(8, 4, requires_grad=True)
    loss = VICReg()(x, x.detach())
    loss.backward()
    assert math.isclose(loss.detach(), 25 * (1 - 0.01), rel_tol=1e-5)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("function", [variance, covariance, lambda x: terms(x, x)])
@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4,), (2, 3, 4)])
def test_fewer_than_two_samples_are_an_error(function, shape):
    with pytest.raises(ValueError, match=r"expected \(N, D\) with N >= 2"):
        function(torch.zeros(shape))


def test_unequal_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\)"):
        terms(torch.zeros(4, 3), torch.zeros(4, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_computed_in_float32(dtype):
    # In fp16, sums over 2048 samples of scale 8 overflow and squares below 2.4e-4 flush to zero.
    for scale in (8.0, 1e-3):
        x, y = (v.to(dtype) for v in pair(2048, 16, scale))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = terms(x, y)
        for found, expected in zip(inside, official(x, y), strict=True):
            assert found.dtype == torch.float32
            assert math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-9)
