"""Files that are written as a whole or not at all."""

import os

import numpy as np
import pytest

from experiments.runtime.records import save_arrays, write_atomically


def test_nothing_but_the_arrays_is_saved_whatever_the_version_of_numpy(tmp_path, monkeypatch):
    save, named = np.savez_compressed, []

    def of_numpy_2_0(file, *arrays, **by_name):  # where every keyword is an array
        named.extend(by_name)
        save(file, *arrays, **by_name)

    monkeypatch.setattr(np, "savez_compressed", of_numpy_2_0)
    save_arrays(tmp_path / "new" / "a.npz", {"numbers": np.arange(3)})
    assert named == ["numbers"]
    with pytest.raises(ValueError, match="arrays must not hold Python objects; things does"):
        save_arrays(tmp_path / "b.npz", {"numbers": np.arange(3), "things": np.array([{}])})
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append((os.listdir(tmp_path), fsync(file)))
    )
    write_atomically(tmp_path / "a.json", "{}")
    save_arrays(tmp_path / "a.npz", {"numbers": np.arange(3)})
    first, second = (names for names, _ in synced)
    assert first == ["a.json.tmp"] and sorted(second) == ["a.json", "a.npz.tmp"]
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.npz"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_stays_as_it_was(name, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(os, name, full)
    for write in (
        lambda: write_atomically(tmp_path / "a.json", "new"),
        lambda: save_arrays(tmp_path / "a.npz", {"numbers": np.arange(3)}),
    ):
        with pytest.raises(OSError, match="no space left"):
            write()
    assert os.listdir(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "old"
