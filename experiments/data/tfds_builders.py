"""TFDS builders that prepare data without TensorFlow.

TFDS reads prepared data without TensorFlow, but its own builders need it to unpack downloads and to
encode images. These subclasses read the original files themselves. Everything else is the stock
builder's: name, version, features, the registered checksums of the files; the stock
`tfds.data_source` reads what they write.
"""

import contextlib
import gzip
import io
import math
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from tensorflow_datasets.datasets.smallnorb import smallnorb_dataset_builder as smallnorb
from tensorflow_datasets.image_classification import cifar, mnist

from experiments.data.bounded_reading import check_end, read_exactly, read_tar
from experiments.runtime.errors import first_line

IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
NORB_FILES = {
    split: tuple(
        f"https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/smallnorb-{stem}-{kind}.mat.gz"
        for kind in ("dat", "cat", "info")
    )
    for split, stem in (
        ("train", "5x46789x9x18x6x2x96x96-training"),
        ("test", "5x01235x9x18x6x2x96x96-testing"),
    )
}
NORB_TYPES = {0x1E3D4C55: "u1", 0x1E3D4C54: "<i4"}
NORB_RANK = 8  # more axes than any of its files has


class Layout:
    """Which features of a TFDS example become what of `Dataset`.

    Attributes:
        image_features: images of one shape; their channels, one after the other, are those of the
            data set's images.
        label_feature: the label.
        factor_features: the feature of each factor.
        stand_in: what to do where the data cannot be had, in a line for the user; may be empty.
    """

    image_features: tuple[str, ...] = ("image",)
    label_feature = "label"
    factor_features: Mapping[str, str] = MappingProxyType({})
    stand_in = ""


class Mnist(Layout, mnist.MNIST, skip_registration=True):
    """MNIST from the four files of http://yann.lecun.com/exdb/mnist, which are downloaded from the
    mirror that TFDS knows.
    """

    name = "mnist"
    pkg_dir_path = mnist.MNIST.pkg_dir_path
    url_infos = mnist.MNIST.url_infos

    def _split_generators(self, dl_manager: Any) -> Any:
        urls = {split: [self.URL + file for file in files] for split, files in IDX_FILES.items()}
        return {
            split: self._generate_examples(*paths)
            for split, paths in dl_manager.download(urls).items()
        }

    def _generate_examples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Path, labels: Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(
            zip(read_idx(images), read_idx(labels), strict=True)
        ):
            yield index, {"image": encode_png(image), "label": int(label)}


class FashionMnist(Mnist, skip_registration=True):
    """Fashion-MNIST: the same four file names from another address."""

    name = "fashion_mnist"
    pkg_dir_path = mnist.FashionMNIST.pkg_dir_path
    url_infos = mnist.FashionMNIST.url_infos
    URL = mnist.FashionMNIST.URL
    _info = mnist.FashionMNIST._info


class NorbLayout(Layout):
    """That of smallNORB: the two images of a stereo pair become two channels."""

    image_features = ("image", "image2")
    label_feature = "label_category"
    factor_features = MappingProxyType(
        {"instance": "instance"}
        | {factor: f"label_{factor}" for factor in ("elevation", "azimuth", "lighting")}
    )


class Smallnorb(NorbLayout, smallnorb.Builder, skip_registration=True):
    """SmallNORB from its six files."""

    name = "smallnorb"
    pkg_dir_path = smallnorb.Builder.pkg_dir_path
    url_infos = smallnorb.Builder.url_infos
    stand_in = "--dataset toynorb is a stand-in of the same structure, which needs no download."

    def _split_generators(self, dl_manager: Any) -> Any:
        return {
            split: self._generate_examples(*paths)
            for split, paths in dl_manager.download(NORB_FILES).items()
        }

    def _generate_examples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Path, categories: Path, factors: Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        examples = zip(
            read_norb(images), read_norb(categories), read_norb(factors).tolist(), strict=True
        )
        for index, ((left, right), category, (instance, elevation, azimuth, lighting)) in enumerate(
            examples
        ):
            yield (
                index,
                {
                    "image": encode_png(left),
                    "image2": encode_png(right),
                    "label_category": int(category),
                    "instance": instance,
                    "label_elevation": elevation,
                    "label_azimuth": azimuth // 2,  # the file has 0, 2, 4 .. 34
                    "label_lighting": lighting,
                },
            )


class Cifar10(Layout, cifar.Cifar10, skip_registration=True):
    """CIFAR-10 from its archive for C programs."""

    name = "cifar10"
    pkg_dir_path = cifar.Cifar10.pkg_dir_path
    url_infos = cifar.Cifar10.url_infos

    def _split_generators(self, dl_manager: Any) -> Any:
        contents = self._cifar_info
        archive = dl_manager.download(contents.url)
        (names,) = read_members(archive, [contents.prefix + file for file in contents.label_files])
        features: Any = self.info.features
        features["label"].names = names.decode().split()
        splits = {"train": contents.train_files, "test": contents.test_files}
        return {
            split: self._generate_examples(
                split, archive, [contents.prefix + file for file in files]
            )
            for split, files in splits.items()
        }

    def _generate_examples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, split: str, archive: Path, files: Sequence[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        records = np.frombuffer(b"".join(read_members(archive, files)), np.uint8).reshape(
            -1, 1 + 3 * 32 * 32
        )
        for index, record in enumerate(records):
            image = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield (
                index,
                {"id": f"{split}_{index:05d}", "image": encode_png(image), "label": int(record[0])},
            )


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped IDX file: a magic number (0, 0, type, rank), the sizes,
    big-endian, and the data.
    """
    with damage_named(path), gzip.open(path) as file:
        zeros, dtype, rank = struct.unpack(">HBB", file.read(4))
        if zeros != 0 or dtype != 0x08:
            raise ValueError("it is not an IDX file of unsigned bytes")
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        contents = read_exactly(file, math.prod(shape))
        check_end(file)
    return np.frombuffer(contents, np.uint8).reshape(shape)


def read_norb(path: Path) -> np.ndarray:
    """The uint8 or int32 array in a gzipped NORB matrix: a magic number, the rank, 3 or more sizes,
    and the data; little-endian.
    """
    with damage_named(path), gzip.open(path) as file:
        magic, rank = struct.unpack("<2I", file.read(8))
        if magic not in NORB_TYPES or rank > NORB_RANK:
            raise ValueError("it is not a NORB matrix of bytes or integers")
        sizes = max(3, rank)
        shape = struct.unpack(f"<{sizes}I", file.read(4 * sizes))[:rank]
        dtype = np.dtype(NORB_TYPES[magic])
        contents = read_exactly(file, math.prod(shape) * dtype.itemsize)
        check_end(file)
    return np.frombuffer(contents, dtype).reshape(shape)


def read_members(archive: Path, names: Sequence[str]) -> list[bytes]:
    """The contents of plain files in a gzipped tar archive.

    Raises ValueError if it is none, or lacks one.
    """
    with damage_named(archive):
        return read_tar(archive, names)


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Whatever may be wrong with the contents of a file is a ValueError that names it."""
    try:
        yield
    except (
        ValueError,
        EOFError,
        KeyError,
        struct.error,
        zlib.error,
        gzip.BadGzipFile,
        tarfile.TarError,
    ) as error:
        raise ValueError(f"{path}: {first_line(error)}") from error


def encode_png(image: np.ndarray) -> bytes:
    """An image, gray `[H, W]` or color `[H, W, 3]`, uint8, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
