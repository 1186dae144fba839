"""Small worlds to train and plan in. NumPy only; the Gymnasium faces need gymnasium, and only when they are used.

``gymnasium.make("pyjepa.envs:pyjepa/TwoRooms-v0")`` works from anywhere. The bare name works once this package is
imported after gymnasium, or `pyjepa.envs.gymnasium` at any time: importing this package does not import gymnasium.
"""

import sys

from pyjepa.envs.registration import register
from pyjepa.envs.two_rooms import Episodes, TwoRooms, draw_episodes, evaluation_episodes

__all__ = ["Episodes", "TwoRooms", "draw_episodes", "evaluation_episodes"]

if "gymnasium" in sys.modules:
    register()
