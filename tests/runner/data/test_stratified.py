"""Shares of classes: they add up, are even, and leave something of each class; which images they
are never changes.
"""

import numpy as np
import pytest

from experiments.data.stratified import of_each_class, sample, shares


@pytest.mark.parametrize(
    ("sizes", "number", "expected"),
    [
        ([10, 10, 10], 6, [2, 2, 2]),
        ([6000, 3000, 1000], 1000, [600, 300, 100]),
        ([10, 10, 10], 4, [2, 1, 1]),  # of equal fractions the first
        ([30, 1, 1], 2, [2, 0, 0]),  # too few images for a whole one
        ([3, 1, 1], 2, [2, 0, 0]),  # the last image of a class stays
        ([2, 2, 2], 3, [1, 1, 1]),
        ([3, 0, 3], 4, [2, 0, 2]),
    ],
)
def test_shares_by_hand(sizes, number, expected):
    sizes = np.array(sizes)
    assert shares(sizes, number, (sizes - 1).clip(0)).tolist() == expected


def test_shares_add_up_and_are_even():
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = random.integers(1, 30, random.integers(2, 12))
        most = sizes - random.integers(0, 2)
        number = int(random.integers(0, most.sum() + 1))
        taken = shares(sizes, number, most)
        assert taken.sum() == number and (taken >= 0).all() and (taken <= most).all()
        if (taken < most).all():
            assert np.abs(taken - sizes * number / sizes.sum()).max() < 1


def test_what_is_chosen_is_always_the_same():
    """A recorded value: a run that goes on, or is scored again, would otherwise see images that it
    was trained on.
    """
    labels = np.arange(20) % 2
    assert np.flatnonzero(of_each_class(labels, np.array([3, 2]))).tolist() == [1, 8, 10, 18, 19]


def test_a_sample_is_of_all_classes_also_where_they_follow_one_another():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    assert np.bincount(labels[sample(labels, 10)]).tolist() == [6, 3, 1]
    assert sample(labels, 100).all()
