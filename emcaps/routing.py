"""EM routing as pure functions: the public faces of Procedure 1, batch-first.

They check their arguments and leave the rest to `implementations.py`. `em_routing` is for parents that all see every child,
`conv_em_routing` for parents on a map, `class_em_routing` for class capsules.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emcaps.checks import (
    check_axis,
    check_bool,
    check_choice,
    check_data,
    check_floating,
    check_known_number,
    check_number,
    check_positive_int,
    check_range,
)
from emcaps.em import COMPETITIONS, INITIAL_ASSIGNMENTS, Constants, Geometry
from emcaps.em_gradient import FIRST_ORDER_ONLY
from emcaps.implementations import IMPLEMENTATIONS, route_capsules, route_votes
from emcaps.layout import compute_dtype
from emcaps.partitioning import divide_examples
from emcaps.receptive_field import ReceptiveField
from emcaps.sharding import Bound, for_each_shard, leave_to_compiler
from emcaps.types import POSE_ENTRIES, POSE_SIZE, RoutingResult


def inverse_temperature_schedule(num_iterations: int, final: float = 0.01) -> np.ndarray:
    """`lambda_t = final * (1 - 0.95 ** (t + 1))` for t = 0 .. T-1: the released code's schedule. Returns `[T]`, float64.

    Raises:
        TypeError, ValueError: `num_iterations` is not an int of at least 1, or `final` not a finite number of at least 0.
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
    num_iterations: int = 3,
    inverse_temperature: jax.Array | None = None,
    min_variance: float = 5e-4,
    mass_epsilon: float = 1e-7,
    mass_scale: float = 1.0,
    assignment_temperature: float = 1.0,
    normalize_costs: bool = False,
    damping: float = 0.0,
    assignment_gradient: bool = True,
    parent_axis: str | None = None,
) -> RoutingResult:
    """Procedure 1 for parents that all see every child. Pure, jitted, differentiable to any order.

    Args:
        votes: `[..., N, J, P]`, floating: child n's vote for the pose of parent j. Any number of batch axes, each element of
            which is routed by itself. Low precision is computed in float32 and returned in its own dtype.
        activations: `[..., N]` in [0, 1] (checked where the values are known).
        beta_u: `[J]`, cost of one unit of data and pose entry.
        beta_a: `[J]`, a parent's activation threshold, in units of cost.
        num_iterations: T >= 1 M-steps, with T - 1 E-steps between them. Static.
        inverse_temperature: lambda, `[T]`, >= 0; None means `0.01 * (1 - 0.95 ** (t + 1))`, the released code's.
        min_variance: > 0, added to every variance.
        mass_epsilon: > 0, added to a parent's mass where it divides.
        mass_scale: > 0, multiplies a parent's mass in its cost.
        assignment_temperature: > 0, divides log p in the E-step; 1 is the paper's EM, more makes the assignments softer.
        normalize_costs: measure costs in standard deviations over the parent types at a position (see `em.fit_gaussians`); the
            paper's procedure does not. Static.
        damping: in [0, 1), how much of an iteration's means is kept in the next one's: mean = (1 - damping) new + damping old,
            from 0 at first, and the variance is about the damped mean. The paper has none, the released code 0.1. Static.
        assignment_gradient: whether derivatives go through the E-step; False makes the assignments constants. Static.
        parent_axis: name of a mapped axis (of `jax.shard_map`, `jax.pmap`) over whose devices the parent types are divided
            evenly; J is then the number of those here, the children are the same on all of its devices, and what a child gives
            to parents elsewhere is counted. What its gradients are: see `partition_specs`. Static.

    Returns:
        A `RoutingResult`: poses and variances `[..., J, P]`, activations and logits `[..., J]`, assignments `[..., N, J]`. Logits
        and variances, whose range low precision may not have, are in at least float32.

    Raises:
        TypeError: an array is not floating point, `num_iterations` not an int, a flag not a bool.
        ValueError: shapes do not match, or a known value is out of its range, NaN or infinite. Values that are traced are not
            known; under `jax.experimental.checkify.checkify` they are checked as well.
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
            f"activations must have shape {list(votes.shape[:-2])}, that of votes without its last two axes; "
            f"got shape {list(activations.shape)}"
        )
    field = ReceptiveField(map_size=(1, 1), kernel_size=(1, 1), stride=1)
    constants, geometry = _check_procedure(
        field,
        activations,
        beta_u,
        beta_a,
        num_iterations=num_iterations,
        inverse_temperature=inverse_temperature,
        min_variance=min_variance,
        mass_epsilon=mass_epsilon,
        mass_scale=mass_scale,
        assignment_temperature=assignment_temperature,
        normalize_costs=normalize_costs,
        damping=damping,
        assignment_gradient=assignment_gradient,
        parent_axis=parent_axis,
    )
    return for_each_shard(
        lambda children, constants: route_votes(*children, constants, geometry=geometry),
        (votes, activations),
        constants,
        batch_axes=activations.ndim - 1,
    )


def conv_em_routing(
    poses: jax.Array,
    activations: jax.Array,
    transforms: jax.Array,
    beta_u: jax.Array,
    beta_a: jax.Array,
    *,
    stride: int = 1,
    num_iterations: int = 3,
    inverse_temperature: jax.Array | None = None,
    min_variance: float = 5e-4,
    mass_epsilon: float = 1e-7,
    mass_scale: float = 1.0,
    assignment_temperature: float = 1.0,
    normalize_costs: bool = False,
    competition: str = "all",
    initial_assignments: str = "reachable",
    damping: float = 0.0,
    assignment_gradient: bool = True,
    implementation: str = "streamed",
    remat: bool = False,
    parent_axis: str | None = None,
) -> RoutingResult:
    """Procedure 1 for parents on a map, each seeing a `KH x KW` patch of children. Pure, jitted, differentiable.

    Child i votes `pose_i @ transform_ij`, the transforms shared by all parent positions. Parents of all types at all positions
    whose receptive field covers a child compete for it; children that no receptive field covers take no part.

    Args:
        poses: `[B, H, W, I, 4, 4]`, floating.
        activations: `[B, H, W, I]` in [0, 1] (checked where the values are known).
        transforms: `[KH, KW, I, J, 4, 4]`, kernel row, kernel column; no padding, so `KH <= H` and `KW <= W`.
        beta_u: `[J]`, as in `em_routing`.
        beta_a: `[J]`, as in `em_routing`.
        stride: >= 1, in rows and columns. Static.
        num_iterations, inverse_temperature, min_variance, mass_epsilon, mass_scale, assignment_temperature, normalize_costs,
            damping, assignment_gradient: as in `em_routing`.
        competition: among which parents a child divides itself. `"all"`: all that it reaches, as in the paper. `"types"`: only
            the types at one position, for each position anew, as most public code does. `"positions"`: for each type anew, the
            positions whose receptive fields overlap at the child, as the released code does. Static.
        initial_assignments: `"reachable"`: at first each child divides itself evenly among the parents that it reaches, as in
            the paper; `"types"`: 1 / J for each parent, as in the released code. Static.
        implementation: how the votes are held. `"streamed"`: recomputed where they are used and never stored, several times faster,
            for gradients of first order in reverse mode; in chunks in programs for CPUs, fused into reductions in those for GPUs
            and TPUs. `"kernels"`: as `"streamed"`, but in float32 on NVIDIA GPUs by hand-written kernels, several times faster
            still; a program with these cannot be exported. `"fused"`: the accelerators' form on every platform. `"dense"`: in
            memory, differentiable to any order in either mode. Static.
        remat: whether a block of the batch is routed again on the way back, in place of keeping its assignments from the way
            forth: slower, in less memory. Static.
        parent_axis: as in `em_routing`. Static.

    Returns:
        A `RoutingResult`: poses and variances `[B, OH, OW, J, 4, 4]`, activations and logits `[B, OH, OW, J]`, assignments
        `[B, OH, OW, KH, KW, I, J]`, where `OH = (H - KH) // stride + 1` and likewise `OW`.

    Raises:
        TypeError, ValueError: as `em_routing`, and for a kernel larger than the map, or an unknown implementation.
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
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    check_bool("remat", remat)
    if sizes["KH"] > sizes["H"] or sizes["KW"] > sizes["W"]:
        raise ValueError(
            f"transforms must have a kernel no larger than the {sizes['H']}x{sizes['W']} map of children; "
            f"got a {sizes['KH']}x{sizes['KW']} kernel"
        )
    field = ReceptiveField((sizes["H"], sizes["W"]), (sizes["KH"], sizes["KW"]), stride)
    constants, geometry = _check_procedure(
        field,
        activations,
        beta_u,
        beta_a,
        num_iterations=num_iterations,
        inverse_temperature=inverse_temperature,
        min_variance=min_variance,
        mass_epsilon=mass_epsilon,
        mass_scale=mass_scale,
        assignment_temperature=assignment_temperature,
        normalize_costs=normalize_costs,
        competition=competition,
        initial_assignments=initial_assignments,
        damping=damping,
        assignment_gradient=assignment_gradient,
        parent_axis=parent_axis,
    )

    return _route_map(
        (poses, activations), (transforms, constants, None), geometry=geometry, implementation=implementation, remat=remat
    )


def class_em_routing(
    poses: jax.Array,
    activations: jax.Array,
    transforms: jax.Array,
    beta_u: jax.Array,
    beta_a: jax.Array,
    *,
    coordinates: jax.Array | None = None,
    num_iterations: int = 3,
    inverse_temperature: jax.Array | None = None,
    min_variance: float = 5e-4,
    mass_epsilon: float = 1e-7,
    mass_scale: float = 1.0,
    assignment_temperature: float = 1.0,
    normalize_costs: bool = False,
    competition: str = "all",
    initial_assignments: str = "reachable",
    damping: float = 0.0,
    assignment_gradient: bool = True,
    implementation: str = "streamed",
    remat: bool = False,
    parent_axis: str | None = None,
) -> RoutingResult:
    """Procedure 1 for class capsules: each sees the whole map, with one transform per child type at all positions.

    Coordinate addition: so that sharing the transforms does not lose where a child sits, its row and column coordinates are
    added to the first two entries of the right-hand column of its votes, `vote[0, 3]` and `vote[1, 3]`.

    Args:
        poses: `[B, H, W, I, 4, 4]`, floating.
        activations: `[B, H, W, I]` in [0, 1] (checked where the values are known).
        transforms: `[I, J, 4, 4]`.
        beta_u: `[J]`, as in `em_routing`.
        beta_a: `[J]`, as in `em_routing`.
        coordinates: `[H, W, 2]`, row and column of each position in the image, scaled to [0, 1]; None adds nothing.
        num_iterations, inverse_temperature, min_variance, mass_epsilon, mass_scale, assignment_temperature, normalize_costs,
            competition, initial_assignments, damping, assignment_gradient, implementation, remat, parent_axis: as in
            `conv_em_routing`. With one parent position, `"types"` is `"all"`, and `"positions"` is no competition.

    Returns:
        A `RoutingResult` like `conv_em_routing`'s with one parent position: poses `[B, 1, 1, J, 4, 4]`, assignments
        `[B, 1, 1, H, W, I, J]`.

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
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    check_bool("remat", remat)
    field = ReceptiveField((sizes["H"], sizes["W"]), (sizes["H"], sizes["W"]), 1)
    constants, geometry = _check_procedure(
        field,
        activations,
        beta_u,
        beta_a,
        num_iterations=num_iterations,
        inverse_temperature=inverse_temperature,
        min_variance=min_variance,
        mass_epsilon=mass_epsilon,
        mass_scale=mass_scale,
        assignment_temperature=assignment_temperature,
        normalize_costs=normalize_costs,
        competition=competition,
        initial_assignments=initial_assignments,
        damping=damping,
        assignment_gradient=assignment_gradient,
        parent_axis=parent_axis,
    )

    return _route_map(
        (poses, activations), (transforms, constants, coordinates), geometry=geometry, implementation=implementation, remat=remat
    )


def _route_map(children: Any, shared: Any, **static: Any) -> RoutingResult:
    """Route the children of each example, on the device where it is; explain what JAX says when it is asked for forward mode."""
    route = Bound(_route_examples, tuple(static.items()))
    divide = leave_to_compiler if static["implementation"] == "dense" else divide_examples
    try:
        return for_each_shard(route, children, shared, divide=divide)
    except TypeError as error:
        if "forward-mode" in str(error):
            raise TypeError(FIRST_ORDER_ONLY) from error
        raise


def _route_examples(children: Any, shared: Any, *, geometry: Geometry, **static: Any) -> RoutingResult:
    """`route_capsules`; transforms without kernel axes are those of all positions, and coordinates may join the votes."""
    (poses, activations), (transforms, constants, coordinates) = children, shared
    if coordinates is not None:
        poses, transforms = _append_coordinates(poses, transforms, coordinates)
    if transforms.ndim == 4:
        transforms = jnp.broadcast_to(transforms, (*geometry.field.kernel_size, *transforms.shape))
    return route_capsules(poses, activations, transforms, constants, geometry=geometry, **static)


def _append_coordinates(poses: jax.Array, transforms: jax.Array, coordinates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Make coordinate addition part of the product: `[pose | x] @ [transform; 0 0 0 1]` = vote + x on the last column."""
    column = jnp.pad(coordinates.astype(poses.dtype), [(0, 0), (0, 0), (0, POSE_SIZE - 2)])[:, :, None, :, None]
    column = jnp.broadcast_to(column, (*poses.shape[:-1], 1))
    row = jnp.zeros((*transforms.shape[:-2], 1, POSE_SIZE), transforms.dtype).at[..., -1].set(1)
    return jnp.concatenate([poses, column], -1), jnp.concatenate([transforms, row], -2)


def _check_procedure(
    field: ReceptiveField,
    activations: jax.Array,
    beta_u: jax.Array,
    beta_a: jax.Array,
    *,
    num_iterations: int,
    inverse_temperature: jax.Array | None,
    min_variance: float,
    mass_epsilon: float,
    mass_scale: float,
    assignment_temperature: float,
    damping: float,
    **static: Any,
) -> tuple[Constants, Geometry]:
    """Check what all the public functions take, and gather it."""
    check_positive_int("num_iterations", num_iterations)
    check_range("activations", activations, 0, 1)
    dtype = compute_dtype(activations)
    if inverse_temperature is None:
        inverse_temperature = jnp.asarray(inverse_temperature_schedule(num_iterations), dtype)
    check_floating("inverse_temperature", inverse_temperature)
    if inverse_temperature.shape != (num_iterations,):
        raise ValueError(
            f"inverse_temperature must have shape [{num_iterations}], one for each iteration; "
            f"got shape {list(inverse_temperature.shape)}"
        )
    check_range("inverse_temperature", inverse_temperature, 0)
    scalars = {
        "min_variance": min_variance,
        "mass_epsilon": mass_epsilon,
        "mass_scale": mass_scale,
        "assignment_temperature": assignment_temperature,
    }
    for name, value in scalars.items():
        check_number(name, value, float(jnp.finfo(dtype).tiny))
    scalars = {name: jnp.asarray(value, jnp.result_type(float)) for name, value in scalars.items()}
    constants = Constants(beta_u[:, None], beta_a[:, None], inverse_temperature, **scalars)
    check_known_number("damping", damping, 0, 1, open_high=True)
    for name in ("normalize_costs", "assignment_gradient"):
        check_bool(name, static[name])
    for name, choices in (("competition", COMPETITIONS), ("initial_assignments", INITIAL_ASSIGNMENTS)):
        if name in static:
            check_choice(name, static[name], choices)
    check_axis("parent_axis", static["parent_axis"])
    return constants, Geometry(field, num_iterations, damping=float(damping), **static)
