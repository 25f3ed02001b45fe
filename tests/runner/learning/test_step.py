"""What moves during a training: learning rate, temperatures, and which loss is taken."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

import emcaps
from experiments.learning.network import make_model, network_at
from experiments.learning.step import (
    TrainState,
    gradient_params,
    losses,
    make_optimizer,
    margin_at,
    state_of,
    updated_params,
)

CONFIG = dataclasses.replace(tiny_run.CONFIG, steps=10)


def step_sizes(config):
    """How far each step of a constant gradient moves a parameter: Adam's learning rate."""
    optimizer, params, sizes = make_optimizer(config), jnp.zeros(()), []
    state = optimizer.init(params)
    for _ in range(config.steps + 1):
        update, state = optimizer.update(jnp.ones(()), state, params)
        sizes.append(-float(update))
    return sizes


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_a_cosine_ends_at_zero_with_the_last_step(warmup_steps):
    sizes = step_sizes(
        dataclasses.replace(CONFIG, schedule="cosine", learning_rate=0.1, warmup_steps=warmup_steps)
    )
    np.testing.assert_allclose(sizes[warmup_steps], 0.1, rtol=1e-4)
    np.testing.assert_allclose(sizes[warmup_steps // 2], 0.05 if warmup_steps else 0.1, rtol=1e-4)
    assert sizes[10] < 1e-6 < sizes[9] < sizes[warmup_steps + 1] < 0.1


def test_the_exponential_schedule_is_the_papers():
    config = dataclasses.replace(
        CONFIG, schedule="exponential", learning_rate=0.1, decay_rate=0.5, decay_steps=5
    )
    np.testing.assert_allclose(
        [step_sizes(config)[step] for step in (0, 5, 10)], [0.1, 0.05, 0.025], rtol=1e-4
    )


def test_without_a_schedule_the_parameters_are_the_average_that_optax_evaluates():
    """Optax steps the parameters where gradients are taken, and derives the average from them; a
    run's state holds the average.
    """
    config = dataclasses.replace(
        CONFIG, schedule="schedule_free", learning_rate=0.1, warmup_steps=2, clip_norm=None
    )
    start, target = {"layer": jnp.array([1.0, -2.0])}, jnp.array([0.3, 0.5])
    slope = jax.grad(
        lambda params, step: ((params["layer"] - target * (1 + (step % 2))) ** 2).sum()
    )
    optimizer, state = make_optimizer(config), state_of(config, start)
    between, opt_state = start, optimizer.init(start)
    for step in range(6):
        updates, opt_state = optimizer.update(slope(between, step), opt_state, between)
        between = optax.apply_updates(between, updates)
        params = gradient_params(config, state)
        updates, new = optimizer.update(slope(params, step), state.opt_state, params)
        state = TrainState(
            state.step + 1, updated_params(config, optax.apply_updates(params, updates), new), new
        )
        average = optax.contrib.schedule_free_eval_params(opt_state[-1], between)
        np.testing.assert_allclose(state.params["layer"], average["layer"], rtol=1e-5)
    assert np.abs(gradient_params(config, state)["layer"] - state.params["layer"]).min() > 1e-3


def test_a_run_that_begins_with_other_weights_averages_from_these_on():
    config = dataclasses.replace(CONFIG, schedule="schedule_free")
    weights = {"layer": np.array([1.0, -2.0], np.float32)}
    np.testing.assert_array_equal(
        gradient_params(config, state_of(config, weights))["layer"], weights["layer"]
    )


def test_gradients_are_clipped_by_their_norm():
    """In Adam only the proportions count: a spike that is clipped weighs less than one
    that is not.
    """
    spike, calm = jnp.full((), 100.0), jnp.ones(())
    moved = []
    for clip_norm in (None, 1.0):
        optimizer = make_optimizer(
            dataclasses.replace(CONFIG, clip_norm=clip_norm, schedule="cosine")
        )
        state = optimizer.init(calm)
        for gradient in (calm, spike):
            _, state = optimizer.update(gradient, state, calm)
        moved.append(float(optax.tree.get(state, "mu")))
    np.testing.assert_allclose(moved, [0.1 * 0.9 + 0.1 * 100, 0.1 * 0.9 + 0.1], rtol=1e-5)


def test_temperatures_move_geometrically():
    routing = dataclasses.replace(CONFIG.model.routing, assignment_temperature_rate=0.0)
    fixed = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, routing=routing))
    config = dataclasses.replace(
        fixed, assignment_temperature_end=1.0, inverse_temperature_start=0.01
    )
    model = make_model(config.model, 3)
    moving = [network_at(config, model, step).layer_routing()[0] for step in (0, 5, 10, 11)]
    np.testing.assert_allclose(
        [options.assignment_temperature for options in moving], [16, 4, 1, 1], rtol=1e-6
    )
    np.testing.assert_allclose(
        [options.inverse_temperature for options in moving], [0.01, 0.1, 1, 1], rtol=1e-5
    )
    assert network_at(CONFIG, model, 5) is model


def test_each_loss_is_its_own():
    logits, labels = jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([0, 2, 1, 1])
    activations = jax.nn.sigmoid(logits)
    expected = {
        "spread": emcaps.spread_loss(activations, labels, margin_at(CONFIG, 3)),
        "margin": emcaps.margin_loss(activations, labels),
        "cross_entropy": -jax.nn.log_softmax(logits)[jnp.arange(4), labels],
    }
    for name, loss in expected.items():
        np.testing.assert_allclose(
            losses(dataclasses.replace(CONFIG, loss=name), logits, labels, 3), loss, rtol=1e-5
        )
