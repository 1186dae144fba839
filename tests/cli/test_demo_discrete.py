"""``pyjepa demo --env two-rooms-discrete``."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from pyjepa import Model, agent_file, agents
from pyjepa.cli import main
from pyjepa.discretise import discretise
from pyjepa.envs.two_rooms_discrete import MOVES
from pyjepa.spec import Layer, Mlp, Module


def demo(*arguments):
    return CliRunner().invoke(main, ["demo", "--env", "two-rooms-discrete", "--json", "-", *arguments])


@pytest.mark.parametrize("planner", ["categorical-cem", "tree"])
def test_the_agent_reaches_its_goals(planner):
    result = demo("--episodes", "10", "--planner", planner)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["success"] >= 0.9
    assert report["settings"]["algorithm"] == planner
    assert report["agent"]["name"] == "two-rooms-discrete"


def test_mode_1_takes_the_policys_action(tmp_path):
    result = demo("--episodes", "1", "--mode", "1")
    assert result.exit_code == 2
    assert "this agent file has no policy" in result.stderr
    model = Model.load(agents.path("two_rooms"))
    spec, tensors = discretise(model.spec, load_file(agents.path("two_rooms")), MOVES)
    policy = Module(inputs=("state",), blocks=(Mlp(layers=(Layer(out=len(MOVES)),)),))
    spec = dataclasses.replace(
        spec, modules={**spec.modules, "policy": policy}, policy="policy", policy_head="categorical"
    )
    tensors["policy.0.linear0.weight"] = np.zeros((len(MOVES), model.latent_dim), np.float32)
    tensors["policy.0.linear0.bias"] = np.eye(len(MOVES), dtype=np.float32)[3]
    agent_file.save(tmp_path / "stubborn.safetensors", spec, tensors)
    result = demo("--episodes", "1", "--mode", "1", "--agent", str(tmp_path / "stubborn.safetensors"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["settings"]["mode"] == 1
    assert report["success"] == 0.0, "always the same move"


def test_a_planner_or_an_agent_of_the_other_kind_is_named():
    result = demo("--episodes", "1", "--planner", "cem")
    assert result.exit_code == 2
    assert "'cem' plans continuous actions, this agent's are discrete" in result.stderr
    result = demo("--episodes", "1", "--agent", str(agents.path("two_rooms")))
    assert result.exit_code == 2
    assert "two-rooms-discrete takes discrete actions, this agent has a box of actions" in result.stderr
    result = CliRunner().invoke(main, ["demo", "--episodes", "1", "--planner", "categorical-cem"])
    assert result.exit_code == 2
    assert "'categorical-cem' plans discrete actions, this agent's are a box" in result.stderr


@pytest.mark.filterwarnings("ignore:this machine has no")
@pytest.mark.parametrize("world", ["two-rooms", "two-rooms-discrete"])
def test_it_plays_in_the_precision_asked_for_or_says_that_the_machine_lacks_it(world):
    for precision in ("bf16", "int8"):
        result = CliRunner().invoke(
            main, ["demo", "--episodes", "2", "--env", world, "--precision", precision, "--json", "-"]
        )
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        wanted = Model.load(agents.path("two_rooms"), precision=precision).precision
        assert report["settings"]["precision"] == wanted
        assert report["success"] == 1.0
