"""Short-term memory (paper section 3): what the agent perceived, when, and its intrinsic cost.

`Agent.remember` starts recording, `Agent.memory` hands out what was recorded. Critic and policy train from it
(`pyjepa.training`). Files are safetensors, without code; they come from strangers and are checked before use.

Symbols: ``M`` records, ``L`` latent dimension.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyjepa.atomic import replacing
from pyjepa.errors import InvalidArgumentError, MemoryFileError

_FORMAT = {"pyjepa_memory": "1"}
_DTYPES: Mapping[str, npt.DTypeLike] = {
    "episodes": np.int64,
    "steps": np.int64,
    "environments": np.int32,
    "states": np.float32,
    "goals": np.float32,
    "costs": np.float32,
}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Records in the order in which they were made; those of one episode need not lie together."""

    episodes: npt.NDArray[np.int64]
    """(M,): no two episodes share a number."""
    steps: npt.NDArray[np.int64]
    """(M,), the tau of the paper: environment steps since the episode began."""
    environments: npt.NDArray[np.int32]
    """(M,)."""
    states: npt.NDArray[np.float32]
    """(M, L)."""
    goals: npt.NDArray[np.float32]
    """(M, L): the goal's state; NaN where the task had none."""
    costs: npt.NDArray[np.float32]
    """(M,), the IC(s) of the paper: the task's cost terms of this state."""

    def __post_init__(self) -> None:
        """Raises `InvalidArgumentError` where the arrays do not fit each other."""
        count = len(self.steps)
        if self.states.ndim != 2:
            raise InvalidArgumentError(f"states has shape {self.states.shape}, expected (M, L)")
        for name, dtype in _DTYPES.items():
            array = getattr(self, name)
            shape = (count, self.states.shape[1]) if name in ("states", "goals") else (count,)
            if array.shape != shape or array.dtype != dtype:
                raise InvalidArgumentError(
                    f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape} like the other records"
                )

    def __len__(self) -> int:
        """M."""
        return len(self.steps)

    def trajectories(self) -> Iterator[Memory]:
        """One memory for every episode, in the order of time."""
        order = np.lexsort((self.steps, self.episodes))
        for chosen in np.split(order, np.flatnonzero(np.diff(self.episodes[order])) + 1):
            if len(chosen):
                yield self[chosen]

    def __getitem__(self, chosen: npt.NDArray[np.intp] | slice) -> Memory:
        """Some of the records."""
        return Memory(**{name: getattr(self, name)[chosen] for name in _DTYPES})

    @staticmethod
    def joined(parts: list[Memory]) -> Memory:
        """Several memories as one; their episodes get numbers of their own."""
        if not parts:
            raise InvalidArgumentError("there is no memory to join")
        first, shifted = 0, []
        for part in parts:
            shifted.append({name: getattr(part, name) for name in _DTYPES} | {"episodes": part.episodes + first})
            first += int(part.episodes.max()) + 1 if len(part) else 0
        return Memory(**{name: np.concatenate([part[name] for part in shifted]) for name in _DTYPES})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a memory file in one step: it is whole or not there."""
        import safetensors.numpy  # not for those who only plan

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _DTYPES}
        data = safetensors.numpy.save(arrays, metadata=_FORMAT)
        with replacing(path) as temporary:
            temporary.write_bytes(data)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Memory:
        """Reads a memory file.

        Raises `MemoryFileError` where it is damaged or something else, `OSError` where it cannot be read.
        """
        import safetensors.numpy

        where = os.fspath(path)
        data = Path(path).read_bytes()
        try:
            arrays = safetensors.numpy.load(data)
        except safetensors.SafetensorError as error:
            raise MemoryFileError(f"{where!r} is damaged, or no memory file: {error}") from error
        if set(arrays) != set(_DTYPES):
            names = ", ".join(sorted(arrays)) or "nothing"
            raise MemoryFileError(f"{where!r} is no memory file: it holds {names}, expected {', '.join(_DTYPES)}")
        try:
            memory = Memory(**arrays)
        except InvalidArgumentError as error:
            raise MemoryFileError(f"{where!r} is damaged: {error}") from error
        for name in ("states", "costs"):
            if not np.isfinite(arrays[name]).all():
                raise MemoryFileError(f"{where!r} is damaged: {name} holds values that are not finite")
        if (memory.steps < 0).any() or (memory.episodes < 0).any():
            raise MemoryFileError(f"{where!r} is damaged: negative steps or episodes")
        return memory
