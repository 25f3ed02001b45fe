"""One training step: what is learned, the optimizer, the losses and their schedules, and the
update.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import schedule_free_adamw, schedule_free_eval_params

import emcaps
from experiments.data.batches import Batch
from experiments.learning.beta_calibration import calibrate_betas
from experiments.learning.configs import TrainConfig
from experiments.learning.network import (
    DECODER,
    Network,
    class_logits,
    class_poses,
    decode,
    network_intermediates,
)

# Of the average of schedule-free Adam, beside the newest parameters, where the gradient is taken.
AVERAGE_WEIGHT = 0.9


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
        step: int32 scalar, how many steps have been taken.
        params: the network's parameters, as it is scored and saved.
        opt_state: the optimizer's.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """What a training step tells about itself, scalars: loss and accuracy of the batch, norm of the
    gradient.
    """

    loss: jax.Array
    accuracy: jax.Array
    gradient_norm: jax.Array


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam on a gradient that includes the L2 term, with the schedule, warm-up and clipping of the
    config.
    """
    clip = (
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm)
    )
    return optax.chain(optax.add_decayed_weights(config.weight_decay), clip, _adam(config))


def _adam(config: TrainConfig) -> optax.GradientTransformation:
    if config.schedule == "schedule_free":
        return schedule_free_adamw(
            config.learning_rate, config.warmup_steps or None, b1=AVERAGE_WEIGHT
        )
    if config.schedule == "cosine":
        learning_rate = optax.cosine_decay_schedule(
            config.learning_rate, max(1, config.steps - config.warmup_steps)
        )
    else:
        learning_rate = optax.exponential_decay(
            config.learning_rate, config.decay_steps, config.decay_rate
        )
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
        learning_rate = optax.join_schedules([warmup, learning_rate], [config.warmup_steps])
    return optax.adam(learning_rate)


def gradient_params(config: TrainConfig, state: TrainState) -> Any:
    """Where a step takes its gradient: at the parameters.

    Of schedule-free Adam these are an average over the steps, and the gradient is taken a part of
    the way to where the newest step has led.
    """
    if config.schedule != "schedule_free":
        return state.params
    newest = _schedule_free_state(state.opt_state).z
    return jax.tree.map(
        lambda average, new: AVERAGE_WEIGHT * average + (1 - AVERAGE_WEIGHT) * new,
        state.params,
        newest,
    )


def updated_params(config: TrainConfig, params: Any, opt_state: optax.OptState) -> Any:
    """The parameters after a step that has moved those of `gradient_params` to `params`."""
    if config.schedule != "schedule_free":
        return params
    return schedule_free_eval_params(_schedule_free_state(opt_state), params)


def _schedule_free_state(opt_state: Any) -> Any:
    """That of schedule-free Adam, the last of the chain of `make_optimizer`."""
    return opt_state[-1]


def init_state(
    config: TrainConfig, model: Network, images: jax.Array, key: jax.Array
) -> TrainState:
    """The state before the first step, for images like these: `[B, H, W, C]`, float32, the first
    batch.
    """
    output: Any = model.init_with_output(key, images[:1])
    (_, intermediates), variables = output
    params = variables["params"]
    if config.model.reconstruction:
        decoder, chosen = emcaps.dynamic.Decoder(images.shape[1:]), jnp.zeros(1, jnp.int32)
        params = params | {
            DECODER: decoder.init(jax.random.fold_in(key, 1), class_poses(intermediates), chosen)[
                "params"
            ]
        }
    if config.calibrate_betas and isinstance(model, emcaps.CapsNet):
        params = calibrate_betas(model, params, images)
    return state_of(config, params)


def state_of(config: TrainConfig, params: Any) -> TrainState:
    """The state before the first step of a run that begins with these parameters."""
    return TrainState(jnp.int32(0), params, make_optimizer(config).init(params))


def margin_at(config: TrainConfig, step: jax.Array | int) -> jax.Array:
    """The margin of the spread loss after `step` steps, a scalar."""
    ramp = max(1, round(config.margin_ramp * config.steps))
    return emcaps.margin_schedule(step, ramp, config.margin_start, config.margin_end)


def losses(
    config: TrainConfig, logits: jax.Array, labels: jax.Array, step: jax.Array | int
) -> jax.Array:
    """The config's loss of each example after `step` steps, `[B]`."""
    if config.loss == "cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    activations = jax.nn.sigmoid(logits)
    if config.loss == "margin":
        return emcaps.margin_loss(activations, labels)
    return emcaps.spread_loss(activations, labels, margin_at(config, step))


def make_objective(
    config: TrainConfig, model: Network
) -> Callable[[Any, Batch, jax.Array], tuple[Any, Any]]:
    """The pure function `objective(params, batch, step) -> ((loss, accuracy), gradient)`, each a
    mean over the batch.
    """

    def objective(params: Any, batch: Batch, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        intermediates = network_intermediates(
            config, model, params, batch.images, step, batch.dropout_keys
        )
        logits = class_logits(intermediates)
        loss = losses(config, logits, batch.labels, step).mean()
        if config.model.reconstruction:
            images = decode(
                params, class_poses(intermediates), batch.labels, batch.images.shape[1:]
            )
            loss += (
                emcaps.dynamic.RECONSTRUCTION_WEIGHT
                * emcaps.dynamic.reconstruction_loss(batch.images, images).mean()
            )
        return loss, (logits.argmax(-1) == batch.labels).mean()

    return jax.value_and_grad(objective, has_aux=True)


def make_train_step(
    config: TrainConfig, model: Network
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The pure function `step(state, batch, average) -> (state, metrics)`.

    `average` makes of the objective its mean over all devices that have a share of the batch (see
    devices/parallel.py).
    """
    optimizer, objective = make_optimizer(config), make_objective(config, model)

    def train_step(
        state: TrainState, batch: Batch, average: Callable[..., Callable]
    ) -> tuple[TrainState, Metrics]:
        params = gradient_params(config, state)
        (loss, accuracy), gradient = average(objective)(params, batch, state.step)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        params = updated_params(config, optax.apply_updates(params, updates), opt_state)
        return TrainState(state.step + 1, params, opt_state), Metrics(
            loss, accuracy, optax.tree.norm(gradient)
        )

    return train_step
