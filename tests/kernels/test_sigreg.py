"""SIGReg, torch and Triton, against the plain statement in float64."""

import math

import pytest
import torch
from pyjepa.kernels import sigreg, sigreg_directions, sigreg_reference
from torch.autograd import gradcheck

SHAPES = [(1, 1, 1, 2), (3, 2, 1, 5), (63, 33, 70, 17), (130, 16, 65, 10), (257, 5, 7, 17)]
BACKENDS = ["torch", "triton"]


@pytest.fixture(autouse=True)
def needs_triton(request):
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "triton":
        pytest.importorskip("triton")


def sample(n, d, dtype=torch.float32):
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(n)) * 1.3 + 0.2).to(dtype)


def gradients(function, z, *args, **options):
    z = z.detach().requires_grad_()
    value = function(z, *args, **options)
    return value.detach(), torch.autograd.grad(value, z)[0]


def assert_within_rule(found, plain, exact, atol=2e-6):
    """Each error at most twice that of plain torch in the same dtype, plus atol times the exact norm."""
    for a, b, c in zip(found, plain, exact, strict=True):
        c = c.double()
        assert (a.cpu() - c).norm() <= 2 * (b - c).norm() + atol * c.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["lejepa", "bcs"])
@pytest.mark.parametrize("shape", SHAPES)
def test_statistic_and_gradient_are_those_of_the_statement(shape, variant, backend, device, poisoned):
    n, d, k, t = shape
    z, a = sample(n, d), sigreg_directions(d, k, seed=3)
    if backend == "torch":
        device = "cpu"
    found = gradients(sigreg, z.to(device), directions=a.to(device), knots=t, variant=variant, backend=backend)
    plain = gradients(sigreg_reference, z, a, knots=t, variant=variant)
    exact = gradients(sigreg_reference, z.double(), a.double(), knots=t, variant=variant)
    assert_within_rule(found, plain, exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_inputs_are_computed_in_float32(dtype, backend):
    z, a = sample(63, 20, dtype), sigreg_directions(20, 9)
    value, grad = gradients(sigreg, z, directions=a, backend=backend)
    exact, exact_grad = gradients(sigreg_reference, z.double(), a.double())
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    assert math.isclose(value, exact, rel_tol=5e-6)
    # The interpreter truncates bf16 stores where a GPU rounds.
    assert (grad - exact_grad).norm() <= exact_grad.norm() * (2**-7 if dtype == torch.bfloat16 else 2**-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    z, a = sample(30, 12), sigreg_directions(12, 9)
    expected = gradients(sigreg, z, directions=a, backend=backend)
    for other in (z.t().contiguous().t(), torch.stack((z, z), 2).flatten(1)[:, ::2]):
        found = gradients(sigreg, other, directions=a.t().contiguous().t(), backend=backend)
        for b, c in zip(found, expected, strict=True):
            torch.testing.assert_close(b, c, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, when the interpreter takes cos(inf)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_inputs_are_not_hidden(value, backend):
    z = sample(9, 4)
    z[2, 1] = value
    found = gradients(sigreg, z, directions=5, backend=backend)
    assert not any(torch.isfinite(part).all() for part in found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["lejepa", "bcs"])
def test_gradcheck_in_float64(variant, backend):
    z = sample(5, 3, torch.float64).requires_grad_()
    a = sigreg_directions(3, 4, dtype=torch.float64)
    assert gradcheck(lambda q: sigreg(q, directions=a, variant=variant, backend=backend), (z,))


@pytest.mark.parametrize("triton", [False, True])
def test_opcheck(triton):
    if triton:
        pytest.importorskip("triton")
    z = sample(7, 5).requires_grad_()
    torch.library.opcheck(torch.ops.pyjepa.sigreg.default, (z, sigreg_directions(5, 3), 0.0, 0.2, 17, 7.0, triton))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_into_one_graph_and_ignores_autocast(backend):
    compiled = torch.compile(lambda q: sigreg(q, directions=8), fullgraph=True, backend=backend)
    z = sample(12, 6)
    expected = gradients(sigreg, z, directions=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients(sigreg, z, directions=8)
    for found in (gradients(compiled, z), inside):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_vmap_is_refused_clearly_and_functorch_gradients_work():
    a = sigreg_directions(4, 3)
    with pytest.raises(NotImplementedError, match="call it in a loop"):
        torch.vmap(lambda q: sigreg(q, directions=a))(torch.randn(2, 5, 4))
    z = sample(5, 4)
    torch.testing.assert_close(
        torch.func.grad(lambda q: sigreg(q, directions=a))(z), gradients(sigreg, z, directions=a)[1]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_every_run(backend):
    first, second = (gradients(sigreg, sample(70, 9), directions=33, backend=backend) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_directions_are_unit_and_come_from_the_seed():
    a = sigreg_directions(30, 8, seed=4)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(8))
    assert torch.equal(a, sigreg_directions(30, 8, seed=4))
    assert not torch.equal(a, sigreg_directions(30, 8, seed=5))
    z = sample(20, 30)
    assert torch.equal(sigreg(z, directions=8, seed=4), sigreg(z, directions=a))


def test_a_normal_sample_scores_lower_than_a_collapsed_one():
    normal = sigreg(torch.randn(500, 8, generator=torch.Generator().manual_seed(0)))
    assert normal < 5
    assert sigreg(torch.zeros(500, 8)) > 20 * normal


@pytest.mark.parametrize(
    ("z", "options", "error", "match"),
    [
        (torch.zeros(4, 3), {"directions": 0}, ValueError, "K >= 1"),
        (torch.zeros(4, 3), {"directions": -2}, ValueError, "K >= 1"),
        (torch.zeros(4, 3), {"knots": 0}, ValueError, "T >= 2"),
        (torch.zeros(4, 3), {"knots": -1}, ValueError, "T >= 2"),
        (torch.zeros(4, 3), {"knots": 1}, ValueError, "T >= 2"),
        (torch.zeros(4, 3), {"t_max": 0.0}, ValueError, "t_max"),
        (torch.zeros(4, 3), {"variant": "epps"}, ValueError, "lejepa, bcs"),
        (torch.zeros(4, 3), {"directions": torch.zeros(2, 5)}, ValueError, r"\(3, K\)"),
        (torch.zeros(4, 3), {"directions": torch.zeros(3, 5, dtype=torch.int64)}, TypeError, "int64"),
        (torch.zeros(4, 3), {"directions": torch.zeros(3, 5, device="meta")}, ValueError, "on cpu, not meta"),
        (torch.zeros(4, 3), {"directions": torch.zeros(3, 5, requires_grad=True)}, ValueError, "gradient"),
        (torch.zeros(0, 3), {}, ValueError, r"\(0, 3\)"),
        (torch.zeros(4, 0), {}, ValueError, r"\(4, 0\)"),
        (torch.zeros(2, 4, 3), {}, ValueError, r"\(2, 4, 3\)"),
        (torch.zeros(4, 3, dtype=torch.int64), {}, TypeError, "int64"),
        ([1.0], {}, TypeError, "list"),
    ],
)
def test_bad_inputs_are_errors_that_say_what_is_wrong(z, options, error, match):
    with pytest.raises(error, match=match):
        sigreg(z, **options)


def test_strides_beyond_two_to_the_31_elements():
    pytest.importorskip("triton")
    step = (1 << 31) // 2 + 11
    wide = torch.empty(2 * step + 8, dtype=torch.float16).as_strided((3, 8), (step, 1))
    wide.copy_(sample(3, 8))
    for backend in ("torch", "triton"):
        found = sigreg(wide, directions=4, backend=backend)
        assert torch.equal(found, sigreg(wide.contiguous(), directions=4, backend=backend))
