"""Small worlds to train and plan in. NumPy only; where gymnasium is installed they are registered with it.

``import pyjepa.envs`` (or ``import pyjepa`` after ``import gymnasium``) makes ``gymnasium.make("pyjepa/TwoRooms-v0")``
work; ``gymnasium.make("pyjepa.envs:pyjepa/TwoRooms-v0")`` works from anywhere. ``pyjepa/TwoRoomsDiscrete-v0`` likewise.
"""

from importlib.util import find_spec

from pyjepa.envs.two_rooms import Episodes, TwoRooms, draw_episodes, evaluation_episodes
from pyjepa.envs.two_rooms_discrete import TwoRoomsDiscrete

__all__ = ["Episodes", "TwoRooms", "TwoRoomsDiscrete", "draw_episodes", "evaluation_episodes"]

if find_spec("gymnasium") is not None:
    from pyjepa.envs.registration import register

    register()
