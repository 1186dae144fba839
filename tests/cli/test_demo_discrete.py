"""``pyjepa demo --env two-rooms-discrete``."""

import json

import pytest
from click.testing import CliRunner

from pyjepa import agents
from pyjepa.cli import main


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
