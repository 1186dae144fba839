"""pytest-benchmark suite of the losses, on one thread, on a GPU if there is one.

Run: python -m pytest benchmarks/bench_kernels.py
"""

import pytest
import torch

from pyjepa.bench import losses as bench

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
@pytest.mark.parametrize("shape", [(64, 128), (256, 512), (256, 2048), (2048, 128), (3, 128, 48)], ids=str)
@pytest.mark.parametrize("name", bench.VICREG.providers())
def test_vicreg(benchmark, name, shape, mode):
    inputs, loss = bench.VICREG.inputs(shape, DEVICE), bench.VICREG.providers()[name]
    benchmark.group = f"vicreg {'x'.join(map(str, shape))} {mode}"
    measure(benchmark, lambda: bench.step(loss, inputs, mode))


@pytest.mark.parametrize("shape", [(256, 128, 256), (1024, 256, 1024)], ids=str)
@pytest.mark.parametrize("name", bench.SIGREG.providers())
def test_sigreg(benchmark, name, shape):
    inputs, loss = bench.SIGREG.inputs(shape, DEVICE), bench.SIGREG.providers()[name]
    benchmark.group = f"sigreg {'x'.join(map(str, shape))}"
    measure(benchmark, lambda: bench.step(loss, inputs, "forward+backward"))
