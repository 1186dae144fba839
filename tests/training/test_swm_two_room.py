"""swm/TwoRoom-v1: how it is recorded, how a reach is found, and the whole command on a small scale."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
h5py = pytest.importorskip("h5py")

from click.testing import CliRunner  # noqa: E402

from pyjepa import Model  # noqa: E402
from pyjepa.adapters.torchvision import import_stable_worldmodel  # noqa: E402
from pyjepa.bench import swm_two_room as bench  # noqa: E402
from pyjepa.cli import main  # noqa: E402
from pyjepa.errors import MissingPackageError  # noqa: E402
from pyjepa.training import swm_two_room as two_room  # noqa: E402
from pyjepa.training import swm_two_room_run as run  # noqa: E402
from pyjepa.world_model import WorldModel  # noqa: E402


class Counting:
    """A policy of three environments whose n-th action is n everywhere."""

    def __init__(self):
        self.count = 0

    def get_action(self, info_dict):
        self.count += 1
        return np.full((3, 2), self.count, np.float32)


def test_an_action_is_held_for_a_block_of_what_is_recorded():
    policy = two_room.holding(Counting, 3)()
    # Two episodes begin together; the second ends after two steps and begins anew; the third is ahead of them.
    steps = np.array([[0, 0, 4], [1, 1, 5], [2, 2, 6], [3, 0, 7], [4, 1, 8], [5, 2, 9]])
    taken = np.array([policy.get_action({"step_idx": row[:, None]})[:, 0] for row in steps])
    assert taken[:, 0].tolist() == [1, 2, 2, 2, 5, 5]
    assert taken[:, 1].tolist() == [1, 2, 2, 4, 5, 5]
    assert taken[:, 2].tolist() == [1, 1, 1, 4, 4, 4]
    every = two_room.holding(Counting, 1)()
    assert [every.get_action({"step_idx": row[:, None]})[0, 0] for row in steps] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({1.5: (90.0, 30), 2.0: (98.0, 30), 3.0: (96.0, 20)}, 2.0),
        ({1.5: (98.0, 30), 2.0: (98.0, 25), 3.0: (98.0, 28)}, 2.0),
        ({1.5: (98.0, 30), 2.0: (96.0, 20), 3.0: (98.0, 29)}, 3.0),
    ],
    ids=["most goals", "fewest plans", "goals before plans"],
)
def test_the_reach_that_serves_best_is_kept(monkeypatch, found, chosen):
    spec = two_room.build_spec(two_room.config())
    torch.manual_seed(0)
    tensors = {name: value.numpy() for name, value in WorldModel(spec).state_dict().items()}

    def planned(solver, recorded, *, episodes, seed):
        assert (recorded, episodes, seed) == ("calibrate.h5", 7, 5)
        success, plans = found[solver._model.spec.cost[0].reach]
        return {"success": success, "plans": plans, "plan_cpu_ms_p50": 1.0, "plan_cpu_ms_p99": 1.0}

    monkeypatch.setattr(bench, "planned", planned)
    told = []
    kept, rows = bench.calibrated(spec, tensors, "calibrate.h5", episodes=7, seed=5, told=told.append)
    assert kept == two_room.with_reach(spec, chosen)
    assert told == [row["reach"] for row in rows] == list(two_room.REACHES)
    assert {row["reach"]: (row["success"], row["plans"]) for row in rows} == found


@pytest.fixture
def small(monkeypatch):
    """Trainings of a few steps, plans of a few candidates, recordings of a few episodes."""
    smaller = {
        "data": {**two_room.SETTINGS["data"], "episodes": 16, "holdout": 4},
        "architecture": {"channels": [4, 4, 4], "latent": 8, "encoder_hidden": 8, "predictor_hidden": [8]},
        "optimiser": {"steps": 4, "batch": 4},
        "planning": {**two_room.SETTINGS["planning"], "candidates": 8, "iterations": 2, "elites": 4},
        "log": {"evaluate_every": 4, "checkpoint_every": 2},
    }
    monkeypatch.setattr(two_room, "SETTINGS", two_room.SETTINGS | smaller)
    monkeypatch.setattr(run, "JUDGED_ON", 12)
    monkeypatch.setattr(run, "CALIBRATED_ON", 12)
    monkeypatch.setattr(run, "STARTS", 2)


def made_up(path, *, episodes, seed, steps=60, **options):
    """A recording of stable-worldmodel's form: a dot that goes where it is told, in no rooms."""
    rng = np.random.default_rng(seed)
    length, block = 31, two_room.BLOCK
    actions = rng.uniform(-1, 1, (episodes, (length + block - 1) // block, 2)).repeat(block, axis=1)[:, :length]
    places = np.clip(np.cumsum(actions[:, :-1], axis=1) * 5 + rng.uniform(40, 180, (episodes, 1, 2)), 20, 200)
    places = np.concatenate([places[:, :1], places], axis=1).reshape(-1, 2)
    pixels = np.zeros((len(places), two_room.SIZE, two_room.SIZE, 3), np.uint8)
    for picture, (x, y) in zip(pixels, (places * two_room.SIZE / 224).astype(int), strict=True):
        picture[y : y + 5, x : x + 5] = 255
    with h5py.File(path, "w") as file:
        file["pixels"], file["state"] = pixels, places.astype(np.float32)
        file["action"] = actions.reshape(-1, 2).astype(np.float32)
        file["ep_len"] = np.full(episodes, length, np.int32)
        file["ep_offset"] = np.arange(episodes, dtype=np.int64) * length


def command(tmp_path, *options):
    arguments = ["train", "stable-worldmodel", "--out", str(tmp_path / "agent.safetensors"), "--run"]
    arguments += [str(tmp_path / "run"), "--collect", "16", "--results", str(tmp_path / "results.json"), *options]
    outcome = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return json.loads((tmp_path / "results.json").read_text())


def test_every_seed_is_trained_calibrated_and_judged(small, monkeypatch, tmp_path):
    recorded, judged = [], []

    def collect(path, **options):
        recorded.append((path.name, options))
        made_up(path, **options)

    def planned(solver, recorded, *, episodes, seed):
        reach = solver._model.spec.cost[0].reach
        judged.append((recorded.name, reach, episodes))
        success = {1.5: 50.0, 2.0: 50.0, 3.0: 100.0}[reach]
        return {"success": success, "plans": 4, "plan_cpu_ms_p50": 1.0, "plan_cpu_ms_p99": 1.0}

    monkeypatch.setattr(two_room, "collect", collect)
    monkeypatch.setattr(bench, "planned", planned)
    monkeypatch.setattr(bench, "references", lambda recorded, **options: {"random": 0.0, "expert": 100.0})
    found = command(tmp_path, "--seeds", "2", "--episodes", "3")
    assert [name for name, _ in recorded] == ["judge.h5", "calibrate.h5", "train.h5"]
    seeds = [options["seed"] for _, options in recorded]
    assert len(set(seeds)) == 3
    assert judged == 2 * [*(("calibrate.h5", reach, 2) for reach in two_room.REACHES), ("judge.h5", 3.0, 3)]
    assert found["success"] == 100.0
    assert [row["reach"] for row in found["seeds"]] == [3.0, 3.0]
    assert [len(row["calibration"]) for row in found["seeds"]] == [3, 3]
    agents = [Model.load(tmp_path / name) for name in ("agent.safetensors", "run/seed1.safetensors")]
    assert [agent.spec.cost[0].reach for agent in agents] == [3.0, 3.0]
    assert [agent.spec.provenance["seed"] for agent in agents] == ["0", "1"]
    written = (tmp_path / "agent.safetensors").read_bytes()
    command(tmp_path, "--seeds", "2", "--episodes", "3")  # from what is there
    assert len(recorded) == 3
    assert (tmp_path / "agent.safetensors").read_bytes() == written


@pytest.mark.filterwarnings("ignore")  # its world, its data sets and gymnasium warn of one another
def test_with_stable_worldmodel_itself(small, tmp_path):
    try:
        import_stable_worldmodel("stable_worldmodel.policy")
    except MissingPackageError as error:
        pytest.skip(str(error))
    found = command(tmp_path, "--seeds", "1", "--episodes", "2")
    with h5py.File(tmp_path / "run" / "train.h5") as file:
        first = file["ep_offset"][:][file["ep_len"][:] > two_room.BLOCK]
        actions = file["action"][:]
    assert len(first)
    for step in range(1, two_room.BLOCK):
        assert np.array_equal(actions[first], actions[first + step])
    assert found["seeds"][0]["reach"] in two_room.REACHES
    assert (found["random"], found["expert"]) == (0.0, 100.0)
