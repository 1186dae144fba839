"""pyjepa: train a joint-embedding predictive world model in torch, perceive and plan with it in C++.

    agent = pyjepa.load("two_rooms.safetensors", threads=2)
    agent.configure(goal=goal_observation)
    agent.observe(observation)
    plan = agent.plan(deadline=5e-3)

Importing this package imports NumPy and the engine, nothing else.
"""

import sys

from pyjepa._engine import version as _version
from pyjepa.agent import Agent, Model, Plan, load
from pyjepa.errors import (
    AgentFileError,
    BusyError,
    InvalidArgumentError,
    MemoryFileError,
    MissingPackageError,
    NotReadyError,
    PyjepaError,
    RolloutError,
    UnsupportedError,
)

__version__: str = _version()

__all__ = [
    "Agent",
    "AgentFileError",
    "BusyError",
    "InvalidArgumentError",
    "MemoryFileError",
    "MissingPackageError",
    "Model",
    "NotReadyError",
    "Plan",
    "PyjepaError",
    "RolloutError",
    "UnsupportedError",
    "__version__",
    "load",
]

if "gymnasium" in sys.modules:  # whoever uses it finds our worlds there
    from pyjepa import envs as envs
