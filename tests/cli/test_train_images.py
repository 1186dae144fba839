"""``pyjepa train images``: from images to an agent file that the engine reads, and what is said on the way."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import pyjepa
from pyjepa.cli import main

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("tensorboard")
Image = pytest.importorskip("PIL.Image")

TINY = """
[data]
size = 8
channels = 3
[architecture]
channels = [4, 8]
kernels = [3, 3]
strides = [2, 2]
paddings = [1, 1]
encoder_hidden = 16
latent = 8
predictor_hidden = [16]
expander = [16]
[optimiser]
steps = 6
batch = 16
warmup = 1
[objective]
directions = 16
[alarms]
effective_rank = {rank}
grace = 0
std = 0.0
auroc = 0.0
[log]
every = 2
evaluate_every = 3
checkpoint_every = 2
"""


def run(*arguments):
    return CliRunner().invoke(main, ["train", "images", *map(str, arguments)])


def config(folder, rank="0.0"):
    path = folder / "tiny.toml"
    path.write_text(TINY.format(rank=rank))
    return path


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(np.array(colour) + rng.integers(-60, 60, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def test_a_folder_becomes_an_agent_file(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr("pyjepa.training.evaluation.REPEATS", 1)  # five draws of ten labels take their time
    out = tmp_path / "images.safetensors"
    arguments = ["--data", pictures, "--out", out, "--config", config(tmp_path), "--run", tmp_path / "run"]
    result = run(*arguments, "--objective", "sigreg", "--seed", 3)
    assert result.exit_code == 0, result.output
    for said in ("6 steps in", "on 19 images", "accuracy on 5 held-out images", "raw pixels", "PCA", "random weights"):
        assert said in result.output
    files = ["checkpoint.pt", "evaluation.json", "metrics.json", "tensorboard"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == files
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(found["probes"]) == {"jepa", "pixels", "pca", "random weights"}
    assert set(found["heads"]) == {"encoded", "predicted"}
    agent = pyjepa.load(out)
    provenance = dict(agent.spec.provenance)
    assert provenance["command"] == "pyjepa train images --data pictures --objective sigreg"
    assert (provenance["seed"], provenance["steps"], provenance["alarms"]) == ("3", "6", "none")
    assert str(tmp_path) not in json.dumps(provenance)
    state = agent.model.encode(np.zeros((1, 3, 8, 8), np.uint8))
    assert state.shape == (1, 8)
    again = run(*arguments)
    assert again.exit_code == 2
    assert "resume that run" in again.output
    resumed = run(*arguments, "--objective", "sigreg", "--seed", 3, "--resume")
    assert resumed.exit_code == 0, resumed.output


def test_images_without_classes_are_trained_on_and_not_judged(tmp_path, pictures):
    arguments = ["--data", pictures / "red", "--out", tmp_path / "a.safetensors", "--run", tmp_path / "run"]
    result = run(*arguments, "--config", config(tmp_path, rank="1000.0"), "--batch", 8)
    assert result.exit_code == 0, result.output
    assert "accuracy" not in result.output
    assert "collapse alarm" in result.output
    assert "2 alarms" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "no folder at nowhere"),
        (["--data", "digits", "--size", 16], "the digits have 8 pixels"),
        (["--data", "digits", "--device", "cuda"], "torch finds no GPU"),
        (["--data", "digits", "--batch", 5000], "1437 images to train on do not fill optimiser.batch 5000"),
        (["--data", "broken"], "one.png: not an image"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path, monkeypatch, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "one.png").write_text("none")
    result = run(*arguments, "--out", "a.safetensors")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow  # the short version: two processes in tests/training/test_joint_embedding.py
def test_torchrun_shares_the_batches(tmp_path, pictures):
    arguments = ["train", "images", "--data", str(pictures / "red"), "--batch", "8", "--config", str(config(tmp_path))]
    alone = run(*arguments[2:], "--out", tmp_path / "alone.safetensors", "--run", tmp_path / "alone")
    assert alone.exit_code == 0, alone.output
    shared = [*arguments, "--out", str(tmp_path / "shared.safetensors"), "--run-directory", str(tmp_path / "shared")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pyjepa"]
    done = subprocess.run(
        [*launcher, *shared],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps in") == 1
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text())["history"] for name in ("alone", "shared"))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for mine, theirs in zip(one, two, strict=True):
        if "loss/total" in mine:
            assert theirs["loss/total"] == pytest.approx(mine["loss/total"], rel=1e-3)
