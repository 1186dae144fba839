"""What it takes to load and plan with a large file: memory and time, in a process of its own."""

from __future__ import annotations

import os

import pytest

from pyjepa import agent_file
from pyjepa.bench.memory import measure
from pyjepa.bench.workloads import WORKLOADS
from pyjepa.errors import PyjepaError, UnsupportedError


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """LeWM whole: the dynamics of W3, and a ViT-Ti/14 and a projector that see 224 x 224 pixels."""
    workload = WORKLOADS["W3"]()
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    agent_file.save(path, workload.spec, workload.tensors)
    assert 70e6 < path.stat().st_size < 75e6
    return path, sum(tensor.nbytes for name, tensor in workload.tensors.items() if name.startswith("encoder."))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for the process's memory")
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1.5), ("bf16", 1.2), ("int8", 1.05)])
def test_the_file_is_never_held_twice(large, precision, most):
    """At the peak: the packed weights, the largest tensor and what planning works in; not the whole file with them."""
    path, encoder = large
    try:
        found = measure(path, precision, iterations=1)
    except UnsupportedError as error:
        pytest.skip(str(error))
    size = path.stat().st_size
    assert found.peak < 2 * size, "of the whole process, with the interpreter and NumPy"
    assert found.peak - found.before < most * size
    packed = encoder + (size - encoder) * {"fp32": 1.0, "bf16": 0.5, "int8": 0.25}[precision]  # the encoder: fp32
    assert found.loaded - found.before < packed + 8e6, "no other copy of the weights stays"
    assert found.load_cpu_ms < 100


def test_a_file_that_cannot_be_planned_with_is_named(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no agent")
    with pytest.raises(PyjepaError, match=r"broken.safetensors.*header"):
        measure(broken, "fp32")
