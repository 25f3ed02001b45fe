"""Files that are written as a whole or not at all."""

import numpy as np
import pytest

from experiments.runtime.records import save_arrays


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
