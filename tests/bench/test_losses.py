"""The losses that `pyjepa bench vicreg` and `sigreg` compare are one loss, and its figures are measurements."""

import json

import pytest
import torch
from click.testing import CliRunner
from pyjepa.kernels import sigreg_reference, vicreg_reference

from pyjepa.bench import losses as bench
from pyjepa.bench.losses import SIGREG, VICREG
from pyjepa.cli import bench_losses as commands


@pytest.mark.parametrize("name", VICREG.providers())
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (3, 12, 7)])
def test_every_provider_is_the_same_vicreg(name, shape):
    x, y = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = x.requires_grad_(), (y * 0.5).requires_grad_()
    exact = vicreg_reference(x, y).loss
    found = VICREG.providers()[name](x, y)
    torch.testing.assert_close(found, exact)
    for a, b in zip(torch.autograd.grad(found, (x, y)), torch.autograd.grad(exact, (x, y)), strict=True):
        torch.testing.assert_close(a, b)


def test_both_providers_are_the_same_sigreg():
    z, directions = SIGREG.inputs((20, 6, 9), "cpu")
    exact = sigreg_reference(z, directions)
    for loss in SIGREG.providers().values():
        torch.testing.assert_close(loss(z, directions), exact)


def test_peak_memory_sees_the_matrix_that_official_code_allocates():
    # D x D in fp32 is 16 MiB at D = 2048, and official code holds several.
    assert bench.peak_memory(VICREG, "official", (16, 2048)) > 32 << 20
    assert bench.peak_memory(VICREG, "pyjepa", (16, 2048)) < 16 << 20


def test_peak_memory_sees_the_array_of_every_projection_and_knot():
    array = 17 * (1024 * 1024 * 4)
    assert bench.peak_memory(SIGREG, "plain torch", (1024, 64, 1024)) > array
    assert bench.peak_memory(SIGREG, "pyjepa", (1024, 64, 1024)) < array / 4


def test_the_command_measures_and_writes_what_it_prints(tmp_path):
    path = tmp_path / "results.json"
    arguments = ["--shape", "16x8", "--seconds", "0", "--no-memory", "--provider", "pyjepa", "--provider", "official"]
    run = CliRunner().invoke(commands.vicreg, [*arguments, "--json", str(path)])
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


def test_a_sigreg_row_names_its_shape(tmp_path):
    path = tmp_path / "results.json"
    run = CliRunner().invoke(
        commands.sigreg, ["--shape", "16x8x4", "--seconds", "0", "--no-memory", "--json", str(path)]
    )
    assert run.exit_code == 0, run.output
    assert {(r["n"], r["d"], r["k"]) for r in json.loads(path.read_text())["results"]} == {(16, 8, 4)}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [(["--shape", "16"], "is not NxD or TxNxD"), (["--provider", "theirs"], "no such loss: theirs")],
)
def test_bad_arguments_are_errors(arguments, match):
    run = CliRunner().invoke(commands.vicreg, arguments)
    assert run.exit_code == 2
    assert match in run.output
