"""How routing goes, in a few numbers: of a routing result, of every layer of a network, of every
iteration in a layer.

They show what a loss does not: whether assignments get decided or stay even, whether capsules have
died or are always on, and in which layer and iteration it happens.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emcaps.capsnet import CapsNet, check_network
from emcaps.checks import check_choice, check_shapes
from emcaps.precision import compute_dtype
from emcaps.types import POSE_ENTRIES, POSE_SIZE, RoutingResult

__all__ = [
    "RoutingDiagnostics",
    "diagnose",
    "diagnose_iterations",
    "diagnose_layers",
    "results_by_iteration",
]

# A parent whose activation is below the first, or above the second, for a whole batch says nothing
# about an example.
DEAD_BELOW, SATURATED_ABOVE = 0.01, 0.99


class RoutingDiagnostics(NamedTuple):
    """What a routing result looks like. Scalars, in float32 or, for results in float64, float64.

    A parent capsule is a type at a position; r are the assignments, a the activations.

    Attributes:
        assignment_entropy: in nats, at least 0: how undecided the children are,
            `sum(-r log r) / sum(r)` with 0 log 0 = 0. A child's assignments sum to 1 over all
            parents that it reaches, so `sum(r)` counts the children that take part, and this is the
            mean of their entropies. After the first iteration it is the largest possible, the mean
            of the log of the number of parents that a child reaches: as far as it falls from there,
            routing has decided something. (With another `competition` than `"all"` a child counts
            once for each competition that it takes part in; with `initial_assignments` `"types"`
            the first iteration's shares do not sum to 1, and its value means nothing.)
        activation_mean: of all parents, in [0, 1].
        activation_spread: the standard deviation of all parents' activations, in [0, 0.5].
        logit_spread: at each position, the standard deviation of the activation logits over the
            types; the mean of this over positions and examples. How clearly the types differ where
            they compete, also where activations round to 0 or 1.
        dead: the share of parents with a < 0.01 in every example, in [0, 1]. Such a parent has next
            to no say in what comes after.
        saturated: the share of parents with a > 0.99 in every example, in [0, 1].
    """

    assignment_entropy: jax.Array
    activation_mean: jax.Array
    activation_spread: jax.Array
    logit_spread: jax.Array
    dead: jax.Array
    saturated: jax.Array


def diagnose(result: RoutingResult) -> RoutingDiagnostics:
    """The diagnostics of one routing result. Pure, jitted, differentiable.

    Derivatives are finite everywhere: that of `-r log r` is taken as 0 at r = 0, that of a standard
    deviation of 0 as 0, and `dead` and `saturated` are steps. NaN gives NaN in what is computed
    from it, but in those two, where it counts as neither.

    Args:
        result: of `em_routing`, where every leading axis is of the batch, or of `conv_em_routing`
            or `class_em_routing`.

    Raises:
        TypeError: not a `RoutingResult`, or not of floating point arrays.
        ValueError: the shapes of its fields do not belong together.
    """
    _check_result(result)
    return _diagnose(result)


def diagnose_layers(intermediates: Mapping[str, Any]) -> dict[str, RoutingDiagnostics]:
    """The diagnostics of every capsule layer that routes.

    Args:
        intermediates: what each layer of a network gave, by name: the second output of `CapsNet`.

    Returns:
        By name, in the order of `intermediates` (which `jax.jit` sorts by name), of each layer that
        is a `RoutingResult`.

    Raises:
        TypeError: `intermediates` is not a mapping.
        ValueError: as `diagnose`.
    """
    if not isinstance(intermediates, Mapping):
        raise TypeError(
            "intermediates must be a mapping, the second output of CapsNet; got "
            f"{type(intermediates).__name__}"
        )
    return {name: diagnose(result) for name, result in _routed(intermediates).items()}


def results_by_iteration(
    model: CapsNet, variables: Any, images: jax.Array, layer: str
) -> list[RoutingResult]:
    """What the routing of one layer has found after each of its iterations.

    A result holds the state after the last of T iterations only. But iteration t depends on the
    iterations before it and on lambda_t, which does not depend on T; so the state after t of T
    iterations is the result of routing with `num_iterations = t`. The network is therefore applied
    T times, with 1 .. T iterations in this layer and all others as they are: the layer's children
    are the same each time.

    Args:
        model: the network; T is `num_iterations` of this layer in `model.layer_routing()`.
        variables: the network's, `{"params": ...}`.
        images: `[B, height, width, channels]`, floating.
        layer: a name among the intermediates that the network returns: `conv_caps_1` and so on, or
            `class_caps`.

    Returns:
        T results, each as this layer's among the network's intermediates; the last one is that.

    Raises:
        ValueError: no layer of this name routes.
        TypeError, ValueError: as `CapsNet`; the model is no `CapsNet`, or the variables are not its
            own.
    """
    check_network(model, variables, images)
    check_choice("layer", layer, model.layer_names())
    routed = _routing_results(model, variables, images)
    return _results_by_iteration(model, variables, images, layer, routed)


def diagnose_iterations(
    model: CapsNet, variables: Any, images: jax.Array
) -> dict[str, RoutingDiagnostics]:
    """The diagnostics of every capsule layer after each of its iterations, see
    `results_by_iteration`.

    Args:
        model: the network.
        variables: the network's, `{"params": ...}`.
        images: `[B, height, width, channels]`, floating.

    Returns:
        By layer name, in the order of the data, with `[T]` in each field, where T is that layer's
        number of iterations. The last entries are those of `diagnose_layers`.

    Raises:
        TypeError, ValueError: as `CapsNet`; the model is no `CapsNet`, or the variables are not its
            own.
    """
    check_network(model, variables, images)
    routed = _routing_results(model, variables, images)
    found = {}
    for layer in routed:
        by_iteration = map(diagnose, _results_by_iteration(model, variables, images, layer, routed))
        found[layer] = jax.tree.map(lambda *values: jnp.stack(values), *by_iteration)
    return found


def _results_by_iteration(
    model: CapsNet, variables: Any, images: jax.Array, layer: str, routed: dict[str, RoutingResult]
) -> list[RoutingResult]:
    """`results_by_iteration`, given what the network's layers have found in the end."""
    index, routing = list(routed).index(layer), model.layer_routing()
    results = []
    for num_iterations in range(1, routing[index].num_iterations):
        shortened = routing[index].shortened(num_iterations)
        shorter = model.clone(routing=(*routing[:index], shortened, *routing[index + 1 :]))
        results.append(_routing_results(shorter, variables, images)[layer])
    return [*results, routed[layer]]


def _routing_results(model: CapsNet, variables: Any, images: jax.Array) -> dict[str, RoutingResult]:
    """What the capsule layers of a network have found, in the order of `model.layer_routing()`."""
    _, intermediates = model.apply(variables, images)  # pyright: ignore[reportGeneralTypeIssues]
    return _routed(intermediates)


def _routed(intermediates: Mapping[str, Any]) -> dict[str, RoutingResult]:
    """The intermediates that are routing results."""
    return {
        name: found for name, found in intermediates.items() if isinstance(found, RoutingResult)
    }


def _has_positions(result: RoutingResult) -> bool:
    """Whether a result is of parents on a map, where poses are matrices; `em_routing` gives their
    entries in a row.
    """
    return np.shape(result.poses)[-1:] == (POSE_SIZE,)


def _check_result(result: RoutingResult) -> None:
    """Raise unless this is a routing result whose shapes belong together."""
    if not isinstance(result, RoutingResult):
        raise TypeError(f"result must be a RoutingResult; got {type(result).__name__}")
    if _has_positions(result):
        poses, activations, assignments = "B OH OW J 4 4", "B OH OW J", "B OH OW KH KW I J"
    else:
        poses, activations, assignments = f"... J {POSE_ENTRIES}", "... J", "... N J"
    check_shapes(
        {
            "result.poses": (result.poses, poses),
            "result.activations": (result.activations, activations),
            "result.activation_logits": (result.activation_logits, activations),
            "result.variances": (result.variances, poses),
            "result.assignments": (result.assignments, assignments),
        }
    )
    if _has_positions(result):
        return
    batch = result.activations.shape[:-1]
    for name, axes in (
        ("poses", 2),
        ("activation_logits", 1),
        ("variances", 2),
        ("assignments", 2),
    ):
        shape = getattr(result, name).shape
        if shape[:-axes] != batch:
            raise ValueError(
                f"result.{name} must have the batch axes of result.activations, {list(batch)}; got "
                f"shape {list(shape)}"
            )


@jax.jit
def _diagnose(result: RoutingResult) -> RoutingDiagnostics:
    """`diagnose` of a result that is checked."""
    dtype = compute_dtype(result.activations)
    assignments, activations, logits = (
        array.astype(dtype)
        for array in (result.assignments, result.activations, result.activation_logits)
    )
    batch_axes = (0,) if _has_positions(result) else tuple(range(activations.ndim - 1))

    def share(of_every_example: jax.Array) -> jax.Array:
        return of_every_example.all(batch_axes).mean(dtype=dtype)

    return RoutingDiagnostics(
        assignment_entropy=_entropy_terms(assignments).sum() / assignments.sum(),
        activation_mean=activations.mean(),
        activation_spread=_standard_deviation(activations, None),
        logit_spread=_standard_deviation(logits, -1).mean(),
        dead=share(activations < DEAD_BELOW),
        saturated=share(activations > SATURATED_ABOVE),
    )


def _entropy_terms(shares: jax.Array) -> jax.Array:
    """`-r log r`, 0 at r = 0 with a derivative of 0."""
    vanishing = shares < jnp.finfo(shares.dtype).tiny
    return -shares * jnp.log(jnp.where(vanishing, 1, shares))


def _standard_deviation(array: jax.Array, axis: int | None) -> jax.Array:
    """The standard deviation, with a derivative of 0 where it is 0."""
    variance = array.var(axis)
    constant = variance == 0
    return jnp.where(constant, 0, jnp.sqrt(jnp.where(constant, 1, variance)))
