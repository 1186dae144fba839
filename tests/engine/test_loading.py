"""What it takes to load and plan with a large file: memory and time, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from pyjepa import agent_file  # noqa: E402
from pyjepa.agent import Model  # noqa: E402
from pyjepa.bench.lewm import lewm  # noqa: E402
from pyjepa.blocks import Network  # noqa: E402
from pyjepa.spec import Layer, Mlp, Module, Observation, Vit  # noqa: E402

CHILD = """
import json, sys, time
import numpy as np
from pyjepa.agent import Agent, Model

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

before = memory("VmRSS")
model = Model.load(sys.argv[1], precision=sys.argv[2])
kept = memory("VmRSS")
agent = Agent(model)
agent.configure(goal=np.zeros((3, 224, 224), np.uint8), iterations=1)
agent.plan(np.full((3, 224, 224), 99, np.uint8))
peak = memory("VmHWM")
times = []
for _ in range(5):
    start = time.thread_time()
    Model.load(sys.argv[1], precision=sys.argv[2])
    times.append(time.thread_time() - start)
print(json.dumps({"before": before, "peak": peak, "kept": kept, "seconds": min(times)}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """LeWM whole: the dynamics of W3, and a ViT-Ti/14 and a projector that see 224 x 224 pixels."""
    workload = lewm("W3")
    vit = Vit(patch=14, width=192, depth=12, heads=3, hidden=768, norm_eps=1e-12)
    projector = Mlp(layers=(Layer(out=2048, activation="gelu"), Layer(out=192)))
    encoder = Module(inputs=("observation",), blocks=(vit, projector))
    torch.manual_seed(0)
    network = Network(encoder, {"observation": (3, 224, 224)})
    tensors = {f"encoder.{name}": value.detach().numpy() for name, value in network.named_parameters()}
    spec = dataclasses.replace(
        workload.spec,
        observation=Observation(shape=(3, 224, 224), dtype="uint8", scale=1 / 255),
        modules={**workload.spec.modules, "encoder": encoder},
        levels=(dataclasses.replace(workload.spec.levels[0], encoder="encoder"),),
    )
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    agent_file.save(path, spec, workload.tensors | tensors)
    assert 70e6 < path.stat().st_size < 75e6
    return path, 4 * sum(tensor.size for tensor in tensors.values())


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for the process's memory")
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1.5), ("bf16", 1.2), ("int8", 1.05)])
def test_the_file_is_never_held_twice(large, precision, most):
    """At the peak: the packed weights, the largest tensor and what planning works in; not the whole file with them."""
    path, encoder = large
    if Model.load(path, precision=precision).precision != precision:
        pytest.skip(f"this machine has no {precision} instructions")
    child = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, str(path), precision], capture_output=True, text=True, check=True
    )
    figures = json.loads(child.stdout)
    size = path.stat().st_size
    assert figures["peak"] < 2 * size, "of the whole process, with the interpreter and NumPy"
    assert figures["peak"] - figures["before"] < most * size
    packed = encoder + (size - encoder) * {"fp32": 1.0, "bf16": 0.5, "int8": 0.25}[precision]  # the encoder: fp32
    assert figures["kept"] - figures["before"] < packed + 8e6, "no other copy of the weights stays"
    assert figures["seconds"] < 0.1, "CPU time"
