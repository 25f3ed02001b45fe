"""Data sets in .npz files.

    image         uint8 [N, H, W, C], channels last, or [N, H, W] for one channel
    label         integers [N]: 0 to num_classes - 1, each of which occurs
    class_names   optional: strings [num_classes]
    split         optional: strings [N], "train" or "test"

Every further array of integers [N] is a factor (`instance`, `azimuth`, ...). Arrays of other types
or shapes, such as masks or Python objects (which are never read), are neither labels nor factors
and play no part.

Without `split`, what is tested depends on the file alone. Where there is a factor `instance`, which
tells apart the objects of a class, it is the upper half of each class's instances (of five, the
upper two): objects that are not trained on. Otherwise it is a fifth of the images of each class,
rounded down: always the same ones of that many labels, whatever order they are in.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import bounded_reading
from experiments.data.stratified import of_each_class
from experiments.runtime.errors import RunnerError, UsageError, first_line

SUFFIX = ".npz"
# What has a meaning of its own, and is not passed over.
NAMED = ("image", "label", "class_names", "split", "instance")
MOST_CHANNELS = 4  # of an image file; fewer rows than a kernel has, so that no image has so few
TESTED_FRACTION = 5  # one image of so many is tested
Arrays = dict[str, np.ndarray]


class NpzData(NamedTuple):
    """The N examples of a file.

    Attributes:
        images: uint8 `[N, H, W, C]`.
        labels: int32 `[N]`.
        factors: by name, each int32 `[N]`.
        class_names: one for each label.
        tested: bool `[N]`, of the test set.
    """

    images: np.ndarray
    labels: np.ndarray
    factors: Arrays
    class_names: tuple[str, ...]
    tested: np.ndarray


def read_npz(path: Path) -> NpzData:
    """Read and check a file.

    Raises:
        UsageError: it is not there, is not as this module says, or has nothing to train on or
            nothing to test.
        RunnerError: it cannot be read.
    """
    arrays = read_arrays(path)
    try:
        images, labels = checked_images(arrays), checked_labels(arrays)
        factors = {
            name: int32(name, array)
            for name, array in arrays.items()
            if name != "label" and is_integers(array, len(labels))
        }
        if "instance" in arrays and "instance" not in factors:
            raise ValueError(
                f"instance must be integers [{len(labels)}]; it is {described(arrays['instance'])}"
            )
        class_names = checked_class_names(arrays, labels)
        tested = (
            checked_split(arrays, len(labels))
            if "split" in arrays
            else default_split(labels, factors.get("instance"))
        )
        if tested.all() or not tested.any():
            missing = "test" if not tested.any() else "train on"
            raise ValueError(f"there is nothing to {missing}; an array `split` says what is")
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    return NpzData(images, labels, factors, class_names, tested)


def read_arrays(path: Path) -> Arrays:
    """All arrays of a file, by name.

    Raises:
        UsageError: there is no such file.
        RunnerError: an array cannot be read; or one of `NAMED` holds Python objects, which could
            run any code.
    """
    try:
        return bounded_reading.read_npz(path, NAMED)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}") from error
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise RunnerError(
            f"{path} cannot be read as an .npz file of plain arrays: {first_line(error)}"
        ) from error


def checked_images(arrays: Arrays) -> np.ndarray:
    """The images, uint8 `[N, H, W, C]`. Raises ValueError."""
    images = required(arrays, "image")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise ValueError(
            f"image must be uint8 [N, H, W, C] or [N, H, W]; it is {described(images)}"
        )
    if images.ndim == 4 and images.shape[1] <= MOST_CHANNELS < min(images.shape[2:]):
        raise ValueError(
            f"image must be uint8 [N, H, W, C]; it is {described(images)}: do channels come first? "
            "They must be last"
        )
    return images if images.ndim == 4 else images[..., np.newaxis]


def checked_labels(arrays: Arrays) -> np.ndarray:
    """The labels, int32 `[N]`. Raises ValueError."""
    labels, size = required(arrays, "label"), len(arrays["image"])
    if not is_integers(labels, size):
        last = " (the last axis of image is as long: do images come last? They must be first)"
        hint = last if labels.shape == arrays["image"].shape[-1:] else ""
        raise ValueError(
            f"label must be integers [{size}], one for each image; it is {described(labels)}{hint}"
        )
    there_are = np.unique(labels)
    if there_are[0] < 0:
        raise ValueError(f"label must not be negative; got {there_are[0]}")
    if there_are[-1] >= len(there_are):
        gap = np.flatnonzero(there_are != np.arange(len(there_are)))[0]
        raise ValueError(
            f"label must be all of 0 to num_classes - 1; the highest is {there_are[-1]}, and no "
            f"image has {gap}"
        )
    return labels.astype(np.int32)


def checked_class_names(arrays: Arrays, labels: np.ndarray) -> tuple[str, ...]:
    """The name of each class; without `class_names`, its number. Raises ValueError."""
    num_classes = int(labels.max()) + 1
    if "class_names" not in arrays:
        return tuple(map(str, range(num_classes)))
    return tuple(strings("class_names", arrays["class_names"], num_classes).tolist())


def checked_split(arrays: Arrays, size: int) -> np.ndarray:
    """Where `split` says `test`, bool `[size]`. Raises ValueError."""
    split = strings("split", arrays["split"], size)
    if unknown := sorted({*split.tolist()} - {"train", "test"}):
        raise ValueError(f"split must be train or test for each image; got {unknown[0]!r}")
    return split == "test"


def default_split(labels: np.ndarray, instances: np.ndarray | None) -> np.ndarray:
    """What is tested, bool `[N]`, where the file does not say: see above."""
    if instances is None:
        return of_each_class(labels, np.bincount(labels) // TESTED_FRACTION)
    tested = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (places,) = np.nonzero(labels == label)
        objects = np.unique(instances[places])
        tested[places] = np.isin(instances[places], objects[(len(objects) + 1) // 2 :])
    return tested


def required(arrays: Arrays, name: str) -> np.ndarray:
    """The array of this name. Raises ValueError if there is none."""
    if name not in arrays:
        raise ValueError(
            f"there is no array `{name}`; the file has {', '.join(sorted(arrays)) or 'none'}"
        )
    return arrays[name]


def strings(name: str, array: np.ndarray, size: int) -> np.ndarray:
    """The array as unicode `[size]`, from unicode or bytes. Raises ValueError."""
    if array.dtype.kind not in "US" or array.shape != (size,):
        raise ValueError(f"{name} must be strings [{size}]; it is {described(array)}")
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def is_integers(array: np.ndarray, size: int) -> bool:
    """Whether an array is of integers `[size]`."""
    return array.dtype.kind in "iu" and array.shape == (size,)


def int32(name: str, array: np.ndarray) -> np.ndarray:
    """Integers as int32. Raises ValueError if some are too large."""
    limits = np.iinfo(np.int32)
    if array.min() < limits.min or array.max() > limits.max:
        raise ValueError(
            f"{name} must fit into 32 bits; it goes from {array.min()} to {array.max()}"
        )
    return array.astype(np.int32)


def described(array: np.ndarray) -> str:
    """The type and shape of an array."""
    return f"{array.dtype} {list(array.shape)}"
