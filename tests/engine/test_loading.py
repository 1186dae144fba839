"""What it takes to load and plan with a large file: memory and time, in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pyjepa import agent_file
from pyjepa.agent import Model
from pyjepa.spec import Actions, Layer, Level, Mlp, Module, Observation, Planner, Spec

CHILD = """
import json, sys, time
import numpy as np
from pyjepa.agent import Agent, Model

def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))

before = memory("VmRSS")
model = Model.load(sys.argv[1], precision=sys.argv[2])
agent = Agent(model)
agent.configure(goal=np.ones(192, np.float32))
agent.plan(np.zeros(192, np.float32))
peak, kept = memory("VmHWM"), memory("VmRSS")
times = []
for _ in range(5):
    start = time.thread_time()
    Model.load(sys.argv[1], precision=sys.argv[2])
    times.append(time.thread_time() - start)
print(json.dumps({"before": before, "peak": peak, "kept": kept, "seconds": min(times)}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An agent as large as LeWM with its encoder: 60 MB of weights, between latents of 192 numbers."""
    rng = np.random.default_rng(0)
    sizes = {"encoder": [192, 1024, 2048, 192], "predictor": [202, 2048, 2048, 2048, 1024, 192]}
    tensors, modules = {}, {}
    for name, widths in sizes.items():
        for j, (size, out) in enumerate(itertools.pairwise(widths)):
            drawn = rng.standard_normal((out, size), dtype=np.float32) * np.float32(size**-0.5)
            tensors[f"{name}.0.linear{j}.weight"] = drawn
            tensors[f"{name}.0.linear{j}.bias"] = np.zeros(out, np.float32)
        layers = tuple(Layer(out=out, activation="gelu" if out != 192 else "none") for out in widths[1:])
        inputs = ("observation",) if name == "encoder" else ("state", "action")
        modules[name] = Module(inputs=inputs, blocks=(Mlp(layers=layers),), residual=name == "predictor")
    spec = Spec(
        observation=Observation(shape=(192,)),
        actions=Actions(low=(-1.0,) * 10, high=(1.0,) * 10),
        modules=modules,
        levels=(Level(encoder="encoder", predictor="predictor"),),
        planner=Planner(candidates=300, horizon=5, iterations=2, elites=30),
    )
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    agent_file.save(path, spec, tensors)
    assert 55e6 < path.stat().st_size < 65e6
    return path


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for the process's memory")
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1.5), ("bf16", 1.2), ("int8", 1.05)])
def test_the_file_is_never_held_twice(large, precision, most):
    """At the peak: the packed weights, the largest tensor and a copy of it; not the whole file beside them."""
    if Model.load(large, precision=precision).precision != precision:
        pytest.skip(f"this machine has no {precision} instructions")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(large), precision], capture_output=True, text=True, check=True
    )
    figures = json.loads(child.stdout)
    size = large.stat().st_size
    assert figures["peak"] < 2 * size, "of the whole process, with the interpreter and NumPy"
    assert figures["peak"] - figures["before"] < most * size
    encoder = 4 * (192 * 1024 + 1024 * 2048 + 2048 * 192)  # in fp32 always
    bits = {"fp32": 4, "bf16": 2, "int8": 1}[precision]
    packed = encoder + (size - encoder) * bits / 4
    assert figures["kept"] - figures["before"] < packed + 10e6, "no other copy of the weights stays"
    assert figures["seconds"] < 0.1, "CPU time"
