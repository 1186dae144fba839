"""Where ŷ come from: sets, integrals, searches, a generator, corruption; energies; the densities' likelihood."""

import math

import pytest

torch = pytest.importorskip("torch")

from pyjepa.energy.architectures import AutoEncoder, Generative, JointEmbedding, Prediction  # noqa: E402
from pyjepa.energy.contrast import (  # noqa: E402
    DistanceMargin,
    Generator,
    Quadrature,
    corrupt,
    margins,
    most_offending,
    most_offending_nearby,
    nearest_neighbour_entropy,
)
from pyjepa.energy.densities import DENSITIES, Mixture, log_partition, negative_log_likelihood, ring  # noqa: E402
from pyjepa.energy.energies import FactorisedEnergy, NeuralEnergy, PositiveEnergy, finite, nothing  # noqa: E402
from pyjepa.errors import InvalidArgumentError, NonFiniteEnergyError  # noqa: E402


def bowl(x, y):
    return y.square().sum(-1)


def test_the_integral_of_a_gaussian_is_known():
    points = Quadrature.midpoint(-6, 6, 60, 2, shift=torch.tensor([0.3, -0.2]))
    assert float(points.log_partition(bowl, torch.empty(4, 0))) == pytest.approx(math.log(math.pi), abs=1e-4)
    values = Quadrature.exhaustive(torch.tensor([[0.0], [1.0]]))
    assert float(values.log_partition(bowl, torch.empty(1, 0))) == pytest.approx(math.log(1 + math.exp(-1)))


def test_conditional_energies_have_an_integral_for_each_x():
    points = Quadrature.midpoint(-8, 8, 200, 1)
    scales = torch.tensor([[1.0], [4.0]])
    found = points.log_partition(lambda x, y: (x * y**2).sum(-1), scales)
    assert found.tolist() == pytest.approx([math.log(math.sqrt(math.pi / s)) for s in (1, 4)], abs=1e-4)


def test_the_most_offending_of_a_set():
    y = torch.zeros(2, 2)
    candidates = torch.tensor([[0.0, 0.0], [0.1, 0.0], [2.0, 0.0], [3.0, 3.0]])
    lowest = most_offending(bowl, nothing(y), y, candidates)
    assert torch.equal(lowest, torch.tensor([[0.1, 0.0]] * 2))  # not y itself
    far = most_offending(bowl, nothing(y), y, candidates, margin=DistanceMargin(height=10.0, radius=2.0))
    assert torch.equal(far, torch.tensor([[2.0, 0.0]] * 2))
    own = most_offending(bowl, nothing(y), y, torch.stack([candidates, candidates + 1]))
    assert torch.equal(own, torch.tensor([[0.1, 0.0], [1.0, 1.0]]))
    x = torch.tensor([[0.0], [2.0]])
    given = most_offending(lambda x, y: (y - x).square().sum(-1), x, y, candidates)
    assert torch.equal(given, torch.tensor([[0.1, 0.0], [3.0, 3.0]]))


def test_the_most_offending_nearby_raises_offence():
    y = torch.zeros(8, 2)
    margin = DistanceMargin(height=3.0, radius=1.0)
    start = corrupt(y, 0.3, generator=torch.Generator().manual_seed(0))
    found = most_offending_nearby(bowl, nothing(y), y, start, margin=margin, steps=50, step_size=0.05)
    assert (margin(y, found) - bowl(None, found) > margin(y, start) - bowl(None, start)).all()
    assert torch.allclose(found.norm(dim=1), torch.ones(8), atol=0.06)  # where the margin stops to grow
    one = most_offending_nearby(bowl, nothing(y), y, start + 5, steps=1, step_size=0.05)
    assert torch.allclose((one - start - 5).norm(dim=1), torch.full((8,), 0.05))
    within = most_offending_nearby(bowl, nothing(y), y, start + 5, steps=1, bounds=(-1.0, 1.0))
    assert within.max() == 1


@pytest.mark.parametrize("candidates", [torch.empty(0, 2), torch.empty(2, 0, 2), torch.zeros(2)])
def test_an_empty_contrast_set_is_an_error(candidates):
    y = torch.zeros(2, 2)
    with pytest.raises(InvalidArgumentError, match="candidates"):
        most_offending(bowl, nothing(y), y, candidates)


def test_negative_margins_and_energies_that_are_not_finite_are_errors():
    y = torch.zeros(2, 2)
    with pytest.raises(InvalidArgumentError, match=r"margin: expected >= 0, got -1\.0"):
        most_offending(bowl, nothing(y), y, torch.ones(3, 2), margin=lambda y, other: -torch.ones(2, 3))
    with pytest.raises(InvalidArgumentError, match="margin"):
        margins(lambda y, other: torch.full((2,), math.nan), y, y)
    with pytest.raises(InvalidArgumentError, match="height"):
        DistanceMargin(height=-1.0)
    for call in (
        lambda: most_offending(lambda x, y: bowl(x, y) / 0, nothing(y), y, torch.zeros(3, 2)),
        lambda: most_offending_nearby(lambda x, y: bowl(x, y).log(), nothing(y), y, y),
        lambda: Quadrature.midpoint(-1, 1, 3, 1).log_partition(lambda x, y: bowl(x, y).log(), torch.empty(1, 0)),
        lambda: finite(torch.tensor([1.0, math.nan])),
    ):
        with pytest.raises(NonFiniteEnergyError, match="not finite"):
            call()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Quadrature.exhaustive(torch.empty(0, 2)),
        lambda: Quadrature(torch.zeros(2, 2), torch.zeros(3)),
        lambda: Quadrature.midpoint(1, 1, 3, 1),
        lambda: Generator(0, 2, low=1.0, high=0.0),
        lambda: Generator(0, 9, low=0.0, high=1.0, z_dim=8),
        lambda: corrupt(torch.zeros(2, 2), 0.0),
        lambda: corrupt(torch.empty(0, 2), 1.0),
        lambda: nearest_neighbour_entropy(torch.zeros(1, 2)),
        lambda: most_offending_nearby(bowl, torch.empty(2, 0), torch.zeros(2, 2), torch.zeros(3, 2)),
        lambda: FactorisedEnergy(2, 2, low=1.0, high=0.0),
        lambda: Mixture("m", ((0.0, 0.0),), (1.0,), (0.5,)),
        lambda: Mixture("m", ((0.0, 0.0),), (-1.0,), (1.0,)),
        lambda: Mixture("m", ((0.0, 0.0),), (1.0, 1.0), (1.0,)),
        lambda: negative_log_likelihood(ring().energy, torch.full((1, 2), 9.0), 2.5),
    ],
)
def test_impossible_settings_are_errors(make):
    with pytest.raises(InvalidArgumentError):
        make()


def test_a_generator_stays_within_its_bounds_and_learns():
    torch.manual_seed(0)
    network = Generator(3, 2, low=-1.0, high=2.0)
    found = network(torch.zeros(200, 3))
    assert found.min() >= -1
    assert found.max() <= 2
    assert found.std() > 0.3
    found.sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in network.parameters() if p.dim() == 2)


def test_entropy_grows_with_the_logarithm_of_the_scale():
    samples = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    gain = nearest_neighbour_entropy(2 * samples) - nearest_neighbour_entropy(samples)
    assert float(gain) == pytest.approx(3 * math.log(2), abs=1e-4)
    assert torch.autograd.gradcheck(nearest_neighbour_entropy, (samples[:6].double().requires_grad_(),))


def test_a_factorised_energy_has_the_integral_it_says():
    torch.manual_seed(0)
    energy = FactorisedEnergy(3, 2, low=-1.0, high=2.0, knots=5).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    line = Quadrature.midpoint(-1.0, 2.0, 400, 2)
    points = Quadrature(line.points.double(), line.log_weights.double())
    assert torch.allclose(energy.log_partition(x), points.log_partition(energy, x), atol=1e-4)
    assert energy(x[:, None], torch.zeros(1, 7, 2, dtype=torch.float64)).shape == (4, 7)
    y = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(energy, (x.requires_grad_(), y))
    assert torch.autograd.gradcheck(energy.log_partition, (x,))


@pytest.mark.parametrize(
    "make",
    [
        lambda: NeuralEnergy(3, 2, hidden=8),
        lambda: PositiveEnergy(3, 2, hidden=8),
        lambda: Prediction(3, 2, hidden=8),
        lambda: AutoEncoder(3, 2, code=4, hidden=8),
        lambda: JointEmbedding(3, 2, embedding=4, hidden=8),
    ],
)
def test_energies_broadcast_and_are_differentiable(make):
    torch.manual_seed(0)
    energy = make().double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    everything = energy(x[:, None], y)
    assert everything.shape == (4, 5)
    assert torch.allclose(everything[2], energy(x[2].expand(5, 3), y))
    assert energy.features(x, y[:4]).shape[0] == 4
    assert torch.autograd.gradcheck(energy, (x.requires_grad_(), y[:4].clone().requires_grad_()))
    if isinstance(energy, PositiveEnergy):
        assert everything.min() > 0


def test_a_generative_energy_is_zero_where_z_carries_all_of_y():
    energy = Generative(3, 2, 2).double()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    z = torch.linalg.solve(energy.decoder.weight, (y - energy.predictor(x)).mT).mT
    assert torch.allclose(energy(x, y, z), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("density", DENSITIES, ids=lambda d: d.name)
def test_a_density_integrates_to_one_and_samples_have_its_entropy(density):
    assert log_partition(density.energy, density.box) == pytest.approx(0.0, abs=1e-3)
    y = density.sample(4000, torch.Generator().manual_seed(0))
    found = negative_log_likelihood(density.energy, y, density.box)
    assert found == pytest.approx(-float(density.log_density(y).mean()), abs=1e-3)
    shifted = negative_log_likelihood(lambda x, y: density.energy(x, y) + 5, y, density.box)
    assert shifted == pytest.approx(found, abs=1e-3)
    blunt = negative_log_likelihood(lambda x, y: density.energy(x, y) / 2, y, density.box)
    assert blunt > found + 0.1
