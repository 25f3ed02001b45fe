"""What is trained and how one step trains it: network, loss, optimiser, and the pure training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import emcaps
from experiments.augment import to_float
from experiments.batches import Batch
from experiments.configs import ModelConfig, TrainConfig


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
        step: int32 scalar, how many steps have been taken.
        params: the network's parameters.
        opt_state: the optimiser's.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """What a training step tells about itself, scalars: loss and accuracy of the batch, norm of the gradient."""

    loss: jax.Array
    accuracy: jax.Array
    gradient_norm: jax.Array


def make_model(config: ModelConfig, num_classes: int) -> emcaps.CapsNet:
    """The network of a config."""
    return emcaps.CapsNet(
        num_classes,
        conv_channels=config.conv_channels,
        primary_capsules=config.primary_capsules,
        conv_capsules=config.conv_capsules,
        routing=emcaps.RoutingOptions(num_iterations=config.num_iterations),
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam with the paper's exponential decay, on a gradient that includes the L2 term."""
    learning_rate = optax.exponential_decay(config.learning_rate, config.decay_steps, config.decay_rate)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.adam(learning_rate))


def init_state(config: TrainConfig, model: emcaps.CapsNet, image_shape: tuple[int, ...], key: jax.Array) -> TrainState:
    """The state before the first step, for images `[height, width, channels]`."""
    params = model.init(key, jnp.zeros((1, *image_shape)))["params"]
    return TrainState(jnp.int32(0), params, make_optimizer(config).init(params))


def class_activations(model: emcaps.CapsNet, params: Any, images: jax.Array) -> jax.Array:
    """`[B, num_classes]` in [0, 1], of uint8 images `[B, H, W, C]`."""
    return model.apply({"params": params}, to_float(images))[0].activations  # pyright: ignore[reportIndexIssue]


def margin_at(config: TrainConfig, step: jax.Array | int) -> jax.Array:
    """The margin of the spread loss after `step` steps, a scalar."""
    ramp = max(1, round(config.margin_ramp * config.steps))
    return emcaps.margin_schedule(step, ramp, config.margin_start, config.margin_end)


def make_train_step(config: TrainConfig, model: emcaps.CapsNet) -> Callable[..., tuple[TrainState, Metrics]]:
    """The pure function `step(state, batch, reduce) -> (state, metrics)`.

    `reduce` averages a tree over all devices that have a share of the batch (see parallel.py).
    """
    optimizer = make_optimizer(config)

    def train_step(state: TrainState, batch: Batch, reduce: Callable[[Any], Any]) -> tuple[TrainState, Metrics]:
        def objective(params: Any) -> tuple[jax.Array, jax.Array]:
            activations = class_activations(model, params, batch.images)
            loss = emcaps.spread_loss(activations, batch.labels, margin_at(config, state.step)).mean()
            return loss, (activations.argmax(-1) == batch.labels).mean()

        (loss, accuracy), gradient = reduce(jax.value_and_grad(objective, has_aux=True)(state.params))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), Metrics(loss, accuracy, optax.tree.norm(gradient))

    return train_step
