"""The convolutional network that capsules are compared with."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from emcaps import RoutingOptions
from experiments.data.batches import TrainingBatches
from experiments.learning.cnn import BaselineCNN, dropout
from experiments.learning.network import (
    class_logits,
    log_activations,
    make_model,
    network_intermediates,
)

SMALL = BaselineCNN(3, channels=(2, 3), hidden_units=8)


def test_it_has_the_papers_number_of_parameters():
    """4.2M for 32x32 pairs and 5 classes."""
    shapes = jax.eval_shape(BaselineCNN(5).init, jax.random.key(0), jnp.zeros((1, 32, 32, 2)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 4_253_349


def test_its_layers_are_the_papers():
    images = np.random.default_rng(0).normal(size=(2, 9, 8, 1)).astype(np.float32)
    (probabilities, out), variables = jax.device_get(
        jax.jit(SMALL.init_with_output)(jax.random.key(0), images)
    )
    chex.assert_shape([out["conv_1"], out["conv_2"]], [(2, 4, 4, 2), (2, 2, 2, 3)])
    weights, padded = (
        variables["params"]["conv_1"],
        np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))),
    )
    for b, y, x, c in np.ndindex(out["conv_1"].shape):
        pool = [
            (
                padded[b, 2 * y + r : 2 * y + r + 5, 2 * x + s : 2 * x + s + 5]
                * weights["kernel"][..., c]
            ).sum()
            + weights["bias"][c]
            for r, s in np.ndindex(2, 2)
        ]
        np.testing.assert_allclose(out["conv_1"][b, y, x, c], max(0, *pool), atol=1e-5)
    np.testing.assert_allclose(probabilities, jax.nn.softmax(out["classes"]), rtol=1e-6)
    assert (np.asarray(out["hidden"]) >= 0).all()


@pytest.mark.parametrize(
    "images, error, message",
    [
        (jnp.zeros((2, 3, 9, 1)), ValueError, r"at least 4x4; got shape \[2, 3, 9, 1\]"),
        (jnp.zeros((9, 9, 1)), ValueError, r"got shape \[9, 9, 1\]"),
        (jnp.zeros((2, 9, 9, 1), jnp.uint8), TypeError, "floating point dtype; got uint8"),
    ],
)
def test_wrong_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        SMALL.init(jax.random.key(0), images)


def test_half_of_the_units_are_dropped_and_the_mean_stays():
    values = jnp.ones((4, 10_000))
    dropped = np.asarray(
        dropout(values, jax.random.key_data(jax.random.split(jax.random.key(0), 4)))
    )
    assert set(np.unique(dropped)) == {0.0, 2.0}
    np.testing.assert_allclose(dropped.mean(1), 1, atol=0.05)
    assert (dropped[0] != dropped[1]).any()


def test_units_are_dropped_in_training_only():
    """That what is dropped of an example goes with it, whatever the devices, has its test in
    test_parallel.py.
    """
    config, data = tiny_run.CNN_CONFIG, tiny_run.dataset()
    model, params = make_model(config.model, 3), tiny_run.initial_state(config).params
    batch = TrainingBatches(
        data.train_images, data.train_labels, jax.random.key(1), config.batch_size, config.images
    )(0)

    @jax.jit
    def all_logits(params, images, keys):
        intermediates = functools.partial(network_intermediates, config, model, params, images, 0)
        whole, dropped = class_logits(intermediates()), class_logits(intermediates(keys))
        return whole, dropped, log_activations(model, whole)

    whole, dropped, logarithms = all_logits(params, batch.images, batch.dropout_keys)
    assert np.abs(whole - dropped).max() > 1e-3
    np.testing.assert_allclose(np.exp(logarithms).sum(-1), 1, rtol=1e-5)


def test_its_sizes_are_not_those_of_capsules():
    with pytest.raises(ValueError, match="a cnn has no conv_channels, conv_capsules"):
        dataclasses.replace(
            tiny_run.MODEL, family="cnn", routing=RoutingOptions(), primary_capsules=8
        )
