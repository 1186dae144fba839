"""Other people's planners on the same problem: what `pyjepa bench --peers` compares with.

One file per peer. Each says which environment variables its threads need (`environment`), what it can do
(`ALGORITHMS`), and turns a `pyjepa.bench.workloads.Problem` into two functions (`prepare`); its library is imported
there and not before. To add one: a file, and its line in `PEERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa.bench.workloads import PlanningProblem
from pyjepa.errors import MissingPackageError, PyjepaError

FloatArray = npt.NDArray[np.float32]

# The requirement is what to install where it is missing.
PEERS = {
    "torch": ("torch", "torch"),
    "torch-bf16": ("torch_bf16", "torch"),
    "torch-compile": ("torch_compile", "torch"),
    "onnxruntime": ("onnxruntime", "onnxruntime onnx"),
    "numba": ("numba", "numba scipy"),
    "jax": ("jax", "jax"),
    "stable-worldmodel": ("stable_worldmodel", "stable-worldmodel"),
    "pytorch-mppi": ("pytorch_mppi", "pytorch-mppi"),
    "pytorch-icem": ("pytorch_icem", "pytorch-icem"),
    "torchrl": ("torchrl", "torchrl"),
}


class PeerError(PyjepaError):
    """A peer that is not installed, or that does not compute what it should."""


@dataclass(frozen=True)
class Prepared:
    """A peer that is ready to be timed."""

    version: str
    """Name and version of the library, as results state them."""
    plan: Callable[[], FloatArray | None]
    """Plans once from scratch; the actions (S, A), or None if the library does not return a whole plan."""
    costs: Callable[[FloatArray], npt.ArrayLike]
    """What plans (N, S, A), with N the problem's candidates, cost under the peer's own arithmetic; (N,)."""
    precision: str = "fp32"
    tolerance: float = 1e-4
    """Largest relative 2-norm of the difference between `costs` and the engine's."""
    encode: Callable[[], FloatArray] | None = None
    """Encodes the problem's observation and goal, (2, L); None where the problem or the peer has no encoder."""
    encode_and_plan: Callable[[], FloatArray | None] | None = None
    """`plan` from what was just encoded."""


LATENT_TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}
"""Largest relative 2-norm of the difference between latents that `Prepared.encode` finds and the engine's."""


def module(peer: str) -> ModuleType:
    """The file of a peer, without its library."""
    return importlib.import_module(f"pyjepa.bench.peers.{PEERS[peer][0]}")


def variants(peer: str, problem: PlanningProblem) -> tuple[str, ...]:
    """Which of its planners take the problem's algorithm: names, or ("",) where there is but one."""
    algorithms: Mapping[str, tuple[str, ...]] = module(peer).ALGORITHMS
    return algorithms.get(problem.algorithm, ())


def environment(peer: str, threads: int) -> dict[str, str]:
    """Environment variables that must be set before the peer's library is imported."""
    common = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # Or glibc gives every large temporary back to the system and has it mapped and zeroed anew (W0L in torch: -20 %).
    common |= dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**30))
    own: Callable[[int], dict[str, str]] = getattr(module(peer), "environment", lambda threads: {})
    return common | own(threads)


def prepare(peer: str, problem: PlanningProblem, *, threads: int, variant: str = "") -> Prepared:
    """A peer on a problem. Raises `PeerError` if it is not installed or its costs or latents are not the engine's."""
    try:
        prepared: Prepared = module(peer).prepare(problem, threads, variant)
    except ModuleNotFoundError as error:
        raise PeerError(f"peer {peer!r} needs {error.name}: pip install {PEERS[peer][1]}") from error
    except MissingPackageError as error:
        raise PeerError(f"peer {peer!r}: {error}") from error
    check(peer, prepared, problem)
    check_latents(peer, prepared, problem)
    return prepared


def check(peer: str, prepared: Prepared, problem: PlanningProblem) -> float:
    """The relative 2-norm by which a peer's candidate costs differ from the engine's; raises `PeerError` if too much.

    Judged on as many random plans as the problem has candidates, and after the mean of the costs is taken off: what is
    left is what planners decide by.
    """
    plans = problem.sample(problem.planner.candidates, seed=1)
    expected = np.asarray(problem.costs(plans), np.float64)
    found = np.asarray(prepared.costs(plans), np.float64)
    if found.shape != expected.shape:
        raise PeerError(f"peer {peer!r}: costs of shape {found.shape}, expected {expected.shape}")
    spread = np.linalg.norm(expected - expected.mean())
    error = float(np.linalg.norm(found - expected) / spread)
    if not error <= prepared.tolerance:
        raise PeerError(
            f"peer {peer!r}: its candidates' costs differ from the engine's by {error:.2g} of their spread "
            f"(at most {prepared.tolerance:g})"
        )
    return error


def check_latents(peer: str, prepared: Prepared, problem: PlanningProblem) -> None:
    """Raises `PeerError` where a peer that encodes does not find the engine's latents."""
    seen = problem.perception
    if prepared.encode is None or seen is None:
        return
    expected = problem.engine.encode(np.stack([seen.observation, seen.goal]))
    found = np.asarray(prepared.encode())
    if found.shape != expected.shape:
        raise PeerError(f"peer {peer!r}: latents of shape {found.shape}, expected {expected.shape}")
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not error <= LATENT_TOLERANCE[prepared.precision]:
        raise PeerError(
            f"peer {peer!r}: its latents differ from the engine's by {error:.2g} of their norm "
            f"(at most {LATENT_TOLERANCE[prepared.precision]:g})"
        )


def clamp(problem: PlanningProblem, plan: Any) -> FloatArray:
    """A plan (S, A) within bounds, for planners that do not know any."""
    return np.clip(np.asarray(plan, np.float32), problem.low, problem.high)
