"""What is trained and how one step trains it: network, loss, optimiser, and the pure training step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import schedule_free_adamw, schedule_free_eval_params

import emcaps
from experiments.baseline import BaselineCNN
from experiments.batches import Batch
from experiments.calibration import calibrate_betas
from experiments.configs import FAMILIES, ModelConfig, TrainConfig

AVERAGE_WEIGHT = 0.9  # of the average of schedule-free Adam, beside the newest parameters, where the gradient is taken
DECODER = "decoder"  # its place among the parameters, beside the network's layers
Network = emcaps.CapsNet | emcaps.DynamicCapsNet | BaselineCNN


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
        step: int32 scalar, how many steps have been taken.
        params: the network's parameters, as it is scored and saved.
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


def make_model(config: ModelConfig, num_classes: int, parent_axis: str | None = None) -> Network:
    """The network of a config; with a `parent_axis` as it is where devices share its parent types.

    Raises:
        ValueError: a `parent_axis` of a network without convolutional capsule layers.
    """
    if parent_axis is not None and config.family != "capsules":
        raise ValueError(f"{FAMILIES[config.family]} no parent types that a model axis of devices could share")
    if config.family == "cnn":
        return BaselineCNN(num_classes, config.cnn_channels, config.cnn_hidden_units)
    if config.family == "dynamic":
        return emcaps.DynamicCapsNet(
            num_classes, config.dynamic_channels, config.dynamic_capsules, num_iterations=config.dynamic_iterations
        )
    return emcaps.CapsNet(
        num_classes,
        conv_channels=config.conv_channels,
        primary_capsules=config.primary_capsules,
        conv_capsules=config.conv_capsules,
        routing=config.layer_routing,
        capsule_init=config.capsule_init,
        add_coordinates=config.add_coordinates,
        dtype=jnp.dtype(config.dtype),
        parent_axis=parent_axis,
    )


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam on a gradient that includes the L2 term, with the schedule, warm-up and clipping of the config."""
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), clip, _adam(config))


def _adam(config: TrainConfig) -> optax.GradientTransformation:
    if config.schedule == "schedule_free":
        return schedule_free_adamw(config.learning_rate, config.warmup_steps or None, b1=AVERAGE_WEIGHT)
    if config.schedule == "cosine":
        learning_rate = optax.cosine_decay_schedule(config.learning_rate, max(1, config.steps - config.warmup_steps))
    else:
        learning_rate = optax.exponential_decay(config.learning_rate, config.decay_steps, config.decay_rate)
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
        learning_rate = optax.join_schedules([warmup, learning_rate], [config.warmup_steps])
    return optax.adam(learning_rate)


def gradient_params(config: TrainConfig, state: TrainState) -> Any:
    """Where a step takes its gradient: at the parameters.

    Of schedule-free Adam these are an average over the steps, and the gradient is taken a part of the way to where the newest
    step has led.
    """
    if config.schedule != "schedule_free":
        return state.params
    newest = _schedule_free_state(state.opt_state).z
    return jax.tree.map(lambda average, new: AVERAGE_WEIGHT * average + (1 - AVERAGE_WEIGHT) * new, state.params, newest)


def updated_params(config: TrainConfig, params: Any, opt_state: optax.OptState) -> Any:
    """The parameters after a step that has moved those of `gradient_params` to `params`."""
    if config.schedule != "schedule_free":
        return params
    return schedule_free_eval_params(_schedule_free_state(opt_state), params)


def _schedule_free_state(opt_state: Any) -> Any:
    """That of schedule-free Adam, the last of the chain of `make_optimizer`."""
    return opt_state[-1]


def init_state(config: TrainConfig, model: Network, images: jax.Array, key: jax.Array) -> TrainState:
    """The state before the first step, for images like these: `[B, H, W, C]`, float32, the first batch."""
    output: Any = model.init_with_output(key, images[:1])
    (_, stages), variables = output
    params = variables["params"]
    if config.model.reconstruction:
        decoder, chosen = emcaps.Decoder(images.shape[1:]), jnp.zeros(1, jnp.int32)
        params = params | {DECODER: decoder.init(jax.random.fold_in(key, 1), class_poses(stages), chosen)["params"]}
    if config.calibrate_betas and isinstance(model, emcaps.CapsNet):
        params = calibrate_betas(model, params, images)
    return state_of(config, params)


def state_of(config: TrainConfig, params: Any) -> TrainState:
    """The state before the first step of a run that begins with these parameters."""
    return TrainState(jnp.int32(0), params, make_optimizer(config).init(params))


def class_logits(stages: Mapping[str, Any]) -> jax.Array:
    """What the loss is of: the activation logits of the class capsules, or the CNN's logits, `[B, num_classes]`.

    Args:
        stages: of `network_stages`.
    """
    if "class_caps" not in stages:
        return stages["classes"]
    logits = stages["class_caps"].activation_logits
    return logits.reshape(len(logits), -1)  # class capsules with matrices are on a map of one position


def class_poses(stages: Mapping[str, Any]) -> jax.Array:
    """The poses of the class capsules, row by row, `[B, num_classes, entries]`; arguments as `class_logits`."""
    return stages["class_caps"].poses.reshape(*class_logits(stages).shape, -1)


def decode(params: Any, poses: jax.Array, chosen: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Images `[B, *shape]` as the decoder sees them in poses `[B, num_classes, entries]` of the chosen classes `[B]`.

    Args:
        params: of a network with `reconstruction`.
        poses: as of `class_poses`.
        chosen: a class for each image: in training its label.
        shape: of an image.
    """
    images: Any = emcaps.Decoder(shape).apply({"params": params[DECODER]}, poses, chosen)
    return images


def log_activations(model: Network, logits: jax.Array) -> jax.Array:
    """Logarithms of what the network says of each class: of activations, or of the CNN's probabilities."""
    return jax.nn.log_softmax(logits) if isinstance(model, BaselineCNN) else jax.nn.log_sigmoid(logits)


def routing_diagnostics(
    config: TrainConfig, model: Network, params: Any, images: jax.Array, step: jax.Array | int
) -> dict[str, emcaps.RoutingDiagnostics]:
    """How each capsule layer routes float images `[B, H, W, C]` after `step` steps; empty for other networks."""
    return emcaps.diagnostics(network_stages(config, model, params, images, step))


def network_stages(
    config: TrainConfig,
    model: Network,
    params: Any,
    images: jax.Array,
    step: jax.Array | int,
    dropout_keys: jax.Array | None = None,
) -> dict[str, Any]:
    """What each stage of the network makes of images after `step` steps; see `CapsNet`, `DynamicCapsNet` and `BaselineCNN`.

    Args:
        config: of the run.
        model: its network.
        params: the network's.
        images: float `[B, H, W, C]`.
        step: how many steps have been taken.
        dropout_keys: in training, `[B, 2]`; see `BaselineCNN`. Capsules drop nothing.
    """
    given = (images, dropout_keys) if isinstance(model, BaselineCNN) else (images,)
    output: Any = network_at(config, model, step).apply({"params": params}, *given)
    return output[1]


def learned_temperatures(model: Network, params: Any) -> dict[str, dict[str, jax.Array]]:
    """The temperatures that the layers of a network have learned, scalars by name and layer; empty if it learns none."""
    found: dict[str, dict[str, jax.Array]] = {}
    if isinstance(model, emcaps.CapsNet):
        for layer, routing in zip(model.layer_names(), model.layer_routing(), strict=True):
            learned = routing.learned(params[layer])
            for name in routing.learns():
                found.setdefault(name, {})[layer] = getattr(learned, name)
    return found


def make_temperatures(model: Network) -> Callable[[Any], dict[str, Any]]:
    """The function `temperatures(params)`: the `learned_temperatures` of a network in terms of JSON."""
    compiled = jax.jit(functools.partial(learned_temperatures, model))
    return lambda params: jax.tree.map(float, jax.device_get(compiled(params)))


def network_at(config: TrainConfig, model: Network, step: jax.Array | int) -> Network:
    """The network as it is after `step` steps, where the config lets the temperatures of routing move during the training."""
    if not isinstance(model, emcaps.CapsNet) or not (config.assignment_temperature_end or config.inverse_temperature_start):
        return model
    progress = jnp.clip(jnp.asarray(step) / config.steps, 0, 1)

    def moved(options: emcaps.RoutingOptions) -> emcaps.RoutingOptions:
        changes = {}
        if config.assignment_temperature_end is not None:
            ratio = config.assignment_temperature_end / options.assignment_temperature
            changes["assignment_temperature"] = options.assignment_temperature * ratio**progress
        if config.inverse_temperature_start is not None and options.inverse_temperature is not None:
            ratio = config.inverse_temperature_start / options.inverse_temperature
            changes["inverse_temperature"] = options.inverse_temperature * ratio ** (1 - progress)
        return dataclasses.replace(options, **changes)

    return model.clone(routing=tuple(map(moved, model.layer_routing())))


def margin_at(config: TrainConfig, step: jax.Array | int) -> jax.Array:
    """The margin of the spread loss after `step` steps, a scalar."""
    ramp = max(1, round(config.margin_ramp * config.steps))
    return emcaps.margin_schedule(step, ramp, config.margin_start, config.margin_end)


def losses(config: TrainConfig, logits: jax.Array, labels: jax.Array, step: jax.Array | int) -> jax.Array:
    """The config's loss of each example after `step` steps, `[B]`."""
    if config.loss == "cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    activations = jax.nn.sigmoid(logits)
    if config.loss == "margin":
        return emcaps.margin_loss(activations, labels)
    return emcaps.spread_loss(activations, labels, margin_at(config, step))


def make_objective(config: TrainConfig, model: Network) -> Callable[[Any, Batch, jax.Array], tuple[Any, Any]]:
    """The pure function `objective(params, batch, step) -> ((loss, accuracy), gradient)`, each a mean over the batch."""

    def objective(params: Any, batch: Batch, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        stages = network_stages(config, model, params, batch.images, step, batch.dropout_keys)
        logits = class_logits(stages)
        loss = losses(config, logits, batch.labels, step).mean()
        if config.model.reconstruction:
            images = decode(params, class_poses(stages), batch.labels, batch.images.shape[1:])
            loss += emcaps.RECONSTRUCTION_WEIGHT * emcaps.reconstruction_loss(batch.images, images).mean()
        return loss, (logits.argmax(-1) == batch.labels).mean()

    return jax.value_and_grad(objective, has_aux=True)


def make_train_step(config: TrainConfig, model: Network) -> Callable[..., tuple[TrainState, Metrics]]:
    """The pure function `step(state, batch, average) -> (state, metrics)`.

    `average` makes of the objective its mean over all devices that have a share of the batch (see parallel.py).
    """
    optimizer, objective = make_optimizer(config), make_objective(config, model)

    def train_step(state: TrainState, batch: Batch, average: Callable[..., Callable]) -> tuple[TrainState, Metrics]:
        params = gradient_params(config, state)
        (loss, accuracy), gradient = average(objective)(params, batch, state.step)
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        params = updated_params(config, optax.apply_updates(params, updates), opt_state)
        return TrainState(state.step + 1, params, opt_state), Metrics(loss, accuracy, optax.tree.norm(gradient))

    return train_step
