"""W processes with their own rows give the loss and parameter gradients of one process with all rows."""

import json
import os
import subprocess
import sys

import pytest
import torch

from pyjepa.kernels import sigreg, vicreg

WORKER = """
import json, os, sys, torch
from datetime import timedelta
from torch import distributed as dist
torch.set_num_threads(1)
rank, world, store, counts, d, case = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], *map(json.loads, sys.argv[4:7])
dist.init_process_group(
    "gloo", init_method="file://" + store, rank=rank, world_size=world, timeout=timedelta(seconds=120)
)
from pyjepa.kernels import sigreg, vicreg
everything = torch.load(case["data"])
start = sum(counts[:rank])
mine = [part[..., start : start + counts[rank], :] for part in everything["inputs"]]
layer = torch.nn.Linear(d, d)
layer.load_state_dict(everything["layer"])
model = torch.nn.parallel.DistributedDataParallel(layer)
x, y = model(torch.cat(mine, dim=-2)).split(counts[rank], dim=-2)
group = dist.group.WORLD
if case["loss"] == "vicreg":
    losses = list(vicreg(x, y, group=group, convention=case["convention"]))
else:
    losses = [sigreg(x, directions=16, seed=3, variant=case["variant"], group=group)]
losses[0].backward()
torch.save([[part.item() for part in losses], [p.grad for p in layer.parameters()]], case["data"] + f".{rank}")
dist.destroy_process_group()
"""


def launch(tmp_path, counts, d, case, worker=WORKER):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", worker, str(rank), str(len(counts)), str(tmp_path / "store"),
             json.dumps(counts), json.dumps(d), json.dumps(case)],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(len(counts))
    ]  # fmt: skip
    errors = [run.communicate()[1] for run in runs]
    return [run.returncode for run in runs], errors


@pytest.mark.parametrize(
    ("counts", "shape", "case"),
    [
        ([8, 8], (64,), {"loss": "vicreg", "convention": "vicreg"}),  # Gram
        ([20, 20], (12,), {"loss": "vicreg", "convention": "vicreg"}),  # primal
        ([7, 1, 5], (40,), {"loss": "vicreg", "convention": "solo"}),  # Gram, uneven, one row on a rank
        ([9, 20, 4], (6,), {"loss": "vicreg", "convention": "eb"}),  # primal, uneven
        ([6, 3], (3, 24), {"loss": "vicreg", "convention": "vicregl"}),  # per time step
        ([9, 6, 9], (10,), {"loss": "sigreg", "variant": "lejepa"}),
        ([8, 8], (10,), {"loss": "sigreg", "variant": "bcs"}),
    ],
)
def test_many_processes_are_one(counts, shape, case, tmp_path):
    *steps, d = shape
    generator = torch.Generator().manual_seed(sum(counts))
    inputs = [torch.randn(*steps, sum(counts), d, generator=generator) for _ in range(2)]
    torch.manual_seed(0)
    layer = torch.nn.Linear(d, d)
    data = tmp_path / "data"
    torch.save({"inputs": inputs, "layer": layer.state_dict()}, data)
    codes, errors = launch(tmp_path, counts, d, {**case, "data": str(data)})
    assert codes == [0] * len(counts), errors

    layer = layer.double()
    x, y = (layer(part.double()) for part in inputs)
    if case["loss"] == "vicreg":
        expected = list(vicreg(x, y, convention=case["convention"]))
    else:
        from pyjepa.kernels import sigreg_directions

        a = sigreg_directions(d, 16, seed=3).double()
        expected = [sigreg(x, directions=a, variant=case["variant"])]
    expected[0].backward()
    for rank in range(len(counts)):
        losses, grads = torch.load(f"{data}.{rank}")
        assert losses == pytest.approx([part.item() for part in expected], rel=1e-6)
        for found, parameter in zip(grads, layer.parameters(), strict=True):
            assert (found - parameter.grad).norm() <= 1e-6 * parameter.grad.norm() + 1e-9


DISAGREE = WORKER.split("everything =")[0] + """
try:
    vicreg(torch.randn(4, 6 + rank), torch.randn(4, 6 + rank), group=dist.group.WORLD)
except ValueError as error:
    assert "ranks disagree" in str(error), error
else:
    raise SystemExit("no error")
dist.destroy_process_group()
"""


def test_ranks_that_disagree_are_a_clear_error(tmp_path):
    codes, errors = launch(tmp_path, [4, 4], 6, {}, DISAGREE)
    assert codes == [0, 0], errors
