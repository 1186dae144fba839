"""`pyjepa collect` and `pyjepa train`: from nothing to an agent file that the engine plans with."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import pyjepa
from pyjepa.bench.episodes import play, summary
from pyjepa.cli import main
from pyjepa.envs import TwoRooms, evaluation_episodes
from pyjepa.spec import Planner

torch = pytest.importorskip("torch")
pytest.importorskip("h5py")
pytest.importorskip("tensorboard")

from pyjepa.training.dataset import EpisodeReader  # noqa: E402

TINY = """
seed = 3
[data]
episodes = 160
steps = 6
holdout = 32
window = 3
[architecture]
channels = [8, 8]
kernels = [8, 3]
strides = [4, 4]
paddings = [2, 1]
encoder_hidden = 32
latent = 16
predictor_hidden = [32]
[objective]
regularised_steps = [0, 3]
[optimiser]
batch = 32
warmup = 5
[alarms]
grace = 5
probe_r2 = -100.0
effective_rank = {effective_rank}
std = 0.0
inverse_dynamics = 100.0
[planning]
horizon = 12
candidates = 16
iterations = 2
elites = 4
[log]
every = 5
evaluate_every = 10
checkpoint_every = 4
"""


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def config(folder, effective_rank="0.0"):
    path = folder / "tiny.toml"
    path.write_text(TINY.format(effective_rank=effective_rank))
    return path


def train(folder, *arguments, out="agent.safetensors", **changes):
    return run(
        "train",
        "two-rooms",
        "--out",
        folder / out,
        "--config",
        config(folder, **changes),
        "--run",
        folder / "run",
        *arguments,
    )


def test_an_agent_is_trained_from_scratch_and_the_engine_plans_with_it(tmp_path):
    result = train(tmp_path, "--steps", 12)
    assert result.exit_code == 0, result.output
    assert "12 steps in" in result.output
    assert "0 alarms" in result.output
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoint.pt",
        "data.h5",
        "metrics.json",
        "tensorboard",
    ]
    agent = pyjepa.load(tmp_path / "agent.safetensors")
    assert agent.spec.planner == Planner(horizon=12, candidates=16, iterations=2, elites=4, std=0.8)
    provenance = agent.spec.provenance
    assert provenance["command"] == "pyjepa train two-rooms --out agent.safetensors --config tiny.toml --steps 12"
    assert (provenance["seed"], provenance["steps"], provenance["alarms"]) == ("3", "12", "none")
    assert json.loads(provenance["config"])["optimiser"]["steps"] == 12
    assert float(provenance["probe_px"]) > 0
    assert str(tmp_path) not in json.dumps(dict(provenance))
    world = TwoRooms()
    agent.configure(goal=world.goal_observation[0])
    plan = agent.plan(world.observation[0])
    assert plan.actions.shape == (12, 2)
    assert (np.abs(plan.actions) <= 3).all()
    assert np.array_equal(plan.actions[:4], np.repeat(plan.actions[:1], 4, axis=0))


def test_the_engine_computes_what_torch_computes(tmp_path):
    from pyjepa.training.config import load_config
    from pyjepa.training.two_rooms import build_spec
    from pyjepa.world_model import WorldModel

    torch.manual_seed(0)
    model = WorldModel(build_spec(load_config(config(tmp_path))))
    model.export(tmp_path / "agent.safetensors")
    agent = pyjepa.load(tmp_path / "agent.safetensors")
    world = TwoRooms(2)
    agent.configure(goal=world.goal_observation[0], seed=1)
    plan = agent.plan(world.observation[0])
    with torch.no_grad():
        states = model.encode(torch.from_numpy(world.observation[:1]))
        rolled = model.rollout(states, torch.from_numpy(plan.actions[None, ::4]))
        goal = model.encode(torch.from_numpy(world.goal_observation[:1]))
    assert np.allclose(plan.states, torch.cat([states[:, None], rolled], 1)[0], atol=1e-4)
    assert np.isclose(plan.cost, (rolled - goal[:, None]).norm(dim=-1).sum(), rtol=1e-4)


def test_resuming_gives_the_file_of_an_uninterrupted_run(tmp_path):
    for name in ("straight", "interrupted"):
        (tmp_path / name).mkdir()
    assert train(tmp_path / "straight", "--steps", 12).exit_code == 0

    from pyjepa.training.config import load_config
    from pyjepa.training.run import WarningReporter
    from pyjepa.training.two_rooms import train_two_rooms

    class InterruptedReporter(WarningReporter):
        def progress(self, step, losses):
            if step == 7:
                raise KeyboardInterrupt

    folder = tmp_path / "interrupted"
    settings = load_config(config(folder), {"optimiser.steps": 12})
    with pytest.raises(KeyboardInterrupt):
        train_two_rooms(
            settings, folder / "agent.safetensors", run_directory=folder / "run", reporter=InterruptedReporter()
        )
    assert not (folder / "agent.safetensors").exists()
    again = train(folder, "--steps", 12)
    assert again.exit_code == 2
    assert "resume that run" in again.output
    assert train(folder, "--steps", 12, "--resume").exit_code == 0
    files = [(tmp_path / name / "agent.safetensors").read_bytes() for name in ("straight", "interrupted")]
    assert files[0] == files[1]


def test_a_finished_run_takes_other_planner_defaults_and_keeps_its_weights(tmp_path):
    assert train(tmp_path, "--steps", 4).exit_code == 0
    changed = tmp_path / "changed.toml"
    changed.write_text((tmp_path / "tiny.toml").read_text().replace("horizon = 12", "horizon = 20"))
    arguments = ["--config", changed, "--run", tmp_path / "run", "--steps", 4, "--resume"]
    assert run("train", "two-rooms", "--out", tmp_path / "again.safetensors", *arguments).exit_code == 0
    agents = [pyjepa.load(tmp_path / name) for name in ("agent.safetensors", "again.safetensors")]
    assert [agent.spec.planner.horizon for agent in agents] == [12, 20]
    state = np.ones((1, 18), np.float32)
    assert np.array_equal(*(agent.model.forward("predictor", state) for agent in agents))


def test_a_collapse_alarm_is_shown_and_written_into_the_file(tmp_path):
    result = train(tmp_path, "--steps", 10, effective_rank="1000.0")
    assert result.exit_code == 0, result.output
    assert "collapse alarm" in result.output
    assert "1 alarms" in result.output
    assert "effective rank" in pyjepa.load(tmp_path / "agent.safetensors").spec.provenance["alarms"]


def test_training_takes_a_collected_data_set_of_the_same_action_block(tmp_path):
    for name, block in (("four.h5", 4), ("two.h5", 2)):
        path = tmp_path / name
        result = run("collect", "two-rooms", "--out", path, "--episodes", 80, "--steps", 5, "--action-block", block)
        assert result.exit_code == 0, result.output
        assert "80 episodes of 5 actions" in result.output
        with EpisodeReader(path) as reader:
            reader.verify()
            assert len(reader) == 80
    result = train(tmp_path, "--steps", 2, "--data", tmp_path / "two.h5")
    assert result.exit_code == 2
    assert "action_block is 2, the configuration's 4" in result.output
    assert train(tmp_path, "--steps", 2, "--data", tmp_path / "four.h5").exit_code == 0
    assert not (tmp_path / "run" / "data.h5").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("[optimiser]\nstep = 3", "optimiser.step: unknown key"), ("seed = 'x'", "seed: Input should be a valid integer")],
)
def test_a_wrong_configuration_is_one_line_without_a_traceback(tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    result = run("train", "two-rooms", "--out", tmp_path / "a", "--config", path, "--run", tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_an_unknown_configuration_says_what_there_is(tmp_path):
    result = run("train", "two-rooms", "--out", tmp_path / "a", "--config", "lewn", "--run", tmp_path / "run")
    assert result.exit_code == 2
    assert "lewn: neither a file nor a shipped configuration (two_rooms, lewm)" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_shipped_configuration_trains_an_agent_that_reaches_its_goals(tmp_path):
    from pyjepa.training.config import default_config, load_config
    from pyjepa.training.two_rooms import train_two_rooms

    out = tmp_path / "two_rooms.safetensors"
    trainer = train_two_rooms(load_config(default_config()), out, run_directory=tmp_path / "run")
    assert trainer.seconds <= 20 * 60
    assert trainer.alarms == []
    assert out.stat().st_size <= 2_000_000
    agent = pyjepa.load(out)
    result = summary(list(play(agent, evaluation_episodes(100), {})))
    assert result["success"] >= 0.99
    assert result["success_cross_room"] >= 0.98
    assert agent.settings["flops"] <= 1e9
