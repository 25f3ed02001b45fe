"""Batches: what is in them, and in what order."""

import chex
import jax
import numpy as np
import pytest

from experiments.data.batches import TrainingBatches
from experiments.data.preprocessing import ImageConfig

KEY = jax.random.key(0)


def images(number=50, size=6, channels=2):
    return np.random.default_rng(0).integers(1, 256, (number, size, size, channels), dtype=np.uint8)


def make_batches(max_shift=0):
    labels = np.arange(50, dtype=np.int32)
    return TrainingBatches(
        images(), labels, KEY, batch_size=8, config=ImageConfig(max_shift=max_shift)
    )


def test_an_epoch_shows_no_example_twice_and_the_next_is_in_another_order():
    batches = make_batches()
    epochs = [
        np.concatenate([batches(step).labels for step in range(start, start + 6)])
        for start in (0, 6)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 48
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_allclose(batches(3).images, images()[batches(3).labels] / 255, rtol=1e-6)


def test_a_batch_depends_on_the_step_alone():
    batches = make_batches(max_shift=2)
    one_by_one = [batches(step) for step in range(14)]
    for step in (13, 2, 7):
        fresh = make_batches(max_shift=2)(step)
        chex.assert_trees_all_equal(fresh, one_by_one[step])


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="at most the number of training images, 50; got 51"):
        TrainingBatches(images(), np.arange(50), KEY, batch_size=51, config=ImageConfig())


def test_the_keys_of_what_is_dropped_differ_between_examples_and_steps():
    batches = make_batches()
    keys = np.concatenate([batches(step).dropout_keys for step in range(3)])
    assert len(np.unique(keys, axis=0)) == 3 * 8
