"""Episodes of other libraries' data sets, behind the protocol that training reads its own by.

    episodes = open_episodes("data.h5")              # pyjepa's own, or stable-worldmodel's HDF5
    episodes = open_episodes("data.lance")           # stable-worldmodel's Lance table
    episodes = open_episodes("minari:hopper/random-v0", observation="pixels")
    episodes = open_episodes("lerobot_folder")       # LeRobot: meta/info.json and parquet files
    in_blocks(episodes, "mine.h5", action_block=4)   # into pyjepa's own format, as training wants it

To add a format: a subclass of `Episodes` and its line in `open_episodes`. Every read is checked: numbers are finite,
an episode has at least two rows, rows are evenly spaced where the format tells their time.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from numpy.typing import NDArray

from pyjepa.adapters import needed
from pyjepa.training.dataset import FORMAT, DatasetError, EpisodeReader, EpisodeWriter

INDEX_COLUMNS = ("episode_index", "frame_index", "timestamp", "index", "task_index", "next.done")


class EpisodeSource(Protocol):
    """What training reads. `pyjepa.training.dataset.EpisodeReader` is one; so is every reader here.

    ``action[t]`` and ``observation[t]`` lead to ``observation[t + 1]``: an episode of ``lengths[i]`` steps has as many
    actions and one observation more. ``extra`` says how many rows more than steps a field has.
    """

    path: Path
    metadata: dict[str, Any]
    lengths: NDArray[np.int64]
    extra: dict[str, int]

    def __len__(self) -> int:
        """How many episodes there are."""

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Every field's (shape of a row, dtype)."""

    def read(self, episode: int, field: str) -> NDArray[Any]:
        """The field's rows of one episode."""

    def window(self, episode: int, first: int, steps: int, fields: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Steps ``first ... first + steps - 1`` of an episode: each field (steps + extra, ...)."""

    def fingerprint(self) -> str:
        """Eight hex digits that stand for the content."""

    def close(self) -> None:
        """Close the file."""


def _columns(observation: str, action: str, others: Sequence[str]) -> dict[str, str]:
    """The file's name of each field."""
    return {"observation": observation, "action": action, **{name: name for name in others}}


class Episodes(ABC):
    """A reader over rows that lie one after the other; subclasses say where columns are and read them."""

    path: Path
    metadata: dict[str, Any]

    kept: list[int]
    """The file's number of every episode that is read."""

    def __init__(self, path: Path, rows: Sequence[int], columns: dict[str, str], *, skip_short: bool = False) -> None:
        """``rows``: of each episode. ``columns``: the file's name of each field; ``observation`` and ``action`` are
        needed. Raises `DatasetError` for an episode without a step, unless ``skip_short`` leaves such out.
        """
        self.path = path
        short = next((i for i, count in enumerate(rows) if count < 2), None)
        if short is not None and not skip_short:
            raise DatasetError(
                f"{path}: episode {short} has {rows[short]} row(s), a step takes two (skip_short=True leaves it out)"
            )
        self.kept = [i for i, count in enumerate(rows) if count >= 2]
        if not self.kept:
            raise DatasetError(f"{path}: no episodes")
        self.lengths = np.asarray(rows, np.int64)[self.kept] - 1
        self._columns = columns
        self.extra = {name: 0 if name in ("action", "reward") else 1 for name in columns}
        self._fields: dict[str, tuple[tuple[int, ...], str]] = {}
        for name in columns:
            first = self.read(0, name)
            self._fields[name] = (first.shape[1:], str(first.dtype))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Every field's (shape of a row, dtype). Pictures are uint8 (C, H, W)."""
        return dict(self._fields)

    @abstractmethod
    def rows(self, episode: int, column: str) -> NDArray[Any]:
        """All rows of a column of one episode (the file's number), as the file has them."""

    def read(self, episode: int, field: str) -> NDArray[Any]:
        """The field's rows of one episode. Raises `DatasetError` for a number that is none."""
        if not 0 <= episode < len(self):
            raise IndexError(f"{self.path}: no episode {episode}, there are {len(self)}")
        if field not in self._columns:
            raise KeyError(f"{self.path}: no field {field!r} (there are: {', '.join(self._columns)})")
        where = f"{self.path}: episode {episode}, field {field!r}"
        values = self.rows(self.kept[episode], self._columns[field])
        wanted = int(self.lengths[episode]) + self.extra[field]
        if len(values) < wanted:
            raise DatasetError(f"{where}: {len(values)} rows, expected {wanted}")
        values = values[:wanted]
        if values.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
            if len(bad):
                raise DatasetError(f"{where}: row {bad[0]} is not a finite number ({len(bad)} such rows)")
            values = values.astype(np.float32)
        if values.dtype == np.uint8 and values.ndim == 4 and values.shape[-1] in (1, 3):
            values = np.moveaxis(values, -1, 1)
        return np.ascontiguousarray(values)

    def window(self, episode: int, first: int, steps: int, fields: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Steps ``first ... first + steps - 1`` of an episode: each field (steps + extra, ...)."""
        length = int(self.lengths[episode])
        if first < 0 or steps < 0 or first + steps > length:
            raise ValueError(f"episode {episode}: steps {first} to {first + steps} are outside of its {length}")
        return {name: self.read(episode, name)[first : first + steps + self.extra[name]] for name in fields}

    def fingerprint(self) -> str:
        """The CRC-32 of lengths and all fields: reads everything once."""
        value = zlib.crc32(np.ascontiguousarray(self.lengths).data)
        for episode in range(len(self)):
            for name in sorted(self._columns):
                value = zlib.crc32(self.read(episode, name).data, value)
        return f"{value:08x}"

    def close(self) -> None:  # noqa: B027  # for those that have something to close
        """Nothing to close, unless a subclass has."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


class StableWorldModelHdf5(Episodes):
    """stable-worldmodel's HDF5 (0.1.1): ``ep_len``, ``ep_offset`` and one data set per column."""

    def __init__(
        self,
        path: Path,
        *,
        observation: str = "pixels",
        action: str = "action",
        others: Sequence[str] = (),
        skip_short: bool = False,
    ) -> None:
        """``observation`` names the column to perceive, ``others`` those to keep beside it."""
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise DatasetError(f"{path}: no HDF5 file, or damaged ({error})") from error
        columns = _columns(observation, action, others)
        _check_columns(path, columns.values(), [name for name in self._file if not name.startswith("ep_")])
        self._offsets, self._counts = self._file["ep_offset"][:], self._file["ep_len"][:]
        self.metadata = {"format": "stable-worldmodel HDF5"}
        super().__init__(path, self._file["ep_len"][:].tolist(), columns, skip_short=skip_short)

    def rows(self, episode: int, column: str) -> NDArray[Any]:
        """See `Episodes.rows`."""
        first, count = int(self._offsets[episode]), int(self._counts[episode])
        try:
            values: NDArray[Any] = self._file[column][first : first + count]
        except OSError as error:  # compressed by a filter that is a package of its own
            needed("hdf5plugin", "hdf5plugin", f"{self.path}: column {column!r}")
            raise DatasetError(f"{self.path}: column {column!r} cannot be read ({error})") from error
        return values

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Table(Episodes):
    """Rows of an Arrow table with a column that numbers episodes, in order."""

    def __init__(
        self,
        path: Path,
        column: Callable[[str], Any],
        episode_column: str,
        columns: dict[str, str],
        *,
        skip_short: bool,
    ) -> None:
        """``column`` returns an Arrow array by name."""
        self._column = column
        self._loaded: dict[str, Any] = {}
        episodes = np.asarray(column(episode_column).to_numpy(zero_copy_only=False))
        starts = np.flatnonzero(np.r_[True, np.diff(episodes) != 0]) if len(episodes) else np.array([], int)
        if len(np.unique(episodes[starts])) != len(starts):
            raise DatasetError(f"{path}: the rows of an episode do not lie together ({episode_column})")
        self._starts = np.r_[starts, len(episodes)]
        super().__init__(path, np.diff(self._starts).tolist(), columns, skip_short=skip_short)

    def rows(self, episode: int, column: str) -> NDArray[Any]:
        """See `Episodes.rows`."""
        if column not in self._loaded:
            self._loaded[column] = self._column(column)
        first, last = int(self._starts[episode]), int(self._starts[episode + 1])
        part = self._loaded[column].slice(first, last - first)
        return _from_arrow(part, f"{self.path}: column {column!r}")


class StableWorldModelLance(Table):
    """stable-worldmodel's Lance table (0.1.1): pictures are JPEG blobs, everything else lists of float32."""

    def __init__(
        self,
        path: Path,
        *,
        observation: str = "pixels",
        action: str = "action",
        others: Sequence[str] = (),
        skip_short: bool = False,
    ) -> None:
        """See `StableWorldModelHdf5`."""
        lance = needed("lance", "pylance", "a Lance table")
        try:
            table = lance.dataset(str(path))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: no Lance table, or damaged ({error})") from error
        columns = _columns(observation, action, others)
        _check_columns(path, (*columns.values(), "episode_idx"), table.schema.names)
        self.metadata = {"format": "stable-worldmodel Lance"}
        super().__init__(
            path, lambda name: table.to_table(columns=[name])[name].combine_chunks(), "episode_idx", columns,
            skip_short=skip_short,
        )  # fmt: skip


class LeRobot(Table):
    """LeRobot's parquet files (v2 and v3): ``meta/info.json`` and ``data/``. Pictures stored as video are not read."""

    def __init__(
        self,
        path: Path,
        *,
        observation: str = "observation.state",
        action: str = "action",
        others: Sequence[str] = (),
        skip_short: bool = False,
    ) -> None:
        """See `StableWorldModelHdf5`. Raises `DatasetError` where rows are not 1 / fps apart."""
        parquet = needed("pyarrow.parquet", "pyarrow", "a LeRobot data set")
        try:
            info = json.loads((path / "meta" / "info.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: no LeRobot data set: meta/info.json cannot be read ({error})") from error
        files = sorted(path.glob("data/**/*.parquet"))
        if not files:
            raise DatasetError(f"{path}: no parquet files under data/")
        columns = _columns(observation, action, others)
        described = info.get("features", {})
        for name in columns.values():
            if described.get(name, {}).get("dtype") == "video":
                raise DatasetError(
                    f"{path}: {name!r} is stored as video, which is not read; convert it to images first"
                )
        table = parquet.read_table(files, columns=None)
        _check_columns(path, (*columns.values(), "episode_index"), table.column_names)
        self.metadata = {"format": f"LeRobot {info.get('codebase_version', '')}".strip()}
        super().__init__(
            path, lambda name: table[name].combine_chunks(), "episode_index", columns, skip_short=skip_short
        )
        fps = info.get("fps")
        if fps and "timestamp" in table.column_names:
            self._check_sampling(1.0 / float(fps))

    def _check_sampling(self, interval: float) -> None:
        for episode in range(len(self)):
            steps = np.diff(self.rows(self.kept[episode], "timestamp").astype(np.float64))
            bad = np.flatnonzero(np.abs(steps - interval) > 0.1 * interval)
            if len(bad):
                raise DatasetError(
                    f"{self.path}: episode {episode}: unequal sampling: row {bad[0] + 1} comes {steps[bad[0]]:.4g} s "
                    f"after the one before it, expected {interval:.4g} s"
                )


class Minari(Episodes):
    """A local data set of Minari (0.5)."""

    def __init__(self, name: str, *, observation: str | None = None, skip_short: bool = False) -> None:
        """``observation``: which entry, where observations are dictionaries. Raises `DatasetError` if there is none."""
        minari = needed("minari", "minari", "a Minari data set")
        try:
            self._data = minari.load_dataset(name)
        except (FileNotFoundError, ValueError) as error:
            raise DatasetError(f"{name}: no local Minari data set ({error})") from error
        self._entry = observation
        self._cache: tuple[int, Any] | None = None
        self.metadata = {"format": "Minari", "name": name}
        self._indices = [int(i) for i in self._data.episode_indices]
        counts = [len(episode) + 1 for episode in self._data.iterate_episodes(self._indices)]
        columns = {"observation": "observations", "action": "actions", "reward": "rewards"}
        super().__init__(Path(name), counts, columns, skip_short=skip_short)

    def rows(self, episode: int, column: str) -> NDArray[Any]:
        """See `Episodes.rows`."""
        if self._cache is None or self._cache[0] != episode:
            (loaded,) = self._data.iterate_episodes([self._indices[episode]])
            self._cache = (episode, loaded)
        values = getattr(self._cache[1], column)
        if isinstance(values, dict):
            if self._entry not in values:
                raise DatasetError(
                    f"{self.path}: {column} are dictionaries: say which entry with observation= "
                    f"(there are: {', '.join(values)})"
                )
            values = values[self._entry]
        if isinstance(values, tuple):
            raise DatasetError(f"{self.path}: {column} are tuples, which are not read")
        return np.asarray(values)


def open_episodes(where: str | os.PathLike[str], **options: Any) -> EpisodeSource:
    """Episodes of whatever format lies there: see the module. ``options`` go to the reader.

    Raises `DatasetError` for what is none, `MissingPackageError` where a reader's library is not installed, and
    FileNotFoundError.
    """
    if isinstance(where, str) and where.startswith("minari:"):
        return Minari(where.removeprefix("minari:"), **options)
    path = Path(where)
    if not path.exists():
        raise FileNotFoundError(f"no data set at {path}")
    if path.is_dir():
        if (path / "meta" / "info.json").is_file():
            return LeRobot(path, **options)
        if path.suffix == ".lance" or (path / "_versions").is_dir():
            return StableWorldModelLance(path, **options)
        raise DatasetError(f"{path}: neither a LeRobot data set (meta/info.json) nor a Lance table")
    try:
        with h5py.File(path, "r") as file:
            own, theirs = file.attrs.get("format") == FORMAT, "ep_len" in file and "ep_offset" in file
    except OSError:
        own, theirs = True, False  # the reader says what is wrong
    if theirs and not own:
        return StableWorldModelHdf5(path, **options)
    return EpisodeReader(path)


def in_blocks(
    source: EpisodeSource,
    path: str | os.PathLike[str],
    *,
    action_block: int = 1,
    hold: bool = False,
    fields: Sequence[str] = (),
    history: int = 1,
    least: int = 1,
    metadata: dict[str, str | int | float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write episodes in pyjepa's own format: an observation every ``action_block`` steps and the actions between them.

    An action of the new data set is the block's actions one after the other, (action_block * A,), or with ``hold``
    their mean, (A,): as a predictor reads them without and with `pyjepa.spec.Level.hold`. ``history`` pictures
    (C, H, W) are stacked to one (history * C, H, W), the newest last; an episode's first stands for those before it.
    ``fields`` are kept too, ``position`` made of the first of them, which training's probe reads. Steps at the end that
    fill no block are left out; so are episodes of fewer than ``least`` blocks. Raises `DatasetError` where that is all
    of them.
    """
    steps = source.lengths // action_block
    steps[steps < max(least, 1)] = 0
    if not (steps > 0).any():
        raise DatasetError(f"{source.path}: no episode has {max(least, 1)} blocks of {action_block} steps")
    kinds = source.fields
    discrete = kinds["action"][1].startswith("int")
    if action_block > 1 and discrete:
        raise DatasetError(f"{source.path}: discrete actions come one at a time: action_block must be 1")
    shape, dtype = kinds["observation"]
    if history > 1 and len(shape) != 3:
        raise DatasetError(f"{source.path}: history is for pictures (C, H, W), observations have shape {shape}")
    width = int(np.prod(kinds["action"][0], dtype=int))
    layout: dict[str, tuple[tuple[int, ...], str]] = {
        "observation": ((shape[0] * history, *shape[1:]) if history > 1 else shape, dtype),
        "action": ((width if hold else action_block * width,), "int64" if discrete else "float32"),
        **{name: kinds[name] for name in fields},
    }
    extra = {name: source.extra[name] for name in fields}
    if fields:
        first = fields[0]
        layout["position"], extra["position"] = ((int(np.prod(kinds[first][0], dtype=int)),), "float32"), 1
    about = {"action_block": action_block, "history": history, **(metadata or {})}
    with EpisodeWriter(path, layout, steps=int(steps.max()), metadata=about, extra=extra) as writer:
        for episode in np.flatnonzero(steps > 0):
            count = int(steps[episode])
            rows = action_block * np.arange(count + 1)
            seen = source.read(int(episode), "observation")
            stacked = [seen[np.maximum(rows - k, 0)] for k in range(history - 1, -1, -1)]
            acted = source.read(int(episode), "action")[: count * action_block].reshape(count, action_block, width)
            joined = acted.mean(axis=1) if hold else acted.reshape(count, -1)
            values = {
                "observation": (np.concatenate(stacked, axis=1) if history > 1 else stacked[0])[None],
                "action": joined[None],
            }
            for name in fields:
                kept = source.read(int(episode), name)
                values[name] = (kept[rows] if source.extra[name] else kept[rows[:-1]])[None]
            if fields:
                values["position"] = (
                    source.read(int(episode), fields[0])[rows].reshape(1, count + 1, -1).astype(np.float32)
                )
            writer.append(values)
            if progress is not None:
                progress(1)


def _check_columns(path: Path, wanted: Any, present: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DatasetError(f"{path}: no column {missing[0]!r} (there are: {', '.join(sorted(present))})")


def _from_arrow(values: Any, where: str) -> NDArray[Any]:
    """Numbers (rows, ...) or pictures uint8 (rows, H, W, C) of an Arrow array."""
    arrow = needed("pyarrow", "pyarrow", where)
    kind, types = values.type, arrow.types
    if values.null_count:
        raise DatasetError(f"{where}: {values.null_count} rows are empty")
    if types.is_struct(kind) and "bytes" in [kind.field(i).name for i in range(kind.num_fields)]:
        return _pictures(values.field("bytes").to_pylist(), where)
    if types.is_binary(kind) or types.is_large_binary(kind):
        return _pictures(values.to_pylist(), where)
    if types.is_fixed_size_list(kind) or types.is_list(kind):
        rows = values.to_pylist()
        try:
            return np.asarray(rows, np.float32)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{where}: rows of different length, or no numbers ({error})") from error
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "iufb":
        raise DatasetError(f"{where}: {kind} is not a number")
    return array


def _pictures(blobs: Sequence[bytes | None], where: str) -> NDArray[np.uint8]:
    images = needed("PIL.Image", "pillow", "pictures in a table")
    pictures = []
    for row, blob in enumerate(blobs):
        try:
            pictures.append(np.asarray(images.open(io.BytesIO(blob or b"")).convert("RGB")))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{where}: row {row} is no picture ({error})") from error
    return np.stack(pictures)
