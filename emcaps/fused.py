"""Votes for accelerators: formed inside reductions that a compiler makes into one kernel, and never
stored.

The same operators as in `votes.py`, without a loop. On a GPU or TPU each pass over the votes is a
reduction whose operand is a broadcast product; XLA forms that operand in registers. It must be kept
from two things: to store what several passes have in common, and to take the votes out of a loop in
which they do not change. `_not_shared` is for that.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from emcaps.votes import (
    Moments,
    StreamedVotes,
    VoteTerms,
    form_votes,
    largest_divisor,
    retake_if_lost,
    scaled,
    vote_gradient,
    zero_known_with,
)

# Bytes of votes, or of their gradient, that may be held at a time.
HELD_BYTES = 128_000_000
# Children, and bytes of their votes, in a reduction that is not to hold them. XLA's GPU compiler
# forms them in registers or stores them, whichever it estimates to be faster: of 384 children and
# 40 parent types it formed them, of 448, or of 288 and 320 types, it stored them.
FUSED_CHILDREN = 384
FUSED_BYTES = 2_000_000_000
# Of votes whose number is not known (a symbolic batch).
SYMBOLIC_COLUMNS = 4096


class FusedVotes(NamedTuple):
    """As `StreamedVotes`, for accelerators.

    Attributes:
        poses: `[N, 4, Q, M]`.
        transforms: `[N, Q, 4, J]`.
    """

    poses: jax.Array
    transforms: jax.Array

    UNROLL = True  # a GPU's loops are driven by its host

    weighted_sum = StreamedVotes.weighted_sum

    @jax.jit  # so that it is traced once for all of its uses
    def moments(
        self, weights: jax.Array, center: jax.Array, scale: jax.Array | None = None
    ) -> Moments:
        """As `DenseVotes.moments`, by one reduction with two results for each chunk of children."""
        weights, num_children = scaled(weights, scale), self.poses.shape[0]
        fused = min(FUSED_CHILDREN, _with_votes_of(FUSED_BYTES, center))
        most = max(fused, _with_votes_of(HELD_BYTES, center))
        size = -(-num_children // -(-num_children // most))
        zero = jnp.zeros((), center.dtype)

        def chunk_sums(start, after):
            chunk = slice(start, start + size)
            votes = FusedVotes(self.poses[chunk], self.transforms[chunk])
            offsets = form_votes(*_not_shared(votes, after)) - center[None]
            weighted = weights[chunk, None, None] * offsets
            return lax.reduce((weighted, weighted * offsets), (zero, zero), _add_pairs, (0,))

        first, second = chunk_sums(0, weights)
        # Not a loop of JAX, which a GPU's host would drive; yet one chunk after the other.
        for start in range(size, num_children, size):
            first, second = _add_pairs((first, second), chunk_sums(start, first))
        return Moments(weights.sum(0), first, second)

    retake = retake_if_lost

    @jax.jit
    def scores(
        self,
        constant: jax.Array,
        quadratic: jax.Array,
        center: jax.Array,
        linear: jax.Array | None = None,
    ) -> jax.Array:
        """As `DenseVotes.scores`: one reduction over the pose entries."""
        offsets = form_votes(*_not_shared(self, quadratic)) - center[None]
        slope = (
            quadratic[None] * offsets
            if linear is None
            else quadratic[None] * offsets + linear[None]
        )
        return constant[None] + (slope * offsets).sum((1, 2))

    @jax.jit
    def gradient(
        self, groups: Sequence[VoteTerms], center: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As `StreamedVotes.gradient`, a chunk of children at a time."""
        num_children = self.poses.shape[0]
        most = min(num_children, _with_votes_of(HELD_BYTES, center))
        size = largest_divisor(num_children, most)

        def chunk_gradient(start):
            def chunk(array, axis=0):
                return lax.dynamic_slice_in_dim(array, start, size, axis)

            poses, transforms = map(chunk, self)
            weights = [
                scaled(chunk(terms.weights, 1), None if terms.scale is None else chunk(terms.scale))
                for terms in groups
            ]
            to_votes = vote_gradient(poses, transforms, groups, weights, center)
            return (
                jnp.einsum("nkhj,nihjm->nikm", transforms, to_votes, precision="highest"),
                jnp.einsum("nihjm,nikm->nkhj", to_votes, poses, precision="highest"),
            )

        starts = jnp.arange(0, num_children, size)
        chunks = lax.map(chunk_gradient, starts)
        return tuple(chunk.reshape(num_children, *chunk.shape[2:]) for chunk in chunks)


def _with_votes_of(held: int, center: jax.Array) -> int:
    """How many children, at least one, have votes of at most so many bytes; each has one like
    `center`.
    """
    *entries, width = center.shape
    columns = width if isinstance(width, int) else SYMBOLIC_COLUMNS
    return max(1, held // (math.prod(entries) * columns * center.dtype.itemsize))


def _add_pairs(
    sums: tuple[jax.Array, jax.Array], terms: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return sums[0] + terms[0], sums[1] + terms[1]


def _not_shared(votes: FusedVotes, after: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Poses and transforms that no two passes have in common: each adds a zero of its own to the
    transforms, known when `after` is. An `optimization_barrier` is gone before XLA looks for what
    programs do twice.
    """
    zero = zero_known_with(lax.stop_gradient(after))
    return votes.poses, votes.transforms + zero.astype(votes.transforms.dtype)
