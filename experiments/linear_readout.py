"""How well a linear map of features predicts something of objects that it has not met: ridge regression."""

from typing import NamedTuple

import numpy as np

PENALTIES = np.logspace(-5, 4, 19)  # of squared coefficients, where the feature that varies most has variance 1, in examples


class Readings(NamedTuple):
    """What a linear map is fitted to.

    Attributes:
        features: `[N, F]`.
        targets: `[N, K]`.
        groups: the object that each example shows, `[N]`; at least two objects.
    """

    features: np.ndarray
    targets: np.ndarray
    groups: np.ndarray


def r_squared(readings: Readings, features: np.ndarray, targets: np.ndarray) -> float:
    """The share of the targets' variance that a linear map of the features explains, on examples that it was not fitted to.

    The penalty is the one of `PENALTIES` that predicts best, of the readings, each object from the others. The result is at most 1,
    and negative where the mean of these targets would be the better prediction.

    Args:
        readings: to fit the map to.
        features: `[M, F]`, of other objects.
        targets: `[M, K]`; their variances add up.

    Raises:
        ValueError: the readings are of fewer than two objects, or the targets are all the same.
    """
    groups = np.unique(readings.groups)
    if len(groups) < 2:
        raise ValueError(f"readings must be of two objects or more; got {groups.tolist()}")
    variation = ((targets - targets.mean(0)) ** 2).sum()
    if not variation > 0:
        raise ValueError("targets must not be all the same")
    errors = np.zeros(len(PENALTIES))
    for group in groups:
        left_out = readings.groups == group
        predicted = predictions(readings.features[~left_out], readings.targets[~left_out], readings.features[left_out])
        errors += ((predicted - readings.targets[left_out]) ** 2).sum((1, 2))
    predicted = predictions(readings.features, readings.targets, features)[errors.argmin()]
    return float(1 - ((predicted - targets) ** 2).sum() / variation)


def predictions(known: np.ndarray, targets: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Ridge regression with an intercept, for each of `PENALTIES`: from `[N, F]`, `[N, K]` and `[M, F]` to `[penalties, M, K]`."""
    # One scale for all features: by its own, one that hardly varies among the known could be anything elsewhere.
    mean, scale = known.mean(0), known.astype(np.float64).std(0).max() or 1.0
    u, singular, vt = np.linalg.svd((known.astype(np.float64) - mean) / scale, full_matrices=False)
    rotated = u.T @ (targets - targets.mean(0))
    shrunk = (singular / (singular**2 + PENALTIES[:, None]))[..., None] * rotated  # [penalties, components, K]
    return ((features.astype(np.float64) - mean) / scale) @ vt.T @ shrunk + targets.mean(0)
