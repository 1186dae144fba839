"""Latent variables: the best z, free energies and their gradients, filling in what is hidden, limits on z."""

import math

import pytest

torch = pytest.importorskip("torch")

from pyjepa.energy.inference import (  # noqa: E402
    Exhaustive,
    GradientDescent,
    LangevinSearch,
    LatentVariableEBM,
    complete,
)
from pyjepa.energy.latents import Discrete, LowDimensional, Noisy, Sparse, Unlimited  # noqa: E402
from pyjepa.energy.sampling import Langevin  # noqa: E402
from pyjepa.errors import InvalidArgumentError, NonFiniteEnergyError  # noqa: E402


def shifted(x, y, z):
    """`‖y - x - z‖²`: the best z without a limit is y - x."""
    return (y - x - z).square().sum(-1)


def pairs(b=5, d=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(b, d, generator=generator, dtype=dtype), torch.randn(b, d, generator=generator, dtype=dtype)


def test_gradient_descent_finds_the_minimum():
    x, y = pairs()
    found = LatentVariableEBM(shifted, Unlimited(2)).infer_z(x, y)
    assert torch.allclose(found.z, y - x, atol=1e-4)
    assert torch.allclose(found.energy, torch.zeros(5, dtype=torch.float64), atol=1e-6)
    assert not found.z.requires_grad


def test_several_starts_find_the_lower_of_two_valleys():
    def two(x, y, z):
        return ((z**2 - 1) ** 2 - 0.5 * z).sum(-1)

    x = y = torch.zeros(50, 1)
    generator = torch.Generator().manual_seed(0)
    one = LatentVariableEBM(two, Unlimited(1), method=GradientDescent(starts=1)).infer_z(x, y, generator=generator)
    many = LatentVariableEBM(two, Unlimited(1), method=GradientDescent(starts=16)).infer_z(x, y, generator=generator)
    assert (one.z < 0).any()
    assert (many.z > 0).all()
    assert (many.energy <= one.energy + 1e-4).all()


def test_langevin_search_comes_near_the_minimum():
    x, y = pairs(dtype=torch.float32)
    method = LangevinSearch(starts=8, chain=Langevin(steps=200, step_size=0.02, temperature=0.01))
    found = LatentVariableEBM(shifted, Unlimited(2), method=method).infer_z(
        x, y, generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(found.z, y - x, atol=0.3)
    assert torch.allclose(found.energy, shifted(x, y, found.z))


def test_a_discrete_z_is_found_by_trying_all():
    codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    x, y = pairs(20)
    found = LatentVariableEBM(shifted, Discrete(codes)).infer_z(x, y)
    everything = torch.stack([shifted(x, y, code) for code in codes])
    assert torch.equal(found.energy, everything.min(0).values)
    assert torch.equal(found.z, codes[everything.argmin(0)])
    sets = LatentVariableEBM(shifted, Discrete(codes)).infer_z(x[:, None], torch.stack([y, x], dim=1))
    assert sets.z.shape == (20, 2, 2)
    assert torch.equal(sets.energy[:, 0], found.energy)


def test_the_free_energy_of_a_discrete_z_is_the_log_sum_by_hand_and_tends_to_the_minimum():
    model = LatentVariableEBM(shifted, Discrete(torch.tensor([[0.0], [1.0]], dtype=torch.float64)))
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 0.25, dtype=torch.float64)
    expected = -math.log(math.exp(-2 * 0.0625) + math.exp(-2 * 0.5625)) / 2
    assert float(model.free_energy(x, y, beta=2.0)) == pytest.approx(expected)
    assert float(model.free_energy(x, y)) == pytest.approx(0.0625)
    assert float(model(x, y)) == pytest.approx(0.0625)
    assert float(model.free_energy(x, y, beta=1e4)) == pytest.approx(0.0625, abs=1e-3)


@pytest.mark.parametrize(
    ("latent", "tolerance"), [(Unlimited(1), 0.02), (LowDimensional(1, bound=8.0), 0.03)], ids=lambda v: str(v)
)
def test_the_free_energy_of_a_continuous_z_is_the_integral(latent, tolerance):
    x, y = torch.zeros(3, 1, dtype=torch.float64), torch.tensor([[0.0], [0.5], [-0.3]], dtype=torch.float64)
    model = LatentVariableEBM(shifted, latent)
    generator = torch.Generator().manual_seed(0)
    found = model.free_energy(x, y, beta=1.5, samples=200_000, generator=generator)
    assert found.tolist() == pytest.approx([-math.log(math.sqrt(math.pi / 1.5)) / 1.5] * 3, abs=tolerance)


@pytest.mark.parametrize("beta", [None, 2.0])
@pytest.mark.parametrize("latent", [Discrete.one_hot(2), Sparse(2, weight=0.3), Unlimited(2)], ids=lambda v: str(v))
def test_free_energies_have_the_gradient_they_claim(latent, beta):
    weight = torch.tensor([[1.0, 0.5], [-0.5, 1.0]], dtype=torch.float64, requires_grad=True)

    def free(x, y, weight):
        model = LatentVariableEBM(
            lambda x, y, z: (y - torch.tanh(x) - z @ weight).square().sum(-1),
            latent,
            method=None if isinstance(latent, Discrete) else GradientDescent(starts=1, steps=120),
        )
        return model.free_energy(x, y, beta=beta, generator=torch.Generator().manual_seed(0))

    x, y = pairs(2)
    assert torch.autograd.gradcheck(free, (x.requires_grad_(), y.requires_grad_(), weight), atol=1e-4)


def test_a_limited_z_leaves_energy_where_an_unlimited_one_leaves_none():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.zeros(64, 8), torch.randn(64, 8, generator=generator)
    wide = torch.randn(2, 8, generator=generator)
    energies = {
        name: float(LatentVariableEBM(base, latent).infer_z(x, y, generator=generator).energy.mean())
        for name, base, latent in (
            ("unlimited", shifted, Unlimited(8)),
            ("discrete", shifted, Discrete.one_hot(8)),
            ("low", lambda x, y, z: shifted(x, y, z @ wide), LowDimensional(2)),
            ("sparse", shifted, Sparse(8, weight=1.0)),
            ("noisy", shifted, Noisy(8, sigma=0.5, weight=0.5)),
        )
    }
    assert energies.pop("unlimited") < 1e-3
    assert min(energies.values()) > 0.5, energies


def test_a_sparse_z_has_exact_zeros_and_the_solution_of_soft_thresholding():
    x, y = pairs(20, 4)
    z = LatentVariableEBM(shifted, Sparse(4, weight=1.0)).infer_z(x, y).z
    gap = y - x
    assert torch.allclose(z, gap.sign() * torch.relu(gap.abs() - 0.5), atol=1e-4)
    assert (z == 0).any()


@pytest.mark.parametrize("latent", [LowDimensional(1, bound=2.0), Sparse(1, weight=0.7), Noisy(1, weight=2.0)])
def test_a_prior_integrates_to_one_and_its_proximal_step_is_a_minimum(latent):
    z = torch.linspace(-20, 20, 40001, dtype=torch.float64)[:, None]
    assert float(latent.log_prior(z).exp().sum() * 0.001) == pytest.approx(1.0, abs=1e-3)
    start, step = torch.tensor([[1.3]], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    inside = latent.log_prior(z) > -math.inf
    objective = (z - start).square().sum(-1) / 2 + 0.4 * latent.penalty(z)
    best = z[inside][objective[inside].argmin()]
    assert float(latent.proximal(start, step)) == pytest.approx(float(best), abs=2e-3)
    draws = latent.draw((4000,), z, torch.Generator().manual_seed(0))
    assert draws.shape == (4000, 1)
    assert float(latent.log_prior(draws).isfinite().double().mean()) == 1


def test_completing_fills_in_what_is_hidden_and_leaves_the_rest():
    def parabola(x, y):
        return (y[..., 1] - y[..., 0] ** 2) ** 2

    y = torch.tensor([[1.0, 9.0], [2.0, -7.0]])
    found = complete(parabola, torch.empty(2, 0), y, torch.tensor([False, True]))
    assert torch.allclose(found.y, torch.tensor([[1.0, 1.0], [2.0, 4.0]]), atol=1e-2)
    assert found.energy.max() < 1e-4
    bounded = complete(parabola, torch.empty(2, 0), y, torch.tensor([False, True]), bounds=(0.0, 3.0))
    assert torch.allclose(bounded.y[:, 1], torch.tensor([1.0, 3.0]), atol=1e-2)


def test_a_mask_that_hides_everything_or_nothing_is_an_error():
    x, y = torch.empty(2, 0), torch.zeros(2, 2)
    with pytest.raises(InvalidArgumentError, match="hides everything of row 0"):
        complete(lambda x, y: y.sum(-1), x, y, torch.tensor([True, True]))
    with pytest.raises(InvalidArgumentError, match="hides nothing of row 1"):
        complete(lambda x, y: y.sum(-1), x, y, torch.tensor([[True, False], [False, False]]))
    with pytest.raises(InvalidArgumentError, match="boolean mask"):
        complete(lambda x, y: y.sum(-1), x, y, torch.ones(2))


def test_energies_that_are_not_finite_are_errors():
    x, y = pairs()
    for latent in (Unlimited(2), Discrete.one_hot(2)):
        model = LatentVariableEBM(lambda x, y, z: (y + z).sum(-1) * math.nan, latent)
        with pytest.raises(NonFiniteEnergyError):
            model.infer_z(x, y)
        with pytest.raises(NonFiniteEnergyError):
            model.free_energy(x, y, beta=1.0)
    with pytest.raises(NonFiniteEnergyError):
        complete(lambda x, y: y.sum(-1) * math.inf, x, y, torch.tensor([True, False]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LatentVariableEBM(shifted, Unlimited(2), method=Exhaustive()),
        lambda: LatentVariableEBM(shifted, Discrete.one_hot(2), method=GradientDescent()),
        lambda: Discrete(torch.empty(0, 2)),
        lambda: LowDimensional(0),
        lambda: Sparse(2, weight=0.0),
        lambda: Noisy(2, sigma=-1.0),
        lambda: GradientDescent(starts=0),
        lambda: LatentVariableEBM(shifted, Unlimited(2)).free_energy(*pairs(), beta=-1.0),
    ],
)
def test_impossible_settings_are_errors(make):
    with pytest.raises(InvalidArgumentError):
        make()
