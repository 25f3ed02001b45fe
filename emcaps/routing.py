"""EM routing as pure functions: the public faces of Procedure 1, batch-first.

They check their arguments and leave the rest to `implementations.py`. `em_routing` is for parents
that all see every child, `conv_em_routing` for parents on a map, `class_em_routing` for class
capsules.
"""

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from emcaps.checks import (
    check_axis,
    check_data,
    check_known_number,
    check_number,
    check_positive_int,
    check_range,
)
from emcaps.implementations import route_capsules, route_votes
from emcaps.options import PAPER, RoutingChanges, RoutingOptions
from emcaps.partitioning import divide_examples
from emcaps.precision import compute_dtype
from emcaps.procedure import Constants, Procedure
from emcaps.receptive_field import ReceptiveField
from emcaps.sharding import Bound, for_each_shard, leave_to_compiler
from emcaps.streamed_gradient import FIRST_ORDER_ONLY
from emcaps.types import POSE_ENTRIES, POSE_SIZE, RoutingResult


def inverse_temperature_schedule(num_iterations: int, final: float = 0.01) -> np.ndarray:
    """`lambda_t = final * (1 - 0.95 ** (t + 1))` for t = 0 .. T-1: the released code's schedule.
    Returns `[T]`, float64.

    Raises:
        TypeError, ValueError: `num_iterations` is not an int of at least 1, or `final` not a finite
            number of at least 0.
    """
    check_positive_int("num_iterations", num_iterations)
    check_known_number("final", final, 0)
    return final * (1 - 0.95 ** np.arange(1, num_iterations + 1))


def em_routing(
    votes: jax.Array,
    activations: jax.Array,
    beta_u: jax.Array,
    beta_a: jax.Array,
    *,
    parent_axis: str | None = None,
    options: RoutingOptions = PAPER,
    **changes: Unpack[RoutingChanges],
) -> RoutingResult:
    """Procedure 1 for parents that all see every child. Pure, jitted, differentiable to any order.

    Args:
        votes: `[..., N, J, P]`, floating: child n's vote for the pose of parent j. Any number of
            batch axes, each element of which is routed by itself. Low precision is computed in
            float32 and returned in its own dtype.
        activations: `[..., N]` in [0, 1] (checked where the values are known).
        beta_u: `[J]`, floating: cost of one unit of data and pose entry.
        beta_a: `[J]`, floating: a parent's activation threshold, in units of cost.
        parent_axis: name of a mapped axis (of `jax.shard_map`, `jax.pmap`) over whose devices the
            parent types are divided evenly; J is then the number of those here, the children are
            the same on all of its devices, and what a child gives to parents elsewhere is counted.
            What its gradients are: see `partition_specs`. Static.
        options: see `RoutingOptions`; the default is the paper's procedure. `implementation` and
            `remat` have no effect on votes that are given. With one parent position the competition
            `"types"` is the same as `"all"`, and with `"positions"` nothing competes.
        **changes: fields of `RoutingOptions` that are other than in `options`, such as
            `num_iterations=2`.

    Returns:
        A `RoutingResult`: poses and variances `[..., J, P]`, activations and logits `[..., J]`,
        assignments `[..., N, J]`. Logits and variances, whose range low precision may not have, are
        in at least float32.

    Raises:
        TypeError: an array is not floating point, an option not of its type, or there is no such
            option.
        ValueError: shapes do not match, or a known value is out of its range, NaN or infinite; a
            constant of the options is below the smallest normal number of the dtype that is
            computed in. Values that are traced are not known; under
            `jax.experimental.checkify.checkify` they are checked as well.
    """
    check_data(
        {
            "votes": (votes, f"... N J {POSE_ENTRIES}"),
            "activations": (activations, "... N"),
            "beta_u": (beta_u, "J"),
            "beta_a": (beta_a, "J"),
        }
    )
    if votes.shape[:-2] != activations.shape:
        raise ValueError(
            f"activations must have shape {list(votes.shape[:-2])}, that of votes without its last "
            f"two axes; got shape {list(activations.shape)}"
        )
    field = ReceptiveField(map_size=(1, 1), kernel_size=(1, 1), stride=1)
    dtype = compute_dtype(votes, activations)
    constants, procedure = _resolve(
        _changed(options, changes), field, activations, beta_u, beta_a, parent_axis, dtype
    )
    route = Bound(_route_patches, (("procedure", procedure),))
    return for_each_shard(route, (votes, activations), constants, batch_axes=activations.ndim - 1)


def conv_em_routing(
    poses: jax.Array,
    activations: jax.Array,
    transforms: jax.Array,
    beta_u: jax.Array,
    beta_a: jax.Array,
    *,
    stride: int = 1,
    parent_axis: str | None = None,
    options: RoutingOptions = PAPER,
    **changes: Unpack[RoutingChanges],
) -> RoutingResult:
    """Procedure 1 for parents on a map, each seeing a `KH x KW` patch of children. Pure, jitted,
    differentiable: once and in reverse mode, with `implementation="dense"` in any way.

    Child i votes `pose_i @ transform_ij`, the transforms shared by all parent positions. Parents of
    all types at all positions whose receptive field covers a child compete for it; children that no
    receptive field covers take no part.

    Args:
        poses: `[B, H, W, I, 4, 4]`, floating.
        activations: `[B, H, W, I]` in [0, 1] (checked where the values are known).
        transforms: `[KH, KW, I, J, 4, 4]`, floating: kernel row, kernel column; no padding, so
            `KH <= H` and `KW <= W`.
        beta_u: `[J]`, as in `em_routing`.
        beta_a: `[J]`, as in `em_routing`.
        stride: >= 1, in rows and columns. Static.
        parent_axis, options, **changes: as in `em_routing`. How the votes are held is the option
            `implementation`.

    Returns:
        A `RoutingResult`: poses and variances `[B, OH, OW, J, 4, 4]`, activations and logits
        `[B, OH, OW, J]`, assignments `[B, OH, OW, KH, KW, I, J]`, where
        `OH = (H - KH) // stride + 1` and likewise `OW`.

    Raises:
        TypeError, ValueError: as `em_routing`, and for a kernel larger than the map.
    """
    sizes = check_data(
        {
            "poses": (poses, "B H W I 4 4"),
            "activations": (activations, "B H W I"),
            "transforms": (transforms, "KH KW I J 4 4"),
            "beta_u": (beta_u, "J"),
            "beta_a": (beta_a, "J"),
        }
    )
    check_positive_int("stride", stride)
    if sizes["KH"] > sizes["H"] or sizes["KW"] > sizes["W"]:
        raise ValueError(
            f"transforms must have a kernel no larger than the {sizes['H']}x{sizes['W']} map of "
            f"children; got a {sizes['KH']}x{sizes['KW']} kernel"
        )
    field = ReceptiveField((sizes["H"], sizes["W"]), (sizes["KH"], sizes["KW"]), stride)
    return _route_map(
        field,
        (poses, activations),
        transforms,
        None,
        (beta_u, beta_a),
        parent_axis,
        _changed(options, changes),
    )


def class_em_routing(
    poses: jax.Array,
    activations: jax.Array,
    transforms: jax.Array,
    beta_u: jax.Array,
    beta_a: jax.Array,
    *,
    coordinates: jax.Array | None = None,
    parent_axis: str | None = None,
    options: RoutingOptions = PAPER,
    **changes: Unpack[RoutingChanges],
) -> RoutingResult:
    """Procedure 1 for class capsules: each sees the whole map, with one transform per child type at
    all positions.

    Coordinate addition: so that sharing the transforms does not lose where a child sits, its row
    and column coordinates are added to the first two entries of the right-hand column of its votes,
    `vote[0, 3]` and `vote[1, 3]`.

    Args:
        poses: `[B, H, W, I, 4, 4]`, floating.
        activations: `[B, H, W, I]` in [0, 1] (checked where the values are known).
        transforms: `[I, J, 4, 4]`, floating.
        beta_u: `[J]`, as in `em_routing`.
        beta_a: `[J]`, as in `em_routing`.
        coordinates: `[H, W, 2]`, floating: row and column of each position in the image, in [0, 1]
            by custom, which is not checked; None adds nothing.
        parent_axis, options, **changes: as in `conv_em_routing`. With one parent position the
            competition `"types"` is the same as `"all"`, and with `"positions"` nothing competes.

    Returns:
        A `RoutingResult` like `conv_em_routing`'s with one parent position: poses
        `[B, 1, 1, J, 4, 4]`, assignments `[B, 1, 1, H, W, I, J]`.

    Raises:
        TypeError, ValueError: as `em_routing`.
    """
    shapes = {
        "poses": (poses, "B H W I 4 4"),
        "activations": (activations, "B H W I"),
        "transforms": (transforms, "I J 4 4"),
        "beta_u": (beta_u, "J"),
        "beta_a": (beta_a, "J"),
    }
    if coordinates is not None:
        shapes["coordinates"] = (coordinates, "H W 2")
    sizes = check_data(shapes)
    field = ReceptiveField((sizes["H"], sizes["W"]), (sizes["H"], sizes["W"]), 1)
    return _route_map(
        field,
        (poses, activations),
        transforms,
        coordinates,
        (beta_u, beta_a),
        parent_axis,
        _changed(options, changes),
    )


def _changed(options: Any, changes: RoutingChanges) -> RoutingOptions:
    """Options with these fields in place of their own."""
    if not isinstance(options, RoutingOptions):
        raise TypeError(f"options must be RoutingOptions; got {type(options).__name__}")
    return dataclasses.replace(options, **changes) if changes else options


def _resolve(
    options: RoutingOptions,
    field: ReceptiveField,
    activations: jax.Array,
    beta_u: jax.Array,
    beta_a: jax.Array,
    parent_axis: str | None,
    dtype: Any,
) -> tuple[Constants, Procedure]:
    """What a program is given that computes in this dtype, and what shapes it, for children whose
    types are the last axis of their activations.
    """
    check_range("activations", activations, 0, 1)
    check_axis("parent_axis", parent_axis)
    devices = 1 if parent_axis is None else lax.axis_size(parent_axis)
    scalars = {
        "min_variance": options.min_variance,
        "mass_epsilon": options.mass_epsilon,
        "mass_scale": options.layer_mass_scale(field, activations.shape[-1], len(beta_u) * devices),
        "assignment_temperature": options.assignment_temperature,
    }
    for name, value in scalars.items():
        check_number(name, value, float(jnp.finfo(dtype).tiny))
    scalars = {name: jnp.asarray(value, jnp.result_type(float)) for name, value in scalars.items()}
    schedule: Any = options.inverse_temperature
    if schedule is None:
        schedule = jnp.asarray(inverse_temperature_schedule(options.num_iterations), dtype)
    elif not np.ndim(schedule):
        schedule = jnp.full(options.num_iterations, schedule, jnp.result_type(float))
    constants = Constants(beta_u[:, None], beta_a[:, None], schedule, **scalars)
    static = {name: getattr(options, name) for name in Procedure._fields if hasattr(options, name)}
    # A NumPy number, of 64 bits, would decide in what dtype is computed.
    static["damping"] = float(options.damping)
    return constants, Procedure(field, parent_axis=parent_axis, **static)


def _route_patches(children: Any, constants: Constants, *, procedure: Procedure) -> RoutingResult:
    """`route_votes`."""
    return route_votes(*children, constants, procedure=procedure)


def _route_map(
    field: ReceptiveField,
    children: tuple[jax.Array, jax.Array],
    transforms: jax.Array,
    coordinates: jax.Array | None,
    betas: tuple[jax.Array, jax.Array],
    parent_axis: str | None,
    options: RoutingOptions,
) -> RoutingResult:
    """Route the children of each example, on the device where it is; explain what JAX says when it
    is asked for forward mode.
    """
    dtype = compute_dtype(*children, transforms)
    constants, procedure = _resolve(options, field, children[1], *betas, parent_axis, dtype)
    static = {
        "procedure": procedure,
        "implementation": options.implementation,
        "remat": options.remat,
    }
    route = Bound(_route_examples, tuple(static.items()))
    divide = leave_to_compiler if options.implementation == "dense" else divide_examples
    try:
        return for_each_shard(route, children, (transforms, constants, coordinates), divide=divide)
    except TypeError as error:
        if "forward-mode" in str(error):
            raise TypeError(FIRST_ORDER_ONLY) from error
        raise


def _route_examples(
    children: Any, shared: Any, *, procedure: Procedure, **static: Any
) -> RoutingResult:
    """`route_capsules`; transforms without kernel axes are those of all positions, and coordinates
    may join the votes.
    """
    (poses, activations), (transforms, constants, coordinates) = children, shared
    if coordinates is not None:
        poses, transforms = _append_coordinates(poses, transforms, coordinates)
    if transforms.ndim == 4:
        transforms = jnp.broadcast_to(transforms, (*procedure.field.kernel_size, *transforms.shape))
    return route_capsules(poses, activations, transforms, constants, procedure=procedure, **static)


def _append_coordinates(
    poses: jax.Array, transforms: jax.Array, coordinates: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Make coordinate addition part of the product: `[pose | x] @ [transform; 0 0 0 1]` = vote + x
    on the last column.
    """
    column = jnp.pad(coordinates.astype(poses.dtype), [(0, 0), (0, 0), (0, POSE_SIZE - 2)])[
        :, :, None, :, None
    ]
    column = jnp.broadcast_to(column, (*poses.shape[:-1], 1))
    row = jnp.zeros((*transforms.shape[:-2], 1, POSE_SIZE), transforms.dtype).at[..., -1].set(1)
    return jnp.concatenate([poses, column], -1), jnp.concatenate([transforms, row], -2)
