"""Dynamic routing: against loops written from the paper, its laws, its gradients, extremes and
errors.
"""

import functools
import itertools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import dot, slope_along
from jax.test_util import check_grads

from emcaps.dynamic import class_dynamic_routing, dynamic_routing, squash


def votes_like(*shape, scale=1.0, seed=0, dtype=np.float32):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def loops(votes, num_iterations):
    """One example `[N, J, D]` by the paper's procedure: poses `[J, D]`, couplings `[N, J]`."""
    N, J, D = votes.shape
    b = np.zeros((N, J))
    for iteration in range(num_iterations):
        c, v = np.zeros((N, J)), np.zeros((J, D))
        for n in range(N):
            weights = np.exp(b[n] - max(b[n]))
            c[n] = weights / sum(weights)
        for j in range(J):
            s = sum(c[n, j] * votes[n, j] for n in range(N))
            squared = sum(s**2)
            v[j] = squared / (1 + squared) * s / np.sqrt(squared)
        if iteration < num_iterations - 1:
            for n, j in np.ndindex(N, J):
                b[n, j] += sum(votes[n, j] * v[j])
    return v, c


QUICK = [((1, 4, 3), 3), ((5, 1, 8), 3), ((7, 4, 16), 1), ((7, 4, 16), 3)]


@pytest.mark.parametrize(
    ("sizes", "num_iterations"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in itertools.product([(1, 1, 1), (1, 4, 3), (5, 1, 8), (7, 4, 16)], [1, 2, 3, 5])
    ],
)
def test_routing_equals_the_oracle(sizes, num_iterations, x64):
    """And in float32 that of the largest sizes does."""
    tolerances = {np.float64: 1e-12} | ({np.float32: 1e-4} if sizes == (7, 4, 16) else {})
    for scale in (1e-2, 1.0, 10.0):
        votes = votes_like(3, *sizes, scale=scale, dtype=np.float64)
        results = {
            d: jax.device_get(dynamic_routing(votes.astype(d), num_iterations=num_iterations))
            for d in tolerances
        }
        for index, example in enumerate(votes):
            poses, couplings = loops(example, num_iterations)
            for d, tolerance in tolerances.items():
                result = results[d]
                np.testing.assert_allclose(result.poses[index], poses, rtol=0, atol=tolerance)
                np.testing.assert_allclose(
                    result.couplings[index], couplings, rtol=0, atol=tolerance
                )
                np.testing.assert_allclose(
                    result.activations[index], np.linalg.norm(poses, axis=-1), atol=tolerance
                )
                np.testing.assert_allclose(
                    1 / (1 + np.exp(-result.activation_logits[index])),
                    result.activations[index],
                    atol=tolerance,
                )


@pytest.mark.parametrize(
    "sizes, num_iterations",
    [
        ((5, 3, 4, 6), 3),
        ((1, 1, 1, 1), 1),
        *(pytest.param((6, 4, 8, 3), t, marks=pytest.mark.slow) for t in (1, 3)),
    ],
)
def test_votes_that_are_not_stored_route_alike(sizes, num_iterations, x64):
    """Values, and gradients by both arguments, of loops over the votes in memory; the gradients are
    those of finite differences.
    """
    N, J, D, E = sizes
    children, transforms = (
        votes_like(2, 3, N, D, dtype=np.float64),
        votes_like(N, J, D, E, seed=1, dtype=np.float64),
    )

    def stored(children, transforms):
        votes = jnp.einsum("...nd,njde->...nje", children, transforms)
        return dynamic_routing(votes, num_iterations=num_iterations)

    def not_stored(children, transforms):
        return class_dynamic_routing(children, transforms, num_iterations=num_iterations)

    def total(children, transforms, route):
        result = route(children, transforms)
        return sum(
            (weight * array**2).sum() for weight, array in enumerate(result, start=1)
        ), result

    gradient = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), static_argnums=2)
    ((_, result), ours), ((_, expected), theirs) = (
        gradient(children, transforms, route) for route in (not_stored, stored)
    )
    chex.assert_trees_all_close(result, expected, atol=1e-12)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-9, atol=1e-11)

    direction = tuple(votes_like(*array.shape, seed=2) for array in ours)
    value = lambda given: gradient(*given, not_stored)[0][0]  # noqa: E731
    found = slope_along(value, (children, transforms), direction, step=1e-5)
    np.testing.assert_allclose(found, dot(direction, ours), rtol=1e-5, atol=1e-5)

    votes = np.einsum("nd,njde->nje", children[1, 2], transforms)
    # Of the gradient's program, and without a gradient.
    for found in (result, not_stored(children, transforms)):
        for array, of_loops in zip(
            (found.poses, found.couplings), loops(votes, num_iterations), strict=True
        ):
            np.testing.assert_allclose(array[1, 2], of_loops, atol=1e-12)


def test_the_votes_are_never_stored():
    """In the program of a gradient no array is as large as they are, or as half of them."""
    N, J, D, E = 64, 8, 8, 16
    children, transforms = jnp.zeros((32, N, D)), jnp.zeros((N, J, D, E))
    loss = lambda children, transforms: class_dynamic_routing(children, transforms).poses.sum()  # noqa: E731
    program = jax.jit(jax.grad(loss, (0, 1))).lower(children, transforms).compile()
    arrays = re.findall(r"f32\[([0-9,]+)\]", program.as_text())
    largest = max(math.prod(map(int, array.split(","))) for array in arrays)
    assert largest < 32 * N * J * D, "half of the votes, or more"


def test_couplings_sum_to_one_and_vectors_are_shorter_than_one():
    result = jax.device_get(dynamic_routing(votes_like(2, 50, 4, 8, scale=30)))
    chex.assert_shape(result, [(2, 4, 8), (2, 4), (2, 4), (2, 50, 4)])
    np.testing.assert_allclose(result.couplings.sum(-1), 1, rtol=1e-6)
    assert (result.activations <= 1).all()
    far = dynamic_routing(votes_like(2, 50, 4, 8, scale=1e4))
    assert (far.activations <= 1).all()


def test_order_does_not_matter(x64):
    votes = votes_like(3, 6, 4, 5, dtype=np.float64)
    children, parents = np.array([3, 1, 5, 0, 2, 4]), np.array([2, 0, 3, 1])
    plain, mixed = (
        jax.device_get(dynamic_routing(given))
        for given in (votes, votes[:, children][:, :, parents])
    )
    np.testing.assert_allclose(mixed.poses, plain.poses[:, parents], atol=1e-12)
    np.testing.assert_allclose(
        mixed.couplings, plain.couplings[:, children][:, :, parents], atol=1e-12
    )


def test_each_example_is_routed_by_itself(x64):
    votes = votes_like(3, 6, 4, 5, dtype=np.float64)
    together = jax.device_get(dynamic_routing(votes))
    chex.assert_trees_all_close(
        jax.tree.map(lambda array: array[1], together), dynamic_routing(votes[1]), atol=1e-13
    )
    mapped = jax.jit(jax.vmap(dynamic_routing))(votes)
    chex.assert_trees_all_close(together, mapped, atol=1e-13)


def test_a_rotation_of_the_votes_rotates_the_result(x64):
    votes = votes_like(6, 4, 5, dtype=np.float64)
    rotation = np.linalg.qr(votes_like(5, 5, seed=1, dtype=np.float64))[0]
    plain, turned = dynamic_routing(votes), dynamic_routing(votes @ rotation)
    np.testing.assert_allclose(turned.poses, plain.poses @ rotation, atol=1e-12)
    np.testing.assert_allclose(turned.couplings, plain.couplings, atol=1e-12)


def test_more_iterations_follow_agreement(x64):
    """All children agree about the first parent and contradict each other about the others."""
    signs = np.stack([np.ones(6), *[np.tile([1.0, -1.0], 3)] * 3], axis=1)
    votes = np.broadcast_to(signs[..., None], (6, 4, 5))
    to_first = [
        np.asarray(dynamic_routing(votes, num_iterations=t).couplings)[:, 0].mean()
        for t in (1, 2, 3, 5)
    ]
    assert to_first[0] == 0.25 and (np.diff(to_first) > 0.01).all()


# Above they are held to finite differences.
@pytest.mark.slow
@pytest.mark.parametrize("num_iterations, order", [(3, 1), (1, 1), (3, 2)])
def test_gradients(num_iterations, order, x64):
    votes = votes_like(2, 4, 3, 5, dtype=np.float64)
    routed = jax.jit(lambda votes: dynamic_routing(votes, num_iterations=num_iterations))
    check_grads(routed, (votes,), order, eps=1e-5, rtol=1e-5, atol=1e-5)


def test_gradients_of_squash(x64):
    votes = votes_like(2, 4, 3, 5, dtype=np.float64)
    check_grads(jax.jit(squash), (votes,), order=1, eps=1e-6, rtol=1e-7, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("num_iterations, order", [(3, 1), (1, 1), (3, 2)])
def test_gradients_of_votes_that_are_not_stored(num_iterations, order, x64):
    children, transforms = (
        votes_like(2, 4, 3, dtype=np.float64),
        votes_like(4, 3, 3, 5, seed=1, dtype=np.float64),
    )
    not_stored = jax.jit(
        lambda *given: class_dynamic_routing(*given, num_iterations=num_iterations)
    )
    check_grads(
        not_stored, (children, transforms), order, modes=["rev"], eps=1e-5, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "votes",
    [
        np.zeros((4, 3, 5), np.float32),
        np.ones((4, 3, 5), np.float32),
        votes_like(4, 3, 5, scale=1e-20),
        votes_like(4, 3, 5, scale=1e6),
        votes_like(4, 3, 5, scale=1e30),
    ],
    ids=["zero", "equal", "tiny", "large", "huge"],
)
def test_extremes_give_finite_numbers(votes):
    gradient, result = gradient_and_result(votes)
    chex.assert_tree_all_finite((gradient, result))
    np.testing.assert_allclose(result.couplings.sum(-1), 1, rtol=1e-5)


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def gradient_and_result(votes):
    result = dynamic_routing(votes, num_iterations=5)
    return result.poses.sum() + result.activations.sum() + result.activation_logits.sum(), result


def test_squash_keeps_directions_and_small_squares():
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [3e-3, -4e-3], [3e20, 4e20]], np.float32)
    expected = [[3 / 5 * 25 / 26, 4 / 5 * 25 / 26], [0, 0], [3e-3 * 5e-3, -4e-3 * 5e-3], [0.6, 0.8]]
    np.testing.assert_allclose(jax.jit(squash)(vectors), expected, rtol=1e-4)
    slope = jax.jit(jax.grad(lambda vector: squash(vector).sum()))(np.zeros(3, np.float32))
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_low_precision_is_computed_in_float32(dtype):
    votes = votes_like(2, 50, 4, 8).astype(dtype)
    result, exact = (jax.device_get(dynamic_routing(votes.astype(d))) for d in (dtype, np.float32))
    for ours, theirs in zip(result, exact, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            ours.astype(np.float32), theirs, rtol=jnp.finfo(dtype).eps, atol=jnp.finfo(dtype).eps
        )
    children, transforms = (
        votes_like(*shape).astype(dtype) for shape in ((2, 50, 4), (50, 3, 4, 8))
    )
    result, exact = (
        jax.device_get(class_dynamic_routing(children.astype(d), transforms.astype(d)))
        for d in (dtype, np.float32)
    )
    chex.assert_trees_all_close(
        result, jax.tree.map(lambda array: array.astype(dtype), exact), atol=0
    )


def test_it_is_traced_once():
    """What is asked here is known without compiling."""
    routed = jax.jit(
        chex.assert_max_traces(lambda votes: dynamic_routing(votes, num_iterations=3), n=1)
    )
    for seed in range(3):
        routed.eval_shape(votes_like(2, 4, 3, 5, seed=seed))


@pytest.mark.parametrize(
    "votes, keywords, error, message",
    [
        (
            np.zeros((4, 3), np.float32),
            {},
            ValueError,
            r"votes must have shape \[\.\.\., N, J, D\]; got shape \[4, 3\]",
        ),
        (np.zeros((0, 4, 3), np.float32), {}, ValueError, "no axis empty"),
        (
            np.zeros((2, 4, 3), np.int32),
            {},
            TypeError,
            "votes must have a floating point dtype; got int32",
        ),
        (
            np.zeros((2, 4, 3), np.float32),
            {"num_iterations": 0},
            ValueError,
            "num_iterations must be at least 1; got 0",
        ),
        (
            np.zeros((2, 4, 3), np.float32),
            {"num_iterations": 2.0},
            TypeError,
            "num_iterations must be a Python int",
        ),
    ],
)
def test_wrong_arguments_are_refused(votes, keywords, error, message):
    with pytest.raises(error, match=message):
        dynamic_routing(votes, **keywords)


@pytest.mark.parametrize(
    "shapes, keywords, error, message",
    [
        (
            [(4, 3), (5, 2, 3, 6)],
            {},
            ValueError,
            r"transforms must have shape \[N=4, J, D=3, E\], no axis empty; got shape \[5",
        ),
        (
            [(3,), (5, 2, 3, 6)],
            {},
            ValueError,
            r"children must have shape \[\.\.\., N, D\]; got shape \[3\]",
        ),
        (
            [(4, 3), (4, 2, 3)],
            {},
            ValueError,
            r"transforms must have shape \[N=4, J, D=3, E\]; got shape \[4, 2, 3\]",
        ),
        (
            [(4, 3), (4, 2, 3, 6)],
            {"num_iterations": 0},
            ValueError,
            "num_iterations must be at least 1; got 0",
        ),
    ],
)
def test_wrong_children_and_transforms_are_refused(shapes, keywords, error, message):
    with pytest.raises(error, match=message):
        class_dynamic_routing(*(np.zeros(shape, np.float32) for shape in shapes), **keywords)
