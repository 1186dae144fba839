"""The VICReg kernels against float64: under Triton's interpreter, or on the GPU where there is one."""

import math

import pytest
import torch
from pyjepa.kernels import CONVENTIONS, vicreg, vicreg_reference

pytest.importorskip("triton")

ODD = [(2, 1), (3, 7), (7, 3), (63, 127), (127, 63), (65, 64), (17, 1271)]


def pair(*shape, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator) * scale + 0.3
    return x.to(dtype), (0.5 * x + torch.randn(shape, generator=generator) * scale).to(dtype)


def gradients(function, x, y, **options):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    result = function(x, y, **options)
    return [*(part.detach() for part in result), *torch.autograd.grad(result.loss, (x, y))]


def error(found, exact):
    return float((found.double().cpu() - exact.double()).norm())


def assert_within_rule(found, plain, exact, atol=1e-6):
    """Each error at most twice that of plain torch in the same dtype, plus atol times the exact norm (or 1e-3)."""
    for a, b, c in zip(found, plain, exact, strict=True):
        assert error(a, c) <= 2 * error(b, c) + atol * max(float(c.double().norm()), 1e-3)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("shape", [(7, 3), (3, 7)])
def test_conventions(shape, convention, device, poisoned):
    x, y = pair(*shape)
    found = gradients(vicreg, x.to(device), y.to(device), convention=convention, backend="triton")
    plain = gradients(vicreg_reference, x, y, convention=convention)
    assert_within_rule(found, plain, gradients(vicreg_reference, x.double(), y.double(), convention=convention))


@pytest.mark.parametrize("shape", [*ODD, (2, 33, 70), (3, 70, 33)])
def test_odd_shapes_with_poisoned_buffers(shape, device, poisoned):
    x, y = pair(*shape)
    found = gradients(vicreg, x.to(device), y.to(device), backend="triton")
    assert all(torch.isfinite(part).all() for part in found)
    plain = gradients(vicreg_reference, x, y)
    assert_within_rule(found, plain, gradients(vicreg_reference, x.double(), y.double()))


@pytest.mark.parametrize("kind", ["transposed", "every other", "expanded", "different"])
@pytest.mark.parametrize("shape", [(10, 35), (35, 10)])
def test_strides(shape, kind, device):
    x, y = (z.to(device) for z in pair(*shape))
    change = {
        "transposed": lambda z: z.t().contiguous().t(),
        "every other": lambda z: torch.stack((z, z), dim=2).flatten(1)[:, ::2],
        "expanded": lambda z: z[:1].expand_as(z),
        "different": lambda z: z if z is x else z.t().contiguous().t(),
    }[kind]
    found = gradients(vicreg, change(x), change(y), backend="triton")
    plain = gradients(vicreg_reference, change(x).cpu(), change(y).cpu())
    exact = gradients(vicreg_reference, change(x).double().cpu(), change(y).double().cpu())
    # Equal rows have no variance, where the hinge's slope of 1 / sqrt(eps) = 100 multiplies the rounding of the mean.
    assert_within_rule(found, plain, exact, atol=2e-5 if kind == "expanded" else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(33, 70), (70, 33)])
def test_sixteen_bit_inputs(shape, dtype, device, poisoned):
    x, y = pair(*shape, dtype=dtype)
    found = gradients(vicreg, x.to(device), y.to(device), backend="triton")
    exact = gradients(vicreg_reference, x.double(), y.double())
    plain = gradients(lambda a, b: vicreg_reference(a, b, upcast=False), x, y)
    assert all(part.dtype == torch.float32 for part in found[:4])
    assert_within_rule(found[:4], exact[:4], exact[:4], atol=2e-6)
    # The interpreter truncates when it stores bf16 where a GPU rounds: up to one unit in the last place, 2^-7.
    assert_within_rule(found[4:], plain[4:], exact[4:], atol=2**-7 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, when the interpreter takes inf - inf
@pytest.mark.parametrize("shape", [(9, 20), (20, 9)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_inputs_are_not_hidden(shape, value, device):
    x, y = pair(*shape)
    x[1, 2] = value
    found = gradients(vicreg, x.to(device), y.to(device), backend="triton")
    exact = gradients(vicreg_reference, x, y)
    for a, b in zip(found[:4], exact[:4], strict=True):
        assert math.isfinite(a.item()) == math.isfinite(b.item())
    assert not torch.isfinite(found[4]).all()


def test_denormal_inputs(device):
    for scale in (1e-40, 1e-20):
        x, y = ((z - 0.3) * scale for z in pair(20, 40))
        found = gradients(vicreg, x.to(device), y.to(device), backend="triton")
        exact = gradients(vicreg_reference, x.double(), y.double())
        assert math.isclose(found[0].item(), exact[0].item(), rel_tol=1e-6)


@pytest.mark.parametrize("shape", [(8, 4), (4, 8)])
@pytest.mark.parametrize("eps", [1e-4, 0.0])
def test_a_collapsed_batch_has_a_finite_loss_and_no_gradient(shape, eps, device):
    x = torch.full(shape, 2.0, device=device)
    found = gradients(vicreg, x, x.clone(), eps=eps, backend="triton")
    assert math.isclose(found[0].item(), 25 * (1 - math.sqrt(eps)), rel_tol=1e-5)
    assert not any(gradient.any() for gradient in found[4:])


@pytest.mark.parametrize("shape", [(20, 60), (2, 33, 140)])
def test_one_dominant_feature_does_not_cancel(shape, device, poisoned):
    x, y = pair(*shape)
    x[..., 3] *= 1e4
    found = gradients(vicreg, x.to(device), y.to(device), backend="triton")
    exact = gradients(vicreg_reference, x.double(), y.double())
    plain = gradients(vicreg_reference, x, y)
    assert_within_rule(found, plain, exact, atol=2e-6)
    state = torch.ops.pyjepa.vicreg(
        x.to(device).reshape(-1, *shape[-2:]), y.to(device).reshape(-1, *shape[-2:]),
        [1.0] * 3, [1.0] * 2, 1.0, 1e-4, True,
    )  # fmt: skip
    assert state[-1][0].all()
    assert not state[-1][1].any()


@pytest.mark.parametrize("shape", [(5, 4), (3, 6), (2, 3, 5)])
def test_gradcheck_in_float64(shape):
    x, y = (z.requires_grad_() for z in pair(*shape, dtype=torch.float64, scale=0.5))
    if torch.cuda.is_available():
        pytest.skip("the fp64 arithmetic of the kernels runs under the interpreter")
    assert torch.autograd.gradcheck(lambda a, b: vicreg(a, b, backend="triton").loss, (x, y))


@pytest.mark.parametrize("shape", [(1, 6, 9), (2, 9, 6)])
def test_opcheck(shape, device):
    x, y = (z.to(device).requires_grad_() for z in pair(*shape))
    options = ([25.0, 25.0, 1.0], [0.5, 1.0], 1.0, 1e-4, True)
    torch.library.opcheck(torch.ops.pyjepa.vicreg.default, (x, y, *options))


def test_compiles_into_one_graph(device):
    compiled = torch.compile(
        lambda a, b: vicreg(a * 2.0, b, backend="triton").loss, fullgraph=True, backend="aot_eager"
    )
    x, y = (z.to(device).requires_grad_() for z in pair(12, 20))
    expected = torch.autograd.grad(vicreg(x * 2.0, y, backend="triton").loss, (x, y))
    for a, b in zip(torch.autograd.grad(compiled(x, y), (x, y)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_same_bits_every_run(device):
    x, y = (z.to(device) for z in pair(33, 70))
    first, second = (gradients(vicreg, x, y, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_the_gradients_asked_for_are_computed(device):
    for shape in [(12, 20), (20, 12)]:
        x, y = (z.to(device) for z in pair(*shape))
        both = gradients(vicreg, x, y, backend="triton")[4:]
        for index in range(2):
            inputs = [x.clone(), y.clone()]
            inputs[index].requires_grad_()
            vicreg(*inputs, backend="triton").loss.backward()
            assert torch.equal(inputs[index].grad, both[index])
            assert inputs[1 - index].grad is None


def test_strides_beyond_two_to_the_31_elements(device):
    if device == "cuda":
        pytest.skip("would take 4 GiB of device memory, where the CPU touches a few pages")
    step = (1 << 31) // 2 + 11
    wide = torch.empty(2 * step + 40, dtype=torch.float16).as_strided((3, 40), (step, 1))
    x, y = pair(3, 40, dtype=torch.float16)
    wide.copy_(x)
    found = gradients(vicreg, wide, y, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(vicreg, x, y, backend="triton"), strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU and without the interpreter")
def test_triton_without_a_gpu_is_a_clear_error(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(RuntimeError, match="needs a GPU, or TRITON_INTERPRET=1"):
        vicreg(torch.zeros(3, 2), torch.zeros(3, 2), backend="triton")


@pytest.mark.parametrize("shape", [(33, 70), (70, 33), (2, 5, 66)])
def test_nothing_is_read_beyond_the_inputs(shape, device):
    # NaN on every side in memory: a masked-out element that was used would make everything NaN.
    x, y = pair(*shape)

    def fenced(z):
        room = torch.full([size + 2 * 35 for size in shape], float("nan"), device=device)
        inner = room[tuple(slice(35, 35 + size) for size in shape)]
        inner.copy_(z)
        return inner

    found = gradients(vicreg, fenced(x), fenced(y), backend="triton")
    expected = gradients(vicreg, x.to(device), y.to(device), backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
