"""Names of data sets; one in memory; and its divisions: images held out, instances held out, values
of a factor.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.data.stratified import of_each_class, shares
from experiments.runtime.errors import UsageError

AFFNIST = "affnist"
DRAWINGS = "drawings"
DATASETS = (
    "mnist",
    "fashion_mnist",
    "smallnorb",
    "toynorb",
    "toynorb96",
    "toynorb_tuning",
    "cifar10",
    AFFNIST,
    DRAWINGS,
)


class Dataset(NamedTuple):
    """Labeled images in memory.

    Attributes:
        name: as in `DATASETS`, or the stem of the .npz file.
        class_names: one for each label.
        train_images: uint8 `[N, height, width, channels]`.
        train_labels: int32 `[N]`.
        test_images: uint8, for another N.
        test_labels: int32.
        train_factors: what else is known of the images, by name, such as the azimuth: each int32
            `[N]`.
        test_factors: the same factors of the test images.
    """

    name: str
    class_names: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    train_factors: Mapping[str, np.ndarray] = MappingProxyType({})
    test_factors: Mapping[str, np.ndarray] = MappingProxyType({})


def hold_out(dataset: Dataset, number: int) -> Dataset:
    """The data set with `number` of its training images in place of the test set; 0 changes
    nothing.

    Each class gives its share, to a whole number, and keeps at least one image (see stratified.py):
    of a class with few images it may be that none is held out.

    Raises:
        UsageError: of a class nothing would be left to train on.
    """
    if not number:
        return dataset
    sizes = np.bincount(dataset.train_labels, minlength=len(dataset.class_names))
    most = (sizes - 1).clip(0)
    if number > most.sum():
        raise UsageError(
            f"holdout must leave an image of each class to train on: it is at most {most.sum()}; "
            f"got {number}"
        )
    held_out = of_each_class(dataset.train_labels, shares(sizes, number, most))
    return divided(dataset, ~held_out, held_out)


def hold_out_instances(dataset: Dataset, instances: Sequence[int]) -> Dataset:
    """The data set with all training images of some objects in place of the test set.

    Args:
        dataset: with the factor `instance`.
        instances: numbers of objects, the same in every class.

    Raises:
        UsageError: there is no such factor, none or not all of the objects are there, or nothing
            would be left to train on.
    """
    if "instance" not in dataset.train_factors:
        raise UsageError(
            f"{dataset.name} does not say which object an image shows (no factor `instance`), so "
            "none can be held out"
        )
    numbers = dataset.train_factors["instance"]
    there_are = np.unique(numbers).tolist()
    if not instances or not set(instances) < set(there_are):
        raise UsageError(
            f"held-out instances must be some, but not all, of the training set's {there_are}; got "
            f"{list(instances)}"
        )
    held_out = np.isin(numbers, list(instances))
    return divided(dataset, ~held_out, held_out)


def with_values(dataset: Dataset, factor: str, values: Sequence[int]) -> Dataset:
    """The images, of both splits, that have one of these values for a factor;
    `experiments.viewpoints` scores the others.

    Raises:
        UsageError: there is no such factor; no training image, or no test image, has one of the
            values.
    """
    if factor not in dataset.train_factors:
        there_are = ", ".join(dataset.train_factors) or "none"
        raise UsageError(f"{dataset.name} has no factor `{factor}`; its factors: {there_are}")
    train, test = (
        np.isin(factors[factor], list(values))
        for factors in (dataset.train_factors, dataset.test_factors)
    )
    for split, chosen, factors in (
        ("training", train, dataset.train_factors),
        ("test", test, dataset.test_factors),
    ):
        if not chosen.any():
            there_are = np.unique(factors[factor]).tolist()
            raise UsageError(
                f"values of {factor} must be some of the {split} images' {there_are}; got "
                f"{list(values)}"
            )
    return dataset._replace(
        **chosen_of(dataset, "train", train, "train"), **chosen_of(dataset, "test", test, "test")
    )


def divided(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> Dataset:
    """The data set with some of its training images to train on and others, in place of the test
    set, to test.
    """
    return dataset._replace(
        **chosen_of(dataset, "train", train, "train"), **chosen_of(dataset, "train", test, "test")
    )


def chosen_of(dataset: Dataset, split: str, chosen: np.ndarray, becomes: str) -> dict[str, Any]:
    """The fields of a split, `train` or `test`, with the images of this one, or of the other, that
    are chosen.
    """
    images, labels, factors = (
        getattr(dataset, f"{split}_{field}") for field in ("images", "labels", "factors")
    )
    return {
        f"{becomes}_images": images[chosen],
        f"{becomes}_labels": labels[chosen],
        f"{becomes}_factors": {name: values[chosen] for name, values in factors.items()},
    }
