"""Chains sample what they should, and one that diverges is seen, reported and started again."""

import math

import pytest

torch = pytest.importorskip("torch")

from pyjepa.energy.energies import nothing  # noqa: E402
from pyjepa.energy.sampling import (  # noqa: E402
    ChainDivergedWarning,
    Gibbs,
    Hamiltonian,
    ImportanceResampling,
    Langevin,
    PersistentChains,
)
from pyjepa.errors import DivergedChainError, InvalidArgumentError, NonFiniteEnergyError  # noqa: E402


def gaussian(x, y):
    """Mean (1, -0.5), standard deviations 0.5 and 0.25."""
    return ((y - y.new_tensor([1.0, -0.5])) ** 2 / (2 * y.new_tensor([0.25, 0.0625]))).sum(-1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "sampler",
    [
        Langevin(steps=300, step_size=0.004),
        Langevin(steps=200, step_size=0.02, metropolis=True),
        Hamiltonian(steps=25, leapfrog=5, step_size=0.15),
        Gibbs(torch.linspace(-3, 3, 121), sweeps=2, width=0.05),
        ImportanceResampling(-3.0, 3.0, proposals=20000),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_a_sampler_finds_mean_and_spread(sampler):
    y = torch.zeros(2000, 2)
    chains = sampler(gaussian, nothing(y), y, generator=seeded())
    assert chains.y.mean(0).tolist() == pytest.approx([1.0, -0.5], abs=0.05)
    assert chains.y.std(0).tolist() == pytest.approx([0.5, 0.25], rel=0.1)
    assert torch.allclose(chains.energy, gaussian(None, chains.y), atol=1e-5)
    assert chains.divergences == 0
    assert 0.6 < chains.acceptance <= 1
    again = sampler(gaussian, nothing(y), y, generator=seeded())
    assert torch.equal(chains.y, again.y)


def test_gibbs_draws_discrete_values_in_proportion():
    def ising(x, y):
        return -(y[..., 0] * y[..., 1])

    y = torch.ones(4000, 2)
    found = Gibbs(torch.tensor([-1.0, 1.0]), sweeps=5)(ising, nothing(y), y, generator=seeded()).y
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    agreeing = (found[:, 0] == found[:, 1]).float().mean()
    assert float(agreeing) == pytest.approx(math.e / (math.e + 1 / math.e), abs=0.03)


def test_gibbs_in_pieces_is_gibbs():
    y = torch.zeros(10, 2)
    values = torch.linspace(-3, 3, 13)
    found = [Gibbs(values, chunk=chunk)(gaussian, nothing(y), y, generator=seeded()).y.std() for chunk in (30, 1 << 20)]
    assert all(0 < float(spread) < 3 for spread in found)


def test_langevin_without_temperature_descends_and_bounds_hold():
    y = torch.zeros(3, 2)
    found = Langevin(steps=200, step_size=0.02, temperature=0.0)(gaussian, nothing(y), y)
    assert torch.allclose(found.y, torch.tensor([1.0, -0.5]).expand(3, 2), atol=1e-3)
    bounded = Langevin(steps=20, step_size=0.02, bounds=(-0.1, 0.2))(gaussian, nothing(y), y, generator=seeded())
    assert bounded.y.min() >= -0.1
    assert bounded.y.max() <= 0.2


def falling(x, y):
    """Bounded for most, unbounded below beyond 1: chains there never come back."""
    return torch.where(y[..., 0] > 1, -torch.exp(y[..., 0] * 3), y[..., 0] ** 2)


@pytest.mark.parametrize("sampler", [Langevin(steps=30, step_size=0.1), Hamiltonian(steps=10, step_size=0.3)])
def test_a_diverging_chain_is_reported_and_starts_again(sampler):
    y = torch.zeros(64, 1)
    with pytest.warns(ChainDivergedWarning, match="of 64 chains diverged"):
        chains = type(sampler)(**{**vars(sampler), "restarts": 1000})(falling, nothing(y), y, generator=seeded())
    assert chains.divergences > 0
    assert torch.isfinite(chains.y).all()
    assert chains.y.abs().max() <= sampler.limit


def test_a_chain_that_always_diverges_is_an_error():
    y = torch.ones(4, 1)
    with pytest.raises(DivergedChainError, match="diverged 4 times"):
        Langevin(steps=50, step_size=1.0)(lambda x, y: -(y**4).sum(-1), nothing(y), y, generator=seeded())


def test_a_start_without_a_finite_energy_is_an_error():
    y = torch.zeros(4, 1)
    with pytest.raises(NonFiniteEnergyError, match="4 of 4"):
        Langevin()(lambda x, y: y.sum(-1).log(), nothing(y), y)
    with pytest.raises(NonFiniteEnergyError):
        Gibbs(torch.zeros(1))(lambda x, y: y.sum(-1) / 0, nothing(y), y)


def test_persistent_chains_go_on_where_they_were():
    calls = []

    def step(energy, x, y, *, generator=None):
        calls.append(y)
        return Langevin(steps=1, step_size=0.01)(energy, x, y, generator=generator)

    chains = PersistentChains(step, lambda: torch.full((8, 2), 5.0), restart=0.0)
    x, rows = torch.empty(3, 0), torch.tensor([1, 4, 6])
    first = chains(gaussian, x, rows, generator=seeded()).y
    chains(gaussian, x, rows, generator=seeded())
    assert torch.equal(calls[0], torch.full((3, 2), 5.0))
    assert torch.equal(calls[1], first)
    assert torch.equal(chains.state[0], torch.full((2,), 5.0))
    always = PersistentChains(step, lambda: torch.full((8, 2), 5.0), restart=1.0)
    always(gaussian, x, rows, generator=seeded())
    always(gaussian, x, rows, generator=seeded())
    assert torch.equal(calls[-1], torch.full((3, 2), 5.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Langevin(step_size=0.0),
        lambda: Langevin(temperature=-1.0),
        lambda: Langevin(metropolis=True, temperature=0.0),
        lambda: Hamiltonian(leapfrog=0),
        lambda: Gibbs(torch.empty(0)),
        lambda: Gibbs(torch.zeros(2), width=-1.0),
        lambda: ImportanceResampling(1.0, 1.0),
        lambda: PersistentChains(Langevin(), lambda: torch.zeros(1, 1), restart=2.0),
        lambda: Langevin()(gaussian, torch.empty(3, 0), torch.zeros(2, 2)),
        lambda: Langevin()(lambda x, y: y, torch.empty(2, 0), torch.zeros(2, 2)),
    ],
)
def test_impossible_settings_are_errors(make):
    with pytest.raises(InvalidArgumentError):
        make()
