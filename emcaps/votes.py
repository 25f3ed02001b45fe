"""Votes as a pair of linear operators, dense (in memory) or streamed (never in memory).

Procedure 1 touches the votes V in two ways only, and all of `em.py` is written over these two, and
over what is made of them (see `Votes` in `procedure.py`). About a center c:

    moments(g)_jh      = sum_n g_nj ( 1, V_njh - c_jh, (V_njh - c_jh)^2 )
    scores(A, b, d)_nj = d_j + sum_h ( b_jh (V_njh - c_jh) + A_jh (V_njh - c_jh)^2 )

The first are the M-step's sums, the second the E-step's log densities.

They are each other's transpose, which is all that the gradient of a routing needs, but for one
thing: the gradient with respect to the votes themselves. Every use of the votes contributes one of
the `VoteTerms` to it, and the sum over all uses is one pass. Squares of differences from a center
near the mean keep the digits that squares of votes would lose.

Inner layout: the pose entries first, as a matrix, then the parent types J, then the columns M (see
`types.py`), so that all that belongs to a parent broadcasts over its pose entries:
`vote[i, h, j, m] = sum_k pose[i, k, m] transform[k, h, j]`.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from emcaps.sharding import vary_alike


class Moments(NamedTuple):
    """Sums over children with weights g, about a center c.

    Attributes:
        mass: sum_n g_nj, `[J, M]`.
        first: sum_n g_nj (V_njh - c_jh), `[4, 4, J, M]`.
        second: sum_n g_nj (V_njh - c_jh)^2, `[4, 4, J, M]`.
    """

    mass: jax.Array
    first: jax.Array
    second: jax.Array


class VoteTerms(NamedTuple):
    """Terms `w_nj s_n (2 A_jh (V_njh - c_jh) + b_jh)` of the gradient with respect to the votes, F
    of them.

    Attributes:
        weights: w, `[F, N, J, M]`.
        scale: s, `[N, M]`, or None for 1.
        quadratic: A, `[F, 4, 4, J, M]`.
        linear: b, `[F, 4, 4, J, M]`.
    """

    weights: jax.Array
    scale: jax.Array | None
    quadratic: jax.Array
    linear: jax.Array


def retake_if_lost(
    votes: Any,
    lost: jax.Array,
    weights: jax.Array,
    center: jax.Array,
    scale: jax.Array,
    taken: tuple[jax.Array, Moments],
) -> tuple[jax.Array, Moments]:
    """Moments about another center than they were taken about, if any of them has lost digits;
    otherwise as they are.

    Args:
        votes: of the children.
        lost: where digits were lost, bool `[J, M]`.
        weights: as of `moments`.
        center: to take them about, `[4, 4, J, M]`.
        scale: as of `moments`.
        taken: the center of before and the moments about it.

    Returns:
        A center, and the moments about it.
    """
    return lax.cond(
        lost.any(), lambda: (center, votes.moments(weights, center, scale)), lambda: taken
    )


class DenseVotes(NamedTuple):
    """Votes held in memory: the readable twin, and differentiable to any order.

    Attributes:
        votes: `[N, 4, 4, J, M]`.
    """

    votes: jax.Array

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        """`sum_n w_n V_njh` for weights `[N, M]` that are the same for all parent types.

        Returns `[4, 4, J, M]`.
        """
        return jnp.einsum("nm,nihjm->ihjm", weights, self.votes, precision="highest")

    def moments(
        self, weights: jax.Array, center: jax.Array, scale: jax.Array | None = None
    ) -> Moments:
        """Moments about `center` `[4, 4, J, M]` under weights `[N, J, M]`, times `scale` `[N, M]`
        if given.
        """
        weights = scaled(weights, scale)

        def add_child(sums: tuple[jax.Array, jax.Array], child: tuple[jax.Array, jax.Array]) -> Any:
            vote, weight = child
            weighted = weight[None, None] * (vote - center)
            return (sums[0] + weighted, sums[1] + weighted * (vote - center)), None

        nothing = jnp.zeros_like(center)
        (first, second), _ = lax.scan(add_child, (nothing, nothing), (self.votes, weights))
        return Moments(weights.sum(0), first, second)

    retake = retake_if_lost

    def scores(
        self,
        constant: jax.Array,
        quadratic: jax.Array,
        center: jax.Array,
        linear: jax.Array | None = None,
    ) -> jax.Array:
        """Quadratic forms in the offsets from `center`: a constant `[J, M]`, coefficients
        `[4, 4, J, M]`. Returns `[N, J, M]`.
        """

        def score_child(vote: jax.Array) -> jax.Array:
            offsets = vote - center
            slope = quadratic * offsets if linear is None else quadratic * offsets + linear
            return constant + (slope * offsets).sum((0, 1))

        return lax.map(score_child, self.votes)


def dense_votes(poses: jax.Array, transforms: jax.Array) -> DenseVotes:
    """Every child's vote for every parent, from poses `[N, 4, Q, M]` and transforms `[N, Q, 4, J]`
    (as `StreamedVotes`).
    """
    return DenseVotes(jnp.einsum("nikm,nkhj->nihjm", poses, transforms, precision="highest"))


class StreamedVotes(NamedTuple):
    """Votes formed where they are used, 4 multiply-adds for each entry, and forgotten.

    The loops below are shaped for what compilers do with them; each is one long vector operation
    over `[J, M]` or `[4, 4, J, M]`.

    Attributes:
        poses: `[N, 4, Q, M]`: row i, inner index k. Q is 4, or 5 where a column of coordinates
            rides along.
        transforms: `[N, Q, 4, J]`: inner index k, column h.
    """

    poses: jax.Array
    transforms: jax.Array

    UNROLL = False  # a loop is compiled once for all iterations

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        """As `DenseVotes.weighted_sum`: one matrix product over children and inner index."""
        return jnp.einsum(
            "nikm,nkhj->ihjm",
            self.poses * weights[:, None, None, :],
            self.transforms,
            precision="highest",
        )

    @jax.jit  # so that it is traced once for all of its uses
    def moments(
        self, weights: jax.Array, center: jax.Array, scale: jax.Array | None = None
    ) -> Moments:
        """As `DenseVotes.moments`."""

        def step(
            state: tuple[jax.Array, ...], _: jax.Array, chunk: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, ...]:
            (sums, mass), (poses, transforms, weights) = state, chunk
            first = second = jnp.zeros((), center.dtype)
            for pose, transform, weight in zip(poses, transforms, weights, strict=True):
                offsets = form_votes(pose, transform) - center
                weighted = weight[None, None] * offsets
                first += weighted
                second += weighted * offsets
            # One complex array, because XLA's CPU loops have one result: as two, each would form
            # the votes again.
            return sums + lax.complex(first, second), mass + _sum(weights)

        nothing = jnp.zeros_like(center)
        sums, mass = _for_chunks(
            step,
            (lax.complex(nothing, nothing), jnp.zeros_like(center, shape=weights.shape[1:])),
            (self.poses, self.transforms, weights, scale),
            prepare=lambda poses, transforms, weights, scale: (
                poses,
                transforms,
                scaled(weights, scale),
            ),
        )
        return Moments(mass, sums.real, sums.imag)

    retake = retake_if_lost

    @jax.jit
    def scores(
        self,
        constant: jax.Array,
        quadratic: jax.Array,
        center: jax.Array,
        linear: jax.Array | None = None,
    ) -> jax.Array:
        """As `DenseVotes.scores`."""

        def chunk_scores(poses: jax.Array, transforms: jax.Array) -> jax.Array:
            # The sum over pose entries is written out: element-wise, it stays in registers.
            total = constant[None]
            for row in range(4):
                for column in range(4):
                    vote = _sum(
                        poses[:, row, k, None] * transforms[:, k, column, :, None]
                        for k in range(poses.shape[2])
                    )
                    offset = vote - center[None, row, column]
                    slope = quadratic[None, row, column] * offset
                    if linear is not None:
                        slope += linear[None, row, column]
                    total += slope * offset
            return total

        def step(scores: jax.Array, index: jax.Array, chunk: tuple[jax.Array, ...]) -> jax.Array:
            return _put_chunk(scores, chunk_scores(*chunk), index)

        nothing = jnp.zeros_like(center, shape=(self.poses.shape[0], *center.shape[2:]))
        return _for_chunks(step, nothing, (self.poses, self.transforms))

    @jax.jit
    def gradient(
        self, groups: Sequence[VoteTerms], center: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What the sum of all terms, about one `center`, means for the poses and the transforms:
        one pass over the children.

        Returns:
            Gradients like `poses` and like `transforms`.
        """

        def step(
            outputs: tuple[jax.Array, ...], index: jax.Array, chunk: tuple[jax.Array, ...]
        ) -> tuple[jax.Array, ...]:
            poses, transforms, *weights = chunk
            to_votes = vote_gradient(poses, transforms, groups, weights, center)
            gradients = _product_transpose(poses, transforms, to_votes)
            return tuple(
                _put_chunk(output, gradient, index)
                for output, gradient in zip(outputs, gradients, strict=True)
            )

        num_children, inner, columns, num_parents = self.transforms.shape
        to_poses = jnp.zeros_like(self.poses)
        to_transforms = jnp.zeros_like(center, shape=(num_children, columns, num_parents, inner))
        to_poses, to_transforms = _for_chunks(
            step,
            (to_poses, to_transforms),
            (self.poses, self.transforms, *[(terms.weights, terms.scale) for terms in groups]),
            most=3,
            axes=(0, 0, *[(1, 0)] * len(groups)),
            prepare=lambda poses, transforms, *weights: (
                poses,
                transforms,
                *(scaled(*pair) for pair in weights),
            ),
        )
        return to_poses, to_transforms.transpose(0, 3, 1, 2)


def form_votes(poses: jax.Array, transforms: jax.Array) -> jax.Array:
    """`[..., 4, Q, M]` and `[..., Q, 4, J]` to `[..., 4, 4, J, M]`.

    Q is too small to call a matrix product.
    """
    return _sum(
        poses[..., :, k, None, None, :] * transforms[..., None, k, :, :, None]
        for k in range(poses.shape[-2])
    )


def vote_gradient(
    poses: jax.Array,
    transforms: jax.Array,
    groups: Sequence[VoteTerms],
    weights: Sequence[jax.Array],
    center: jax.Array,
) -> jax.Array:
    """The gradient of all terms together for the votes of some children.

    Args:
        poses, transforms: of these children, `[n, 4, Q, M]` and `[n, Q, 4, J]`.
        groups: of which only the coefficients are used; they are about `center`.
        weights: of these children in each group, with its scale, `[F, n, J, M]`.
        center: `[4, 4, J, M]`.

    Returns:
        `[n, 4, 4, J, M]`.
    """
    slope = intercept = jnp.zeros((), center.dtype)
    for terms, of_terms in zip(groups, weights, strict=True):
        for weight, quadratic, linear in zip(of_terms, terms.quadratic, terms.linear, strict=True):
            slope += weight[:, None, None] * quadratic[None]
            intercept += weight[:, None, None] * linear[None]
    return 2 * slope * (form_votes(poses, transforms) - center[None]) + intercept


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)


def scaled(weights: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Weights `[..., N, J, M]` times a scale `[N, M]`, or as they are."""
    return (
        weights
        if scale is None
        else weights * jnp.expand_dims(scale, (*range(weights.ndim - 3), -2))
    )


def _put_chunk(array: jax.Array, chunk: jax.Array, index: jax.Array) -> jax.Array:
    """Write the chunk of that index, along the first axis."""
    return lax.dynamic_update_slice_in_dim(array, chunk, index * chunk.shape[0], 0)


def _product_transpose(
    poses: jax.Array, transforms: jax.Array, to_votes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `form_votes` for a gradient `[n, 4, 4, J, M]` of its result, as matrix products,
    one for each row.

    Returns:
        For the poses, `[n, 4, Q, M]`, and for the transforms, `[n, 4, J, Q]`: the order that
        XLA:CPU multiplies fast.
    """
    num_children, rows, columns, num_parents, width = to_votes.shape
    # Only leading axes are merged: to merge the last one would spoil the loop that computes the
    # votes' gradient.
    to_votes = to_votes.reshape(num_children, rows, columns * num_parents, width)
    transforms = transforms.reshape(num_children, 1, -1, columns * num_parents)
    transforms = jnp.broadcast_to(transforms, (num_children, rows, *transforms.shape[2:]))
    to_poses = jnp.einsum("nikx,nixm->nikm", transforms, to_votes, precision="highest")
    to_transforms = jnp.einsum("nixm,nikm->nixk", to_votes, poses, precision="highest").sum(1)
    return to_poses, to_transforms.reshape(num_children, columns, num_parents, -1)


def _chunk_size(num_children: int, most: int) -> int:
    """How many children a step takes: the largest divisor of their number that does not exceed
    `most` and leaves two steps or more, where there are two children.

    XLA unrolls a loop of one step and may then compute the same scores twice, differently rounded;
    that would not do for a softmax.
    """
    return largest_divisor(num_children, max(1, min(most, num_children // 2)))


def largest_divisor(number: int, most: int) -> int:
    """The largest that does not exceed `most`, which is at least 1."""
    return max(size for size in range(1, most + 1) if number % size == 0)


def zero_known_with(array: jax.Array) -> jax.Array:
    """Zero, which no compiler knows before it knows `array`: leading zeros are counted, and there
    are never fewer than none.
    """
    first = array[(0,) * array.ndim].real.astype(jnp.float32)
    return jnp.minimum(lax.clz(lax.bitcast_convert_type(first, jnp.int32)), 0)


_zero_after = jax.custom_batching.custom_vmap(zero_known_with)


@_zero_after.def_vmap
def _zero_at_once(axis_size: int, in_batched: Any, array: jax.Array) -> tuple[jax.Array, bool]:
    """Zero for the whole batch, lest `vmap` make slices at it into gathers; it waits for no
    example, which may be elsewhere.
    """
    zero, _ = vary_alike((jnp.zeros((), jnp.int32), array))
    return zero, False


def _for_chunks(
    step: Callable,
    state: Any,
    arrays: Any,
    most: int = 4,
    axes: Any = 0,
    prepare: Callable = lambda *chunk: chunk,
) -> Any:
    """`state = step(state, index, chunk)` for each chunk of `arrays` along the axis of the
    children.

    The next chunk is fetched a step ahead: a slice at a moving place, taken in the step that uses
    it, would become part of that step's loop, and XLA:CPU does not vectorize such loops. It is
    fetched after the step, so that it can lie where the last chunk lay: in an order of its own
    choice XLA would copy it twice.

    Args:
        step: see above; its chunk is a tree like `arrays`.
        state: to start with.
        arrays: a tree of arrays.
        most: children in a chunk, at most.
        axes: where the children are in each of `arrays`: a tree like it, or a prefix of one.
        prepare: what to make of a chunk when it is fetched.
    """
    axes = jax.tree.broadcast(axes, arrays)
    num_children = jax.tree.leaves(arrays)[0].shape[0]
    size = _chunk_size(num_children, most)
    steps = num_children // size

    def fetch(index: jax.Array) -> Any:
        chunk = jax.tree.map(
            lambda array, axis: lax.dynamic_slice_in_dim(array, index * size, size, axis),
            arrays,
            axes,
        )
        return prepare(*chunk)

    def body(index: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, chunk = carry
        state = step(state, index, chunk)
        return state, fetch(
            jnp.minimum(index + 1, steps - 1)
            + _zero_after(lax.stop_gradient(jax.tree.leaves(state)[0]))
        )

    return lax.fori_loop(0, steps, body, (state, fetch(jnp.asarray(0))))[0]
