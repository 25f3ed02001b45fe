"""How a child divides itself: among which parents, by which softmax, and how before any routing.

The parents that compete for a child are types at a position and positions on the map. Positions
meet in the children that their patches share, so a softmax over them scatters onto the children's
map and gathers from it; parents of other devices take part through the mapped axis.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from emcaps.procedure import Procedure
from emcaps.sharding import vary_alike


def initial_assignments(activations: jax.Array, procedure: Procedure, num_types: int) -> jax.Array:
    """How each child divides itself before any routing. The same for all types: `[N, M]`."""
    if procedure.initial_assignments == "types":
        return jnp.full_like(activations, 1 / num_types)
    field = procedure.field
    reached = np.maximum(field.num_parent_positions(), 1) * num_types
    shares = field.gather(jnp.asarray(1 / reached, activations.dtype)[None, :, :, None])
    shares, _ = vary_alike((shares, activations))
    types = activations.shape[0] // math.prod(field.kernel_size)
    batch = activations.shape[1] // math.prod(field.output_size)
    shape = (*field.kernel_size, types, *field.output_size, batch)
    return jnp.broadcast_to(shares, shape).reshape(activations.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def compete(scores: jax.Array, procedure: Procedure) -> jax.Array:
    """Softmax of `[N, J, M]` over the parents that compete for a child."""
    field = procedure.field
    # First over the types at a position; then, in arrays without an axis for them, over the patches
    # that see a child.
    type_peak = _over_types(scores, procedure, jnp.max, lax.pmax)
    type_shares = jnp.exp(scores - type_peak)
    patch_weight = jnp.exp(type_peak - _over_patches(type_peak, procedure, field.scatter_max))
    types_total = _over_types(type_shares, procedure, jnp.sum, lax.psum)
    total = _over_patches(types_total * patch_weight, procedure, field.scatter_sum)
    return type_shares * (patch_weight / total)


@functools.partial(jax.jit, static_argnames="procedure")
def compete_derivative(
    assignments: jax.Array, direction: jax.Array, procedure: Procedure
) -> jax.Array:
    """The derivative of `compete` along `direction` `[N, J, M]`.

    It is symmetric: also the gradient that comes back.
    """
    weighted = assignments * direction
    total = _over_patches(
        _over_types(weighted, procedure, jnp.sum, lax.psum), procedure, procedure.field.scatter_sum
    )
    return weighted - assignments * total


@compete.defjvp
def _compete_jvp(procedure, primals, tangents):
    (scores,), (direction,) = primals, tangents
    assignments = compete(scores, procedure)
    return assignments, compete_derivative(assignments, direction, procedure)


def _over_types(
    values: jax.Array, procedure: Procedure, combine: Callable, combine_devices: Callable
) -> jax.Array:
    """Combine `[N, J, M]` over the types to `[N, 1, M]`: those of this device, then over devices.

    Where types do not compete, the values as they are.
    """
    if procedure.competition == "positions":
        return values
    combined = combine(values, axis=1, keepdims=True)
    if procedure.parent_axis is None:
        return combined
    return combine_devices(combined, procedure.parent_axis)


def _over_patches(
    values: jax.Array, procedure: Procedure, scatter: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Combine what the patches say of each child, and tell each patch the result: `[N, J or 1, M]`,
    if positions compete and there are several.
    """
    field = procedure.field
    if procedure.competition == "types" or math.prod(field.output_size) == 1:
        return values
    seen = values.reshape(
        *field.kernel_size, -1, *field.output_size, values.shape[-1] // math.prod(field.output_size)
    )
    return field.gather(scatter(seen)).reshape(values.shape)
