"""Every row of Table 1 against a computation by hand, and its gradient against finite differences."""

import math

import pytest

torch = pytest.importorskip("torch")

from pyjepa.energy import losses  # noqa: E402
from pyjepa.energy.methods import METHODS, table  # noqa: E402
from pyjepa.errors import InvalidArgumentError  # noqa: E402

POSITIVE = torch.tensor([1.0, 2.0], dtype=torch.float64)
NEGATIVE = torch.tensor([0.5, 4.0], dtype=torch.float64)
MARGIN = torch.tensor([1.0, 1.0], dtype=torch.float64)
CANDIDATES = torch.tensor([[1.0, 0.0, 3.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
LOG_WEIGHTS = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()

BY_HAND = {
    "1": (
        lambda p, n: losses.maximum_likelihood(p, n),
        CANDIDATES,
        ((1 + math.log(math.exp(-1) + 1 + math.exp(-3))) + (2 + math.log(3 * math.exp(-2)))) / 2,
    ),
    "2": (
        lambda p, n: losses.integrated_likelihood(p, n, LOG_WEIGHTS),
        CANDIDATES,
        ((1 + math.log(math.exp(-1) / 2 + 1 / 4 + math.exp(-3) / 4)) + (2 + math.log(math.exp(-2)))) / 2,
    ),
    "3": (losses.energy_difference, NEGATIVE, ((1 - 0.5) + (2 - 4)) / 2),
    "4": (losses.energy_difference, NEGATIVE, ((1 - 0.5) + (2 - 4)) / 2),
    "5": (lambda p, n: losses.pairwise_hinge(p, n, MARGIN), NEGATIVE, ((1 - 0.5 + 1) + 0) / 2),
    "6a": (lambda p, n: losses.min_hinge(p, n, MARGIN), NEGATIVE, ((1 + 0.5) + (2 + 0)) / 2),
    "6b": (lambda p, n: losses.square_hinge(p, n, MARGIN), NEGATIVE, ((1 + 0.25) + (4 + 0)) / 2),
    "7": (
        lambda p, n: losses.square_exp(p, n, beta=2.0),
        NEGATIVE,
        ((1 + math.exp(-1)) + (4 + math.exp(-8))) / 2,
    ),
    "8": (losses.logistic, NEGATIVE, (math.log1p(math.exp(0.5)) + math.log1p(math.exp(-2))) / 2),
    "9": (
        lambda p, n: losses.gan(p, n, MARGIN),
        NEGATIVE,
        sum(math.log1p(math.exp(v)) for v in (1.0, 1 - 0.5, 2.0, 1 - 4.0)) / 2,
    ),
    "10": (lambda p, n: losses.denoising(p), NEGATIVE, 1.5),
}


def test_every_row_of_the_table_is_here():
    assert list(METHODS) == list(BY_HAND) == ["1", "2", "3", "4", "5", "6a", "6b", "7", "8", "9", "10"]
    assert table().count("\n") == len(METHODS) + 2
    assert all(f"| {key} | {method.name} |" in table() for key, method in METHODS.items())


@pytest.mark.parametrize("key", BY_HAND)
def test_a_loss_is_what_it_is_by_hand(key):
    loss, negative, expected = BY_HAND[key]
    assert math.isclose(loss(POSITIVE, negative), expected, rel_tol=1e-12)


@pytest.mark.parametrize("key", BY_HAND)
def test_a_gradient_is_the_derivative(key):
    loss, negative, _ = BY_HAND[key]
    inputs = (POSITIVE.clone().requires_grad_(), negative.clone().requires_grad_(key != "10"))
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_generator_descends_what_the_energy_says_of_it():
    assert losses.generator(NEGATIVE) == 2.25


def test_info_nce_is_the_cross_entropy_of_similarities():
    torch.manual_seed(0)
    similarity = torch.randn(5, 5, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(similarity, torch.arange(5))
    assert torch.isclose(losses.info_nce(-similarity), expected)
    assert torch.autograd.gradcheck(losses.info_nce, (similarity.requires_grad_(),))


@pytest.mark.parametrize("key", ["3", "4", "5", "6a", "6b", "7", "8", "9"])
def test_an_empty_contrast_is_an_error(key):
    with pytest.raises(InvalidArgumentError, match="no contrast"):
        BY_HAND[key][0](POSITIVE, torch.empty(0))


@pytest.mark.parametrize("key", ["1", "2"])
def test_no_candidates_are_an_error(key):
    with pytest.raises(InvalidArgumentError, match="no contrast"):
        BY_HAND[key][0](POSITIVE, torch.empty(2, 0, dtype=torch.float64))


def test_no_distances_are_an_error():
    with pytest.raises(InvalidArgumentError, match="got none"):
        losses.denoising(torch.empty(0))


@pytest.mark.parametrize("loss", [losses.pairwise_hinge, losses.min_hinge, losses.square_hinge, losses.gan])
def test_a_negative_margin_is_an_error(loss):
    with pytest.raises(InvalidArgumentError, match=r"margin: expected >= 0, got -0\.5"):
        loss(POSITIVE, NEGATIVE, torch.tensor([1.0, -0.5]))
    with pytest.raises(InvalidArgumentError, match=r"margin: expected \(2,\)"):
        loss(POSITIVE, NEGATIVE, torch.ones(3))


def test_shapes_and_beta_are_checked():
    with pytest.raises(InvalidArgumentError, match="one ŷ for each y"):
        losses.logistic(POSITIVE, torch.zeros(3))
    with pytest.raises(InvalidArgumentError, match=r"\(B, K\)"):
        losses.maximum_likelihood(POSITIVE, torch.zeros(3, 3))
    with pytest.raises(InvalidArgumentError, match="beta"):
        losses.square_exp(POSITIVE, NEGATIVE, beta=0.0)
    with pytest.raises(InvalidArgumentError, match="B >= 2"):
        losses.info_nce(torch.zeros(1, 1))
