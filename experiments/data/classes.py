"""The classes of a data set: whether they can be trained, which cannot be tested, and the error of
each.
"""

from collections.abc import Sequence

import numpy as np

from experiments.data.dataset import Dataset
from experiments.runtime.errors import UsageError

MOST_NAMED = 5


def check_classes(dataset: Dataset) -> None:
    """Raise UsageError unless there are classes to tell apart, of different names, and training
    images of each of them.
    """
    names, labels = dataset.class_names, np.concatenate([dataset.train_labels, dataset.test_labels])
    if len(names) < 2:
        raise UsageError(
            f"{dataset.name} has one class, {', '.join(names)}: there is nothing to tell apart"
        )
    if len({*names}) < len(names):
        same = next(name for name in names if names.count(name) > 1)
        raise UsageError(
            f"the classes of {dataset.name} must have different names; {names.count(same)} are "
            f"called {same}"
        )
    if labels.min() < 0 or labels.max() >= len(names):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UsageError(
            f"labels of {dataset.name} must lie in [0, {len(names) - 1}], for as many classes; got "
            f"{wrong}"
        )
    if missing := without_images(dataset.train_labels, names):
        raise UsageError(
            f"{dataset.name} has no image of {named(missing)} to train on: add some, or leave the "
            "class out"
        )


def without_images(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """The names of the classes that are not among these labels."""
    return [
        name
        for name, size in zip(
            class_names, np.bincount(labels, minlength=len(class_names)), strict=True
        )
        if not size
    ]


def untested(dataset: Dataset, scored: str) -> str:
    """That some classes have no image to score, in words; empty if all have.

    `scored` is what the test set is called.
    """
    missing = without_images(dataset.test_labels, dataset.class_names)
    return (
        f"there is no {scored} image of {named(missing)}: nothing will be known of its errors"
        if missing
        else ""
    )


def named(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def class_errors(
    predictions: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, float | None]:
    """The error of each class by name, for predictions and labels `[N]`; None where there is no
    image of it.
    """
    wrong = predictions != labels
    return {
        name: float(wrong[labels == label].mean()) if (labels == label).any() else None
        for label, name in enumerate(class_names)
    }
