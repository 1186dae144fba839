"""W processes with their own rows give the loss and parameter gradients of one process with all rows."""

import json
import os
import subprocess
import sys

import pytest
import torch
from pyjepa.kernels import sigreg, sigreg_directions, vicreg

# Starting a process costs seconds, a case milliseconds: each set of processes runs all of its cases.
WORKER = """
import json, sys, torch
from datetime import timedelta
from torch import distributed as dist
from pyjepa.kernels import sigreg, vicreg
torch.set_num_threads(1)
rank, world, data, cases = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
dist.init_process_group(
    "gloo", init_method=f"file://{data}.store", rank=rank, world_size=world, timeout=timedelta(seconds=120)
)
group = dist.group.WORLD
results = []
for case, (inputs, weights) in zip(cases, torch.load(data), strict=True):
    counts, d = case["counts"], case["shape"][-1]
    start = sum(counts[:rank])
    mine = [part[..., start : start + counts[rank], :] for part in inputs]
    layer = torch.nn.Linear(d, d)
    layer.load_state_dict(weights)
    model = torch.nn.parallel.DistributedDataParallel(layer)
    x, y = model(torch.cat(mine, dim=-2)).split(counts[rank], dim=-2)
    if "convention" in case:
        losses = list(vicreg(x, y, group=group, convention=case["convention"]))
    else:
        losses = [sigreg(x, directions=16, seed=3, variant=case["variant"], group=group)]
    losses[0].backward()
    results.append([[part.item() for part in losses], torch.cat([p.grad.flatten() for p in layer.parameters()])])
try:
    vicreg(torch.randn(4, 6 + rank), torch.randn(4, 6 + rank), group=group)
except ValueError as error:
    assert "ranks disagree" in str(error), error
else:
    raise SystemExit("ranks with different D: no error")
torch.save(results, f"{data}.{rank}")
dist.destroy_process_group()
"""
CASES = {
    2: [
        {"counts": [8, 8], "shape": [64], "convention": "vicreg"},  # Gram
        {"counts": [20, 20], "shape": [12], "convention": "vicreg"},  # primal
        {"counts": [6, 3], "shape": [3, 24], "convention": "vicregl"},  # per time step, uneven
        {"counts": [8, 8], "shape": [10], "variant": "bcs"},
    ],
    3: [
        {"counts": [7, 1, 5], "shape": [40], "convention": "solo"},  # Gram, one row on a rank
        {"counts": [9, 20, 4], "shape": [6], "convention": "eb"},  # primal, uneven
        {"counts": [9, 6, 9], "shape": [10], "variant": "lejepa"},
    ],
}


def alone(case, inputs, layer):
    """The same loss and gradient in one process, in float64."""
    layer = layer.double()
    x, y = (layer(part.double()) for part in inputs)
    if "convention" in case:
        losses = list(vicreg(x, y, convention=case["convention"]))
    else:
        directions = sigreg_directions(case["shape"][-1], 16, seed=3).double()
        losses = [sigreg(x, directions=directions, variant=case["variant"])]
    losses[0].backward()
    return [part.item() for part in losses], torch.cat([p.grad.flatten() for p in layer.parameters()])


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_many_processes_are_one(world, tmp_path):
    data, expected, stored = tmp_path / "data", [], []
    for case in CASES[world]:
        *steps, d = case["shape"]
        generator = torch.Generator().manual_seed(sum(case["counts"]))
        inputs = [torch.randn(*steps, sum(case["counts"]), d, generator=generator) for _ in range(2)]
        layer = torch.nn.Linear(d, d)
        stored.append((inputs, {name: value.clone() for name, value in layer.state_dict().items()}))
        expected.append(alone(case, inputs, layer))
    torch.save(stored, data)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(world), str(data), json.dumps(CASES[world])],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]  # fmt: skip
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * world, errors
    for rank in range(world):
        for (losses, gradient), (exact, exact_gradient) in zip(torch.load(f"{data}.{rank}"), expected, strict=True):
            assert losses == pytest.approx(exact, rel=1e-6)
            assert (gradient - exact_gradient).norm() <= 1e-6 * exact_gradient.norm()
