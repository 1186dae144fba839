"""One suite over every format of episodes: what a reader gives is what was written, and what is wrong is named."""

import io
import json
import warnings

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from pyjepa.adapters import episodes as E  # noqa: E402
from pyjepa.training.dataset import DatasetError, EpisodeReader, EpisodeWriter  # noqa: E402

ROWS = (6, 4, 9)


def content(seed=0, rows=ROWS):
    """Episodes of rows: pictures or vectors, actions (the last one of an episode leads nowhere)."""
    rng = np.random.default_rng(seed)
    return [
        {
            "pixels": rng.integers(0, 255, (n, 8, 8, 3), dtype=np.uint8),
            "state": rng.standard_normal((n, 4)).astype(np.float32),
            "action": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        }
        for n in rows
    ]


def own(folder, data):
    path = folder / "own.h5"
    longest = max(len(e["action"]) for e in data) - 1
    with EpisodeWriter(path, {"observation": ((4,), "float32"), "action": ((2,), "float32")}, steps=longest) as writer:
        for e in data:
            writer.append({"observation": e["state"][None], "action": e["action"][None, :-1]})
    return path, {}


def swm_hdf5(folder, data):
    path = folder / "swm.h5"
    lengths = [len(e["action"]) for e in data]
    with h5py.File(path, "w") as file:
        file["ep_len"] = np.array(lengths)
        file["ep_offset"] = np.cumsum([0, *lengths[:-1]])
        for name in ("pixels", "state", "action"):
            file[name] = np.concatenate([e[name] for e in data])
    return path, {"observation": "state"}


def swm_lance(folder, data):
    lance = pytest.importorskip("lance")
    pyarrow = pytest.importorskip("pyarrow")
    path = folder / "swm.lance"
    lance.write_dataset(_table(pyarrow, data, "episode_idx", fixed=True), str(path))
    return path, {"observation": "state"}


def lerobot(folder, data, *, fps=10, features=None, stretch=None):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = folder / "lerobot"
    (path / "meta").mkdir(parents=True)
    (path / "meta" / "info.json").write_text(
        json.dumps({"codebase_version": "v2.1", "fps": fps, "features": features or {}})
    )
    (path / "data" / "chunk-000").mkdir(parents=True)
    table = _table(pyarrow, data, "episode_index", fixed=False).rename_columns(
        ["episode_index", "observation.state", "action", "observation.image"]
    )
    times = np.concatenate([np.arange(len(e["action"])) / 10 for e in data])
    if stretch is not None:
        times[stretch:] += 0.05
    table = table.append_column("timestamp", pyarrow.array(times))
    parquet.write_table(table, path / "data" / "chunk-000" / "file-000.parquet")
    return path, {}


def minari(folder, data):
    module = pytest.importorskip("minari")
    gymnasium = pytest.importorskip("gymnasium")
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for i, e in enumerate(data):
        steps = len(e["action"]) - 1
        buffers.append(
            EpisodeBuffer(
                id=i, observations=list(e["state"]), actions=list(e["action"][:-1]), rewards=[0.0] * steps,
                terminations=[False] * steps, truncations=[False] * (steps - 1) + [True],
            )
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like to know more about its author
        module.create_dataset_from_buffers(
            "test/world-v0", buffers, observation_space=gymnasium.spaces.Box(-9, 9, (4,), np.float32),
            action_space=gymnasium.spaces.Box(-1, 1, (2,), np.float32),
        )  # fmt: skip
    return "minari:test/world-v0", {}


def _table(pyarrow, data, index, *, fixed):
    from PIL import Image

    def encoded(picture):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        return buffer.getvalue()

    def lists(name, width):
        kind = pyarrow.list_(pyarrow.float32(), width) if fixed else pyarrow.list_(pyarrow.float32())
        return pyarrow.array(np.concatenate([e[name] for e in data]).tolist(), kind)

    blobs = [encoded(picture) for e in data for picture in e["pixels"]]
    pictures = pyarrow.array(blobs if fixed else [{"bytes": b, "path": ""} for b in blobs])
    numbers = np.concatenate([np.full(len(e["action"]), i) for i, e in enumerate(data)])
    names = [index, "state", "action", "pixels"]
    return pyarrow.table([pyarrow.array(numbers), lists("state", 4), lists("action", 2), pictures], names=names)


FORMATS = [own, swm_hdf5, swm_lance, lerobot, minari]


@pytest.fixture(autouse=True)
def _local(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


@pytest.fixture(params=FORMATS, ids=lambda f: f.__name__)
def made(request, tmp_path):
    pytest.importorskip("PIL")
    data = content()
    where, options = request.param(tmp_path, data)
    source = E.open_episodes(where, **options)
    yield source, data
    source.close()


def test_episodes_are_read_as_they_were_written(made):
    source, data = made
    assert len(source) == 3
    assert source.lengths.tolist() == [n - 1 for n in ROWS]
    assert source.fields["observation"] == ((4,), "float32")
    assert source.fields["action"] == ((2,), "float32")
    for i, e in enumerate(data):
        assert np.array_equal(source.read(i, "observation"), e["state"])
        assert np.allclose(source.read(i, "action"), e["action"][:-1])


def test_windows_fingerprints_and_bounds(made):
    source, data = made
    window = source.window(2, 3, 4, ("observation", "action"))
    assert np.array_equal(window["observation"], data[2]["state"][3:8])
    assert np.allclose(window["action"], data[2]["action"][3:7])
    assert len(source.fingerprint()) == 8
    with pytest.raises(ValueError, match="steps 3 to 9 are outside of its 8"):
        source.window(2, 3, 6, ("observation",))
    with pytest.raises(IndexError, match="no episode 3"):
        source.read(3, "action")
    with pytest.raises(KeyError, match="no field 'smell'"):
        source.read(0, "smell")


def test_any_source_becomes_our_own(made, tmp_path):
    source, data = made
    E.in_blocks(source, tmp_path / "blocks.h5", action_block=2, hold=True, fields=("observation",))
    with EpisodeReader(tmp_path / "blocks.h5") as blocks:
        assert blocks.lengths.tolist() == [2, 1, 4]
        assert blocks.metadata["action_block"] == 2
        assert np.array_equal(blocks.read(2, "observation"), data[2]["state"][::2])
        expected = data[2]["action"][:8].reshape(4, 2, 2).mean(axis=1)
        assert np.allclose(blocks.read(2, "action"), expected, atol=1e-6)
        assert np.array_equal(blocks.read(0, "position"), data[0]["state"][:5:2])
    E.in_blocks(source, tmp_path / "joined.h5", action_block=3, least=2)
    with EpisodeReader(tmp_path / "joined.h5") as joined:
        assert joined.lengths.tolist() == [2]
        assert np.allclose(joined.read(0, "action"), data[2]["action"][:6].reshape(2, 6))
    with pytest.raises(DatasetError, match="no episode has 1 blocks of 40 steps"):
        E.in_blocks(source, tmp_path / "none.h5", action_block=40)


@pytest.mark.parametrize(
    ("make", "column"), [(swm_hdf5, "pixels"), (swm_lance, "pixels"), (lerobot, "observation.image")]
)
def test_pictures_come_channels_first(make, column, tmp_path):
    pytest.importorskip("PIL")
    data = content()
    where, _ = make(tmp_path, data)
    source = E.open_episodes(where, observation=column)
    assert source.fields["observation"] == ((3, 8, 8), "uint8")
    assert np.array_equal(source.read(1, "observation"), np.moveaxis(data[1]["pixels"], -1, 1))
    E.in_blocks(source, tmp_path / "stacked.h5", history=2)
    with EpisodeReader(tmp_path / "stacked.h5") as stacked:
        seen, pictures = stacked.read(1, "observation"), np.moveaxis(data[1]["pixels"], -1, 1)
        assert np.array_equal(seen[0], np.concatenate([pictures[0], pictures[0]]))
        assert np.array_equal(seen[3], np.concatenate([pictures[2], pictures[3]]))
    source.close()


@pytest.mark.parametrize("make", [swm_hdf5, swm_lance, lerobot])
def test_numbers_that_are_none_are_named(make, tmp_path):
    pytest.importorskip("PIL")
    data = content()
    data[1]["state"][2, 1] = np.nan
    where, options = make(tmp_path, data)
    source = E.open_episodes(where, **options)
    source.read(0, "observation")
    with pytest.raises(DatasetError, match=r"episode 1, field 'observation': row 2 is not a finite number \(1 such"):
        source.read(1, "observation")
    source.close()


@pytest.mark.parametrize("make", [swm_hdf5, swm_lance, lerobot])
def test_an_episode_of_one_row_is_named_or_left_out(make, tmp_path):
    pytest.importorskip("PIL")
    data = content(rows=(3, 1, 4))
    where, options = make(tmp_path, data)
    with pytest.raises(DatasetError, match=r"episode 1 has 1 row\(s\), a step takes two"):
        E.open_episodes(where, **options)
    source = E.open_episodes(where, skip_short=True, **options)
    assert source.lengths.tolist() == [2, 3]
    assert source.kept == [0, 2]
    assert np.array_equal(source.read(1, "observation"), data[2]["state"])
    source.close()


def test_the_last_action_of_a_recording_may_be_missing(tmp_path):
    data = content()
    for e in data:
        e["action"][-1] = np.nan
    where, options = swm_hdf5(tmp_path, data)
    with E.open_episodes(where, **options) as source:
        assert np.isfinite(source.read(0, "action")).all()


def test_unequal_sampling_is_named(tmp_path):
    pytest.importorskip("PIL")
    where, _ = lerobot(tmp_path, content(), stretch=8)
    with pytest.raises(DatasetError, match=r"episode 1: unequal sampling: row 2 comes 0.15 s after"):
        E.open_episodes(where)


def test_video_and_missing_columns_are_named(tmp_path):
    pytest.importorskip("PIL")
    where, _ = lerobot(tmp_path, content(), features={"observation.image": {"dtype": "video"}})
    with pytest.raises(DatasetError, match=r"'observation\.image' is stored as video"):
        E.open_episodes(where, observation="observation.image")
    with pytest.raises(DatasetError, match="no column 'sound'"):
        E.open_episodes(where, observation="sound")
    other, _ = swm_hdf5(tmp_path, content())
    with pytest.raises(DatasetError, match=r"no column 'sound' \(there are: action, pixels, state\)"):
        E.open_episodes(other, observation="sound")


def test_what_is_no_data_set_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set at"):
        E.open_episodes(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatasetError, match="neither a LeRobot data set"):
        E.open_episodes(tmp_path / "folder")
    (tmp_path / "file").write_bytes(b"something")
    with pytest.raises(DatasetError, match="not an HDF5 file"):
        E.open_episodes(tmp_path / "file")


@pytest.mark.parametrize(
    ("make", "module", "install"), [(lerobot, "pyarrow", "pyarrow"), (swm_lance, "lance", "pylance")]
)
def test_a_missing_library_says_what_to_install(make, module, install, tmp_path, monkeypatch):
    import importlib

    from pyjepa.errors import MissingPackageError

    pytest.importorskip("PIL")
    where, options = make(tmp_path, content())
    real = importlib.import_module

    def without(name, package=None):
        if name.split(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr("pyjepa.adapters.importlib.import_module", without)
    with pytest.raises(MissingPackageError, match=rf"needs {install}: pip install {install} .*pyjepa-engine\[envs\]"):
        E.open_episodes(where, **options)
