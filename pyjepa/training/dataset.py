"""Offline episodes on disk: an HDF5 file, written atomically, read episode by episode, every read checked.

The format, version 1. Root attributes: ``format`` = "pyjepa-episodes", ``version`` = 1, ``episodes`` = N and
``metadata``, a JSON object of strings and numbers (environment, seed, ...). Data sets:

- ``length`` int64 (N,): episode i has ``length[i]`` steps.
- ``fields/<name>`` (N, rows, ...): what was recorded; one compressed chunk per episode. A field has an attribute
  ``extra``: 1 if an episode has ``length + 1`` rows (there is one more observation than actions), 0 if it has
  ``length``. Rows beyond an episode's own are zero. ``observation`` (extra 1) and ``action`` (extra 0) are required;
  ``observation[t]`` and ``action[t]`` lead to ``observation[t + 1]``.
- ``crc32/<name>`` uint32 (N,): the CRC-32 of the C-ordered bytes of an episode's own rows.

An action may stand for several environment steps; ``metadata["action_block"]`` then says how many.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pyjepa.errors import PyjepaError

FORMAT = "pyjepa-episodes"
VERSION = 1
REQUIRED: dict[str, int] = {"observation": 1, "action": 0}


class DatasetError(PyjepaError, ValueError):
    """The file is no data set, or is damaged; the message names the file and, where known, episode and field."""


class EpisodeWriter:
    """Writes episodes to a temporary file beside ``path`` and renames it when the ``with`` block ends without error."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: Mapping[str, tuple[tuple[int, ...], str]],
        *,
        steps: int,
        metadata: Mapping[str, str | int | float] | None = None,
        extra: Mapping[str, int] | None = None,
    ) -> None:
        """``fields`` gives every field's (shape of a row, dtype), ``steps`` the most steps an episode can have.

        ``extra`` says which fields beside ``observation`` have a row after the last step (1) and which have not (0,
        the default).
        """
        missing = sorted(set(REQUIRED) - set(fields))
        if missing:
            raise ValueError(f"fields: {missing[0]!r} is required")
        self.path = Path(path)
        self.steps = steps
        self.extra = dict.fromkeys(fields, 0) | dict(extra or {}) | REQUIRED
        self._lengths: list[int] = []
        self._checksums: dict[str, list[int]] = {name: [] for name in fields}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.tmp")
        # Metadata in blocks of its own, from the front on: a file cut short then still tells what it lacks.
        self._file = h5py.File(self._temporary, "x", meta_block_size=1 << 16)
        self._file.attrs.update(format=FORMAT, version=VERSION, metadata=json.dumps(dict(metadata or {})))
        for name, (shape, dtype) in fields.items():
            rows = steps + self.extra[name]
            dataset = self._file.create_dataset(
                f"fields/{name}",
                (0, rows, *shape),
                dtype,
                maxshape=(None, rows, *shape),
                chunks=(1, rows, *shape),
                compression="gzip",
                compression_opts=1,
            )
            dataset.attrs["extra"] = self.extra[name]

    def append(self, episodes: Mapping[str, NDArray[Any]], lengths: NDArray[np.int64] | None = None) -> None:
        """Append E episodes: each field (E, rows, ...), padded to the longest; ``lengths`` (E,) if they differ."""
        count = len(episodes["action"])
        if lengths is None:
            lengths = np.full(count, episodes["action"].shape[1])
        first = len(self._lengths)
        for name, checksums in self._checksums.items():
            dataset, values = self._file[f"fields/{name}"], episodes[name]
            rows = int(lengths.max()) + self.extra[name]
            if values.shape != (count, rows, *dataset.shape[2:]):
                raise ValueError(f"{name}: expected shape {(count, rows, *dataset.shape[2:])}, got {values.shape}")
            values = np.ascontiguousarray(values, dtype=dataset.dtype)
            dataset.resize(first + count, axis=0)
            for i, length in enumerate(lengths):
                own = values[i, : length + self.extra[name]]
                dataset[first + i, : len(own)] = own
                checksums.append(zlib.crc32(own.data))
        self._lengths.extend(int(length) for length in lengths)

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.attrs["episodes"] = len(self._lengths)
        self._file["length"] = np.array(self._lengths, dtype=np.int64)
        for name, checksums in self._checksums.items():
            self._file[f"crc32/{name}"] = np.array(checksums, dtype=np.uint32)
        self._file.close()
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            os.unlink(self._temporary)


class EpisodeReader:
    """Reads episodes one by one; nothing but their lengths and checksums stays in memory.

    Every read is checked against its checksum. Not safe to share between threads or processes: open one in each.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises FileNotFoundError, or `DatasetError` if the file is damaged or something else."""
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"no data set at {self.path}")
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise DatasetError(f"{self.path}: {_why_not_hdf5(self.path, str(error))}") from error
        try:
            self._open()
        except DatasetError:
            self._file.close()
            raise
        except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            self._file.close()  # what h5py makes of a damaged header or index
            raise DatasetError(f"{self.path}: the header is damaged ({type(error).__name__}: {error})") from error

    def _open(self) -> None:
        attributes = self._file.attrs
        if attributes.get("format") != FORMAT or int(attributes.get("version", 0)) != VERSION:
            raise DatasetError(
                f"{self.path}: expected format {FORMAT!r} version {VERSION}, "
                f"got {attributes.get('format')!r} version {attributes.get('version')}"
            )
        for name in ("length", *(f"{group}/{name}" for name in REQUIRED for group in ("fields", "crc32"))):
            if name not in self._file:
                raise DatasetError(f"{self.path}: {name} is missing")
        self.metadata: dict[str, Any] = json.loads(attributes["metadata"])
        self._fields: dict[str, Any] = dict(self._file["fields"].items())
        self.extra = {name: int(field.attrs["extra"]) for name, field in self._fields.items()}
        self.lengths: NDArray[np.int64] = self._file["length"][:]
        self._checksums = {name: self._file[f"crc32/{name}"][:] for name in self._fields}
        count = int(attributes["episodes"])
        for name, field in self._fields.items():
            present = min(len(field), len(self._checksums[name]), len(self.lengths))
            if present < count:
                raise DatasetError(
                    f"{self.path}: episode {present}, field {name!r}: missing ({count} episodes announced)"
                )
            short = np.flatnonzero(self.lengths + self.extra[name] > field.shape[1])
            if len(short):
                raise DatasetError(
                    f"{self.path}: episode {short[0]}, field {name!r}: expected "
                    f"{self.lengths[short[0]] + self.extra[name]} rows, the file has {field.shape[1]}"
                )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Every field's (shape of a row, dtype)."""
        return {name: (field.shape[2:], str(field.dtype)) for name, field in self._fields.items()}

    def read(self, episode: int, field: str) -> NDArray[Any]:
        """The field's rows of one episode. Raises `DatasetError`, naming both, if they are damaged."""
        if not 0 <= episode < len(self):
            raise IndexError(f"{self.path}: no episode {episode}, there are {len(self)}")
        if field not in self._fields:
            raise KeyError(f"{self.path}: no field {field!r} (there are: {', '.join(self._fields)})")
        rows = int(self.lengths[episode]) + self.extra[field]
        where = f"{self.path}: episode {episode}, field {field!r}"
        try:
            values: NDArray[Any] = self._fields[field][episode, :rows]
        except (OSError, RuntimeError, ValueError) as error:
            raise DatasetError(f"{where}: cannot be read ({error})") from error
        expected, found = int(self._checksums[field][episode]), zlib.crc32(np.ascontiguousarray(values).data)
        if expected != found:
            raise DatasetError(f"{where}: damaged (CRC-32 {found:08x}, expected {expected:08x})")
        return values

    def window(self, episode: int, first: int, steps: int, fields: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Steps ``first ... first + steps - 1`` of an episode: each field (steps + extra, ...)."""
        if not 0 <= episode < len(self):
            raise IndexError(f"{self.path}: no episode {episode}, there are {len(self)}")
        length = int(self.lengths[episode])
        if first < 0 or steps < 0 or first + steps > length:
            raise ValueError(f"episode {episode}: steps {first} to {first + steps} are outside of its {length}")
        return {name: self.read(episode, name)[first : first + steps + self.extra[name]] for name in fields}

    def verify(self) -> None:
        """Read every field of every episode. Raises `DatasetError` at the first that is damaged."""
        for episode in range(len(self)):
            for name in self._fields:
                self.read(episode, name)

    def fingerprint(self) -> str:
        """Eight hex digits that stand for the content: the CRC-32 of lengths and checksums."""
        value = zlib.crc32(np.ascontiguousarray(self.lengths).data)
        for name in sorted(self._checksums):
            value = zlib.crc32(np.ascontiguousarray(self._checksums[name]).data, value)
        return f"{value:08x}"

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> EpisodeReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WindowSampler:
    """Random windows of ``steps`` steps, in batches: batch k of a seed is always the same, whatever was read before.

    Every episode of ``episodes`` that is long enough gives one window per epoch, at a random place.
    """

    def __init__(
        self,
        reader: EpisodeReader,
        *,
        steps: int,
        batch: int,
        seed: int,
        episodes: range | None = None,
        fields: tuple[str, ...] = ("observation", "action"),
    ) -> None:
        """Raises ValueError if fewer than ``batch`` of the episodes have ``steps`` steps."""
        chosen = np.arange(len(reader)) if episodes is None else np.array(episodes)
        self._episodes = chosen[reader.lengths[chosen] >= steps]
        if len(self._episodes) < batch:
            raise ValueError(
                f"{reader.path}: {len(self._episodes)} episodes of {steps} steps do not fill a batch of {batch}"
            )
        self._reader, self._steps, self._batch, self._seed, self._fields = reader, steps, batch, seed, fields

    def places(self, index: int) -> list[tuple[int, int]]:
        """The (episode, first step) of every window of batch ``index``."""
        per_epoch = len(self._episodes) // self._batch
        epoch, position = divmod(index, per_epoch)
        order = np.random.default_rng(np.random.SeedSequence([self._seed, 0, epoch])).permutation(self._episodes)
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, 1, index]))
        chosen = order[position * self._batch : (position + 1) * self._batch]
        return [(int(e), int(rng.integers(self._reader.lengths[e] - self._steps + 1))) for e in chosen]

    def batch(self, index: int) -> dict[str, NDArray[Any]]:
        """Batch ``index``: each field (batch, steps + extra, ...)."""
        windows = [self._reader.window(e, first, self._steps, self._fields) for e, first in self.places(index)]
        return {name: np.stack([window[name] for window in windows]) for name in self._fields}

    def batches(self, first: int, last: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Batches ``first ... last - 1``, each read in the background while the one before it is in use."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(max_workers=1) as pool:
            coming = pool.submit(self.batch, first) if first < last else None
            for index in range(first, last):
                assert coming is not None
                ready = coming.result()
                coming = pool.submit(self.batch, index + 1) if index + 1 < last else None
                yield ready


def _why_not_hdf5(path: Path, message: str) -> str:
    """What to say of a file that HDF5 does not open: where a file that was cut short breaks off, if it can be told."""
    stored = re.search(r"stored_eof = (\d+)", message)
    if stored is None:
        return f"not an HDF5 file, or damaged at its head ({message})"
    content = path.read_bytes()
    begin = f"cut short after {len(content)} of {stored[1]} bytes"
    # With zeros for what is lost, HDF5 opens the file and tells where each chunk should be.
    padded = io.BytesIO(content + bytes(int(stored[1]) - len(content)))
    try:
        with h5py.File(padded, "r") as file:
            lost = min((_first_lost(field, len(content)), name) for name, field in file["fields"].items() if len(field))
    except (OSError, KeyError, ValueError, RuntimeError):
        return f"{begin}; its index is lost, so no episode of any field can be read"
    return f"{begin}; episode {lost[0]}, field {lost[1]!r} is the first that is lost"


def _first_lost(field: Any, size: int) -> int:
    """The first episode of a field that does not lie within the file's first ``size`` bytes."""
    for episode in range(len(field)):
        try:
            chunk = field.id.get_chunk_info_by_coord((episode, *(0,) * (field.ndim - 1)))
        except (OSError, RuntimeError):  # its entry in the index is lost
            return episode
        if chunk.byte_offset is None or chunk.byte_offset + chunk.size > size:
            return episode
    return len(field)
