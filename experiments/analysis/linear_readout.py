"""How well a linear map of features predicts something of objects that it has not met: ridge
regression.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Of squared coefficients, where the feature that varies most has variance 1, in examples.
PENALTIES = np.logspace(-5, 4, 19)


class Readings(NamedTuple):
    """What linear maps are fitted to, or tried on.

    Attributes:
        features: `[N, F]`.
        targets: by name, `[N, K]`: K numbers that one map predicts.
        groups: the object that each example shows, `[N]`.
    """

    features: np.ndarray
    targets: Mapping[str, np.ndarray]
    groups: np.ndarray


def r_squared(known: Readings, new: Readings) -> dict[str, float]:
    """The share of each target's variance that a linear map of the features explains, on examples
    that it was not fitted to.

    The penalty is the one of `PENALTIES` that predicts best, of the known objects, each from the
    others. The result is at most 1, and negative where the mean of the new targets would be the
    better prediction; the variances of a target's numbers add up.

    Args:
        known: to fit the maps to, two objects or more.
        new: of other objects, with the same features and targets.

    Raises:
        ValueError: the known readings are of fewer than two objects, or the new ones of a known
            object; or a target is the same in all new examples.
    """
    groups = np.unique(known.groups)
    if len(groups) < 2:
        raise ValueError(f"known readings must be of two objects or more; got {groups.tolist()}")
    if common := set(groups.tolist()) & set(np.unique(new.groups).tolist()):
        raise ValueError(f"new readings must be of other objects; got {sorted(common)} in both")
    ends = np.cumsum([values.shape[1] for values in known.targets.values()])[:-1]
    wanted = np.concatenate(list(known.targets.values()), axis=1)
    errors = np.zeros((len(PENALTIES), wanted.shape[1]))
    for group in groups:
        left_out = known.groups == group
        predicted = predictions(
            known.features[~left_out], wanted[~left_out], known.features[left_out]
        )
        errors += ((predicted - wanted[left_out]) ** 2).sum(1)
    every = predictions(known.features, wanted, new.features)
    found = {}
    for name, error, predicted in zip(
        known.targets, np.split(errors, ends, 1), np.split(every, ends, 2), strict=True
    ):
        targets = new.targets[name]
        variation = ((targets - targets.mean(0)) ** 2).sum()
        if not variation > 0:
            raise ValueError(f"{name} must not be the same in all new examples")
        found[name] = float(
            1 - ((predicted[error.sum(1).argmin()] - targets) ** 2).sum() / variation
        )
    return found


def predictions(known: np.ndarray, targets: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Ridge regression with an intercept, for each of `PENALTIES`: from `[N, F]`, `[N, K]` and
    `[M, F]` to `[penalties, M, K]`.
    """
    # One scale for all features: by its own, one that hardly varies among the known could be
    # anything elsewhere.
    mean, scale = known.mean(0), known.astype(np.float64).std(0).max() or 1.0
    u, singular, vt = np.linalg.svd((known.astype(np.float64) - mean) / scale, full_matrices=False)
    rotated = u.T @ (targets - targets.mean(0))
    # [penalties, components, K].
    shrunk = (singular / (singular**2 + PENALTIES[:, None]))[..., None] * rotated
    return ((features.astype(np.float64) - mean) / scale) @ vt.T @ shrunk + targets.mean(0)
