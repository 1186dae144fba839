"""Small worlds to train and plan in. NumPy only; the Gymnasium faces need gymnasium, and only when they are used."""

from pyjepa.envs.two_rooms import Episodes, TwoRooms, draw_episodes, evaluation_episodes

__all__ = ["Episodes", "TwoRooms", "draw_episodes", "evaluation_episodes"]
