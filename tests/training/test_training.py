"""Training: configuration, the loop, resuming, alarms. The long version trains the agent that is shipped."""

import itertools
import json
import math
import tomllib

import numpy as np
import pytest
import torch

import pyjepa
from pyjepa.diagnostics import CollapseError, CollapseMonitor, CollapseWarning
from pyjepa.objectives.inverse_dynamics import InverseDynamics
from pyjepa.objectives.sigreg import SIGReg
from pyjepa.objectives.vicreg import VICReg
from pyjepa.training.checkpoint import CheckpointError, first_difference, load_checkpoint, save_checkpoint
from pyjepa.training.collection import collect_two_rooms
from pyjepa.training.config import (
    WORLD_MODELS,
    Alarms,
    Config,
    ConfigError,
    default_config,
    find_config,
    load_config,
    validate,
)
from pyjepa.training.dataset import EpisodeReader
from pyjepa.training.diagnostics import collapse_alarms, diagnose, linear_probe
from pyjepa.training.loop import Trainer, clip_losses
from pyjepa.training.run import learning_rate
from pyjepa.training.two_rooms import build_spec, train_two_rooms
from pyjepa.world_model import WorldModel

TINY = {
    "threads": 1,
    "data": {"episodes": 96, "steps": 4, "holdout": 32, "window": 3},
    "architecture": {
        "channels": [4, 4],
        "kernels": [8, 3],
        "strides": [4, 4],
        "paddings": [2, 1],
        "encoder_hidden": 16,
        "latent": 8,
        "predictor_hidden": [16],
    },
    "objective": {"regularised_steps": [0, 3]},
    "optimiser": {"steps": 8, "batch": 16, "warmup": 2},
    "alarms": {"grace": 100, "probe_r2": -100.0, "effective_rank": 0.0, "std": 0.0, "inverse_dynamics": 100.0},
    "planning": {"horizon": 12, "candidates": 16, "iterations": 2, "elites": 4},
    "log": {"every": 2, "evaluate_every": 4, "checkpoint_every": 3},
}


def tiny(**changes):
    return validate({**TINY, **changes}, "test")


def tiny_lewm():
    """LeWM's way in small: a transformer narrower than the latent, SIGReg alone against collapse."""
    transformer = {"window": 2, "depth": 2, "width": 6, "heads": 2, "head_dim": 4, "hidden": 8, "action_hidden": 4}
    objective = {"regularised_steps": [0, 3], "variance": 0.0, "covariance": 0.0, "sigreg": 1.8, "directions": 16}
    return tiny(architecture={**TINY["architecture"], "transformer": transformer}, objective=objective)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.h5"
    collect_two_rooms(path, episodes=96, seed=0, steps=4)
    return path


def weights(trainer):
    return {**trainer.model.state_dict(), **trainer.inverse.state_dict(prefix="inverse.")}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# ---- configuration --------------------------------------------------------------------------------------------------


def test_the_shipped_configuration_states_every_field_and_is_the_default():
    values = tomllib.loads(default_config().read_text())
    values["architecture"]["transformer"] = None  # a table that TOML can only leave out
    assert values == Config().model_dump() == load_config(default_config()).model_dump()


def test_every_shipped_configuration_is_found_by_its_name(tmp_path):
    for name in WORLD_MODELS:
        path = find_config(name)
        assert path == default_config(name)
        values, whole = tomllib.loads(path.read_text()), load_config(path).model_dump()
        transformer = values["architecture"].setdefault("transformer", None)
        assert values == whole, "a shipped configuration states every field"
        assert (transformer is not None) == (name == "lewm")
    mine = tmp_path / "mine.toml"
    mine.touch()
    assert find_config(mine) == mine
    with pytest.raises(ConfigError, match=r"lewn: neither a file nor a shipped configuration \(two_rooms, lewm\)"):
        find_config("lewn")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optimiser]\nlearning_rat = 1e-3", r"optimiser\.learning_rat: unknown key"),
        ("[optimiser]\nsteps = '10'", r"optimiser\.steps: Input should be a valid integer \(given: '10'\)"),
        ("[optimiser]\nsteps = 10.0", r"optimiser\.steps: Input should be a valid integer"),
        ("[optimiser]\nsteps = 0", r"optimiser\.steps: Input should be greater than 0"),
        ("[architecture]\nchannels = [32, 'x', 64]", r"architecture\.channels\.1: Input should be a valid integer"),
        ("[architecture]\nactivation = 'softplus'", r"architecture\.activation: Input should be 'relu'"),
        ("[architecture]\nchannels = [32]", r"architecture: .*one entry per layer"),
        ("seed = true", r"seed: Input should be a valid integer"),
        ("[data]\nwindow = 20", r"data\.window 20 is longer than data\.steps 12"),
        ("[objective]\nregularised_steps = [0, 9]", "the last step of a clip is 6"),
        ("[planning]\nhorizon = 63", r"planning\.horizon"),
        ("[objective]\nsigreg = -1.0", r"objective\.sigreg: Input should be greater than or equal to 0"),
        ("[architecture.transformer]\nlayers = 2", r"architecture\.transformer\.layers: unknown key"),
        ("[architecture.transformer]\nheads = 0", r"architecture\.transformer\.heads: Input should be greater than 0"),
        (
            "[architecture.transformer]\nwindow = 7",
            r"architecture\.transformer\.window 7 is longer than data\.window 6",
        ),
        ("[architecture]\npredictors = 2\n[architecture.transformer]", "predictors: 2 transformers"),
        ("[log", "no valid TOML"),
        ("[x]\n[optimiser]\nbatch = 1", r"optimiser\.batch: .*; .*: x: unknown key"),
    ],
)
def test_a_wrong_configuration_names_its_fields(tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)wrong\.toml: .*{message}"):
        load_config(path)


def test_overrides_replace_values_by_name(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[optimiser]\nsteps = 10")
    config = load_config(path, {"optimiser.steps": 20, "seed": 5})
    assert (config.optimiser.steps, config.seed) == (20, 5)
    assert config.digest() != load_config(path).digest()


# ---- the loop -------------------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_decays_to_zero():
    config = tiny(optimiser={"steps": 100, "batch": 16, "warmup": 10, "learning_rate": 1.0})
    rates = [learning_rate(step, config.optimiser) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert all(a > b for a, b in itertools.pairwise(rates[9:]))
    assert rates[100] == pytest.approx(0)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    config = tiny()
    model = WorldModel(build_spec(config))
    inverse = InverseDynamics(8, 2)
    states, actions = torch.randn(16, 4, 8), torch.rand(16, 3, 2) * 3
    loss, terms = clip_losses(model, inverse, VICReg(), config.objective, states, actions)
    expected = sum(getattr(config.objective, name) * value for name, value in terms.items())
    assert set(terms) == {
        "prediction",
        "variance",
        "covariance",
        "temporal_variance",
        "inverse_dynamics",
        "temporal_similarity",
    }
    assert torch.allclose(loss, expected)
    rolled = model.rollout(states[:, 0], actions)
    assert torch.allclose(terms["prediction"], ((rolled - states[:, 1:]) ** 2).mean())


def test_sigreg_looks_at_the_encoded_states_and_keeps_them_normal():
    config = tiny_lewm()
    model, inverse = WorldModel(build_spec(config)), InverseDynamics(8, 2)
    states, actions = torch.randn(64, 4, 8), torch.rand(64, 3, 2) * 3
    sigreg = SIGReg(directions=16)

    def losses(states):
        return clip_losses(model, inverse, VICReg(), config.objective, states, actions, sigreg.eval())

    loss, terms = losses(states)
    assert torch.allclose(loss, sum(getattr(config.objective, name) * value for name, value in terms.items()))
    assert torch.allclose(terms["sigreg"], torch.stack([sigreg(states[:, 0]), sigreg(states[:, 3])]).mean())
    assert losses(0.1 * states)[1]["sigreg"] > 5 * terms["sigreg"], "collapsing costs"


def test_every_predictor_of_an_ensemble_learns():
    config = tiny(architecture={**TINY["architecture"], "predictors": 3})
    torch.manual_seed(0)
    model = WorldModel(build_spec(config))
    states, actions = torch.randn(8, 5, model.latent_dim), torch.randn(8, 4, 2)
    rollouts = model.rollouts(states[:, 0], actions)
    assert rollouts.shape == (3, 8, 4, model.latent_dim)
    torch.testing.assert_close(rollouts[0], model.rollout(states[:, 0], actions))
    assert not torch.allclose(rollouts[0], rollouts[1])
    for member in range(3):  # each goes on from what it predicted itself
        alone = {k: v[member] for k, v in model.get_submodule("predictor").state_dict().items()}
        single = WorldModel(build_spec(tiny()))
        single.get_submodule("predictor").load_state_dict(alone)
        torch.testing.assert_close(rollouts[member], single.rollout(states[:, 0], actions))
    inverse = InverseDynamics(model.latent_dim, 2)
    loss, _ = clip_losses(model, inverse, VICReg(), config.objective, states, actions)
    loss.backward()
    for parameter in model.get_submodule("predictor").parameters():
        assert (parameter.grad.flatten(1).abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("config", [tiny(precision="float32"), tiny(precision="bfloat16"), tiny_lewm()])
def test_an_interrupted_and_resumed_run_ends_with_the_same_bits(data, tmp_path, config):
    with EpisodeReader(data) as episodes:
        straight = Trainer(build_spec(config), config, episodes)
        start = {name: value.clone() for name, value in weights(straight).items()}
        straight.run()
        checkpoint = tmp_path / "run" / "checkpoint.pt"
        first = Trainer(build_spec(config), config, episodes)
        assert_same_bits(weights(first), start)
        first.run(until=5, checkpoint=checkpoint)
        torch.manual_seed(12345)  # whatever else the process drew in between
        second = Trainer(build_spec(config), config, episodes)
        second.resume(checkpoint)
        assert second.step == 5
        second.run(checkpoint=checkpoint)
    assert second.step == straight.step == 8
    assert_same_bits(weights(straight), weights(second))
    assert not torch.equal(weights(straight)["encoder.0.conv0.weight"], start["encoder.0.conv0.weight"])
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in trainer.history] for trainer in (straight, second)
    ]
    assert without_time[0] == without_time[1]
    assert [row["step"] for row in without_time[0]] == [2, 4, 6, 8]
    metrics = json.loads(checkpoint.with_name("metrics.json").read_text())
    assert metrics["history"] == second.history
    assert metrics["config"] == config.model_dump()
    assert metrics["machine"]["torch"] == torch.__version__


def test_a_checkpoint_may_be_older_than_fields_of_the_configuration(data, tmp_path):
    config, checkpoint = tiny(), tmp_path / "checkpoint.pt"
    with EpisodeReader(data) as episodes:
        Trainer(build_spec(config), config, episodes).run(until=2, checkpoint=checkpoint)
        state = load_checkpoint(checkpoint)
        del state["config"]["objective"]["sigreg"]
        save_checkpoint(checkpoint, state)
        trainer = Trainer(build_spec(config), config, episodes)
        trainer.resume(checkpoint)
        assert trainer.step == 2
        state["config"]["objective"]["later"] = 1.0
        save_checkpoint(checkpoint, state)
        with pytest.raises(ConfigError, match=r"objective\.later: unknown key"):
            trainer.resume(checkpoint)


def test_a_transformer_learns_and_the_engine_predicts_as_torch_does(data, tmp_path):
    config = tiny_lewm()
    untrained = WorldModel(build_spec(config)).get_submodule("predictor").state_dict()
    trainer = train_two_rooms(config, tmp_path / "agent.safetensors", run_directory=tmp_path / "run", data=data)
    learned = trainer.model.get_submodule("predictor").state_dict()
    for layer in range(2):  # zero at first: a layer whose gates stay shut learns nothing
        assert not untrained[f"0.layer{layer}.modulation.weight"].any()
        assert learned[f"0.layer{layer}.modulation.weight"].any()
    agent = pyjepa.load(tmp_path / "agent.safetensors")
    with EpisodeReader(data) as episodes:
        observation = np.stack([episodes.read(0, "observation")[0], episodes.read(1, "observation")[-1]])
    agent.configure(goal=observation[1])
    plan = agent.plan(observation[0])
    with torch.no_grad():
        state, goal = trainer.model.eval().encode(torch.from_numpy(observation))
        actions = torch.from_numpy(plan.actions[:: config.data.action_block])[None]
        states = trainer.model.rollout(state[None], actions)[0]
    np.testing.assert_allclose(plan.states[1:], states, atol=1e-5)
    np.testing.assert_allclose(plan.states[0], state, atol=1e-5)
    assert plan.cost == pytest.approx(float((states - goal).norm(dim=1).sum()), rel=1e-5)


def test_runs_are_logged_to_tensorboard(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny()
    with EpisodeReader(data) as episodes:
        trainer = Trainer(build_spec(config), config, episodes)
        trainer.run(checkpoint=tmp_path / "checkpoint.pt")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/prediction")] == [2, 4, 6, 8]
    probe = events.Scalars("diagnostics/probe_px")
    assert [event.step for event in probe] == [4, 8]
    assert probe[-1].value == pytest.approx(trainer.diagnostics.probe_px)


def test_resuming_with_something_else_is_an_error(data, tmp_path):
    config, checkpoint = tiny(), tmp_path / "checkpoint.pt"
    with EpisodeReader(data) as episodes:
        Trainer(build_spec(config), config, episodes).run(until=1, checkpoint=checkpoint)
        other = tiny(optimiser={"steps": 9, "batch": 16, "warmup": 2})
        with pytest.raises(CheckpointError, match=r"another configuration: optimiser\.steps: 8, not 9"):
            Trainer(build_spec(other), other, episodes).resume(checkpoint)
    collect_two_rooms(tmp_path / "other.h5", episodes=96, seed=1, steps=4)
    with EpisodeReader(tmp_path / "other.h5") as episodes:
        with pytest.raises(CheckpointError, match="another data set"):
            Trainer(build_spec(config), config, episodes).resume(checkpoint)
        checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
        with pytest.raises(CheckpointError, match="damaged"):
            Trainer(build_spec(config), config, episodes).resume(checkpoint)


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"step": lambda: 2})
    assert load_checkpoint(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_the_first_difference_is_named():
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c: 2, not 3"
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "b: None, not 2"
    assert first_difference({"a": [1]}, {"a": [1]}) is None


# ---- alarms ---------------------------------------------------------------------------------------------------------


def test_the_probe_finds_what_is_linear_in_the_latent_and_nothing_else():
    torch.manual_seed(0)
    positions = torch.rand(2000, 2) * 60
    latents = positions @ torch.randn(2, 8) + 3
    r2, distance = linear_probe(latents, positions)
    assert r2 == pytest.approx(1)
    assert distance < 1e-3
    r2, distance = linear_probe(torch.randn(2000, 8), positions)
    assert r2 < 0.02
    assert distance > 15


def test_a_collapsed_encoder_trips_every_alarm_and_a_telling_one_none():
    config = tiny()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-3, 3, (64, 3, 2)).astype(np.float32)
    clips = {
        "observation": rng.integers(0, 256, (64, 4, 2, 64, 64), dtype=np.uint8),
        "action": actions,
        "position": rng.uniform(2, 61, (64, 4, 2)).astype(np.float32),
    }
    model, inverse = WorldModel(build_spec(config)), InverseDynamics(8, 2)
    with torch.no_grad():
        for parameter in model.get_submodule("encoder").parameters():
            parameter.zero_()
    found = diagnose(model, inverse, clips, Alarms())
    with pytest.warns(CollapseWarning):
        messages = CollapseMonitor(collapse_alarms(Alarms())).check(1, found.as_dict())
    assert len(messages) == 4
    for word, message in zip(
        ("probe", "effective rank", "standard deviation", "inverse dynamics"), messages, strict=True
    ):
        assert word in message
    assert all(math.isfinite(value) for value in found.as_dict().values())

    class Telling:
        """Stands for a trained model: the latent is the position, and actions move it."""

        def encode(self, observations):
            return observations.flatten(2)[..., :8].float()

        def rollout(self, state, actions):
            return state[:, None] + torch.zeros(*actions.shape[:2], 8)

        def normalise(self, actions):
            return actions / 3

    signal = rng.normal(size=(64, 4, 8)).astype(np.float32)
    clips["observation"] = signal
    clips["position"] = signal[..., :2]
    found = diagnose(Telling(), lambda states, actions: torch.tensor(0.01), clips, Alarms())
    assert CollapseMonitor(collapse_alarms(Alarms()), action="stop").check(1, found.as_dict()) == []


def test_an_alarm_is_a_visible_warning_and_is_kept(data):
    alarms = {"grace": 5, "probe_r2": 1.0, "effective_rank": 0.0, "std": 0.0, "inverse_dynamics": 100.0}
    config = tiny(alarms=alarms)
    with EpisodeReader(data) as episodes:
        trainer = Trainer(build_spec(config), config, episodes)
        with pytest.warns(CollapseWarning, match="step 8: the linear position probe explains") as caught:
            trainer.run()
    assert len(caught) == 1  # the evaluation at step 4 lies within the grace period
    assert trainer.alarms == [str(caught[0].message)]


def test_an_alarm_stops_a_run_that_is_told_to(data, tmp_path):
    thresholds = {"probe_r2": -100.0, "effective_rank": 1000.0, "std": 0.0, "inverse_dynamics": 100.0}
    config = tiny(alarms={"grace": 0, "action": "stop", **thresholds})
    with EpisodeReader(data) as episodes:
        trainer = Trainer(build_spec(config), config, episodes)
        with (
            pytest.warns(CollapseWarning, match="step 4: the effective rank is"),
            pytest.raises(CollapseError, match=r"step 4: training stopped: the effective rank .*below 1000"),
        ):
            trainer.run(checkpoint=tmp_path / "checkpoint.pt")
    assert trainer.step == 4
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (state["step"], state["alarms"]) == (4, trainer.alarms)
    assert json.loads((tmp_path / "metrics.json").read_text())["alarms"] == trainer.alarms


# ---- the whole thing ------------------------------------------------------------------------------------------------


def test_a_run_directory_is_not_overwritten_and_needs_a_checkpoint_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train_two_rooms(tiny(), tmp_path / "agent.safetensors", run_directory=tmp_path / "run", resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").touch()
    with pytest.raises(FileExistsError, match="resume that run, or choose another"):
        train_two_rooms(tiny(), tmp_path / "agent.safetensors", run_directory=tmp_path / "run")
