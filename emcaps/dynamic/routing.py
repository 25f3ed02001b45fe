"""Dynamic routing of vector capsules (Sabour, Frosst, Hinton 2017, "Dynamic Routing Between
Capsules") as pure functions.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emcaps.checks import check_data, check_positive_int
from emcaps.precision import common_dtype, compute_dtype
from emcaps.sharding import Bound, for_each_shard


class DynamicRoutingResult(NamedTuple):
    """What dynamic routing found; a pose is a vector with D entries, and its length is the
    capsule's activation. All is in the dtype of the votes, or of the poses and transforms.

    Attributes:
        poses: the parents' vectors v, `[..., J, D]`, shorter than 1 but for rounding.
        activations: their lengths, `[..., J]` in [0, 1].
        activation_logits: the number whose sigmoid is the length, which is `log |s|^2`, `[..., J]`;
            at least that of the smallest normal number.
        couplings: c of the last iteration, `[..., N, J]`: over the parents of a child they sum to
            1.
    """

    poses: jax.Array
    activations: jax.Array
    activation_logits: jax.Array
    couplings: jax.Array


def squash(vectors: jax.Array) -> jax.Array:
    """Equation 1: `v = |s|^2 / (1 + |s|^2) s / |s|`, the same direction, shorter than 1 but for
    rounding. Finite, with gradients, at 0 too.

    Args:
        vectors: s, `[..., D]`, floating.

    Returns:
        v, as `vectors`.

    Raises:
        TypeError: vectors are not floating point.
        ValueError: vectors have no axis or an empty one, or are known and not finite.
    """
    check_data({"vectors": (vectors, "... D")})
    length = lengths(vectors)[..., None]
    # As `|s| / (1 + |s|^2)` in a form whose square does not overflow where |s| is large.
    return vectors * jnp.where(
        length < 1, length / (1 + length**2), 1 / (length + 1 / jnp.maximum(length, 1))
    )


def lengths(vectors: jax.Array) -> jax.Array:
    """Lengths of vectors `[..., D]`, `[...]`; the gradient at 0 is 0."""
    largest = jax.lax.stop_gradient(jnp.abs(vectors).max(-1, keepdims=True))
    scale = jnp.where(largest > 0, largest, 1)
    squared = ((vectors / scale) ** 2).sum(-1)
    return scale[..., 0] * jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def dynamic_routing(votes: jax.Array, *, num_iterations: int = 3) -> DynamicRoutingResult:
    """Procedure 1 of that paper: routing by agreement, for parents that all see every child.

    With logits b = 0 at first, T times: couplings c_n = softmax over the parents of b_n; s_j = sum
    over children of c_nj u_nj; v_j = squash(s_j); and between two times b_nj grows by the agreement
    u_nj . v_j. Pure, jitted, differentiable to any order.

    Args:
        votes: u, `[..., N, J, D]`, floating: child n's prediction of the vector of parent j. Any
            number of batch axes, each element of which is routed by itself. Low precision is
            computed in float32 and returned in its own dtype.
        num_iterations: T >= 1. Static.

    Returns:
        A `DynamicRoutingResult`: poses `[..., J, D]`, activations and their logits `[..., J]`,
            couplings `[..., N, J]`.

    Raises:
        TypeError: votes are not floating point, `num_iterations` is not an int.
        ValueError: votes have fewer than three axes or an empty one, or are known and not finite;
            `num_iterations` is less than 1.
    """
    check_data({"votes": (votes, "... N J D")})
    check_positive_int("num_iterations", num_iterations)
    route = Bound(_route_votes, (("num_iterations", num_iterations),))
    return for_each_shard(route, votes, (), votes.ndim - 3)


def class_dynamic_routing(
    children: jax.Array, transforms: jax.Array, *, num_iterations: int = 3
) -> DynamicRoutingResult:
    """`dynamic_routing` of the votes `u_nj = W_nj^T child_n`, which are never stored: a parent at a
    time is summed and compared.

    Equation 2 with Procedure 1. Pure, jitted, differentiable to any order.

    Args:
        children: `[..., N, D]`, floating; any number of batch axes.
        transforms: W, `[N, J, D, E]`, floating: of each child to each parent.
        num_iterations: T >= 1. Static.

    Returns:
        As `dynamic_routing`, with poses `[..., J, E]`, in the common dtype of the arguments.

    Raises:
        TypeError: an array is not floating point, `num_iterations` is not an int.
        ValueError: shapes do not match or have an empty axis, values are known and not finite, or
            `num_iterations` is less than 1.
    """
    check_data({"children": (children, "... N D"), "transforms": (transforms, "N J D E")})
    check_positive_int("num_iterations", num_iterations)
    route = Bound(_route_children, (("num_iterations", num_iterations),))
    return for_each_shard(route, children, transforms, children.ndim - 2)


@functools.partial(jax.jit, static_argnames="num_iterations")
def _route_votes(votes: jax.Array, _: tuple[()], num_iterations: int) -> DynamicRoutingResult:
    dtype = votes.dtype
    votes = votes.astype(compute_dtype(votes))

    def gather(couplings: jax.Array) -> jax.Array:
        return jnp.einsum("...nj,...njd->...jd", couplings, votes)

    def agree(poses: jax.Array) -> jax.Array:
        return jnp.einsum("...jd,...njd->...nj", poses, votes)

    result = _route(gather, agree, jnp.zeros_like(votes, shape=votes.shape[:-1]), num_iterations)
    return jax.tree.map(lambda array: array.astype(dtype), result)


@functools.partial(jax.jit, static_argnames="num_iterations")
def _route_children(
    children: jax.Array, transforms: jax.Array, num_iterations: int
) -> DynamicRoutingResult:
    dtype = common_dtype(children, transforms)
    children, transforms = (
        array.astype(compute_dtype(children, transforms)) for array in (children, transforms)
    )
    *batch, num_children, size = children.shape
    num_parents, parent_size = transforms.shape[1], transforms.shape[3]
    children = children.reshape(-1, num_children, size)
    # A matrix each.
    by_parent = transforms.swapaxes(0, 1).reshape(num_parents, num_children * size, parent_size)

    # What a parent is given is made again for the gradient: kept, it would be half as large as the
    # votes.
    @jax.checkpoint
    def gather_one(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        matrix, couplings = given
        return (couplings[..., None] * children).reshape(-1, num_children * size) @ matrix

    @jax.checkpoint
    def agree_one(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        matrix, poses = given
        return ((poses @ matrix.T).reshape(children.shape) * children).sum(-1)

    def gather(couplings: jax.Array) -> jax.Array:
        return jnp.moveaxis(
            jax.lax.map(gather_one, (by_parent, jnp.moveaxis(couplings, -1, 0))), 0, 1
        )

    def agree(poses: jax.Array) -> jax.Array:
        return jnp.moveaxis(jax.lax.map(agree_one, (by_parent, jnp.moveaxis(poses, 1, 0))), 0, -1)

    result = _route(
        gather,
        agree,
        jnp.zeros_like(children, shape=(children.shape[0], num_children, num_parents)),
        num_iterations,
    )
    return jax.tree.map(lambda array: array.reshape(*batch, *array.shape[1:]).astype(dtype), result)


def _route(
    gather: Callable[[jax.Array], jax.Array],
    agree: Callable[[jax.Array], jax.Array],
    logits: jax.Array,
    num_iterations: int,
) -> DynamicRoutingResult:
    """Procedure 1 for any form of votes: `gather` sums them by couplings, `agree` compares them
    with poses; logits are b, 0.
    """

    def iteration(_: jax.Array, logits: jax.Array) -> jax.Array:
        return logits + agree(squash(gather(jax.nn.softmax(logits, axis=-1))))

    couplings = jax.nn.softmax(jax.lax.fori_loop(0, num_iterations - 1, iteration, logits), axis=-1)
    sums = gather(couplings)
    poses, length = squash(sums), lengths(sums)
    smallest = jnp.finfo(length.dtype).tiny
    activation_logits = jnp.where(
        length**2 > smallest, 2 * jnp.log(jnp.where(length > 0, length, 1)), jnp.log(smallest)
    )
    # Rounding may leave a vector longer than 1.
    activations = jnp.minimum(lengths(poses), 1)
    return DynamicRoutingResult(poses, activations, activation_logits, couplings)
