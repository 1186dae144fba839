"""Episodes on disk: what is written is read, and damage is told by episode and field."""

import h5py
import numpy as np
import pytest

from pyjepa.envs import two_rooms
from pyjepa.errors import PyjepaError
from pyjepa.training.collection import collect_two_rooms
from pyjepa.training.dataset import DatasetError, EpisodeReader, EpisodeWriter, WindowSampler

FIELDS = {"observation": ((3,), "float32"), "action": ((2,), "float32"), "mood": ((), "int16")}


def episodes(count, steps, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.normal(size=(count, steps + 1, 3)).astype(np.float32),
        "action": rng.normal(size=(count, steps, 2)).astype(np.float32),
        "mood": rng.integers(-5, 5, (count, steps)).astype(np.int16),
    }


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "data.h5"
    data = episodes(20, 8)
    with EpisodeWriter(path, FIELDS, steps=10, metadata={"environment": "none", "seed": 3}) as writer:
        writer.append({name: values[:12] for name, values in data.items()})
        writer.append({name: values[12:] for name, values in data.items()})
    return path, data


def test_what_is_written_is_read(written):
    path, data = written
    with EpisodeReader(path) as reader:
        assert len(reader) == 20
        assert reader.metadata == {"environment": "none", "seed": 3}
        assert reader.fields == FIELDS
        assert set(reader.lengths) == {8}
        for name, values in data.items():
            for i in (0, 11, 12, 19):
                read = reader.read(i, name)
                assert read.dtype == values.dtype
                assert np.array_equal(read, values[i])
        window = reader.window(4, 2, 5, ("observation", "action"))
        assert np.array_equal(window["observation"], data["observation"][4, 2:8])
        assert np.array_equal(window["action"], data["action"][4, 2:7])
        reader.verify()


def test_episodes_may_differ_in_length(tmp_path):
    path = tmp_path / "data.h5"
    data = episodes(3, 6)
    with EpisodeWriter(path, FIELDS, steps=6) as writer:
        writer.append(data, np.array([6, 2, 4]))
    with EpisodeReader(path) as reader:
        assert np.array_equal(reader.read(1, "observation"), data["observation"][1, :3])
        assert np.array_equal(reader.read(2, "action"), data["action"][2, :4])
        with pytest.raises(ValueError, match="episode 1: steps 0 to 3 are outside of its 2"):
            reader.window(1, 0, 3, ("action",))
        sampler = WindowSampler(reader, steps=4, batch=2, seed=0)
        assert {episode for k in range(20) for episode, _ in sampler.places(k)} == {0, 2}


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path):
    path = tmp_path / "data.h5"
    with pytest.raises(KeyboardInterrupt), EpisodeWriter(path, FIELDS, steps=8) as writer:  # noqa: PT012
        writer.append(episodes(2, 8))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_shape_is_an_error(tmp_path):
    wrong = episodes(2, 8) | {"mood": np.zeros((2, 9), np.int16)}
    with (
        pytest.raises(ValueError, match=r"mood: expected shape \(2, 8\), got \(2, 9\)"),
        EpisodeWriter(tmp_path / "data.h5", FIELDS, steps=8) as writer,
    ):
        writer.append(wrong)
    with pytest.raises(ValueError, match="'action' is required"):
        EpisodeWriter(tmp_path / "data.h5", {"observation": ((3,), "float32")}, steps=8)


def test_changed_numbers_are_told_by_episode_and_field(written):
    path, _ = written
    with h5py.File(path, "r+") as file:
        file["fields/action"][7, 3, 1] += 1.0
    with EpisodeReader(path) as reader:
        reader.read(6, "action")
        reader.read(7, "observation")
        with pytest.raises(DatasetError, match=r"episode 7, field 'action': damaged"):
            reader.read(7, "action")
        with pytest.raises(PyjepaError, match=r"episode 7, field 'action'"):
            reader.verify()


def test_a_flipped_bit_on_disk_is_told_by_episode_and_field(written):
    path, _ = written
    with h5py.File(path) as file:
        chunk = file["fields/observation"].id.get_chunk_info(5)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 0x10
    path.write_bytes(content)
    with EpisodeReader(path) as reader:
        reader.read(4, "observation")
        with pytest.raises(DatasetError, match=r"episode 5, field 'observation'"):
            reader.read(5, "observation")


def test_missing_episodes_and_rows_are_told_by_episode_and_field(written):
    path, _ = written
    with h5py.File(path, "r+") as file:
        file["fields/mood"].resize(13, axis=0)
    with pytest.raises(DatasetError, match=r"episode 13, field 'mood': missing \(20 episodes announced\)"):
        EpisodeReader(path)
    with h5py.File(path, "r+") as file:
        file["fields/mood"].resize(20, axis=0)
        file["length"][3] = 11
    with pytest.raises(DatasetError, match=r"episode 3, field 'action': expected 11 rows, the file has 10"):
        EpisodeReader(path)


def test_a_missing_field_is_named(written):
    path, _ = written
    with h5py.File(path, "r+") as file:
        del file["fields/action"]
    with pytest.raises(DatasetError, match="fields/action is missing"):
        EpisodeReader(path)


def test_a_file_cut_short_is_told_by_the_first_lost_episode_and_field(written):
    path, _ = written
    with h5py.File(path) as file:
        chunks = {name: [file[f"fields/{name}"].id.get_chunk_info(i) for i in range(20)] for name in FIELDS}
    size = max(chunks[name][15].byte_offset + chunks[name][15].size for name in FIELDS)
    content = path.read_bytes()
    path.write_bytes(content[: size - 1])
    expected = min(
        (i, name) for name in FIELDS for i, c in enumerate(chunks[name]) if c.byte_offset + c.size > size - 1
    )
    with pytest.raises(DatasetError, match=f"cut short after .*; episode {expected[0]}, field '{expected[1]}'"):
        EpisodeReader(path)
    path.write_bytes(content[:600])
    with pytest.raises(DatasetError, match="cut short after 600 of"):
        EpisodeReader(path)


def test_a_file_of_another_kind_is_an_error(written, tmp_path):
    path, _ = written
    path.write_bytes(b"PNG")
    with pytest.raises(DatasetError, match="not an HDF5 file"):
        EpisodeReader(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(DatasetError, match="expected format 'pyjepa-episodes' version 1, got None"):
        EpisodeReader(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.h5"):
        EpisodeReader(tmp_path / "nowhere.h5")


def test_a_batch_depends_on_seed_and_number_alone(written):
    path, _ = written
    with EpisodeReader(path) as reader:
        sampler = WindowSampler(reader, steps=5, batch=6, seed=1)
        straight = [batch["action"] for batch in sampler.batches(0, 10)]
        resumed = [batch["action"] for batch in WindowSampler(reader, steps=5, batch=6, seed=1).batches(7, 10)]
        assert len(straight) == 10
        assert all(np.array_equal(a, b) for a, b in zip(straight[7:], resumed, strict=True))
        other = WindowSampler(reader, steps=5, batch=6, seed=2).batch(0)["action"]
        assert not np.array_equal(straight[0], other)
        assert list(sampler.batches(3, 3)) == []


def test_an_epoch_meets_every_chosen_episode_at_most_once_and_windows_move(written):
    path, _ = written
    with EpisodeReader(path) as reader:
        sampler = WindowSampler(reader, steps=5, batch=5, seed=1, episodes=range(2, 17))
        epoch = [place for k in range(3) for place in sampler.places(k)]
        assert sorted(episode for episode, _ in epoch) == list(range(2, 17))
        assert {first for k in range(12) for _, first in sampler.places(k)} == {0, 1, 2, 3}
        with pytest.raises(ValueError, match="20 episodes of 5 steps do not fill a batch of 21"):
            WindowSampler(reader, steps=5, batch=21, seed=0)


def test_a_damaged_episode_stops_training_with_its_name(written):
    path, _ = written
    with h5py.File(path, "r+") as file:
        file["fields/action"][7] += 1.0
    with EpisodeReader(path) as reader, pytest.raises(DatasetError, match="episode 7, field 'action'"):
        list(WindowSampler(reader, steps=8, batch=20, seed=0).batches(0, 1))


def test_collected_episodes_obey_the_world_and_its_training_doors(tmp_path):
    path = tmp_path / "data.h5"
    added = []
    collect_two_rooms(path, episodes=600, seed=4, steps=5, action_block=3, progress=added.append)
    assert added == [512, 88]
    with EpisodeReader(path) as reader:
        assert reader.metadata["action_block"] == 3
        assert reader.fields["observation"] == ((2, 64, 64), "uint8")
        doors = {int(reader.read(i, "door")[0]) for i in range(600)}
        assert doors == set(two_rooms.DOORS["train"])
        for i in (0, 511, 599):
            position, action = reader.read(i, "position").astype(float), reader.read(i, "action")
            door = reader.read(i, "door").astype(int)
            assert np.array_equal(two_rooms.render(position, door)[:, 1], reader.read(i, "observation")[:, 1])
            for t in range(5):
                at = position[t : t + 1]
                for _ in range(3):
                    at = two_rooms.move(at, action[t : t + 1], door[:1])
                assert np.allclose(at[0], position[t + 1], atol=1e-4)


def test_one_seed_collects_one_data_set(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        collect_two_rooms(tmp_path / name, episodes=4, seed=seed, steps=2)
    fingerprints = []
    for name in "abc":
        with EpisodeReader(tmp_path / name) as reader:
            fingerprints.append(reader.fingerprint())
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_damage_anywhere_is_a_dataset_error_or_harmless(tmp_path):
    """One byte changed, in the header as in the data: the reader names the file, and never fails any other way."""
    path = tmp_path / "data.h5"
    collect_two_rooms(path, episodes=4, steps=3, action_block=2, seed=0)
    sound, place = path.read_bytes(), np.random.default_rng(0)
    found = 0
    for at in place.integers(0, min(len(sound), 40_000), 120):
        damaged = bytearray(sound)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            with EpisodeReader(path) as reader:
                reader.verify()
        except DatasetError as error:
            found += "data.h5" in str(error)
    assert found > 5
