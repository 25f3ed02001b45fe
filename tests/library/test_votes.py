"""The two vote operators: streamed against dense, each the other's transpose, and the digits that
they keep.
"""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcaps import fused
from emcaps.fused import FusedVotes
from emcaps.votes import StreamedVotes, VoteTerms, dense_votes

# N, Q, J, M.
SIZES = [
    (1, 4, 1, 1),
    (7, 4, 3, 5),
    (18, 5, 2, 4),
    pytest.param((24, 4, 4, 9), marks=pytest.mark.slow),
]


def draw(seed, sizes):
    num_children, inner, num_parents, columns = sizes
    random = np.random.default_rng(seed)  # NumPy's, which compiles nothing for a new shape
    poses = random.normal(size=(num_children, 4, inner, columns))
    transforms = random.normal(size=(num_children, inner, 4, num_parents))
    weights = random.uniform(size=(num_children, num_parents, columns))
    coefficients = random.normal(size=(3, 4, 4, num_parents, columns))
    return tuple(map(jnp.asarray, (poses, transforms, weights, coefficients)))


@pytest.mark.parametrize("sizes", SIZES)
def test_votes_are_pose_times_transform(x64, sizes):
    poses, transforms, _, _ = draw(0, sizes)
    votes = np.asarray(jax.jit(dense_votes)(poses, transforms).votes)
    poses, transforms = np.asarray(poses), np.asarray(transforms)
    expected = np.full_like(votes, np.nan)
    for child, parent, column in np.ndindex(sizes[0], sizes[2], sizes[3]):
        expected[child, :, :, parent, column] = (
            poses[child, :, :, column] @ transforms[child, :, :, parent]
        )
    np.testing.assert_allclose(votes, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sizes", SIZES)
def test_streamed_operators_equal_dense(x64, sizes):
    def operators(hold, poses, transforms, weights, coefficients):
        votes, (quadratic, linear, center) = hold(poses, transforms), coefficients
        constant, scale = center[0, 0], weights[:, 0]
        return {
            "moments": votes.moments(weights, center),
            "scaled moments": votes.moments(weights, center, scale),
            "scores": votes.scores(constant, quadratic, center),
            "scores with a linear part": votes.scores(constant, quadratic, center, linear),
            "weighted sum": votes.weighted_sum(scale),
        }

    streamed, dense = (
        jax.jit(operators, static_argnums=0)(hold, *draw(1, sizes))
        for hold in (StreamedVotes, dense_votes)
    )
    chex.assert_trees_all_close(streamed, dense, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "limits",
    [
        {"FUSED_CHILDREN": 14, "HELD_BYTES": 0},
        {"FUSED_BYTES": 14 * 768, "HELD_BYTES": 0},
        {"FUSED_CHILDREN": 1, "HELD_BYTES": 14 * 768},
    ],
)
def test_moments_of_many_children_are_sums_over_chunks(x64, monkeypatch, limits):
    """A GPU would store their votes otherwise."""
    poses, transforms, weights, (_, _, center) = draw(4, (29, 4, 2, 3))  # 768 bytes for each child
    for name, limit in limits.items():
        monkeypatch.setattr(fused, name, limit)
    # As it is within its `jit`, which would keep what it traces with these limits.
    moments = functools.partial(FusedVotes.moments.__wrapped__, FusedVotes(poses, transforms))
    in_chunks = jax.jit(moments).lower(weights, center)
    reduced = re.findall(r"\(tensor<(\d+)x4x4x2x3xf64>, tensor<\1x", in_chunks.as_text())
    assert reduced == ["10", "10", "9"]
    chex.assert_trees_all_close(
        in_chunks.compile()(weights, center),
        jax.jit(lambda *given: dense_votes(poses, transforms).moments(*given))(weights, center),
        rtol=1e-11,
        atol=1e-11,
    )


def test_vmap_leaves_the_places_of_children_alone():
    """Which children a step takes is the same for a whole mapped batch.

    Otherwise each step would gather them one by one.
    """
    poses, transforms, weights, (_, _, center) = draw(1, SIZES[2])

    def moments(poses):
        return StreamedVotes(poses, transforms).moments(weights, center)

    assert "operand_batching_dims" not in jax.jit(jax.vmap(moments)).lower(poses[None]).as_text()


@pytest.mark.parametrize("hold", [StreamedVotes, dense_votes])
def test_moments_and_scores_are_each_others_transpose(x64, hold):
    poses, transforms, weights, (quadratic, linear, center) = draw(2, SIZES[2])
    votes = hold(poses, transforms)
    constant = center[1, 1]
    mass, first, second = votes.moments(weights, center)
    through_moments = (quadratic * second).sum() + (linear * first).sum() + (constant * mass).sum()
    through_scores = (weights * votes.scores(constant, quadratic, center, linear)).sum()
    np.testing.assert_allclose(through_moments, through_scores, rtol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
def test_gradient_is_that_of_the_scores(x64, sizes):
    poses, transforms, weights, (quadratic, linear, center) = draw(3, sizes)

    def objective(poses, transforms):
        votes = dense_votes(poses, transforms)
        return sum(
            (
                weights
                * factor
                * votes.scores(jnp.zeros_like(center[0, 0]), w * quadratic, center, linear)
            ).sum()
            for w, factor in ((1.0, 1.0), (2.0, 2.0), (1.0, weights[:, :1]), (2.0, weights[:, :1]))
        )

    forms = jnp.stack([quadratic, 2 * quadratic]), jnp.stack([linear, linear])
    scale = weights[:, 0]
    groups = (
        VoteTerms(jnp.stack([weights, 2 * weights]), None, *forms),
        VoteTerms(jnp.stack([weights, weights]), scale, *forms),
    )
    expected = jax.jit(jax.grad(objective, argnums=(0, 1)))(poses, transforms)
    ours = jax.jit(lambda *held: StreamedVotes(*held).gradient(groups, center))(poses, transforms)
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-11)


def test_second_moments_keep_their_digits_when_the_variance_is_a_millionth_of_the_squared_mean():
    """float32, against float64: no worse than the two-pass formula on the same float32 votes."""
    rng = np.random.default_rng(4)
    children, parents, columns = 72, 4, 8
    poses = np.zeros((children, 4, 4, columns), np.float32)
    poses[:] = 1 + 1e-3 * rng.normal(size=poses.shape)
    transforms = np.broadcast_to(
        np.eye(4, dtype=np.float32)[None, :, :, None], (children, 4, 4, parents)
    )
    weights = rng.uniform(size=(children, parents, columns)).astype(np.float32)
    exact_votes = np.einsum(
        "nikm,nkhj->nihjm", poses.astype(np.float64), transforms.astype(np.float64)
    )
    spread, votes = weights[:, None, None], exact_votes.astype(np.float32)
    mass = weights.sum(0)

    def variance(values, spread, mass):
        mean = (spread * values).sum(0) / mass
        return (spread * (values - mean) ** 2).sum(0) / mass

    exact = variance(exact_votes, spread.astype(np.float64), mass.astype(np.float64))
    two_pass_error = np.abs(variance(votes, spread, mass) / exact - 1).max()
    streamed = StreamedVotes(jnp.asarray(poses), jnp.asarray(transforms))
    # A center as routing has it: the mean under other weights of the same votes.
    center = streamed.weighted_sum(jnp.asarray(weights[:, 0])) / weights[:, 0].sum(0)
    _, first, second = (
        np.asarray(moment) for moment in streamed.moments(jnp.asarray(weights), center)
    )
    ours = second / mass - (first / mass) ** 2
    assert np.abs(ours / exact - 1).max() <= max(two_pass_error, 1e-6)
    assert two_pass_error < 1e-3, "the two-pass formula itself must be a meaningful bar"
