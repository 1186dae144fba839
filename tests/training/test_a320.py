"""The A320's model on a made-up flight of the same shape: split, baselines, what is exported, surprise."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

import pyjepa
from pyjepa.adapters.recordings import CONTROLS, OBSERVED, Flight

torch = pytest.importorskip("torch")

from pyjepa import agent_file, surprise  # noqa: E402
from pyjepa.agent import Model  # noqa: E402
from pyjepa.bench import a320 as bench  # noqa: E402
from pyjepa.errors import InvalidArgumentError, UnsupportedError  # noqa: E402
from pyjepa.training import a320  # noqa: E402

SMALL = a320.Settings(latent=12, hidden=12, steps=300, batch=64, learning_rate=1e-2, weight_decay=0.1)


@pytest.fixture(scope="module")
def flight():
    """A craft whose climb, acceleration and turn are linear in its controls, plus a little noise."""
    rng = np.random.default_rng(0)
    count = 2400
    t = np.arange(count)
    controls = np.stack(
        [4 * np.sin(t / 37) + 2, 10 * np.sin(t / 53), 2000 + 1000 * np.sin(t / 71)], axis=1
    ) + rng.normal(0, 0.05, (count, 3))
    observed = np.zeros((count, 6))
    altitude, speed, track = 20_000.0, 250.0, 0.0
    for i in range(count):
        pitch, roll, flow = controls[i]
        altitude, speed, track = (
            altitude + 8 * (pitch - 2),
            speed + 0.0006 * (flow - 2000) - 0.05 * (pitch - 2),
            track + 0.05 * roll,
        )
        observed[i] = altitude, speed, 1.5 * speed, track, 3 + 0.1 * roll, 1 + 0.01 * pitch
    return Flight(observed + rng.normal(0, [1, 0.05, 0.1, 0.02, 0.02, 0.002], (count, 6)), controls)


@pytest.fixture(scope="module")
def run(flight):
    split = a320.Split.of(flight)
    training = a320.Training(flight, split.training, SMALL)
    training.run()
    return training


@pytest.fixture(scope="module")
def agent(flight, run):
    split = a320.Split.of(flight)
    spec, tensors = run.exported()
    spec = a320.calibrated(spec, tensors, flight, split.validation, quantile=0.99)
    return Model.from_bytes(agent_file.to_bytes(spec, tensors))


def test_the_split_leaves_every_fourth_block_out(flight):
    split = a320.Split.of(flight)
    blocks = [np.flatnonzero(part.reshape(8, 300).all(axis=1)).tolist() for part in
              (split.training, split.validation, split.test)]  # fmt: skip
    assert blocks == [[0, 1, 4, 5, 6], [2], [3, 7]]
    assert (split.training.astype(int) + split.validation + split.test == 1).all()


def test_windows_lie_in_usable_rows():
    usable = np.ones(100, bool)
    usable[50] = False
    found = a320.windows(usable, ahead=10)
    assert found.tolist() == [*range(4, 40), *range(55, 90)]
    assert a320.windows(usable, ahead=10, within=20).tolist() == [t for t in found if (t - 4) // 20 == (t + 10) // 20]


def test_normalisation_is_affine_and_complete(flight, run):
    matrix, offset = run.scale.matrix()
    assert np.linalg.matrix_rank(matrix) == 45
    seconds = run.seconds
    normal = a320.observations(flight, seconds).reshape(len(seconds), -1) @ matrix.T + offset
    assert np.allclose(normal[:, :9].std(axis=0), 1, atol=1e-3)
    assert np.allclose(normal[:, :9].mean(axis=0), 0, atol=1e-3)
    newest = flight.observed[seconds] - flight.observed[seconds - 1]
    assert np.allclose(normal[:, 9], newest[:, 0] / run.scale.difference[0, 0], atol=1e-2)


def test_the_agent_file_reads_sensors_and_says_what_training_says(flight, run, agent):
    seconds = run.seconds[::40]
    rows = torch.from_numpy(seconds - (a320.HISTORY - 1))
    with torch.no_grad():
        state = run.model.encode(run._inputs[rows])
        held = torch.from_numpy(a320.actions(flight, seconds, 6))
        state = run.model.rollout(state, held)[:, -1]
        told = run.model.head("instruments", state)[0].double().numpy()
    count = len(OBSERVED)
    told = told * run.scale.std[:count] + run.scale.mean[:count]
    found = a320.predicted(agent, flight, seconds)
    assert np.allclose(found, told, rtol=1e-4, atol=2e-3 * run.scale.std[:count])


def test_it_learns_more_than_that_nothing_changes(flight, agent):
    split = a320.Split.of(flight)
    seconds = a320.judged_windows(split.test)
    still = a320.errors(a320.persistence(flight, seconds), flight, seconds)
    found = bench.prediction(agent, flight, split.test)
    assert all(found[name] < 0.5 * still[name] for name in a320.JUDGED)


def test_the_ridge_baseline_solves_a_linear_world(flight):
    found = bench.baselines(flight)
    assert all(found["ridge"][name] < 0.2 * found["persistence"][name] for name in ("altitude", "CAS"))
    assert found["ridge_penalty"] in a320.Ridge.PENALTIES


def test_the_same_seed_gives_the_same_agent(flight):
    split = a320.Split.of(flight)
    few = dataclasses.replace(SMALL, steps=3)
    files = [agent_file.to_bytes(*a320.train_agent(flight, few, usable=split.training)) for _ in range(2)]
    assert files[0] == files[1]


def test_plans_stay_within_what_was_seen(flight, agent):
    found = bench.plans(agent, flight)
    assert found["starts"] > 4
    assert found["flown"]["outside_bounds"] == found["asked"]["outside_bounds"] == 0
    assert found["flown"]["altitude_ft_median"] < found["flown"]["kept_altitude_ft_median"]
    assert set(found["flown"]["controls_differ"]) == set(CONTROLS)


def test_surprise_is_calibrated_and_notices_faults(flight, agent):
    monitor = surprise.Surprise(agent)
    split = a320.Split.of(flight)
    seconds = np.flatnonzero(split.validation)[20:]
    usual = bench.energies(monitor, agent, flight, seconds)
    assert 0.3 < np.median(usual) < 2
    assert (usual > monitor.threshold).mean() < 0.05
    found = bench.surprise(agent, flight)
    by_name = {fault["fault"]: fault for fault in found["faults"]}
    assert by_name["airspeed drifting 1 kt/s"]["found"] == by_name["airspeed drifting 1 kt/s"]["blocks"] == 2
    assert by_name["airspeed drifting 1 kt/s"]["delay_s_median"] < 60
    assert by_name["frozen altimeter"]["noticeable_found"] == by_name["frozen altimeter"]["noticeable"] == 2


def test_the_calibration_travels_in_the_file(agent):
    monitor = surprise.Surprise(agent)
    again = surprise.Calibration.of(agent.spec, agent.latent_dim)
    assert again.threshold == monitor.threshold
    assert again.steps == 1
    bare = dataclasses.replace(agent.spec, provenance={})
    with pytest.raises(UnsupportedError, match="no calibrated surprise"):
        surprise.Calibration.of(bare, agent.latent_dim)
    damaged = dataclasses.replace(agent.spec, provenance={"surprise": '{"steps": 1}'})
    with pytest.raises(InvalidArgumentError, match="damaged"):
        surprise.Calibration.of(damaged, agent.latent_dim)
    with pytest.raises(InvalidArgumentError, match="expected steps >= 1 and a finite whitening"):
        surprise.Calibration.of(agent.spec, agent.latent_dim + 1)


def test_surprise_wants_actions_of_the_right_shape(flight, agent):
    seen = a320.observations(flight, np.array([10, 20]))
    with pytest.raises(InvalidArgumentError, match=r"actions have shape \(2, 2, 3\), expected \(2, 1, 3\)"):
        surprise.Surprise(agent).energy(seen, np.zeros((2, 2, 3)), seen)


def test_calibration_needs_enough():
    with pytest.raises(InvalidArgumentError, match="3 differences do not determine"):
        surprise.calibrate(np.zeros((3, 3)), steps=1, quantile=0.9)
    with pytest.raises(InvalidArgumentError, match="quantile must be between"):
        surprise.calibrate(np.eye(9)[:, :3], steps=1, quantile=1.0)


def test_the_command(flight, tmp_path):
    from click.testing import CliRunner

    from pyjepa.cli import main

    rows = [str(i) for i in range(len(flight))]
    columns = {name: dict(zip(rows, flight.observed[:, i].tolist(), strict=True)) for i, name in enumerate(OBSERVED)}
    columns |= {name: dict(zip(rows, flight.controls[:, i].tolist(), strict=True)) for i, name in enumerate(CONTROLS)}
    columns["timestamp"] = dict(zip(rows, (1000 * np.arange(len(flight))).tolist(), strict=True))
    (tmp_path / "f.json.gz").write_bytes(gzip.compress(json.dumps(columns).encode(), 1))
    arguments = ["train", "a320", "--out", tmp_path / "a.safetensors", "--data", tmp_path / "f.json.gz", "--seeds", 1,
                 "--steps", 20, "--results", tmp_path / "r.json"]  # fmt: skip
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert "persistence: altitude" in done.output
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["model"] == found["seeds"][0]
    assert "surprise" in pyjepa.load(tmp_path / "a.safetensors").spec.provenance
