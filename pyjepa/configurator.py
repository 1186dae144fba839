"""The configurator (paper section 3): turns a task, as a user states it, into what the engine's modules need.

Nothing here decides whether values are sensible - the engine does, in one place - but shapes and names are resolved, so
that errors can speak the user's language.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from pyjepa.errors import InvalidArgumentError
from pyjepa.spec import Spec

FloatArray: TypeAlias = npt.NDArray[np.float32]

Rollout: TypeAlias = Callable[[FloatArray, FloatArray | None, FloatArray], npt.ArrayLike]
"""A rollout of the user's: ``states`` (E, L), ``goals`` (E, L) or None, ``actions`` (E, N, H, A) -> costs (E, N)."""

ALGORITHMS = {
    "cem": 1,
    "mppi": 2,
    "predictive-sampling": 3,
    "icem": 4,
    "gradient": 5,
    "hybrid": 6,
    "categorical-cem": 7,
    "tree": 8,
}
"""The planners, each with its number in pyjepa.h."""

SAMPLINGS = ("gaussian", "sobol")
INTERPOLATIONS = ("zero", "linear", "cubic")
TEMPERATURE_SCALES = ("std", "absolute")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to reach and how to plan it; None means the agent file's default. See `pyjepa.Agent.configure`."""

    goal: npt.ArrayLike | None = None
    environments: int | None = None
    planner: str | None = None
    horizon: int | None = None
    candidates: int | None = None
    iterations: int | None = None
    elites: int | None = None
    knots: int | None = None
    interpolation: str | None = None
    std: float | None = None
    min_std: float | None = None
    momentum: float | None = None
    temperature: float | None = None
    temperature_scale: str | None = None
    elite_refit: bool | None = None
    max_std: float | None = None
    policy_candidates: int | None = None
    prune: bool = True
    sampling: str | None = None
    noise_beta: float | None = None
    keep_elites: float | None = None
    decay: float | None = None
    learning_rate: float | None = None
    restarts: int | None = None
    polish: int | None = None
    exploration: float | None = None
    branching: int | None = None
    bounds: tuple[npt.ArrayLike, npt.ArrayLike] | None = None
    weights: Mapping[str, float] | None = None
    discount: float | None = None
    rollout: Rollout | None = None
    seed: int = 0


def observation_array(spec: Spec, value: object, name: str, *, batch: int | None) -> npt.NDArray[Any]:
    """``value`` as a contiguous array of observations: (obs...) if ``batch`` is None, else (batch, obs...).

    Takes arrays, anything with the buffer protocol, ``__array__`` or ``__dlpack__``, without a copy where it can.
    """
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__dlpack__"):
        array = np.from_dlpack(value)
    else:
        array = np.asarray(value)
    expected = spec.observation.shape if batch is None else (batch, *spec.observation.shape)
    if array.shape != expected:
        raise InvalidArgumentError(f"{name} has shape {array.shape}, expected {expected}")
    if array.dtype != spec.observation.dtype:
        raise InvalidArgumentError(f"{name} has dtype {array.dtype}, expected {spec.observation.dtype}")
    return np.ascontiguousarray(array)


def resolve(spec: Spec, task: Task) -> tuple[dict[str, Any], int | None]:
    """The engine's arguments for a task, and the batch size E (None: a single environment, without batch axis)."""
    batch = task.environments
    goal = None
    if task.goal is not None:
        shape = np.shape(task.goal)
        if batch is None and len(shape) == len(spec.observation.shape) + 1:
            batch = int(shape[0])
        goal = observation_array(spec, task.goal, "goal", batch=batch)

    if task.bounds is not None and spec.actions.kind != "box":
        raise InvalidArgumentError("bounds belong to continuous actions, this agent's are discrete")
    low, high = (None, None) if task.bounds is None else _bounds(spec, task.bounds)
    return {
        "environments": 1 if batch is None else _integer("environments", batch),
        "algorithm": 0 if task.planner is None else ALGORITHMS[_known("planner", task.planner, ALGORITHMS)],
        "horizon": _integer("horizon", task.horizon),
        "candidates": _integer("candidates", task.candidates),
        "iterations": _integer("iterations", task.iterations),
        "elites": _integer("elites", task.elites),
        "knots": _integer("knots", task.knots),
        "interpolation": 0
        if task.interpolation is None
        else 1 + _index("interpolation", task.interpolation, INTERPOLATIONS),
        "std": _number("std", task.std),
        "min_std": _number("min_std", task.min_std),
        "momentum": _number("momentum", task.momentum),
        "temperature": _number("temperature", task.temperature),
        "temperature_scale": 0
        if task.temperature_scale is None
        else 1 + _index("temperature_scale", task.temperature_scale, TEMPERATURE_SCALES),
        "elite_refit": _flag("elite_refit", task.elite_refit),
        "max_std": _number("max_std", task.max_std),
        "policy_candidates": _integer("policy_candidates", task.policy_candidates),
        "prune": bool(_flag("prune", task.prune)),
        "sampling": 0 if task.sampling is None else 1 + _index("sampling", task.sampling, SAMPLINGS),
        "noise_beta": _number("noise_beta", task.noise_beta),
        "keep_elites": _number("keep_elites", task.keep_elites),
        "decay": _number("decay", task.decay),
        "learning_rate": _number("learning_rate", task.learning_rate),
        "discount": _number("discount", task.discount),
        "restarts": _integer("restarts", task.restarts),
        "polish": _integer("polish", task.polish),
        "exploration": _number("exploration", task.exploration),
        "branching": _integer("branching", task.branching),
        "seed": _seed(task.seed),
        "goal": goal,
        "low": low,
        "high": high,
        "weights": None if task.weights is None else _weights(spec, task.weights),
        "rollout": task.rollout,
    }, batch


def _integer(name: str, value: int | None) -> int:
    if value is None:
        return -1
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidArgumentError(f"{name} must be an integer, got {value!r}")
    if not 0 <= value < 2**31:
        raise InvalidArgumentError(f"{name} must not be negative or above 2**31 - 1, got {value}")
    return int(value)


def _flag(name: str, value: bool | None) -> int:
    if value is None:
        return -1
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name} must be True or False, got {value!r}")
    return int(value)


def _seed(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**64:
        raise InvalidArgumentError(f"seed must be an integer in [0, 2**64), got {value!r}")
    return int(value)


def _number(name: str, value: float | None) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(f"{name} must be a number, got {value!r}") from error
    if not math.isfinite(number):
        raise InvalidArgumentError(f"{name} must be finite, got {value!r}")
    return number


def _known(name: str, value: str, known: Collection[str]) -> str:
    if value not in known:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def _index(name: str, value: str, known: Sequence[str]) -> int:
    return known.index(_known(name, value, known))


def _bounds(spec: Spec, bounds: object) -> tuple[FloatArray, FloatArray]:
    if not isinstance(bounds, tuple | list | np.ndarray) or len(bounds) != 2:
        raise InvalidArgumentError(f"bounds must be a pair (low, high), got {bounds!r}")
    return _bound(spec, bounds[0], "low"), _bound(spec, bounds[1], "high")


def _bound(spec: Spec, value: npt.ArrayLike, name: str) -> FloatArray:
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"bounds: {name} must be numbers, got {value!r}") from error
    expected = (len(spec.actions.low),)
    if array.ndim == 0:
        array = np.broadcast_to(array, expected)
    if array.shape != expected:
        raise InvalidArgumentError(f"bounds: {name} has shape {array.shape}, expected {expected}")
    return np.ascontiguousarray(array)


def _weights(spec: Spec, weights: Mapping[str, float]) -> FloatArray:
    names = [term.label for term in spec.cost]
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise InvalidArgumentError(
            f"weights: no cost term {unknown[0]!r} in this agent file (it has: {', '.join(names)})"
        )
    return np.asarray([weights.get(name, 1.0) for name in names], dtype=np.float32)
