"""TFDS builders that prepare data without TensorFlow.

TFDS reads prepared data without TensorFlow, but its own builders need it to unpack downloads and to encode images. These
subclasses read the original files themselves. Everything else is the stock builder's: name, version, features, the registered
checksums of the files; the stock `tfds.data_source` reads what they write.
"""

import gzip
import io
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorflow_datasets.image_classification import mnist

IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class Mnist(mnist.MNIST, skip_registration=True):
    """MNIST from the four files of http://yann.lecun.com/exdb/mnist."""

    name = "mnist"
    pkg_dir_path = mnist.MNIST.pkg_dir_path
    url_infos = mnist.MNIST.url_infos

    def _split_generators(self, dl_manager: Any) -> Any:
        urls = {split: [self.URL + file for file in files] for split, files in IDX_FILES.items()}
        return {split: self._generate_examples(*paths) for split, paths in dl_manager.download(urls).items()}

    def _generate_examples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Path, labels: Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(read_idx(images), read_idx(labels), strict=True)):
            yield index, {"image": encode_png(image), "label": int(label)}


class FashionMnist(Mnist, skip_registration=True):
    """Fashion-MNIST: the same four file names from another address."""

    name = "fashion_mnist"
    pkg_dir_path = mnist.FashionMNIST.pkg_dir_path
    url_infos = mnist.FashionMNIST.url_infos
    URL = mnist.FashionMNIST.URL
    _info = mnist.FashionMNIST._info


BUILDERS = {"mnist": Mnist, "fashion_mnist": FashionMnist}


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped IDX file: a magic number (0, 0, type, rank), the sizes, big-endian, and the data."""
    with gzip.open(path) as file:
        zeros, dtype, rank = struct.unpack(">HBB", file.read(4))
        if zeros != 0 or dtype != 0x08:
            raise ValueError(f"{path} is not an IDX file of unsigned bytes")
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        data = np.frombuffer(file.read(), np.uint8)
    if data.size != math.prod(shape):
        raise ValueError(f"{path} holds {data.size} bytes of data where its header says {list(shape)}")
    return data.reshape(shape)


def encode_png(image: np.ndarray) -> bytes:
    """A grey image `[H, W]`, uint8, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
