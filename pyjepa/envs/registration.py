"""Tells Gymnasium about the worlds."""

from __future__ import annotations


def register() -> None:
    """Register ``pyjepa/TwoRooms-v0`` and ``pyjepa/TwoRoomsDiscrete-v0`` (doing nothing the second time)."""
    from gymnasium.envs.registration import register, registry

    for name in ("TwoRooms", "TwoRoomsDiscrete"):
        if f"pyjepa/{name}-v0" not in registry:
            register(id=f"pyjepa/{name}-v0", entry_point=f"pyjepa.envs.gymnasium:{name}Env")
