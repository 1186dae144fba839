"""Collapse diagnostics: against NumPy in float64, on known cases, and in a loop that is warned or stopped."""

import math
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pyjepa.diagnostics import (  # noqa: E402
    Alarm,
    CollapseError,
    CollapseMonitor,
    CollapseWarning,
    alignment,
    covariance_spectrum,
    dimension_std,
    effective_rank,
    embedding_alarms,
    energy_gap,
    lidar,
    measure,
    rankme,
    uniformity,
)
from pyjepa.errors import InvalidArgumentError  # noqa: E402


def skewed(n, d, seed=0):
    """Correlated dimensions of very different size, off-centre."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.geomspace(1, 1e-3, d) + rng.normal(size=d)


# ---- NumPy statements -----------------------------------------------------------------------------------------------


def entropy_rank(p):
    p = p[p > 0]
    return np.exp(-np.sum(p * np.log(p)))


def numpy_effective_rank(x):
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    return entropy_rank(s / s.sum())


def numpy_rankme(x):
    s = np.linalg.svd(x, compute_uv=False)
    return entropy_rank(s / s.sum() + 1e-7)


def numpy_lidar(x, delta=1e-4):
    n, q, d = x.shape
    within, between = delta * np.eye(d), np.zeros((d, d))
    for views in x:
        mean = views.mean(0)
        between += np.outer(mean - x.mean((0, 1)), mean - x.mean((0, 1))) / (n - 1)
        for view in views:
            within += np.outer(view - mean, view - mean) / (n * (q - 1))
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ between @ root).clip(0)
    return entropy_rank(eigenvalues / eigenvalues.sum() + 1e-7)


def sphere(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def numpy_alignment(x, y, alpha):
    return np.mean(np.linalg.norm(sphere(x) - sphere(y), axis=1) ** alpha)


def numpy_uniformity(x, t):
    x = sphere(x)
    pairs = [np.exp(-t * np.sum((x[i] - x[j]) ** 2)) for i in range(len(x)) for j in range(i)]
    return np.log(np.mean(pairs))


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (2, 3), (64, 1)])
def test_figures_are_their_numpy_statements(n, d):
    x, y = skewed(n, d), skewed(n, d, seed=1)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    assert effective_rank(tx) == pytest.approx(numpy_effective_rank(x), rel=1e-10)
    assert rankme(tx) == pytest.approx(numpy_rankme(x), rel=1e-10)
    assert np.allclose(dimension_std(tx), x.std(0, ddof=1), rtol=1e-12)
    expected = np.linalg.eigvalsh(np.cov(x, rowvar=False).reshape(d, d))[::-1].clip(0)
    assert np.allclose(covariance_spectrum(tx), expected, rtol=1e-8, atol=1e-12)
    for alpha in (1.0, 2.0):
        assert alignment(tx, ty, alpha=alpha) == pytest.approx(numpy_alignment(x, y, alpha), rel=1e-9)
    for t in (1.0, 2.0):
        assert uniformity(tx, t=t) == pytest.approx(numpy_uniformity(x, t), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shape", [(10, 3, 4), (5, 2, 12), (30, 4, 1)])
def test_lidar_is_its_numpy_statement(shape):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(shape[0], 1, shape[2])) * np.geomspace(1, 0.1, shape[2]) + 0.1 * rng.normal(size=shape)
    assert lidar(torch.from_numpy(x)) == pytest.approx(numpy_lidar(x), rel=1e-8)
    assert lidar(torch.from_numpy(x), delta=0.5) == pytest.approx(numpy_lidar(x, 0.5), rel=1e-8)


@pytest.mark.parametrize("ties", [False, True])
def test_the_energy_gap_is_its_numpy_statement(ties):
    rng = np.random.default_rng(3)
    data, corrupted = rng.normal(size=50), rng.normal(size=70) + 0.7
    if ties:
        data, corrupted = data.round(0), corrupted.round(0)
    found = energy_gap(torch.from_numpy(data), torch.from_numpy(corrupted))
    assert found.gap == pytest.approx(corrupted.mean() - data.mean())
    assert found.standardised == pytest.approx(found.gap / np.sqrt((data.var() + corrupted.var()) / 2))
    wins = (corrupted[:, None] > data).mean() + 0.5 * (corrupted[:, None] == data).mean()
    assert found.auroc == pytest.approx(wins)


# ---- known cases ----------------------------------------------------------------------------------------------------


def test_ranks_count_directions():
    torch.manual_seed(0)
    independent = torch.randn(20_000, 6)
    two = independent[:, :2] @ torch.linalg.qr(torch.randn(6, 6))[0][:2]
    for rank in (effective_rank, rankme):
        assert rank(independent) == pytest.approx(6, abs=0.01)
        assert rank(two) == pytest.approx(2, abs=0.01)
        assert rank(independent * 1e-6) == pytest.approx(rank(independent), rel=1e-6)
    assert effective_rank(torch.arange(10.0)[:, None] * torch.ones(6)) == pytest.approx(1)


def test_a_point_has_figures_too():
    point = torch.ones(10, 6)
    assert effective_rank(point) == 0
    assert rankme(point) == pytest.approx(1, abs=1e-4)
    assert rankme(torch.zeros(10, 6)) == 1
    assert (dimension_std(point) == 0).all()
    assert (covariance_spectrum(point) == 0).all()
    assert alignment(point, point) == uniformity(point) == 0
    assert alignment(0 * point, 0 * point) == 0
    assert lidar(point.view(5, 2, 6)) == 1
    assert energy_gap(torch.ones(5), torch.ones(3)) == (0, 0, 0.5)


def test_directions_spread_evenly_are_uniform():
    torch.manual_seed(0)
    assert uniformity(torch.randn(2000, 64)) == pytest.approx(-4 + 4 * 2 / 64, abs=0.05)
    assert alignment(torch.eye(4), -torch.eye(4)) == pytest.approx(4)


def test_lidar_counts_what_tells_objects_apart_and_not_what_views_vary():
    torch.manual_seed(0)
    objects, views = torch.zeros(200, 4, 8), 4
    objects[..., :3] = 10 * torch.randn(200, 1, 3)
    objects += torch.randn(200, views, 8)
    assert 2.9 < lidar(objects) < 3.3
    assert rankme(objects.flatten(0, 1)) > 4.5  # the views' noise counts here
    # Without variance between objects beyond that of views, all directions are alike.
    assert lidar(torch.randn(2000, views, 8)) > 7.5


def test_a_separating_energy_has_an_auroc_of_one():
    found = energy_gap(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0]))
    assert found == (2.0, 4.0, 1.0)
    assert energy_gap(torch.tensor([3.0]), torch.tensor([1.0])) == (-2.0, -math.inf, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_rank(torch.zeros(3)), r"x: expected floats \(N >= 2, D >= 1\), got \(3,\)"),
        (lambda: rankme(torch.zeros(1, 4)), r"got \(1, 4\)"),
        (lambda: dimension_std(torch.zeros(4, 0)), r"got \(4, 0\)"),
        (lambda: covariance_spectrum(torch.zeros(4, 2, dtype=torch.int64)), "torch.int64"),
        (lambda: effective_rank(torch.tensor([[1.0, math.nan], [math.inf, 0.0]])), "2 of 4 values are not finite"),
        (lambda: alignment(torch.zeros(3, 2), torch.zeros(4, 2)), r"one shape, got \(3, 2\) and \(4, 2\)"),
        (lambda: lidar(torch.zeros(3, 1, 4)), r"views >= 2, D >= 1\), got \(3, 1, 4\)"),
        (lambda: lidar(torch.zeros(3, 2, 4), delta=0.0), "delta must be > 0"),
        (lambda: energy_gap(torch.zeros(0), torch.zeros(3)), "data: expected"),
        (lambda: energy_gap(torch.zeros(3), torch.tensor([math.nan])), "corrupted: 1 of 1 values are not finite"),
        (lambda: CollapseMonitor(action="ignore"), "action must be"),
    ],
)
def test_wrong_input_is_a_named_error(call, message):
    with pytest.raises(InvalidArgumentError, match=message):
        call()


# ---- the monitor ----------------------------------------------------------------------------------------------------


def test_the_monitor_warns_of_a_collapse_and_is_silent_otherwise():
    torch.manual_seed(0)
    monitor = CollapseMonitor(grace=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        healthy = torch.randn(64, 8)
        assert monitor(20, healthy) == measure(healthy)
        monitor(10, torch.zeros(64, 8))  # within grace
    with pytest.warns(CollapseWarning) as caught:
        figures = monitor(11, torch.randn(64, 1) * torch.ones(8))
    assert figures["effective_rank"] == pytest.approx(1)
    assert [str(warning.message) for warning in caught] == monitor.messages
    assert len(monitor.messages) == 1
    assert monitor.messages[0].startswith("step 11: the effective rank is 1.0 (alarm below 4): ")
    with pytest.warns(CollapseWarning) as caught:
        monitor(12, torch.zeros(64, 8))
    assert "100% of the latent dimensions have a standard deviation below 0.05" in str(caught[1].message)


def test_the_monitor_stops_training_and_reports_first():
    told = []
    monitor = CollapseMonitor(action="stop", report=lambda step, message: told.append((step, message)), std=1e-3)
    with pytest.raises(CollapseError, match=r"step 3: training stopped: the effective rank is 0\.0"):
        monitor(3, torch.ones(8, 4))
    assert [step for step, _ in told] == [3, 3]
    assert "below 0.001" in told[1][1]


def test_the_last_evaluation_is_judged_within_grace_too():
    monitor = CollapseMonitor(embedding_alarms(), grace=100, action="stop")
    figures = measure(torch.ones(8, 4))
    assert monitor.check(5, figures) == []
    with pytest.warns(CollapseWarning), pytest.raises(CollapseError):
        monitor.check(5, figures, final=True)


def test_a_figure_that_is_not_finite_trips():
    alarm = Alarm(figure="loss", says="the loss is {loss}", means="it diverged", above=10.0)
    assert alarm.message({"loss": 10.0}) is None
    assert alarm.message({"loss": math.nan}) == "the loss is nan (alarm above 10): it diverged"
    below = Alarm(figure="gap", says="the gap is {gap:.2f}", means="flat", below=0.1)
    assert below.message({"gap": math.inf}) is not None
