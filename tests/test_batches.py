"""Shuffling and augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.augment import random_shift, to_float
from experiments.batches import TrainingBatches

KEY = jax.random.key(0)


def images(number=50, size=6, channels=2):
    return np.random.default_rng(0).integers(1, 256, (number, size, size, channels), dtype=np.uint8)


def test_no_shift_is_the_identity():
    np.testing.assert_array_equal(random_shift(KEY, jnp.asarray(images()), 0), images())


def test_a_shift_moves_the_whole_image_and_brings_in_zeros():
    shifted = np.asarray(jax.jit(random_shift, static_argnums=2)(KEY, images(), 2))
    assert shifted.shape == images().shape and shifted.dtype == np.uint8
    offsets = set()
    for before, after in zip(np.pad(images(), ((0, 0), (2, 2), (2, 2), (0, 0))), shifted, strict=True):
        found = [(r, c) for r in range(5) for c in range(5) if (before[r : r + 6, c : c + 6] == after).all()]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 15  # of 25


def test_all_shifts_are_equally_likely():
    points = np.zeros((4000, 5, 5, 1), np.uint8)
    points[:, 2, 2] = 1
    counts = np.asarray(random_shift(KEY, jnp.asarray(points), 1), int).sum((0, 3))
    assert counts.sum() == 4000 and counts[1:4, 1:4].sum() == 4000
    assert np.abs(counts[1:4, 1:4] - 4000 / 9).max() < 5 * np.sqrt(4000 / 9)


def test_an_image_is_shifted_without_regard_to_the_others():
    changed = images()
    changed[1:] = 0
    np.testing.assert_array_equal(
        random_shift(KEY, jnp.asarray(changed), 2)[0],
        random_shift(KEY, jnp.asarray(images()), 2)[0],
    )


def test_pixels_become_floats_in_the_unit_interval():
    floats = to_float(jnp.array([0, 51, 255], jnp.uint8))
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, [0, 0.2, 1], rtol=1e-6)


def make_batches(max_shift=0):
    labels = np.arange(50, dtype=np.int32)
    return TrainingBatches(images(), labels, KEY, batch_size=8, max_shift=max_shift)


def test_an_epoch_shows_no_example_twice_and_the_next_is_in_another_order():
    batches = make_batches()
    epochs = [np.concatenate([batches(step).labels for step in range(start, start + 6)]) for start in (0, 6)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 48
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(batches(3).images, images()[batches(3).labels])


def test_a_batch_depends_on_the_step_alone():
    batches = make_batches(max_shift=2)
    one_by_one = [batches(step) for step in range(14)]
    for step in (13, 2, 7):
        fresh = make_batches(max_shift=2)(step)
        jax.tree.map(np.testing.assert_array_equal, fresh, one_by_one[step])


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="at most the number of training images, 50; got 51"):
        TrainingBatches(images(), np.arange(50), KEY, batch_size=51, max_shift=0)
