"""Data sets, whole and in memory: by name through `tfds.data_source`, without TensorFlow, or from
an .npz file.
"""

import io
import urllib.request
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from experiments.data.affnist import affine_digits, centered, placed
from experiments.data.dataset import AFFNIST, DRAWINGS, Dataset, divided
from experiments.data.decoded_cache import Arrays, cached
from experiments.data.line_drawings import OBJECTS, draw_split
from experiments.data.npz_files import SUFFIX, read_npz
from experiments.data.tfds_builders import Cifar10, FashionMnist, Mnist, Smallnorb
from experiments.data.toynorb_builders import ToyNorb, ToyNorb96, ToyNorbTuning
from experiments.runtime.errors import RunnerError, UsageError, first_line
from experiments.runtime.locks import one_at_a_time

BUILDERS = {
    builder.name: builder
    for builder in (Mnist, FashionMnist, Smallnorb, ToyNorb, ToyNorb96, ToyNorbTuning, Cifar10)
}
Builder = Any  # of BUILDERS, whose attributes type checkers do not know


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Load a data set; prepare it first if `data_dir` does not hold it.

    Args:
        name: one of `DATASETS`, or the path of an .npz file; see npz_files.py.
        data_dir: the TFDS folder; None is TFDS's own, `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
            It plays no part for a file.

    Raises:
        UsageError: there is no such file, or it holds no data set; or the folder holds the data in
            another format.
        RunnerError: the data cannot be had, or is damaged; the message says what to do.
    """
    if name.endswith(SUFFIX):
        return load_npz(Path(name))
    if name == AFFNIST:
        return transformed_digits(load("mnist", data_dir))
    if name == DRAWINGS:
        return Dataset(name, tuple(OBJECTS), *draw_split("train"), *draw_split("test"))
    return load_tfds(BUILDERS[name](data_dir=data_dir))


def transformed_digits(mnist: Dataset) -> Dataset:
    """Digits on 40x40: those to train on in the middle; each test digit once moved, and once more
    transformed as affNIST's are.

    The factor `affine` tells them apart: 0 for digits as they are, wherever they lie, and 1 for
    affNIST's. The same every time.
    """
    move_key, affine_key = jax.random.split(jax.random.key(0))
    tested = jnp.asarray(mnist.test_images)
    test_images = np.concatenate([placed(move_key, tested), affine_digits(affine_key, tested)])
    number = len(mnist.test_labels)
    return Dataset(
        AFFNIST,
        mnist.class_names,
        np.asarray(centered(jnp.asarray(mnist.train_images))),
        mnist.train_labels,
        test_images,
        np.tile(mnist.test_labels, 2),
        {"affine": np.zeros(len(mnist.train_labels), np.int32)},
        {"affine": np.repeat(np.array([0, 1], np.int32), number)},
    )


def load_npz(path: Path) -> Dataset:
    """The data set in an .npz file. Raises RunnerError as `read_npz` does."""
    images, labels, factors, class_names, tested = read_npz(path)
    everything = Dataset(path.stem, class_names, images, labels, images[:0], labels[:0], factors)
    return divided(everything, ~tested, tested)


def load_tfds(builder: Builder) -> Dataset:
    """The data set of a builder, prepared first if need be. Raises RunnerError as `load` does."""
    if not Path(builder.data_path).exists():
        prepare(builder)
        # One that was made before another process has prepared the data knows nothing of them.
        builder = type(builder)(data_dir=data_root(builder))
    if builder.is_prepared() and builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UsageError(
            f"{builder.data_path} holds {builder.name} as {builder.info.file_format.value}, which "
            "only TensorFlow reads; give another --data-dir (or TFDS_DATA_DIR), and it will be "
            "prepared there as array_record"
        )
    read = lambda: read_split(builder, "train") | read_split(builder, "test")  # noqa: E731
    try:
        arrays = cached(
            f"{builder.name}-{builder.version}",
            (
                builder.image_features,
                builder.label_feature,
                sorted(builder.factor_features.items()),
            ),
            Path(builder.data_path),
            read,
        )
    except (RuntimeError, ValueError) as error:
        message = (
            f"{builder.data_path} is damaged ({first_line(error)}); delete it, and it will be "
            "prepared again"
        )
        raise RunnerError(message) from error
    names = tuple(builder.info.features[builder.label_feature].names)
    factors = [
        {name: arrays.pop(f"{split}_{name}") for name in builder.factor_features}
        for split in ("train", "test")
    ]
    return Dataset(builder.name, names, **arrays, train_factors=factors[0], test_factors=factors[1])


def prepare(builder: Builder) -> None:
    """Download (or take from the manual folder), check and convert.

    TFDS renames the folder into place when it is complete. Another process that is at it is waited
    for.
    """
    root = data_root(builder)
    downloads = root / "downloads" / "manual"
    # Data sets share file names: a folder of one's own takes precedence over TFDS's common one.
    manual = downloads / builder.name if (downloads / builder.name).is_dir() else downloads
    try:
        missing = [
            url for url, info in builder.url_infos.items() if not (manual / info.filename).is_file()
        ]
        if missing:  # without a network TFDS would try for minutes
            urllib.request.urlopen(missing[0], timeout=20).close()
        config = tfds.download.DownloadConfig(manual_dir=manual)
        root.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another process, which prepares {builder.name} in {root}"
        with one_at_a_time(root / f".{builder.name}.lock", waiting):  # TFDS looks if it is there
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except (OSError, ValueError, DownloadError, NonMatchingChecksumError) as error:
        if Path(builder.data_path).exists():  # another process was faster, whom no lock kept away
            return
        failure = (
            f"{builder.name} is not in {root}, and preparing it there failed: {first_line(error)}"
        )
        if not builder.url_infos:  # made here, not fetched
            if isinstance(error, OSError):
                failure += "; --data-dir or TFDS_DATA_DIR names another folder"
            raise RunnerError(failure) from error
        size = sum(info.size for info in builder.url_infos.values()) / 2**20
        raise RunnerError(
            f"{failure}\n"
            f"Either give the TFDS folder that holds {builder.name}/{builder.version} by "
            "--data-dir or TFDS_DATA_DIR,\n"
            f"or download these files ({size:.0f} MiB in all) into {downloads / builder.name} and "
            "run the same command again:\n"
            + "\n".join(
                [*(f"  {url}" for url in builder.url_infos), *filter(None, [builder.stand_in])]
            )
        ) from error


def read_split(builder: Builder, split: str) -> Arrays:
    """All images, labels and factors of a split: `<split>_images`, `<split>_labels`, and by the
    name of each factor.
    """
    source: Any = tfds.data_source(
        builder.name,
        split=split,
        data_dir=data_root(builder),
        download=False,
        # PIL alone is twice as fast as TFDS around PIL
        decoders={feature: tfds.decode.SkipDecoding() for feature in builder.image_features},
    )
    examples = source.__getitems__(range(len(source)))
    height, width, channels = builder.info.features[builder.image_features[0]].shape
    images = np.empty(
        (len(examples), height, width, len(builder.image_features), channels), np.uint8
    )
    for image, example in zip(images, examples, strict=True):
        for place, feature in enumerate(builder.image_features):
            image[:, :, place] = decoded(example[feature], (height, width, channels))
    features = {"labels": builder.label_feature, **builder.factor_features}
    numbers = {
        name: np.array([example[feature] for example in examples], np.int32)
        for name, feature in features.items()
    }
    arrays = {"images": images.reshape(len(images), height, width, -1), **numbers}
    return {f"{split}_{name}": array for name, array in arrays.items()}


def decoded(picture: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of a PNG file, uint8 in that shape.

    Raises ValueError if it is damaged, or (undecoded) of another size.
    """
    height, width, channels = shape
    try:
        opened = Image.open(io.BytesIO(picture), formats=["PNG"])
        if opened.size != (width, height):
            raise ValueError(
                f"a picture has {opened.size[0]}x{opened.size[1]} pixels, not {width}x{height}"
            )
        return np.asarray(opened).reshape(height, width, channels)
    except (
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ValueError(f"a picture cannot be decoded: {first_line(error)}") from error


def data_root(builder: Builder) -> Path:
    """The TFDS folder that a builder works in; its data is in `<root>/<name>/<version>`."""
    return Path(builder.data_path).parents[1]
