"""Plans once with the shipped agent, by the installation in the folder given, on its baseline kernels."""

import sys
import warnings
from pathlib import Path

import pyjepa
from pyjepa import _engine, agents
from pyjepa.envs.two_rooms import TwoRooms

if __name__ == "__main__":
    assert Path(pyjepa.__file__).is_relative_to(sys.argv[1]), pyjepa.__file__
    assert _engine.isa() == "baseline", _engine.isa()
    warnings.simplefilter("ignore", RuntimeWarning)  # that there is no int8 here
    world = TwoRooms()
    for precision in ("fp32", "int8"):
        agent = pyjepa.load(agents.path("two_rooms"), precision=precision)
        agent.configure(goal=world.goal_observation[0])
        plan = agent.plan(world.observation[0])
        print(f"{_engine.isa()}: {agent.model.precision}, {plan.iterations} iterations, cost {plan.cost:.3f}")
