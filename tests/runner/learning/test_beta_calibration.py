"""Betas set from the first batch: what they promise, on activations that the network computes with
them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import emcaps
from experiments.learning.beta_calibration import calibrate_betas
from experiments.learning.presets import PRESETS, CapsuleInit


def calibrated(options, init):
    """What each layer of a network makes of noise, after calibration."""
    # Two convolutional layers of different strides, on a map that the first one does not fit
    # evenly.
    model = emcaps.CapsNet(3, 4, 2, (3, 4), options, **init.initializers())
    images = jnp.asarray(tiny_run.dataset(num_train=32).train_images) / 255
    images = jnp.pad(images, ((0, 0), (0, 6), (0, 5), (0, 0)))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    _, intermediates = model.apply({"params": calibrate_betas(model, params, images)}, images)
    return intermediates


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "emcaps", "ibm"])
def test_logits_have_mean_0_and_spread_1(preset):
    """Exactly, in one iteration, whose data do not depend on the betas."""
    options, init = (PRESETS | {"emcaps": (emcaps.TRAINABLE, CapsuleInit())})[preset]
    intermediates = calibrated(dataclasses.replace(options, num_iterations=1), init)
    for layer in ("conv_caps_1", "conv_caps_2", "class_caps"):
        logits = intermediates[layer].activation_logits
        np.testing.assert_allclose(logits.mean((0, 1, 2)), 0, atol=2e-3)
        if not options.normalize_costs:
            np.testing.assert_allclose(logits.std(), 1, rtol=1e-3)
