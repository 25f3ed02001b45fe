"""Data sets of noise, and the files that a data set's authors would offer it in."""

import gzip
import io
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.data import loading, tfds_builders
from experiments.data.dataset import Dataset

SHAPES = {
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "smallnorb": (96, 96, 2),
    "cifar10": (32, 32, 3),
}
CIFAR_NAMES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FACTORS = {"instance": 10, "elevation": 9, "azimuth": 18, "lighting": 6}


def noise(name: str, num_train: int = 10, num_test: int = 3) -> Dataset:
    """A data set of this name's image size, labels and factors.

    `class_names` is empty: most files do not hold them.
    """
    random = np.random.default_rng(0)

    def integers(high: int, *shape: int) -> np.ndarray:
        return random.integers(0, high, shape).astype(np.int32)

    factors = FACTORS if name == "smallnorb" else {}
    parts = {
        split: (
            integers(256, size, *SHAPES[name]).astype(np.uint8),
            integers(5, size),
            {f: integers(factors[f], size) for f in factors},
        )
        for split, size in (("train", num_train), ("test", num_test))
    }
    return Dataset(
        name, (), *parts["train"][:2], *parts["test"][:2], parts["train"][2], parts["test"][2]
    )


def write(dataset: Dataset, folder: Path) -> dict[str, Path]:
    """Write a data set in the format of its name, and return the file of each URL."""
    folder.mkdir(parents=True, exist_ok=True)
    if dataset.name == "cifar10":
        # It asks for nothing but the name.
        contents = tfds_builders.Cifar10._cifar_info.fget(dataset)
        path = folder / Path(contents.url).name
        batches = {"test": contents.test_files, "train": contents.train_files}
        members = {
            contents.prefix + contents.label_files[0]: "\n".join(CIFAR_NAMES).encode() + b"\n\n"
        }
        for split, files in batches.items():
            labels, images = (
                np.array_split(getattr(dataset, f"{split}_{kind}"), len(files))
                for kind in ("labels", "images")
            )
            members |= {
                contents.prefix + file: cifar_records(*batch)
                for file, *batch in zip(files, labels, images, strict=True)
            }
        write_tar(path, members)
        return {contents.url: path}
    if dataset.name == "smallnorb":
        urls = tfds_builders.NORB_FILES
        arrays = {split: norb_arrays(dataset, split) for split in urls}
        write_array = write_norb
    else:
        url = loading.BUILDERS[dataset.name].URL
        urls = {
            split: [url + file for file in files]
            for split, files in tfds_builders.IDX_FILES.items()
        }
        arrays = {
            split: (
                getattr(dataset, f"{split}_images")[..., 0],
                getattr(dataset, f"{split}_labels").astype(np.uint8),
            )
            for split in urls
        }
        write_array = write_idx
    paths = {url: folder / Path(url).name for split in urls for url in urls[split]}
    for split in urls:
        for url, array in zip(urls[split], arrays[split], strict=True):
            write_array(paths[url], array)
    return paths


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def write_norb(path: Path, array: np.ndarray) -> None:
    magic = {np.dtype(np.uint8): 0x1E3D4C55, np.dtype(np.int32): 0x1E3D4C54}[array.dtype]
    sizes = (*array.shape, 1, 1, 1)[: max(3, array.ndim)]
    header = struct.pack(f"<{2 + len(sizes)}I", magic, array.ndim, *sizes)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def norb_arrays(dataset: Dataset, split: str) -> Sequence[np.ndarray]:
    """Pairs `[N, 2, 96, 96]`, categories `[N]`, and `[N, 4]`: instance, elevation, azimuth
    (doubled), lighting.
    """
    factors = getattr(dataset, f"{split}_factors")
    info = np.stack([factors[name] * (2 if name == "azimuth" else 1) for name in FACTORS], axis=1)
    return (
        np.moveaxis(getattr(dataset, f"{split}_images"), -1, 1),
        getattr(dataset, f"{split}_labels"),
        info,
    )


def cifar_records(labels: np.ndarray, images: np.ndarray) -> bytes:
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels[:, np.newaxis].astype(np.uint8), pixels], axis=1).tobytes()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
