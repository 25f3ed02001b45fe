"""Preparing and loading data: the builders on tiny files in the original formats, real data where
it is at hand.
"""

import gzip
import os
import threading
import urllib.error
from pathlib import Path

import chex
import numpy as np
import original_files
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from experiments.data import loading, tfds_builders
from experiments.data.dataset import (
    AFFNIST,
    DATASETS,
    DRAWINGS,
    Dataset,
    divided,
    hold_out,
    hold_out_instances,
    with_values,
)
from experiments.runtime import locks
from experiments.runtime.errors import RunnerError, UsageError

SMALLNORB12 = Path(__file__).parents[4] / "shared" / "data" / "smallnorb12.npz"


@pytest.fixture(autouse=True)
def caches_stay_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_network(monkeypatch):
    def urlopen(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)


def test_every_name_has_its_builder():
    assert set(DATASETS) == {*loading.BUILDERS, AFFNIST, DRAWINGS}


def put_by_hand(dataset, root, monkeypatch):
    """Write the original files of a data set into its manual folder, register their checksums, and
    return their paths.
    """
    files = original_files.write(dataset, root / "downloads" / "manual" / dataset.name)
    url_infos = {url: checksums.compute_url_info(path) for url, path in files.items()}
    monkeypatch.setattr(loading.BUILDERS[dataset.name], "url_infos", url_infos)
    return list(files.values())


@pytest.fixture(params=original_files.SHAPES)
def tiny(request, tmp_path, monkeypatch):
    """Tiny files of a data set in its manual folder, with their checksums registered: what they
    hold.
    """
    dataset = original_files.noise(request.param)
    put_by_hand(dataset, tmp_path / "data", monkeypatch)
    return dataset


def by_content(dataset, split):
    """Examples in an order that does not depend on how they were shuffled on disk."""
    factors = getattr(dataset, f"{split}_factors")
    columns = [getattr(dataset, f"{split}_labels"), *(factors[name] for name in sorted(factors))]
    rows = np.stack(columns, axis=1).tolist()
    return sorted(
        zip((image.tobytes() for image in getattr(dataset, f"{split}_images")), rows, strict=True)
    )


def assert_same_examples(one, other):
    assert one.train_factors.keys() == one.test_factors.keys() == other.train_factors.keys()
    for split in ("train", "test"):
        assert by_content(one, split) == by_content(other, split)


def test_files_put_there_by_hand_are_prepared_without_a_network(tiny, tmp_path, no_network):
    data = loading.load(tiny.name, tmp_path / "data")
    assert data.name == tiny.name
    assert (
        data.train_images.shape == (10, *original_files.SHAPES[tiny.name])
        and data.train_images.dtype == np.uint8
    )
    assert data.test_labels.shape == (3,) and data.test_labels.dtype == np.int32
    assert all(
        values.shape == (10,) and values.dtype == np.int32 for values in data.train_factors.values()
    )
    assert_same_examples(data, tiny)
    stock = tfds.builder(tiny.name, data_dir=tmp_path / "data")
    assert stock.is_prepared() and stock.info.splits["train"].num_examples == 10


@pytest.mark.parametrize(
    "name, number, first", [("smallnorb", 5, "four-legged animals"), ("cifar10", 10, "plane")]
)
def test_classes_have_names_also_the_second_time(name, number, first, tmp_path, monkeypatch):
    put_by_hand(original_files.noise(name), tmp_path, monkeypatch)
    for _ in range(2):
        names = loading.load(name, tmp_path).class_names
        assert len(names) == number and names[0] == first


def test_the_second_time_loads_the_cache(tiny, tmp_path, monkeypatch):
    first = loading.load(tiny.name, tmp_path / "data")
    monkeypatch.setattr(loading, "read_split", lambda *args: pytest.fail("decoded again"))
    second = loading.load(tiny.name, tmp_path / "data")
    chex.assert_trees_all_equal(first[2:], second[2:])
    assert first[:2] == second[:2]


@pytest.mark.parametrize(
    "harm",
    [
        "changed data",
        "changed layout",
        "broken cache",
        "truncated cache",
        "flipped bit",
        "no cache folder",
    ],
)
def test_a_cache_that_does_not_serve_is_not_used(tiny, harm, tmp_path, monkeypatch):
    first = loading.load(tiny.name, tmp_path / "data")
    if harm == "changed data":
        os.utime(next((tmp_path / "data" / tiny.name).rglob("*.array_record*")), (0, 0))
    elif harm == "broken cache":
        next((tmp_path / "cache").rglob("*.arrays")).write_bytes(b"PK, no arrays")
    elif harm == "truncated cache":
        path = next((tmp_path / "cache").rglob("*.arrays"))
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "flipped bit":
        path = next((tmp_path / "cache").rglob("*.arrays"))
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    elif harm == "changed layout":
        builder = loading.BUILDERS[tiny.name]
        features = {**builder.factor_features, "again": builder.label_feature}
        monkeypatch.setattr(builder, "factor_features", features)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    calls = []
    monkeypatch.setattr(
        loading,
        "read_split",
        lambda *args, read=loading.read_split: calls.append(args) or read(*args),
    )
    second = loading.load(tiny.name, tmp_path / "data")
    assert len(calls) == 2
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_without_data_and_network_one_message_says_what_to_do(tmp_path, no_network):
    with pytest.raises(RunnerError) as error:
        loading.load("fashion_mnist", tmp_path)
    message = str(error.value)
    assert message.startswith(
        f"fashion_mnist is not in {tmp_path}, and preparing it there failed: urlopen error no "
        "network\n"
    )
    for word in (
        "--data-dir",
        "TFDS_DATA_DIR",
        "29 MiB",
        str(tmp_path / "downloads" / "manual" / "fashion_mnist"),
    ):
        assert word in message
    for file in sum(tfds_builders.IDX_FILES.values(), ()):
        assert f"amazonaws.com/{file}" in message


def test_the_message_for_smallnorb_names_its_stand_in(tmp_path, no_network):
    with pytest.raises(RunnerError) as error:
        loading.load("smallnorb", tmp_path)
    message = str(error.value)
    for words in (
        "251 MiB",
        str(tmp_path / "downloads" / "manual" / "smallnorb"),
        "--dataset toynorb",
        "testing-info.mat.gz",
    ):
        assert words in message


@pytest.mark.parametrize("harm", ["other content", "truncated", "renamed"])
def test_a_wrong_file_is_refused_and_leaves_nothing_behind(tiny, harm, tmp_path, no_network):
    root = tmp_path / "data"
    path = sorted((root / "downloads" / "manual" / tiny.name).iterdir())[-1]
    good = path.read_bytes()
    if harm == "renamed":
        path.rename(path.with_suffix(".old"))
    else:
        path.write_bytes(good[:-9] if harm == "truncated" else gzip.compress(b"something else"))
    with pytest.raises(
        RunnerError, match="no network" if harm == "renamed" else "wrong checksum"
    ) as error:
        loading.load(tiny.name, root)
    assert path.name in str(error.value)
    assert not [file for file in root.rglob("*") if file.is_file() and "manual" not in file.parts]
    path.write_bytes(good)
    assert_same_examples(loading.load(tiny.name, root), tiny)


def test_a_failure_half_way_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    encode, calls = tfds_builders.encode_png, []

    def fail_the_third_time(image):
        calls.append(image)
        if len(calls) == 3:
            raise RuntimeError("crash")
        return encode(image)

    with monkeypatch.context() as patch:
        patch.setattr(tfds_builders, "encode_png", fail_the_third_time)
        with pytest.raises(RuntimeError, match="crash"):
            loading.load(tiny.name, tmp_path / "data")
    assert len(loading.load(tiny.name, tmp_path / "data").train_labels) == 10


@pytest.mark.parametrize("locks_there", [True, False])
def test_two_processes_may_prepare_the_same_data(locks_there, tmp_path, monkeypatch, capsys):
    if not locks_there:
        monkeypatch.setattr(locks, "fcntl", None)
    put_by_hand(original_files.noise("mnist"), tmp_path, monkeypatch)
    builder, found, said = loading.BUILDERS["mnist"], [], []

    def meanwhile_another_loads_it(self, dl_manager, split=builder._split_generators):
        monkeypatch.setattr(builder, "_split_generators", split)
        other.start()
        while other.is_alive() and "waiting for another process" not in "".join(said):
            said.append(capsys.readouterr().err)
            other.join(0.01)
        return split(self, dl_manager)

    other = threading.Thread(target=lambda: found.append(loading.load("mnist", tmp_path)))
    monkeypatch.setattr(builder, "_split_generators", meanwhile_another_loads_it)
    found.append(loading.load("mnist", tmp_path))
    other.join()
    assert [data.class_names for data in found] == [tuple("0123456789")] * 2
    assert_same_examples(*found)
    assert ("waiting" in "".join(said)) == locks_there


def test_damaged_data_is_named(tiny, tmp_path):
    loading.load(tiny.name, tmp_path / "data")
    next((tmp_path / "data" / tiny.name).rglob("*test.array_record*")).write_bytes(b"")
    with pytest.raises(RunnerError, match=rf"{tiny.name}/\d\.0\.\d is damaged .*delete it"):
        loading.load(tiny.name, tmp_path / "data")


def test_data_in_another_format_is_named(tiny, tmp_path):
    loading.load(tiny.name, tmp_path / "data")
    (info,) = (tmp_path / "data" / tiny.name).glob("*/dataset_info.json")
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(RunnerError, match="as tfrecord, which only TensorFlow reads"):
        loading.load(tiny.name, tmp_path / "data")


@pytest.mark.parametrize("content", [b"\0\0\x0d\1\0\0\0\1\0\0\0\0", b"\0\0\x08\1\0\0\0\5abcd"])
def test_a_file_that_is_not_idx_is_refused(content, tmp_path):
    (tmp_path / "file.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"file\.gz"):
        tfds_builders.read_idx(tmp_path / "file.gz")


@pytest.mark.parametrize(
    "content", [b"\x54\x4c\x3d\x1f" + 16 * b"\1", b"\x54\x4c\x3d\x1e" + b"\1\0\0\0" * 4 + 8 * b"\0"]
)
def test_a_file_that_is_not_norb_is_refused(content, tmp_path):
    (tmp_path / "file.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"file\.gz"):
        tfds_builders.read_norb(tmp_path / "file.gz")


@pytest.mark.parametrize("content", ["no archive", "another member"])
def test_an_archive_without_the_files_is_refused(content, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    if content == "another member":
        original_files.write_tar(tmp_path / "a.tar.gz", {content: b""})
    with pytest.raises(ValueError, match=r"a\.tar\.gz"):
        tfds_builders.read_members(tmp_path / "a.tar.gz", ["a member"])


def test_real_stereo_pairs_go_through_their_own_format_and_tfds(tmp_path, monkeypatch, no_network):
    if not SMALLNORB12.exists():
        pytest.skip(f"there is no {SMALLNORB12}")
    with np.load(SMALLNORB12) as file:
        images, labels, split = (
            np.moveaxis(file["image"], 1, -1),
            file["category"].astype(np.int32),
            file["split"],
        )
        instance, elevation, azimuth, lighting = file[
            "instance_elevation_azimuth_lighting"
        ].T.astype(np.int32)
    factors = {
        "instance": instance,
        "elevation": elevation,
        "azimuth": azimuth // 2,
        "lighting": lighting,
    }
    everything = Dataset("smallnorb", (), images, labels, images[:0], labels[:0], factors)
    real = divided(everything, split == "train", split == "test")
    put_by_hand(real, tmp_path, monkeypatch)
    assert_same_examples(loading.load("smallnorb", tmp_path), real)

    stock = list(tfds.data_source("smallnorb", split="test", data_dir=tmp_path, download=False))
    parts = {
        "test_images": np.stack(
            [np.concatenate([example["image"], example["image2"]], axis=-1) for example in stock]
        ),
        "test_labels": np.array([example["label_category"] for example in stock]),
        "test_factors": {
            name: np.array(
                [
                    example["instance" if name == "instance" else f"label_{name}"]
                    for example in stock
                ]
            )
            for name in factors
        },
    }
    assert by_content(real._replace(**parts), "test") == by_content(real, "test")


def numbered(labels):
    """A data set with these training labels, whose images, and factor `number`, are
    their places.
    """
    number = np.arange(len(labels), dtype=np.int32)
    images = np.broadcast_to(number[:, None, None, None].astype(np.uint8), (len(labels), 2, 2, 1))
    labels, factors = np.array(labels, np.int32), {"number": number}
    return Dataset(
        "some",
        tuple("abc"),
        images,
        labels,
        images[:0],
        labels[:0],
        factors,
        {"number": number[:0]},
    )


def test_held_out_images_are_of_all_classes_also_in_a_sorted_file():
    data = numbered([0] * 100 + [1] * 50 + [2] * 50)
    held_out = hold_out(data, 40)
    assert np.bincount(held_out.test_labels).tolist() == [20, 10, 10]
    assert np.bincount(held_out.train_labels).tolist() == [80, 40, 40]
    there = held_out.test_factors["number"]
    np.testing.assert_array_equal(held_out.test_images[:, 0, 0, 0], there)
    np.testing.assert_array_equal(held_out.test_labels, data.train_labels[there])
    np.testing.assert_array_equal(
        held_out.train_factors["number"], np.delete(np.arange(200), there)
    )
    assert hold_out(data, 40).test_factors["number"].tolist() == there.tolist()
    assert hold_out(data, 0) is data


def test_a_class_keeps_its_last_image():
    data = numbered([0] * 5 + [1] + [2] * 3)
    held_out = hold_out(data, 6)
    assert sorted(held_out.train_labels) == [0, 1, 2] and np.bincount(
        held_out.test_labels
    ).tolist() == [4, 0, 2]
    with pytest.raises(
        UsageError, match="must leave an image of each class to train on: it is at most 6; got 7"
    ):
        hold_out(data, 7)


def test_held_out_instances_come_from_the_training_set():
    data = original_files.noise("smallnorb", num_train=30)
    instances = data.train_factors["instance"]
    held_out = hold_out_instances(data, [6, 8])
    chosen = (instances == 6) | (instances == 8)
    assert chosen.any()
    np.testing.assert_array_equal(held_out.test_images, data.train_images[chosen])
    np.testing.assert_array_equal(
        held_out.test_factors["azimuth"], data.train_factors["azimuth"][chosen]
    )
    np.testing.assert_array_equal(held_out.train_labels, data.train_labels[~chosen])
    assert not {6, 8} & {*held_out.train_factors["instance"].tolist()}


@pytest.mark.parametrize(
    "name, instances, message",
    [
        ("mnist", [1], "no factor `instance`"),
        ("smallnorb", [], r"got \[\]"),
        ("smallnorb", [1, 10], r"got \[1, 10\]"),
        ("smallnorb", range(10), "some, but not all"),
    ],
)
def test_instances_that_cannot_be_held_out_are_refused(name, instances, message):
    with pytest.raises(RunnerError, match=message):
        hold_out_instances(original_files.noise(name, num_train=100), instances)


def test_views_of_both_splits_are_chosen_by_a_factor():
    data = original_files.noise("smallnorb", num_train=100, num_test=100)
    some = with_values(data, "elevation", [0, 3])
    trained, tested = (
        np.isin(factors["elevation"], [0, 3]) for factors in (data.train_factors, data.test_factors)
    )
    np.testing.assert_array_equal(some.train_images, data.train_images[trained])
    np.testing.assert_array_equal(
        some.train_factors["azimuth"], data.train_factors["azimuth"][trained]
    )
    np.testing.assert_array_equal(some.test_labels, data.test_labels[tested])
    np.testing.assert_array_equal(
        some.test_factors["elevation"], data.test_factors["elevation"][tested]
    )
    assert 0 < len(some.test_labels) < len(data.test_labels)


@pytest.mark.slow
def test_real_mnist():
    if not Path(tfds_builders.Mnist().data_path).exists():
        pytest.skip("MNIST is not prepared in TFDS_DATA_DIR (or ~/tensorflow_datasets)")
    data = loading.load("mnist")
    assert data.train_images.shape == (60000, 28, 28, 1) and data.test_images.shape == (
        10000,
        28,
        28,
        1,
    )
    assert np.bincount(data.train_labels).tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert np.bincount(data.test_labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert data.train_images.mean() == pytest.approx(33.318, abs=1e-3)
