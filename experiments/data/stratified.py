"""A share of each class, whatever the order of the images is: chosen by a permutation that is
always the same.
"""

import numpy as np


def shares(sizes: np.ndarray, number: int, most: np.ndarray) -> np.ndarray:
    """How many to take of each class, `number` in all, as its size is to the sum of the sizes.

    They are the whole parts of the exact shares, and one more where the largest fractions are cut
    off, of equal ones the first.

    Args:
        sizes: of the classes, `[C]`.
        number: at most the sum of `most`.
        most: what may be taken of each class, `[C]`: its size, or one less.
    """
    exact = sizes * number / sizes.sum()
    taken = np.floor(exact).astype(int)
    while missing := number - taken.sum():
        open_to_more = np.flatnonzero(taken < most)
        by_fraction = open_to_more[np.argsort((taken - exact)[open_to_more], kind="stable")]
        taken[by_fraction[:missing]] += 1
    return taken


def of_each_class(labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Where the chosen ones are, bool `[N]`: of each class as many as `numbers` `[C]` says, for
    labels `[N]` in [0, C).
    """
    # RandomState, because its numbers are the same in all versions of NumPy.
    order = np.random.RandomState(0).permutation(len(labels))
    mask = np.zeros(len(labels), bool)
    for label, number in enumerate(numbers):
        mask[order[labels[order] == label][:number]] = True
    return mask


def sample(labels: np.ndarray, number: int) -> np.ndarray:
    """Where so many are, bool `[N]`, with a share of each class that there is in labels `[N]`;
    `number` is at most N.
    """
    sizes = np.bincount(labels)
    return of_each_class(labels, shares(sizes, number, sizes))
