"""Dynamic routing of vector capsules (Sabour, Frosst, Hinton 2017, "Dynamic Routing Between Capsules") as a pure function."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emcaps.checks import check_floating, check_positive_int, check_shapes
from emcaps.layout import compute_dtype


class DynamicRoutingResult(NamedTuple):
    """What dynamic routing found; a pose is a vector with D entries, and its length is the capsule's activation.

    Attributes:
        poses: the parents' vectors v, `[..., J, D]`, shorter than 1.
        activations: their lengths, `[..., J]` in [0, 1).
        activation_logits: the number whose sigmoid is the length, which is `log |s|^2`, `[..., J]`; that of the smallest normal
            number where s is 0.
        couplings: c of the last iteration, `[..., N, J]`: over the parents of a child they sum to 1.
    """

    poses: jax.Array
    activations: jax.Array
    activation_logits: jax.Array
    couplings: jax.Array


def squash(vectors: jax.Array) -> jax.Array:
    """Equation 1: `v = |s|^2 / (1 + |s|^2) s / |s|`, the same direction, shorter than 1. Finite, with gradients, at 0 too.

    Args:
        vectors: s, `[..., D]`, floating.

    Returns:
        v, as `vectors`.

    Raises:
        TypeError: vectors are not floating point.
    """
    check_floating("vectors", vectors)
    length = lengths(vectors)[..., None]
    # As `|s| / (1 + |s|^2)` in a form whose square does not overflow where |s| is large.
    return vectors * jnp.where(length < 1, length / (1 + length**2), 1 / (length + 1 / jnp.maximum(length, 1)))


def lengths(vectors: jax.Array) -> jax.Array:
    """Lengths of vectors `[..., D]`, `[...]`; the gradient at 0 is 0."""
    largest = jax.lax.stop_gradient(jnp.abs(vectors).max(-1, keepdims=True))
    scale = jnp.where(largest > 0, largest, 1)
    squared = ((vectors / scale) ** 2).sum(-1)
    return scale[..., 0] * jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def dynamic_routing(votes: jax.Array, *, num_iterations: int = 3) -> DynamicRoutingResult:
    """Procedure 1 of that paper: routing by agreement, for parents that all see every child.

    With logits b = 0 at first, T times: couplings c_n = softmax over the parents of b_n; s_j = sum over children of c_nj u_nj;
    v_j = squash(s_j); and between two times b_nj grows by the agreement u_nj . v_j. Pure, jitted, differentiable to any order.

    Args:
        votes: u, `[..., N, J, D]`, floating: child n's prediction of the vector of parent j. Any number of batch axes, each element
            of which is routed by itself. Low precision is computed in float32 and returned in its own dtype.
        num_iterations: T >= 1. Static.

    Returns:
        A `DynamicRoutingResult`: poses `[..., J, D]`, activations and their logits `[..., J]`, couplings `[..., N, J]`.

    Raises:
        TypeError: votes are not floating point, `num_iterations` is not an int.
        ValueError: votes have fewer than three axes or an empty one, or `num_iterations` is less than 1.
    """
    check_shapes({"votes": (votes, "... N J D")})
    check_positive_int("num_iterations", num_iterations)
    return _route(votes, num_iterations)


@functools.partial(jax.jit, static_argnames="num_iterations")
def _route(votes: jax.Array, num_iterations: int) -> DynamicRoutingResult:
    dtype = votes.dtype
    votes = votes.astype(compute_dtype(votes))

    def gather(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        couplings = jax.nn.softmax(logits, axis=-1)
        return jnp.einsum("...nj,...njd->...jd", couplings, votes), couplings

    def agree(_: jax.Array, logits: jax.Array) -> jax.Array:
        return logits + jnp.einsum("...jd,...njd->...nj", squash(gather(logits)[0]), votes)

    logits = jax.lax.fori_loop(0, num_iterations - 1, agree, jnp.zeros(votes.shape[:-1], votes.dtype))
    sums, couplings = gather(logits)
    poses, length = squash(sums), lengths(sums)
    smallest = jnp.finfo(length.dtype).tiny
    activation_logits = jnp.where(length**2 > smallest, 2 * jnp.log(jnp.where(length > 0, length, 1)), jnp.log(smallest))
    result = DynamicRoutingResult(poses, lengths(poses), activation_logits, couplings)
    return jax.tree.map(lambda array: array.astype(dtype), result)
