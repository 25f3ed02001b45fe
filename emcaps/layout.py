"""Between the public arrays, batch-first, and the inner layout of `votes.py`: what runs behind the doors of `routing.py`.

Each function is compiled once for each `Geometry` and set of shapes. It brings the children into the inner layout, runs `em.route`,
a block of the batch at a time where the votes are streamed, and brings the result back.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from emcaps.em import Constants, route
from emcaps.em_gradient import route_streamed
from emcaps.fused import FusedVotes
from emcaps.types import POSE_ENTRIES, POSE_SIZE, RoutingResult
from emcaps.votes import DenseVotes, StreamedVotes, dense_votes

IMPLEMENTATIONS = ("streamed", "dense", "fused", "kernels")


class Form(NamedTuple):
    """A way to hold the votes, and how much of the batch is routed at a time.

    Attributes:
        hold_votes: from poses `[N, 4, Q, M]` and transforms `[N, Q, 4, J]`.
        route: the routing that goes with it.
        columns: about so many (parent position x example) in a block, or None.
        bytes: a block of several examples takes no more, by `_bytes_of_example`, or None. Of several such blocks each is routed
            again in the backward pass, so that what they keep does not add up.
        multiple: of which a block's columns must be.
    """

    hold_votes: Callable[[jax.Array, jax.Array], Any]
    route: Callable[..., Any]  # a `custom_vjp` tells type checkers nothing
    columns: int | None = None
    bytes: int | None = None
    multiple: int = 1


CHUNKED_COLUMNS = 144  # arrays of so many fit in a CPU's cache
ACCELERATOR_BYTES = 8_000_000_000  # half the memory of the smallest accelerators that people train on, a tenth of a large one's

DENSE = Form(dense_votes, route)
CHUNKED = Form(StreamedVotes, route_streamed, columns=CHUNKED_COLUMNS)
FUSED = Form(FusedVotes, route_streamed, bytes=ACCELERATOR_BYTES)


def kernel_form() -> Form:
    """NVIDIA's, in float32. What it is written in is imported only for who asks: JAX may take it away."""
    from emcaps.kernels import COLUMNS, KernelVotes

    return Form(KernelVotes, route_streamed, bytes=ACCELERATOR_BYTES, multiple=COLUMNS)


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
    # Of each example its own, so that devices sum their gradient once, not in every iteration.
    betas = (jnp.broadcast_to(beta, (num_parents, votes.shape[0])) for beta in constants[:2])
    constants = Constants(*betas, *constants[2:])
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

    def route_in(form):
        return functools.partial(_route_blocks, geometry=geometry, form=form, remat=remat)

    given = poses, activations, transforms, constants
    if implementation == "dense":
        result = route_in(DENSE)(*given)
    elif implementation == "fused":
        result = route_in(FUSED)(*given)
    else:
        with_kernels = implementation == "kernels" and poses.dtype == jnp.float32
        nvidia = {"cuda": route_in(kernel_form())} if with_kernels else {}
        result = lax.platform_dependent(*given, cpu=route_in(CHUNKED), default=route_in(FUSED), **nvidia)
    return _outer_dtypes(result, dtype)


def _route_blocks(poses, activations, transforms, constants, *, geometry, form, remat) -> RoutingResult:
    """Route a block of the batch after the other."""

    def route_block(children):
        return _route_patches(children, transforms, constants, geometry, form)

    batch = poses.shape[0]
    block = _block_size(batch, poses, transforms, geometry, form)
    if remat or (form.bytes is not None and block != batch):
        route_block = jax.checkpoint(route_block, prevent_cse=False)
    if block == batch:
        return route_block((poses, activations))
    num_blocks = -(-batch // block)
    children = jax.tree.map(
        lambda array: _pad_batch(array, num_blocks * block).reshape(num_blocks, block, *array.shape[1:]),
        (poses, activations),
    )
    if num_blocks == 1:
        result = jax.tree.map(lambda array: array[None], route_block(jax.tree.map(lambda array: array[0], children)))
    else:
        result = lax.map(route_block, children)
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:batch], result)


def _block_size(batch, poses, transforms, geometry, form: Form) -> Any:
    """Examples in a block: about as many as the form allows, rather a few less than leaving the last block partly empty."""
    positions = math.prod(geometry.field.output_size)
    if form.columns is not None:
        most = max(1, form.columns // positions)
        if not isinstance(batch, int):  # symbolic, in what `jax.export` makes for any batch
            return most
    elif form.bytes is not None and isinstance(batch, int):
        most = max(1, form.bytes // _bytes_of_example(poses, transforms, geometry))
    else:
        return batch
    most = min(batch, most)
    divisor = max(size for size in range(1, most + 1) if batch % size == 0)
    block = divisor if 2 * divisor > most else -(-batch // -(-batch // most))
    multiple = form.multiple // math.gcd(positions, form.multiple)
    return -(-block // multiple) * multiple


def _bytes_of_example(poses, transforms, geometry) -> int:
    """About what the routing of one example takes on an accelerator, with its gradient: history, gradients, gathered poses."""
    kernel_rows, kernel_columns, child_types, num_parents = transforms.shape[:4]
    num_children = kernel_rows * kernel_columns * child_types
    of_pairs = num_children * num_parents * 2 * (geometry.num_iterations + 2)
    of_parents = 6 * geometry.num_iterations * num_parents * POSE_ENTRIES
    of_children = 3 * num_children * math.prod(poses.shape[-2:])
    return poses.dtype.itemsize * math.prod(geometry.field.output_size) * (of_pairs + of_parents + of_children)


def _pad_batch(array: jax.Array, size: int) -> jax.Array:
    """Zeros appended to the batch axis; capsules that are all zero route to finite values that nobody reads."""
    return jnp.pad(array, [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1))


def _route_patches(children, transforms, constants, geometry, form) -> RoutingResult:
    """Gather the children of every patch into the inner layout, route, and bring the result back to batch-first."""
    poses, activations = children
    field = geometry.field
    seen_poses = field.gather(poses.transpose(3, 4, 5, 1, 2, 0))  # [KH, KW, I, 4, Q, OH, OW, B]
    seen_activations = field.gather(activations.transpose(3, 1, 2, 0))  # [KH, KW, I, OH, OW, B]
    kernel, positions = seen_activations.shape[:3], seen_activations.shape[3:]
    num_children, num_inner = math.prod(kernel), poses.shape[-1]
    parents, assignments = form.route(
        form.hold_votes(
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
