"""Between the public arrays, batch-first, and the inner layout of `votes.py`: what runs behind the doors of `routing.py`.

Each function is compiled once for each `Geometry` and set of shapes. It brings the children into the inner layout, runs `em.route`,
a block of the batch at a time where the votes are streamed, and brings the result back.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from emcaps.em import route
from emcaps.em_gradient import route_streamed
from emcaps.types import POSE_ENTRIES, POSE_SIZE, RoutingResult
from emcaps.votes import DenseVotes, StreamedVotes, dense_votes

# How the votes are held, and the routing that goes with it.
IMPLEMENTATIONS = {"dense": (dense_votes, route), "streamed": (StreamedVotes, route_streamed)}

# Streamed routing takes the batch in blocks of about so many columns (parent position x example): on a CPU, so that arrays fit in a
# cache; on accelerators, which want many columns, so that they fit in memory.
BLOCK_COLUMNS = 144
ACCELERATOR_BLOCK_COLUMNS = 8192


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """What the routing computes in: float32 for low precision, otherwise the arrays' own."""
    return common_dtype(*arrays, jnp.float32)


def common_dtype(*given: Any) -> jnp.dtype:
    """What arrays and dtypes promote to, also where the caller lets nothing be promoted implicitly."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*given)


def _cast(tree, dtype):
    return jax.tree.map(lambda array: array.astype(dtype), tree)


def _outer_dtypes(result: RoutingResult, dtype: jnp.dtype) -> RoutingResult:
    """The result in the dtype of the arguments, but for what need not fit into its range: costs, and squares of votes."""
    return _cast(result, dtype)._replace(activation_logits=result.activation_logits, variances=result.variances)


@functools.partial(jax.jit, static_argnames=("geometry",))
def route_votes(votes, activations, constants, *, geometry):
    """`em_routing` behind the door: one patch of children, one parent position."""
    dtype = common_dtype(votes, activations)
    votes, activations, constants = _cast((votes, activations, constants), compute_dtype(votes, activations))
    *batch, num_children, num_parents, _ = votes.shape
    votes = votes.reshape(-1, num_children, num_parents, POSE_SIZE, POSE_SIZE)
    parents, assignments = route(
        DenseVotes(votes.transpose(1, 3, 4, 2, 0)),
        activations.reshape(-1, num_children).T,
        constants,
        geometry,
    )

    def outer_poses(array):  # [4, 4, J, M] to [..., J, P]
        return array.transpose(3, 2, 0, 1).reshape(*batch, num_parents, POSE_ENTRIES)

    def outer_activations(array):  # [J, M] to [..., J]
        return array.T.reshape(*batch, num_parents)

    result = RoutingResult(
        poses=outer_poses(parents.means),
        activations=outer_activations(jax.nn.sigmoid(parents.logits)),
        activation_logits=outer_activations(parents.logits),
        variances=outer_poses(parents.variances),
        assignments=assignments.transpose(2, 0, 1).reshape(*batch, num_children, num_parents),
    )
    return _outer_dtypes(result, dtype)


@functools.partial(jax.jit, static_argnames=("geometry", "implementation", "remat"))
def route_capsules(poses, activations, transforms, constants, *, geometry, implementation, remat):
    """`conv_em_routing` behind the door, block by block. Poses may be `[..., 4, Q]` with transforms `[..., Q, 4]`."""
    dtype = common_dtype(poses, activations, transforms)
    poses, activations, transforms, constants = _cast(
        (poses, activations, transforms, constants), compute_dtype(poses, activations, transforms)
    )

    def route_block(children):
        return _route_patches(children, transforms, constants, geometry, implementation)

    if remat:
        route_block = jax.checkpoint(route_block, prevent_cse=False)
    batch = poses.shape[0]
    block = batch if implementation == "dense" else _block_size(batch, math.prod(geometry.field.output_size))
    if block == batch:
        result = route_block((poses, activations))
    else:
        num_blocks = -(-batch // block)
        children = jax.tree.map(
            lambda array: _pad_batch(array, num_blocks * block).reshape(num_blocks, block, *array.shape[1:]),
            (poses, activations),
        )
        result = lax.map(route_block, children)
        result = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:batch], result)
    return _outer_dtypes(result, dtype)


def _block_size(batch: int, positions: int) -> int:
    """Examples in a block: about so many columns, rather a little fewer than leaving the last block partly empty."""
    columns = BLOCK_COLUMNS if jax.default_backend() == "cpu" else ACCELERATOR_BLOCK_COLUMNS
    most = max(1, columns // positions)
    if not isinstance(batch, int):  # symbolic, in what `jax.export` makes for any batch
        return most
    most = min(batch, most)
    divisor = max(size for size in range(1, most + 1) if batch % size == 0)
    return divisor if 2 * divisor > most else -(-batch // -(-batch // most))


def _pad_batch(array: jax.Array, size: int) -> jax.Array:
    """Zeros appended to the batch axis; capsules that are all zero route to finite values that nobody reads."""
    return jnp.pad(array, [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1))


def _route_patches(children, transforms, constants, geometry, implementation) -> RoutingResult:
    """Gather the children of every patch into the inner layout, route, and bring the result back to batch-first."""
    (poses, activations), (hold_votes, route) = children, IMPLEMENTATIONS[implementation]
    field = geometry.field
    seen_poses = field.gather(poses.transpose(3, 4, 5, 1, 2, 0))  # [KH, KW, I, 4, Q, OH, OW, B]
    seen_activations = field.gather(activations.transpose(3, 1, 2, 0))  # [KH, KW, I, OH, OW, B]
    kernel, positions = seen_activations.shape[:3], seen_activations.shape[3:]
    num_children, num_inner = math.prod(kernel), poses.shape[-1]
    parents, assignments = route(
        hold_votes(
            seen_poses.reshape(num_children, POSE_SIZE, num_inner, -1),
            transforms.transpose(0, 1, 2, 4, 5, 3).reshape(num_children, num_inner, POSE_SIZE, -1),
        ),
        seen_activations.reshape(num_children, -1),
        constants,
        geometry,
    )

    def outer_poses(array):  # [4, 4, J, M] to [B, OH, OW, J, 4, 4]
        return array.reshape(*array.shape[:3], *positions).transpose(5, 3, 4, 2, 0, 1)

    def outer_activations(array):  # [J, M] to [B, OH, OW, J]
        return array.reshape(-1, *positions).transpose(3, 1, 2, 0)

    return RoutingResult(
        poses=outer_poses(parents.means),
        activations=outer_activations(jax.nn.sigmoid(parents.logits)),
        activation_logits=outer_activations(parents.logits),
        variances=outer_poses(parents.variances),
        assignments=assignments.reshape(*kernel, -1, *positions).transpose(6, 4, 5, 0, 1, 2, 3),
    )
