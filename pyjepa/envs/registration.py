"""Tells Gymnasium about the worlds."""

from __future__ import annotations


def register() -> None:
    """Register ``pyjepa/TwoRooms-v0`` with Gymnasium (doing nothing the second time)."""
    from gymnasium.envs.registration import register, registry

    if "pyjepa/TwoRooms-v0" not in registry:
        register(id="pyjepa/TwoRooms-v0", entry_point="pyjepa.envs.gymnasium:TwoRoomsEnv")
