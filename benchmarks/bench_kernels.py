"""pytest-benchmark suite of the losses, on one thread, on a GPU if there is one.

Run: python -m pytest benchmarks/bench_kernels.py
"""

import pytest
import torch
from pyjepa.kernels import sigreg, sigreg_reference

from pyjepa.bench import vicreg as bench

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measure(benchmark, run):
    def synchronised():
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(synchronised, rounds=10, warmup_rounds=2)


@pytest.mark.parametrize("mode", bench.MODES)
@pytest.mark.parametrize("shape", [(64, 128), (256, 512), (256, 2048), (2048, 128)], ids=str)
@pytest.mark.parametrize("name", bench.providers())
def test_vicreg(benchmark, name, shape, mode):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=generator).to(DEVICE).requires_grad_() for _ in range(2))
    loss = bench.providers()[name]
    benchmark.group = f"vicreg {shape[0]}x{shape[1]} {mode}"
    measure(benchmark, lambda: bench.step(loss, x, y, mode))


@pytest.mark.parametrize("shape", [(256, 128, 256), (1024, 256, 1024)], ids=str)
@pytest.mark.parametrize("name", ["pyjepa", "plain torch"])
def test_sigreg(benchmark, name, shape):
    n, d, k = shape
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    a = torch.nn.functional.normalize(torch.randn(d, k, device=DEVICE), dim=0)
    loss = (lambda: sigreg(z, directions=a)) if name == "pyjepa" else (lambda: sigreg_reference(z, a))
    benchmark.group = f"sigreg {n}x{d}, {k} directions"
    measure(benchmark, lambda: torch.autograd.grad(loss(), z))
