"""beta_u and beta_a set from the data before training, in place of constants that fit another
network (`--calibrate-betas`).
"""

from typing import Any

import jax
import jax.numpy as jnp

import emcaps
from emcaps import Capsules, RoutingOptions, RoutingResult
from emcaps.types import POSE_ENTRIES


def calibrate_betas(model: emcaps.CapsNet, params: Any, images: jax.Array) -> Any:
    """Parameters with which activations start near 0.5, and differ: a type's logits have mean 0,
    and all have spread 1.

    Layer by layer, since a layer's activations are the next one's data. Within a layer, the last
    iteration's logit is

        logit = lambda (beta_a - cost)
    cost = (16 beta_u + sum_h log(variance_h) / 2) * mass * mass_scale

    so that the beta_u that gives a spread is the root of a quadratic equation, and beta_a is the
    mean cost of a type. A spread that no beta_u gives is missed by as little as possible. Costs
    that are normalized have their spread, and beta_u stays. The new values change the E-steps, and
    with them the variances, a little: what is promised holds up to that.

    Args:
        model: the network.
        params: its parameters.
        images: float `[B, height, width, channels]`, the first batch.
    """
    layers = model.layer_names()
    strides = [stride for _, stride in model.layer_geometry()[2:]] + [1]
    for below, layer, options, stride in zip(
        ["primary", *layers[:-1]], layers, model.layer_routing(), strides, strict=True
    ):
        output: Any = model.apply({"params": params}, images)
        children, result = (output[1][name] for name in (below, layer))
        params = params | {
            layer: params[layer] | _layer_betas(params[layer], options, stride, children, result)
        }
    return params


def _layer_betas(
    params: Any,
    options: RoutingOptions,
    stride: int,
    children: Capsules | RoutingResult,
    result: RoutingResult,
) -> Any:
    """The `beta_u` and `beta_a` of a layer, given what it has made of its children."""
    beta_u, axes = params["beta_u"], (0, 1, 2)
    if options.normalize_costs:
        cost = params["beta_a"] - result.activation_logits / _final_inverse_temperature(options)
        return {"beta_u": beta_u, "beta_a": cost.mean(axes)}
    per_pose_entry, information = _cost_parts(options, stride, children, result)
    x, y = (part - part.mean(axes) for part in (per_pose_entry, information))
    target = 1 / _final_inverse_temperature(options) ** 2
    # Where the spread is least; the roots lie on both sides of it.
    nearest = -(x * y).mean() / (x * x).mean()
    reach = jnp.sqrt(jnp.maximum(nearest**2 - ((y * y).mean() - target) / (x * x).mean(), 0))
    roots = nearest + jnp.stack([-reach, reach])
    chosen = roots[jnp.abs(roots - beta_u.mean()).argmin()]
    cost = chosen * per_pose_entry + information
    return {"beta_u": jnp.full_like(beta_u, chosen), "beta_a": cost.mean(axes)}


def _cost_parts(
    options: RoutingOptions, stride: int, children: Capsules | RoutingResult, result: RoutingResult
) -> tuple[jax.Array, jax.Array]:
    """What beta_u is multiplied with in a parent's cost, and the rest of the cost: each
    `[B, OH, OW, J]`.
    """
    _, height, width, child_types = children.activations.shape
    *_, kernel_height, kernel_width, _, parent_types = result.assignments.shape
    field = emcaps.ReceptiveField((height, width), (kernel_height, kernel_width), stride)
    seen = field.gather(children.activations.transpose(3, 1, 2, 0))  # [KH, KW, I, OH, OW, B]
    mass = jnp.einsum("bpqhwij,hwipqb->bpqj", result.assignments, seen) * options.layer_mass_scale(
        field, child_types, parent_types
    )
    log_deviations = 0.5 * jnp.log(result.variances).sum((-2, -1))
    return POSE_ENTRIES * mass, log_deviations * mass


def _final_inverse_temperature(options: RoutingOptions) -> float:
    """The inverse temperature of the last iteration."""
    if options.inverse_temperature is not None:
        return options.inverse_temperature
    return float(emcaps.inverse_temperature_schedule(options.num_iterations)[-1])
