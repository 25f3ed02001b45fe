"""The network of a configuration, and what it makes of images: intermediates, logits, poses,
temperatures.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import emcaps
from experiments.learning.cnn import BaselineCNN
from experiments.learning.configs import FAMILIES, ModelConfig, TrainConfig

DECODER = "decoder"  # its place among the parameters, beside the network's layers
Network = emcaps.CapsNet | emcaps.dynamic.DynamicCapsNet | BaselineCNN


def make_model(config: ModelConfig, num_classes: int, parent_axis: str | None = None) -> Network:
    """The network of a config; with a `parent_axis` as it is where devices share its parent types.

    Raises:
        ValueError: a `parent_axis` of a network without convolutional capsule layers.
    """
    if parent_axis is not None and config.family != "capsules":
        raise ValueError(
            f"{FAMILIES[config.family]} no parent types that a model axis of devices could share"
        )
    if config.family == "cnn":
        return BaselineCNN(num_classes, config.cnn_channels, config.cnn_hidden_units)
    if config.family == "dynamic":
        return emcaps.dynamic.DynamicCapsNet(
            num_classes,
            config.dynamic_channels,
            config.dynamic_capsules,
            num_iterations=config.dynamic_iterations,
        )
    return emcaps.CapsNet(
        num_classes,
        conv_channels=config.conv_channels,
        primary_capsules=config.primary_capsules,
        conv_capsules=config.conv_capsules,
        routing=config.layer_routing,
        add_coordinates=config.add_coordinates,
        dtype=jnp.dtype(config.dtype),
        parent_axis=parent_axis,
        **config.capsule_init.initializers(),
    )


def class_logits(intermediates: Mapping[str, Any]) -> jax.Array:
    """What the loss is of: the activation logits of the class capsules, or the CNN's logits,
    `[B, num_classes]`.

    Args:
        intermediates: of `network_intermediates`.
    """
    if "class_caps" not in intermediates:
        return intermediates["classes"]
    logits = intermediates["class_caps"].activation_logits
    # Class capsules with matrices are on a map of one position.
    return logits.reshape(len(logits), -1)


def class_poses(intermediates: Mapping[str, Any]) -> jax.Array:
    """The poses of the class capsules, row by row, `[B, num_classes, entries]`; arguments as
    `class_logits`.
    """
    return intermediates["class_caps"].poses.reshape(*class_logits(intermediates).shape, -1)


def decode(params: Any, poses: jax.Array, chosen: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Images `[B, *shape]` as the decoder sees them in poses `[B, num_classes, entries]` of the
    chosen classes `[B]`.

    Args:
        params: of a network with `reconstruction`.
        poses: as of `class_poses`.
        chosen: a class for each image: in training its label.
        shape: of an image.
    """
    images: Any = emcaps.dynamic.Decoder(shape).apply({"params": params[DECODER]}, poses, chosen)
    return images


def log_activations(model: Network, logits: jax.Array) -> jax.Array:
    """Logarithms of what the network says of each class: of activations, or of the CNN's
    probabilities.
    """
    return (
        jax.nn.log_softmax(logits) if isinstance(model, BaselineCNN) else jax.nn.log_sigmoid(logits)
    )


def routing_diagnostics(
    config: TrainConfig, model: Network, params: Any, images: jax.Array, step: jax.Array | int
) -> dict[str, emcaps.diagnostics.RoutingDiagnostics]:
    """How each capsule layer routes float images `[B, H, W, C]` after `step` steps; empty for other
    networks.
    """
    return emcaps.diagnostics.diagnose_layers(
        network_intermediates(config, model, params, images, step)
    )


def network_intermediates(
    config: TrainConfig,
    model: Network,
    params: Any,
    images: jax.Array,
    step: jax.Array | int,
    dropout_keys: jax.Array | None = None,
) -> dict[str, Any]:
    """What each layer of the network makes of images after `step` steps; see `CapsNet`,
    `DynamicCapsNet` and `BaselineCNN`.

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
    """The temperatures that the layers of a network have learned, scalars by name and layer; empty
    if it learns none.
    """
    found: dict[str, dict[str, jax.Array]] = {}
    if isinstance(model, emcaps.CapsNet):
        for layer, routing in zip(model.layer_names(), model.layer_routing(), strict=True):
            learned = routing.learned(params[layer])
            for name in routing.learns():
                found.setdefault(name, {})[layer] = getattr(learned, name)
    return found


def make_temperatures(model: Network) -> Callable[[Any], dict[str, Any]]:
    """The function `temperatures(params)`: the `learned_temperatures` of a network in terms of
    JSON.
    """
    compiled = jax.jit(functools.partial(learned_temperatures, model))
    return lambda params: jax.tree.map(float, jax.device_get(compiled(params)))


def network_at(config: TrainConfig, model: Network, step: jax.Array | int) -> Network:
    """The network as it is after `step` steps, where the config lets the temperatures of routing
    move during the training.
    """
    if not isinstance(model, emcaps.CapsNet) or not (
        config.assignment_temperature_end or config.inverse_temperature_start
    ):
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
