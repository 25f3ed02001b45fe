"""Devices: however they share a batch, they take the same step."""

import functools

import jax
import numpy as np
import pytest
import tiny_run

from experiments.data.batches import TrainingBatches
from experiments.data.preprocessing import ImageConfig
from experiments.devices.parallel import (
    Execution,
    device_mesh,
    map_chunks,
    map_examples,
    parallelize,
)
from experiments.learning.network import make_model
from experiments.learning.step import gradient_params, make_train_step

CONFIGS = {"capsules": tiny_run.CONFIG, "cnn": tiny_run.CNN_CONFIG}
SLOW = pytest.mark.slow


def batches(views=tiny_run.CONFIG.images):
    data = tiny_run.dataset()
    return TrainingBatches(
        data.train_images, data.train_labels, jax.random.key(1), tiny_run.CONFIG.batch_size, views
    )


@functools.cache
def two_steps(name, mode, num_devices, **division):
    """The state and metrics of a network after two steps, as NumPy arrays."""
    config, execution = CONFIGS[name], Execution(jax.devices()[:num_devices], mode, **division)
    network = make_model(config.model, 3, execution.parent_axis)
    parallel = parallelize(make_train_step(config, network), execution)
    state = parallel.replicate(tiny_run.initial_state(config))
    draw = batches()
    step = parallel.step.lower(state, parallel.shard(draw(0))).compile()
    for index in range(2):
        state, metrics = step(state, parallel.shard(draw(index)))
    return jax.device_get((state, metrics))


# What maps a step by pmap knows nothing of the network.
@pytest.mark.parametrize(
    "name, mode, model_axis",
    [
        ("capsules", "jit", 1),
        ("capsules", "jit", 2),
        ("cnn", "jit", 1),
        ("cnn", "pmap", 1),
        pytest.param("capsules", "pmap", 1, marks=SLOW),
    ],
)
def test_two_devices_take_the_step_of_one(name, mode, model_axis):
    """Capsules by schedule-free Adam, whose average they share too; the CNN by Adam, and with what
    is dropped of each example.
    """
    division = {} if model_axis == 1 else {"model_axis": model_axis}
    (state, metrics), (expected, expected_metrics) = (
        two_steps(name, mode, 2, **division),
        two_steps(name, "jit", 1),
    )
    assert state.step == 2
    np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-4)
    # Adam divides gradients by their size: where one is rounding noise, so is a fraction of the
    # learning rate.
    for found, wanted in (
        (state.params, expected.params),
        (gradient_params(CONFIGS[name], state), gradient_params(CONFIGS[name], expected)),
    ):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, wanted
        )


@pytest.mark.slow
@pytest.mark.parametrize("mode, num_devices", [("jit", 1), ("pmap", 2)])
def test_a_batch_may_be_taken_in_parts(mode, num_devices):
    (state, metrics), (expected_state, expected_metrics) = (
        two_steps("capsules", mode, num_devices, accumulate=2),
        two_steps("capsules", "jit", 1),
    )
    np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-4)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
        state.params,
        expected_state.params,
    )


@pytest.mark.parametrize("name", [pytest.param("capsules", marks=SLOW), "cnn"])
def test_jit_and_pmap_are_the_same_step(name):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        two_steps(name, "jit", 2),
        two_steps(name, "pmap", 2),
    )


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_step_is_traced_once(mode):
    """What it returns is placed as what it was given at first."""
    traced = []

    def step(state, batch, average):
        traced.append(mode)
        return state + 1, batch.sum()

    parallel = parallelize(step, Execution(jax.devices()[:2], mode))
    state = parallel.replicate(np.zeros(3, np.float32))
    for _ in range(2):
        state, _ = parallel.step(state, parallel.shard(np.ones((4, 3), np.float32)))
    np.testing.assert_array_equal(state, 2)
    assert traced == [mode]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("num_devices", [1, 2])
def test_the_batch_of_a_step_does_not_depend_on_the_devices(mode, num_devices):
    """Its views are drawn as those of smallNORB and toynorb are."""
    views = ImageConfig(standardize=True, crop=11, max_shift=0, contrast=0.5, brightness=0.5)
    drawn = batches(views)(5)
    shared = parallelize(
        make_train_step(tiny_run.CONFIG, make_model(tiny_run.CONFIG.model, 3)),
        Execution(jax.devices()[:num_devices], mode),
    ).shard(drawn)
    for whole, parts in zip(drawn, shared, strict=True):
        assert len(parts.sharding.device_set) == num_devices
        np.testing.assert_array_equal(np.asarray(parts).reshape(whole.shape), whole)


def test_map_examples_gives_one_result_per_example():
    mapped = map_examples(lambda scale, numbers: scale * numbers, device_mesh(jax.devices()[:2]))
    np.testing.assert_array_equal(mapped(2.0, np.arange(6.0)), 2 * np.arange(6.0))


@pytest.mark.parametrize("number", [1, 6, 13])
def test_map_chunks_takes_any_number_of_examples(number):
    scaled = map_chunks(
        lambda scale, examples: scale * examples["left"] + examples["right"],
        device_mesh(jax.devices()[:2]),
        per_device=3,
    )
    left, right = np.arange(2.0 * number).reshape(number, 2), np.ones((number, 2))
    np.testing.assert_array_equal(scaled(2.0, {"left": left, "right": right}), 2 * left + right)
