"""Reading by a linear map: what it finds, what it does not, and what it refuses."""

import numpy as np
import pytest

from experiments.linear_readout import PENALTIES, Readings, predictions, r_squared

RANDOM = np.random.default_rng(0)


def samples(number, features=5):
    return RANDOM.normal(size=(number, features)), np.arange(number) % 4


def test_what_is_linear_is_read_whole():
    (known, groups), (new, _) = samples(40), samples(30)
    weights, offset = RANDOM.normal(size=(5, 2)), np.array([3.0, -1.0])
    readings = Readings(known * 10, known @ weights + offset, groups)
    assert r_squared(readings, new * 10, new @ weights + offset) > 0.9999


def test_noise_explains_nothing_however_many_features():
    (known, groups), (new, _) = samples(60, 100), samples(500, 100)
    found = r_squared(Readings(known, RANDOM.normal(size=(60, 1)), groups), new, RANDOM.normal(size=(500, 1)))
    assert -0.1 < found < 0.05


def test_the_score_is_one_minus_the_share_of_the_error():
    (known, groups), (new, _) = samples(40), samples(30)
    targets, wanted = RANDOM.normal(size=(40, 2)), RANDOM.normal(size=(30, 2))
    found = r_squared(Readings(known, targets, groups), new, wanted)
    every = predictions(known, targets, new)
    scores = 1 - ((every - wanted) ** 2).sum((1, 2)) / ((wanted - wanted.mean(0)) ** 2).sum()
    assert np.isclose(scores, found).any()


def test_a_small_penalty_is_least_squares_and_a_large_one_the_mean():
    (known, _), (new, _) = samples(40), samples(30)
    targets = RANDOM.normal(size=(40, 2))
    every = predictions(known, targets, new)
    assert every.shape == (len(PENALTIES), 30, 2)
    with_one = lambda features: np.concatenate([features, np.ones((len(features), 1))], 1)  # noqa: E731
    exact = with_one(new) @ np.linalg.lstsq(with_one(known), targets)[0]
    np.testing.assert_allclose(every[0], exact, atol=1e-4)
    np.testing.assert_allclose(every[-1], np.broadcast_to(targets.mean(0), (30, 2)), atol=0.1)


@pytest.mark.parametrize("variation", [0.0, 1e-6])
def test_a_feature_that_hardly_changes_does_no_harm_where_it_does(variation):
    (known, groups), (new, _) = samples(40), samples(30)
    known[:, 2] = 7 + variation * RANDOM.normal(size=40)
    assert r_squared(Readings(known, known[:, :1], groups), new, new[:, :1]) > 0.9999


@pytest.mark.parametrize(
    "groups, targets, message",
    [(np.zeros(40), np.arange(30.0), "two objects or more"), (np.arange(40), np.ones(30), "must not be all the same")],
)
def test_what_cannot_be_scored_is_refused(groups, targets, message):
    with pytest.raises(ValueError, match=message):
        r_squared(Readings(np.ones((40, 2)), np.arange(40.0)[:, None], groups), np.ones((30, 2)), targets[:, None])
