"""Reading by a linear map: what it finds, what it does not, and what it refuses."""

import numpy as np
import pytest

from experiments.analysis.linear_readout import PENALTIES, Readings, predictions, r_squared

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(5, 2))


def features(number, size=5):
    return RANDOM.normal(size=(number, size))


def read(known, targets, new, wanted):
    """R^2 of one target, of four known objects and one new."""
    first = Readings(known, {"it": targets}, np.arange(len(known)) % 4)
    return r_squared(first, Readings(new, {"it": wanted}, np.full(len(new), 9)))["it"]


def test_what_is_linear_is_read_whole():
    known, new, offset = 10 * features(40), 10 * features(30), np.array([3.0, -1.0])
    assert read(known, known @ WEIGHTS + offset, new, new @ WEIGHTS + offset) > 0.9999


def test_noise_explains_nothing_however_many_features():
    known, new = features(60, 100), features(500, 100)
    assert -0.1 < read(known, features(60, 1), new, features(500, 1)) < 0.05


def test_the_score_is_one_minus_the_share_of_the_error():
    known, new, targets, wanted = features(40), features(30), features(40, 2), features(30, 2)
    found = read(known, targets, new, wanted)
    every = predictions(known, targets, new)
    scores = 1 - ((every - wanted) ** 2).sum((1, 2)) / ((wanted - wanted.mean(0)) ** 2).sum()
    assert np.isclose(scores, found).any()


def test_targets_do_not_matter_to_each_other():
    known, new, groups = features(40), features(30), np.arange(40) % 4
    targets, wanted = (
        {"a": features(n, 2), "b": features(n, 1), "c": given[:, :1]}
        for n, given in ((40, known), (30, new))
    )
    together = r_squared(Readings(known, targets, groups), Readings(new, wanted, np.full(30, 9)))
    alone = {name: read(known, targets[name], new, wanted[name]) for name in targets}
    assert together == pytest.approx(alone) and together["c"] > 0.9999


def test_a_small_penalty_is_least_squares_and_a_large_one_the_mean():
    known, new, targets = features(40), features(30), features(40, 2)
    every = predictions(known, targets, new)
    assert every.shape == (len(PENALTIES), 30, 2)
    with_one = lambda values: np.concatenate([values, np.ones((len(values), 1))], 1)  # noqa: E731
    exact = with_one(new) @ np.linalg.lstsq(with_one(known), targets)[0]
    np.testing.assert_allclose(every[0], exact, atol=1e-4)
    np.testing.assert_allclose(every[-1], np.broadcast_to(targets.mean(0), (30, 2)), atol=0.1)


def test_the_penalty_is_the_best_for_each_known_object_from_the_others():
    """Not for examples of objects that are known already, and not for the new ones."""
    random = np.random.default_rng(1)
    groups, new_groups = np.arange(40) % 4, 4 + np.arange(300) % 30
    # What an object looks like says nothing of its target.
    looks, target_of = random.normal(size=(34, 6)), random.normal(size=34)

    def example(of):
        targets = target_of[of] + random.normal(size=len(of))
        noise = 0.3 * random.normal(size=(len(of), 6))
        return np.concatenate(
            [looks[of] + noise, targets[:, None] + 0.5 * random.normal(size=(len(of), 1))], 1
        ), targets[:, None]

    (known, targets), (new, wanted) = example(groups), example(new_groups)

    def error_of_folds(folds):
        errors = []
        for left_out in (folds == fold for fold in np.unique(folds)):
            predicted = predictions(known[~left_out], targets[~left_out], known[left_out])
            errors.append(((predicted - targets[left_out]) ** 2).sum((1, 2)))
        return np.sum(errors, 0)

    every = predictions(known, targets, new)
    scores = 1 - ((every - wanted) ** 2).sum((1, 2)) / ((wanted - wanted.mean(0)) ** 2).sum()
    chosen = error_of_folds(groups).argmin()
    assert chosen not in (error_of_folds(np.arange(40)).argmin(), scores.argmax())
    found = r_squared(
        Readings(known, {"it": targets}, groups), Readings(new, {"it": wanted}, new_groups)
    )["it"]
    assert found == pytest.approx(scores[chosen], rel=1e-9)


@pytest.mark.parametrize("variation", [0.0, 1e-6])
def test_a_feature_that_hardly_changes_does_no_harm_where_it_does(variation):
    known, new = features(40), features(30)
    known[:, 2] = 7 + variation * RANDOM.normal(size=40)
    assert read(known, known[:, :1], new, new[:, :1]) > 0.9999


@pytest.mark.parametrize(
    "groups, new_groups, targets, message",
    [
        (
            np.zeros(40),
            np.full(30, 9),
            np.arange(30.0),
            "known readings must be of two objects or more; got \\[0.0\\]",
        ),
        (
            np.arange(40),
            np.full(30, 99),
            np.ones(30),
            "it must not be the same in all new examples",
        ),
        (
            np.arange(40),
            np.full(30, 3),
            np.arange(30.0),
            "new readings must be of other objects; got \\[3\\] in both",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(groups, new_groups, targets, message):
    known = Readings(np.ones((40, 2)), {"it": np.arange(40.0)[:, None]}, groups)
    with pytest.raises(ValueError, match=message):
        r_squared(known, Readings(np.ones((30, 2)), {"it": targets[:, None]}, new_groups))
