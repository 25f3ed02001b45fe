"""Data sets in .npz files: what they become, how they are split, what is refused, and a run on one
from end to end.
"""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments import evaluate, figures, train
from experiments.data import loading
from experiments.runtime.errors import RunnerError

ETH80 = Path(__file__).parents[4] / "shared" / "data" / "eth80-64.npz"
SIZE = 24


def example_arrays():
    """Three classes of 8 color images of 4 objects, two of each."""
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (SIZE, 13, 13, 3), dtype=np.uint8),
        "label": np.repeat(np.arange(3, dtype=np.uint8), 8),
        "class_names": np.array(["red", "green", "blue"]),
        "instance": np.tile(np.arange(4, dtype=np.int8), 6),
        "azimuth": np.arange(SIZE, dtype=np.int64),
        "mask": np.ones((SIZE, 13, 13), np.uint8),
        "weight": np.ones(SIZE, np.float32),
    }


def saved(path, arrays):
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def test_arrays_become_a_data_set(tmp_path):
    arrays = example_arrays() | {"split": np.array(["train", "test", "train"] * 8)}
    data = loading.load(saved(tmp_path / "some.colors.npz", arrays))
    tested = arrays["split"] == "test"
    assert (data.name, data.class_names) == ("some.colors", ("red", "green", "blue"))
    np.testing.assert_array_equal(data.train_images, arrays["image"][~tested])
    np.testing.assert_array_equal(data.test_labels, arrays["label"][tested])
    assert (
        data.train_images.dtype == np.uint8
        and data.train_labels.dtype == data.test_labels.dtype == np.int32
    )
    assert data.train_factors.keys() == data.test_factors.keys() == {"instance", "azimuth"}
    np.testing.assert_array_equal(data.test_factors["azimuth"], arrays["azimuth"][tested])
    assert data.train_factors["azimuth"].dtype == np.int32


def test_what_is_optional_can_be_left_out(tmp_path):
    arrays = example_arrays()
    data = loading.load(
        saved(tmp_path / "a.npz", {"image": arrays["image"][..., 0], "label": arrays["label"]})
    )
    assert data.class_names == ("0", "1", "2") and data.train_factors == data.test_factors == {}
    assert data.train_images.shape[1:] == data.test_images.shape[1:] == (13, 13, 1)


def test_what_cannot_be_read_and_plays_no_part_is_passed_over(tmp_path):
    others = {
        "mask": np.array([None] * SIZE),
        "notes": np.array([["a", 1]], object),
        "table": np.zeros(2, [("大", int)]),
    }
    with pytest.warns(UserWarning, match="Stored array in format 3"):
        path = saved(tmp_path / "a.npz", example_arrays() | others)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "not for NumPy", compress_type=zipfile.ZIP_BZIP2)
    data = loading.load(path)
    assert len(data.train_labels) == 12 and data.train_factors.keys() == {"instance", "azimuth"}


def test_strings_may_be_bytes(tmp_path):
    arrays = example_arrays() | {
        "split": np.array([b"train", b"test"] * 12),
        "class_names": np.array([b"r", b"g", "blå".encode()]),
    }
    data = loading.load(saved(tmp_path / "a.npz", arrays))
    assert data.class_names == ("r", "g", "blå") and len(data.test_labels) == 12


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_without_a_split_a_fifth_of_each_class_is_tested(order, tmp_path):
    labels = np.repeat(np.arange(3), [12, 4, 8])
    if order == "shuffled":
        labels = np.random.default_rng(1).permutation(labels)
    arrays = example_arrays() | {"label": labels, "class_names": None, "instance": None}
    data = loading.load(saved(tmp_path / "a.npz", arrays))
    np.testing.assert_array_equal(np.bincount(data.test_labels, minlength=3), [2, 0, 1])
    tested = data.test_factors["azimuth"]
    np.testing.assert_array_equal(labels[tested], data.test_labels)
    np.testing.assert_array_equal(data.train_factors["azimuth"], np.delete(np.arange(SIZE), tested))
    assert loading.load(str(tmp_path / "a.npz")).test_factors["azimuth"].tolist() == tested.tolist()


def test_what_is_tested_does_not_follow_a_rhythm_of_the_file(tmp_path):
    """With five photographs of each object, in the same order, every fifth image would be from one
    viewpoint.
    """
    labels, viewpoints = np.repeat(np.arange(2), 50), np.tile(np.arange(5), 20)
    arrays = {"image": np.zeros((100, 5, 5), np.uint8), "label": labels, "azimuth": viewpoints}
    data = loading.load(saved(tmp_path / "a.npz", arrays))
    assert len(data.test_labels) == 20 and len(np.unique(data.test_factors["azimuth"])) == 5


def test_without_a_split_the_upper_half_of_each_class_s_instances_is_tested(tmp_path):
    instances = np.array([0, 1, 2, 3] * 2 + [7, 7, 7, 7, -1, -1, 5, 5] + [2] * 8)
    data = loading.load(saved(tmp_path / "a.npz", example_arrays() | {"instance": instances}))
    tested = {
        (int(label), int(number))
        for label, number in zip(data.test_labels, data.test_factors["instance"], strict=True)
    }
    assert tested == {(0, 2), (0, 3), (1, 7)}
    trained = {
        (int(label), int(number))
        for label, number in zip(data.train_labels, data.train_factors["instance"], strict=True)
    }
    assert trained == {(0, 0), (0, 1), (1, -1), (1, 5), (2, 2)}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image": None}, "there is no array `image`; the file has azimuth, class_names, "),
        ({"label": None}, "there is no array `label`"),
        (
            {"image": np.zeros((SIZE, 13, 13, 3))},
            r"image must be uint8 .* it is float64 \[24, 13, 13, 3\]",
        ),
        (
            {"image": np.zeros((SIZE, 13), np.uint8)},
            r"image must be uint8 .* it is uint8 \[24, 13\]",
        ),
        (
            {"image": np.zeros((0, 13, 13), np.uint8)},
            r"image must be uint8 .* it is uint8 \[0, 13, 13\]",
        ),
        ({"image": np.array([None] * SIZE)}, "image: an array holds Python objects"),
        (
            {"class_names": np.array(["red", "green", "blue"], object)},
            "class_names: an array holds Python objects",
        ),
        ({"instance": np.array([None] * SIZE)}, "instance: an array holds Python objects"),
        (
            {"image": np.zeros((SIZE, 3, 13, 12), np.uint8)},
            r"it is uint8 \[24, 3, 13, 12\]: do channels come first\?",
        ),
        (
            {"image": np.zeros((13, 12, 3, SIZE), np.uint8)},
            r"label must be integers \[13\].*: do images come last\?",
        ),
        ({"label": np.zeros(SIZE)}, r"label must be integers \[24\], .* float64 \[24\]"),
        ({"label": np.zeros(SIZE - 1, int)}, r"label must be integers \[24\], .* int64 \[23\]"),
        ({"label": np.zeros((SIZE, 1), int)}, r"label must be integers \[24\], .* int64 \[24, 1\]"),
        ({"label": np.arange(SIZE) - 1}, "label must not be negative; got -1"),
        ({"label": 2 * np.arange(SIZE)}, "the highest is 46, and no image has 1"),
        ({"label": np.arange(SIZE) + 1}, "the highest is 24, and no image has 0"),
        (
            {"class_names": np.array(["red", "green"])},
            r"class_names must be strings \[3\]; it is <U5 \[2\]",
        ),
        ({"class_names": np.arange(3)}, r"class_names must be strings \[3\]; it is int64 \[3\]"),
        ({"class_names": np.array([b"\xff", b"", b""])}, "can't decode byte 0xff"),
        (
            {"split": np.array(["train", "valid"] * 12)},
            "split must be train or test for each image; got 'valid'",
        ),
        ({"split": np.array(["train", "test"])}, r"split must be strings \[24\]; it is <U5 \[2\]"),
        (
            {"split": np.array(["train"] * SIZE)},
            "there is nothing to test; an array `split` says what is",
        ),
        ({"split": np.array(["test"] * SIZE)}, "there is nothing to train on; an array"),
        ({"instance": np.zeros(SIZE, int)}, "there is nothing to test"),
        ({"instance": np.zeros(SIZE)}, r"instance must be integers \[24\]; it is float64 \[24\]"),
        (
            {"azimuth": np.full(SIZE, 2**31)},
            "azimuth must fit into 32 bits; it goes from 2147483648 to 2147483648",
        ),
    ],
)
def test_a_file_with_wrong_arrays_is_refused(changes, message, tmp_path):
    path = saved(tmp_path / "wrong.npz", example_arrays() | changes)
    with pytest.raises(RunnerError, match=rf"wrong\.npz.*{message}"):
        loading.load(path)


def unreadable(harm):
    """The content of a file that is no whole .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **example_arrays())
    good = bytearray(buffer.getvalue())
    if harm == "truncated":
        return good[:-100]
    if harm == "changed inside":
        good[len(good) // 3] ^= 0xFF
        return good
    if harm == "one array":
        np.save(buffer := io.BytesIO(), example_arrays()["image"])
        return buffer.getvalue()
    if harm == "other files in the archive":
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            archive.writestr("image.txt", "no array")
        return buffer.getvalue()
    return harm.encode()


@pytest.mark.parametrize(
    "harm",
    ["", "no zip file", "truncated", "changed inside", "one array", "other files in the archive"],
)
def test_a_file_that_cannot_be_read_is_refused(harm, tmp_path):
    (tmp_path / "wrong.npz").write_bytes(unreadable(harm))
    message = (
        "there is no array `image`; the file has none"
        if "other" in harm
        else "cannot be read as an .npz file of plain arrays"
    )
    message += ": image: " if harm == "changed inside" else ""
    with pytest.raises(RunnerError, match=rf"wrong\.npz.*{message}"):
        loading.load(str(tmp_path / "wrong.npz"))


@pytest.mark.parametrize("place, byte", [(0, b"["), (1, b"\0"), (-2, b"(")])
def test_a_damaged_header_of_an_array_is_named(place, byte, tmp_path):
    np.save(buffer := io.BytesIO(), example_arrays()["image"])
    damaged = bytearray(buffer.getvalue())
    header = damaged.index(b"{"), damaged.index(b"}") + 1
    at = range(*header)[place]
    damaged[at : at + 1] = byte
    with zipfile.ZipFile(tmp_path / "wrong.npz", "w") as archive:
        archive.writestr("image.npy", bytes(damaged))
    with pytest.raises(RunnerError, match=r"wrong\.npz cannot be read .*: image: the header of an"):
        loading.load(str(tmp_path / "wrong.npz"))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(RunnerError, match=r"there is no file .*nosuch\.npz"):
        loading.load(str(tmp_path / "nosuch.npz"))
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(RunnerError, match=r"folder\.npz cannot be read"):
        loading.load(str(tmp_path / "folder.npz"))


def test_eth80():
    if not ETH80.exists():
        pytest.skip(f"there is no {ETH80}")
    data = loading.load(str(ETH80))
    assert data.class_names == ("apple", "car", "cow", "cup", "dog", "horse", "pear", "tomato")
    assert data.train_images.shape == data.test_images.shape == (1640, 64, 64, 3)
    assert data.train_factors.keys() == {"instance", "polar", "azimuth"}
    assert {*data.train_factors["instance"].tolist()} == {0, 1, 2, 3, 4}
    assert np.bincount(data.test_labels).tolist() == [205] * 8


@pytest.mark.slow
def test_color_images_from_a_file_are_trained_on_drawn_and_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "colors.npz", example_arrays())
    flags = (
        "--steps 2 --batch-size 4 --conv-channels 4 --primary-capsules 2 --conv-capsules 3 "
        "--num-iterations 1"
    ).split()
    assert train.main(["--dataset", path, *flags]) == 0
    run = tmp_path / "runs" / "colors"
    result = json.loads((run / "result.json").read_text())
    assert (result["dataset"], result["test_examples"]) == ("colors", 12)
    assert figures.main(["--workdir", str(run), "--images", "0"]) == 0
    drawn = {file.stem for file in (run / "figures").iterdir()}
    assert drawn == {"samples", "learning_curves", "misclassified", "convergence", "assignments"}
    assert evaluate.main(["--workdir", str(run)]) == 0
    assert "reproduced exactly" in capsys.readouterr().out
