"""The losses that `pyjepa bench vicreg` compares are one loss, and its figures are measurements."""

import json

import pytest
import torch
from click.testing import CliRunner
from pyjepa.kernels import vicreg_reference

from pyjepa.bench import vicreg as bench
from pyjepa.cli.bench_vicreg import command


@pytest.mark.parametrize("name", bench.providers())
@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_every_provider_is_the_same_loss(name, shape):
    x, y = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = x.requires_grad_(), (y * 0.5).requires_grad_()
    exact = vicreg_reference(x, y).loss
    found = bench.providers()[name](x, y)
    torch.testing.assert_close(found, exact)
    for a, b in zip(torch.autograd.grad(found, (x, y)), torch.autograd.grad(exact, (x, y)), strict=True):
        torch.testing.assert_close(a, b)


def test_peak_memory_sees_the_matrix_that_official_code_allocates():
    # D x D in fp32 is 16 MiB at D = 2048, and official code holds several.
    assert bench.peak_memory("official", 16, 2048) > 32 << 20
    assert bench.peak_memory("pyjepa", 16, 2048) < 16 << 20


def test_the_command_measures_and_writes_what_it_prints(tmp_path):
    path = tmp_path / "results.json"
    arguments = ["--shape", "16x8", "--seconds", "0", "--no-memory", "--provider", "pyjepa", "--provider", "official"]
    run = CliRunner().invoke(command, [*arguments, "--json", str(path)])
    assert run.exit_code == 0, run.output
    document = json.loads(path.read_text())
    assert document["machine"]["threads"] == 1
    assert document["machine"]["torch"] == torch.__version__
    rows = document["results"]
    assert [(r["provider"], r["mode"]) for r in rows] == [
        (name, mode) for mode in bench.MODES for name in ("pyjepa", "official")
    ]
    assert all(r["repeats"] >= 3 and 0 < r["median_s"] <= r["p99_s"] and r["memory_bytes"] is None for r in rows)
    assert len(run.stdout.splitlines()) == 1 + len(rows)


@pytest.mark.parametrize(
    ("arguments", "match"), [(["--shape", "16"], "not NxD"), (["--provider", "theirs"], "no such loss: theirs")]
)
def test_bad_arguments_are_errors(arguments, match):
    run = CliRunner().invoke(command, arguments)
    assert run.exit_code == 2
    assert match in run.output
