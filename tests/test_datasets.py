"""Preparing and loading data: the builders on tiny files in the original format, real MNIST where it is at hand."""

import gzip
import os
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from experiments import builders, datasets
from experiments.errors import RunnerError

SIZES = {"train": 7, "test": 3}


@pytest.fixture(autouse=True)
def caches_stay_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_network(monkeypatch):
    def urlopen(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


@pytest.fixture(params=["mnist", "fashion_mnist"])
def tiny(request, tmp_path, monkeypatch):
    """Tiny files of a data set in its manual folder, with their checksums registered: its name and arrays."""
    builder = builders.BUILDERS[request.param]
    random, arrays, url_infos = np.random.default_rng(0), {}, {}
    for split, files in builders.IDX_FILES.items():
        arrays[f"{split}_images"] = random.integers(0, 256, (SIZES[split], 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 10, SIZES[split], dtype=np.uint8)
        for file, kind in zip(files, ("images", "labels"), strict=True):
            path = tmp_path / "data" / "downloads" / "manual" / request.param / file
            write_idx(path, arrays[f"{split}_{kind}"])
            url_infos[builder.URL + file] = checksums.compute_url_info(path)
    monkeypatch.setattr(builder, "url_infos", url_infos)
    return request.param, arrays


def by_content(images, labels):
    """Examples in an order that does not depend on how they were shuffled on disk."""
    return sorted(zip((image.tobytes() for image in images), labels.tolist(), strict=True))


def test_files_put_there_by_hand_are_prepared_without_a_network(tiny, tmp_path, no_network):
    name, arrays = tiny
    data = datasets.load(name, tmp_path / "data")
    assert data.name == name and len(data.class_names) == 10
    assert data.train_images.shape == (7, 28, 28, 1) and data.train_images.dtype == np.uint8
    assert data.test_labels.shape == (3,) and data.test_labels.dtype == np.int32
    for split in ("train", "test"):
        loaded = by_content(getattr(data, f"{split}_images"), getattr(data, f"{split}_labels"))
        assert loaded == by_content(arrays[f"{split}_images"], arrays[f"{split}_labels"])
    stock = tfds.builder(name, data_dir=tmp_path / "data")
    assert stock.is_prepared() and stock.info.splits["train"].num_examples == 7


def test_the_second_time_loads_the_cache(tiny, tmp_path, monkeypatch):
    name, _ = tiny
    first = datasets.load(name, tmp_path / "data")
    monkeypatch.setattr(datasets, "read_split", lambda *args: pytest.fail("decoded again"))
    second = datasets.load(name, tmp_path / "data")
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("harm", ["changed data", "broken cache", "no cache folder"])
def test_a_cache_that_does_not_serve_is_not_used(tiny, harm, tmp_path, monkeypatch):
    name, _ = tiny
    first = datasets.load(name, tmp_path / "data")
    if harm == "changed data":
        os.utime(next((tmp_path / "data" / name).rglob("*.array_record*")), (0, 0))
    elif harm == "broken cache":
        next((tmp_path / "cache").rglob("*.npz")).write_bytes(b"PK, but no zip file")
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    calls = []
    monkeypatch.setattr(
        datasets,
        "read_split",
        lambda *args, read=datasets.read_split: calls.append(args) or read(*args),
    )
    second = datasets.load(name, tmp_path / "data")
    assert len(calls) == 2
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_without_data_and_network_one_message_says_what_to_do(tmp_path, no_network):
    with pytest.raises(RunnerError) as error:
        datasets.load("fashion_mnist", tmp_path)
    message = str(error.value)
    assert message.startswith(f"fashion_mnist is not in {tmp_path}, and preparing it there failed: urlopen error no network\n")
    for word in (
        "--data-dir",
        "TFDS_DATA_DIR",
        "29 MiB",
        str(tmp_path / "downloads" / "manual" / "fashion_mnist"),
    ):
        assert word in message
    for file in sum(builders.IDX_FILES.values(), ()):
        assert f"amazonaws.com/{file}" in message


def test_a_wrong_file_is_refused_and_leaves_nothing_behind(tiny, tmp_path):
    name, arrays = tiny
    path = tmp_path / "data" / "downloads" / "manual" / name / builders.IDX_FILES["test"][1]
    good = path.read_bytes()
    write_idx(path, 9 - arrays["test_labels"])
    with pytest.raises(RunnerError, match="wrong checksum"):
        datasets.load(name, tmp_path / "data")
    path.write_bytes(good)
    assert len(datasets.load(name, tmp_path / "data").test_labels) == 3


def test_a_failure_half_way_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    name, _ = tiny
    encode, calls = builders.encode_png, []

    def fail_the_third_time(image):
        calls.append(image)
        if len(calls) == 3:
            raise RuntimeError("crash")
        return encode(image)

    with monkeypatch.context() as patch:
        patch.setattr(builders, "encode_png", fail_the_third_time)
        with pytest.raises(RuntimeError, match="crash"):
            datasets.load(name, tmp_path / "data")
    assert len(datasets.load(name, tmp_path / "data").train_labels) == 7


def test_damaged_data_is_named(tiny, tmp_path):
    name, _ = tiny
    builders.BUILDERS[name](data_dir=tmp_path / "data")
    datasets.load(name, tmp_path / "data")
    next((tmp_path / "data" / name).rglob("*test.array_record*")).write_bytes(b"")
    with pytest.raises(RunnerError, match=f"{name}/3.0.1 is damaged .*delete it"):
        datasets.load(name, tmp_path / "data")


def test_data_in_another_format_is_named(tiny, tmp_path):
    name, _ = tiny
    datasets.load(name, tmp_path / "data")
    info = tmp_path / "data" / name / "3.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(RunnerError, match="as tfrecord, which only TensorFlow reads"):
        datasets.load(name, tmp_path / "data")


@pytest.mark.parametrize("content", [b"\0\0\x0d\1\0\0\0\1\0\0\0\0", b"\0\0\x08\1\0\0\0\5abcd"])
def test_a_file_that_is_not_idx_is_refused(content, tmp_path):
    (tmp_path / "file.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"file\.gz"):
        builders.read_idx(tmp_path / "file.gz")


def test_real_mnist():
    if not Path(builders.Mnist().data_path).exists():
        pytest.skip("MNIST is not prepared in TFDS_DATA_DIR (or ~/tensorflow_datasets)")
    data = datasets.load("mnist")
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
