"""Data sets, whole and in memory, through `tfds.data_source` and without TensorFlow."""

import hashlib
import io
import os
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from experiments.builders import BUILDERS
from experiments.errors import RunnerError

DATASETS = tuple(BUILDERS)
Arrays = dict[str, np.ndarray]
Builder = Any  # of BUILDERS, whose attributes type checkers do not know


class Dataset(NamedTuple):
    """Labelled images in memory.

    Attributes:
        name: as in `DATASETS`.
        class_names: one for each label.
        train_images: uint8 `[N, height, width, channels]`.
        train_labels: int32 `[N]`.
        test_images: uint8, for another N.
        test_labels: int32.
    """

    name: str
    class_names: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a data set; prepare it first if `data_dir` does not hold it.

    Args:
        name: one of `DATASETS`.
        data_dir: the TFDS folder; None is TFDS's own, `TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
        RunnerError: the data is not there and cannot be had, or is damaged; the message says what to do.
    """
    builder = BUILDERS[name](data_dir=data_dir)
    if not Path(builder.data_path).exists():
        prepare(builder)
    if builder.is_prepared() and builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise RunnerError(
            f"{builder.data_path} holds {name} as {builder.info.file_format.value}, which only TensorFlow reads; "
            "give another --data-dir (or TFDS_DATA_DIR), and it will be prepared there as array_record"
        )
    try:
        arrays = cached(builder, lambda: read_split(builder, "train") | read_split(builder, "test"))
    except RuntimeError as error:
        message = f"{builder.data_path} is damaged ({first_line(error)}); delete it, and it will be prepared again"
        raise RunnerError(message) from error
    return Dataset(name, tuple(builder.info.features["label"].names), **arrays)


def hold_out(dataset: Dataset, number: int) -> Dataset:
    """The data set with its last `number` training images in place of the test set; 0 changes nothing.

    Raises:
        RunnerError: nothing would be left to train on.
    """
    if not number:
        return dataset
    if number >= len(dataset.train_labels):
        raise RunnerError(f"holdout must be less than the {len(dataset.train_labels)} training images; got {number}")
    return dataset._replace(
        train_images=dataset.train_images[:-number],
        train_labels=dataset.train_labels[:-number],
        test_images=dataset.train_images[-number:],
        test_labels=dataset.train_labels[-number:],
    )


def prepare(builder: Builder) -> None:
    """Download (or take from the manual folder), check and convert. TFDS renames the folder into place when it is complete."""
    root = data_root(builder)
    downloads = root / "downloads" / "manual"
    # Data sets share file names: a folder of one's own takes precedence over TFDS's common one.
    manual = downloads / builder.name if (downloads / builder.name).is_dir() else downloads
    try:
        missing = [url for url, info in builder.url_infos.items() if not (manual / info.filename).is_file()]
        if missing:  # without a network TFDS would try for minutes
            urllib.request.urlopen(missing[0], timeout=20).close()
        config = tfds.download.DownloadConfig(manual_dir=manual)
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except (OSError, ValueError, DownloadError, NonMatchingChecksumError) as error:
        size = sum(info.size for info in builder.url_infos.values()) / 2**20
        raise RunnerError(
            f"{builder.name} is not in {root}, and preparing it there failed: {first_line(error)}\n"
            f"Either give the TFDS folder that holds {builder.name}/{builder.version} by --data-dir or TFDS_DATA_DIR,\n"
            f"or download these files ({size:.0f} MiB in all) into {downloads / builder.name} and run the same command again:\n"
            + "\n".join(f"  {url}" for url in builder.url_infos)
        ) from error


def read_split(builder: Builder, split: str) -> Arrays:
    """All images and labels of a split, as the fields of `Dataset`."""
    source: Any = tfds.data_source(
        builder.name,
        split=split,
        data_dir=data_root(builder),
        download=False,
        decoders={"image": tfds.decode.SkipDecoding()},  # PIL alone is twice as fast as TFDS around PIL
    )
    examples = source.__getitems__(range(len(source)))
    images = np.stack([np.asarray(Image.open(io.BytesIO(example["image"]))) for example in examples])
    labels = np.array([example["label"] for example in examples], np.int32)
    return {f"{split}_images": images.reshape(len(images), *builder.info.features["image"].shape), f"{split}_labels": labels}


def data_root(builder: Builder) -> Path:
    """The TFDS folder that a builder works in; its data is in `<root>/<name>/<version>`."""
    return Path(builder.data_path).parents[1]


def first_line(error: Exception) -> str:
    """What an error says, without the details that follow."""
    return (str(error) or repr(error)).splitlines()[0].strip("<>:")


def cached(builder: Builder, read: Callable[[], Arrays]) -> Arrays:
    """What `read` returns, from `~/.cache/emcaps` if it has been read before: decoding takes seconds, loading does not.

    The name of the cached file tells apart data sets, versions, and files that have changed since.
    """
    files = sorted(Path(builder.data_path).iterdir())
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emcaps"
    path = folder / f"{builder.name}-{builder.version}-{digest}.npz"
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile):
        arrays = read()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            np.savez(Path(scratch, path.name), **arrays)  # pyright: ignore[reportArgumentType]
            os.replace(Path(scratch, path.name), path)
    except OSError:
        pass  # nowhere to write: the next run decodes again
    return arrays
