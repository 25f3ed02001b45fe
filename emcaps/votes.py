"""Votes as a pair of linear operators, dense (in memory) or streamed (never in memory).

Procedure 1 touches the votes V in two ways only, and all of `em.py` is written over these two. About a centre c:

    moments(g)_jh   = sum_n g_nj ( 1, V_njh - c_jh, (V_njh - c_jh)^2 )                  the M-step's sums
    scores(A, b)_nj = sum_h ( A_jh (V_njh - c_jh)^2 + b_jh (V_njh - c_jh) )              the E-step's log densities

They are each other's transpose, which is all that the gradient of a routing needs, but for one thing: the gradient with respect
to the votes themselves. Every use of the votes contributes one of `VoteTerms` to it, and the sum over all uses is one pass.
Squares of differences from a centre near the mean keep the digits that squares of votes would lose.

Inner layout: a vote of child n for parent j is `vote[h, i] = sum_k pose[i, k] transform[k, h]`; row i goes with the columns,
column h with the parent type, so that a child's votes are one product of `[h J, k]` with `[k, i M]`. See `types.py` for `M`.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class VoteTerms(NamedTuple):
    """Terms `w_nj (2 A_jh (V_njh - c_jh) + b_jh)` of the gradient with respect to the votes, F of them.

    Attributes:
        weights: w, `[N, F, J, M]`.
        quadratic: A, `[F, 4, J, 4, M]`.
        linear: b, `[F, 4, J, 4, M]`.
    """

    weights: jax.Array
    quadratic: jax.Array
    linear: jax.Array


class DenseVotes(NamedTuple):
    """Votes held in memory: the readable twin, and differentiable to any order.

    Attributes:
        votes: `[N, 4, J, 4, M]`.
    """

    votes: jax.Array

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        """`sum_n w_n V_njh` for weights `[N, M]` that are the same for all parent types. Returns `[4, J, 4, M]`."""
        return jnp.einsum("nm,nhjim->hjim", weights, self.votes)

    def moments(self, weights: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Moments about `centre` `[4, J, 4, M]` under weights `[N, J, M]`: `[J, M]` and twice `[4, J, 4, M]`."""

        def add_child(sums: tuple[jax.Array, jax.Array], child: tuple[jax.Array, jax.Array]) -> Any:
            vote, weight = child
            weighted = weight[None, :, None] * (vote - centre)
            return (sums[0] + weighted, sums[1] + weighted * (vote - centre)), None

        nothing = jnp.zeros_like(centre)
        (first, second), _ = lax.scan(add_child, (nothing, nothing), (self.votes, weights))
        return weights.sum(0), first, second

    def scores(self, quadratic: jax.Array, centre: jax.Array, linear: jax.Array | None = None) -> jax.Array:
        """Quadratic forms in the offsets from `centre`, coefficients `[4, J, 4, M]`. Returns `[N, J, M]`."""

        def score_child(vote: jax.Array) -> jax.Array:
            offsets = vote - centre
            slope = quadratic * offsets if linear is None else quadratic * offsets + linear
            return (slope * offsets).sum((0, 2))

        return lax.map(score_child, self.votes)


def dense_votes(poses: jax.Array, transforms: jax.Array) -> DenseVotes:
    """Every child's vote for every parent, from poses `[N, Q, 4, M]` and transforms `[N, Q, 4, J]` (as `StreamedVotes`)."""
    return DenseVotes(jnp.einsum("nqhj,nqim->nhjim", transforms, poses))


class StreamedVotes(NamedTuple):
    """Votes formed where they are used, 4 multiply-adds for each entry, and forgotten.

    The loops below are shaped for what compilers do with them; each is one long vector operation over `[J, M]` or `[4, J, 4, M]`.

    Attributes:
        poses: `[N, Q, 4, M]`: inner index k, row i. Q is 4, or 5 where a column of coordinates rides along.
        transforms: `[N, Q, 4, J]`: inner index k, column h.
    """

    poses: jax.Array
    transforms: jax.Array

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        """As `DenseVotes.weighted_sum`: one matrix product over children and inner index."""
        return jnp.einsum("nqhj,nqim->hjim", self.transforms, self.poses * weights[:, None, None, :])

    def moments(self, weights: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As `DenseVotes.moments`."""

        def step(sums: jax.Array, _: jax.Array, chunk: tuple[jax.Array, ...]) -> jax.Array:
            first = second = jnp.zeros((), centre.dtype)
            for pose, transform, weight in zip(*chunk, strict=True):
                offsets = _form_votes(pose, transform) - centre
                weighted = weight[None, :, None] * offsets
                first += weighted
                second += weighted * offsets
            # One complex array, because XLA's CPU loops have one result: as two, each would form the votes again.
            return sums + lax.complex(first, second)

        nothing = jnp.zeros(centre.shape, jnp.promote_types(centre.dtype, jnp.complex64))
        sums = _for_chunks(step, nothing, (self.poses, self.transforms, weights))
        return weights.sum(0), sums.real, sums.imag

    def scores(self, quadratic: jax.Array, centre: jax.Array, linear: jax.Array | None = None) -> jax.Array:
        """As `DenseVotes.scores`."""

        def chunk_scores(poses: jax.Array, transforms: jax.Array) -> jax.Array:
            # The sum over pose entries is written out: element-wise, it stays in registers.
            total = jnp.zeros((), centre.dtype)
            for column in range(4):
                for row in range(4):
                    entry = (None, column, slice(None), row)
                    vote = _sum(
                        poses[:, k, row, None] * transforms[:, k, column, :, None] for k in range(poses.shape[1])
                    )
                    offset = vote - centre[entry]
                    slope = quadratic[entry] * offset
                    if linear is not None:
                        slope += linear[entry]
                    total += slope * offset
            return total

        def step(scores: jax.Array, index: jax.Array, chunk: tuple[jax.Array, ...]) -> jax.Array:
            return _put_chunk(scores, chunk_scores(*chunk), index)

        nothing = jnp.zeros((self.poses.shape[0], *centre.shape[1::2]), centre.dtype)
        return _for_chunks(step, nothing, (self.poses, self.transforms))

    def gradient(self, terms: VoteTerms, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the sum of all `terms`, about one `centre`, means for the poses and the transforms: one pass over the children.

        Returns:
            Gradients like `poses` and like `transforms`.
        """

        def vote_gradient(poses: jax.Array, transforms: jax.Array, weights: jax.Array) -> jax.Array:
            slope = intercept = jnp.zeros((), centre.dtype)
            for term in range(terms.quadratic.shape[0]):
                weight = weights[:, term, None, :, None]
                slope += weight * terms.quadratic[term][None]
                intercept += weight * terms.linear[term][None]
            return 2 * slope * (_form_votes(poses, transforms) - centre[None]) + intercept

        def push(outputs: tuple[jax.Array, ...], index: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            gradients = _product_transpose(*chunk)
            return tuple(
                _put_chunk(output, gradient, index) for output, gradient in zip(outputs, gradients, strict=True)
            )

        def step(state, index, chunk):
            # A matrix product wants its factors flat, and flattening inside the loop that computes them would spoil that loop. So
            # the products are always those of the chunk before; at first they are of zeros, and overwritten.
            outputs, before = state
            poses, transforms, weights = chunk
            outputs = push(outputs, jnp.maximum(index - 1, 0), before)
            return outputs, (poses, transforms, vote_gradient(poses, transforms, weights))

        size = _chunk_size(self.poses.shape[0], most=2)
        nothing = jnp.zeros((size, *centre.shape), centre.dtype)
        outputs, last = _for_chunks(
            step,
            ((jnp.zeros_like(self.poses), jnp.zeros_like(self.transforms)), (self.poses[:size], self.transforms[:size], nothing)),
            (self.poses, self.transforms, terms.weights),
            most=2,
        )
        poses, transforms = push(outputs, jnp.asarray(self.poses.shape[0] // size - 1), last)
        return poses, transforms


def _form_votes(poses: jax.Array, transforms: jax.Array) -> jax.Array:
    """`[..., Q, 4, M]` and `[..., Q, 4, J]` to `[..., 4, J, 4, M]`. Q is too small to call a matrix product."""
    return _sum(
        transforms[..., k, :, :, None, None] * poses[..., k, None, None, :, :] for k in range(poses.shape[-3])
    )


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def _put_chunk(array: jax.Array, chunk: jax.Array, index: jax.Array) -> jax.Array:
    """Write the chunk of that index, along the first axis."""
    return lax.dynamic_update_slice_in_dim(array, chunk, index * chunk.shape[0], 0)


def _product_transpose(
    poses: jax.Array, transforms: jax.Array, votes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `_form_votes` for a gradient `[n, 4, J, 4, M]` of its result: two batched matrix products."""
    num_children, columns, num_parents, rows, width = votes.shape
    votes = votes.reshape(num_children, columns * num_parents, rows * width)
    to_poses = jnp.einsum("nqx,nxy->nqy", transforms.reshape(num_children, -1, columns * num_parents), votes)
    # This order of the result is the one that XLA:CPU multiplies fast.
    to_transforms = jnp.einsum("nxy,nqy->nxq", votes, poses.reshape(num_children, -1, rows * width)).swapaxes(1, 2)
    return to_poses.reshape(poses.shape), to_transforms.reshape(transforms.shape)


def _chunk_size(num_children: int, most: int) -> int:
    """How many children a step takes: the largest divisor of their number that does not exceed `most`."""
    return max(size for size in range(1, most + 1) if num_children % size == 0)


def _for_chunks(
    step: Callable, state: Any, arrays: tuple[jax.Array, ...], most: int = 4
) -> Any:
    """`state = step(state, index, chunk)` for each chunk of `arrays` along their first axis, the children.

    The next chunk is fetched a step ahead: a slice at a moving place, taken in the step that uses it, would become part of that
    step's loop, and XLA:CPU does not vectorise such loops.
    """
    num_children = arrays[0].shape[0]
    size = _chunk_size(num_children, most)
    steps = num_children // size

    def fetch(index: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(lax.dynamic_slice_in_dim(array, index * size, size) for array in arrays)

    def body(index: jax.Array, carry: tuple[Any, tuple[jax.Array, ...]]) -> tuple[Any, tuple[jax.Array, ...]]:
        state, chunk = carry
        return step(state, index, chunk), fetch(jnp.minimum(index + 1, steps - 1))

    return lax.fori_loop(0, steps, body, (state, fetch(jnp.asarray(0))))[0]
