"""Streamed routing against dense: values, gradients, blocks of the batch, low precision, and what
it refuses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routing_cases import cast, class_case, conv_case

from emcaps import class_em_routing, conv_em_routing

NETWORK_LIKE = dict(stride=2, num_iterations=3, normalize_costs=True, assignment_temperature=16.0)


def values_and_gradients(function, arrays, keywords, implementation):
    """The result, and the gradient for every array of a random projection of the whole result."""

    def objective(*arrays):
        result = function(*arrays, **keywords, implementation=implementation)
        random = np.random.default_rng(0)  # NumPy's, which compiles nothing for a new shape
        parts = [(x * jnp.asarray(random.normal(size=x.shape), x.dtype)).sum() for x in result]
        return sum(parts[1:], parts[0]), result

    compute = jax.jit(jax.value_and_grad(objective, argnums=tuple(range(5)), has_aux=True))
    (_, result), gradients = compute(*arrays)
    return result, gradients


def assert_close(ours, theirs, tolerance):
    """Relative to the largest magnitude of each array."""
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = max(np.abs(other).max(), np.finfo(np.float32).tiny)
        assert np.abs(mine - other).max() <= tolerance * scale


def network_like_arguments(batch, dtype=np.float32):
    random = np.random.default_rng(batch)
    arguments = (
        random.normal(size=(batch, 7, 6, 2, 4, 4)),
        random.uniform(size=(batch, 7, 6, 2)),
        np.eye(4) + 0.1 * random.normal(size=(3, 3, 2, 4, 4, 4)),
        random.normal(size=4),
        random.normal(size=4),
    )
    return tuple(array.astype(dtype) for array in arguments)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 6, 12])
@pytest.mark.parametrize(
    ("function", "case"), [(conv_em_routing, conv_case), (class_em_routing, class_case)]
)
def test_equals_dense_on_the_oracles_cases_in_float64(x64, function, case, seed):
    """To 1e-10, or to what the case makes of a rounding error in its input."""
    arrays, keywords = case(seed)
    arrays = tuple(jnp.asarray(array) for array in arrays)
    rounded = tuple(array * (1 + np.finfo(float).eps) for array in arrays)
    streamed = values_and_gradients(function, arrays, keywords, "streamed")
    dense, nearby = (
        values_and_gradients(function, inputs, keywords, "dense") for inputs in (arrays, rounded)
    )
    for ours, theirs, near in zip(*map(jax.tree.leaves, (streamed, dense, nearby)), strict=True):
        assert (
            np.abs(ours - theirs).max()
            <= 1e-10 * np.abs(theirs).max() + 10 * np.abs(near - theirs).max()
        )


@pytest.mark.slow
def test_equals_dense_in_float32_on_several_blocks_of_the_batch():
    arguments = network_like_arguments(25)  # 6 positions: blocks of 13, the last one filled up
    streamed, dense = (
        values_and_gradients(conv_em_routing, arguments, NETWORK_LIKE, name)
        for name in ("streamed", "dense")
    )
    assert_close(streamed, dense, 1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # As in the network of test_capsnet.py.
        pytest.param(jnp.bfloat16, 2e-2, marks=pytest.mark.slow),
        (jnp.float16, 3e-3),
    ],
)
def test_low_precision_is_accumulated_in_float32(dtype, tolerance):
    """Against float32 on the same numbers: what differs is only the rounding of the output, about
    half a unit in the last place.
    """
    arguments = network_like_arguments(3, dtype)
    result = conv_em_routing(*arguments, **NETWORK_LIKE)
    assert result.poses.dtype == result.activations.dtype == dtype
    assert result.activation_logits.dtype == result.variances.dtype == np.float32
    exact = conv_em_routing(*cast(arguments, np.float32), **NETWORK_LIKE)
    for ours, theirs in zip(result, exact, strict=True):
        difference = np.abs(np.asarray(ours, np.float32) - theirs).max()
        assert difference <= tolerance * np.abs(theirs).max()


def test_refuses_what_it_cannot_differentiate():
    arguments = network_like_arguments(1)

    def total(poses):
        return conv_em_routing(poses, *arguments[1:], **NETWORK_LIKE).poses.sum()

    with pytest.raises(TypeError, match='implementation="dense"'):
        jax.jvp(total, arguments[:1], arguments[:1])
    with pytest.raises(TypeError, match='implementation="dense"'):
        jax.jit(jax.grad(lambda poses: jax.grad(total)(poses).sum())).lower(arguments[0])


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_every_platform(platform):
    arguments = network_like_arguments(40)

    def total(*arguments):
        return conv_em_routing(*arguments, **NETWORK_LIKE).poses.sum()

    for function in (total, jax.grad(total, argnums=(0, 1, 2, 3, 4))):
        exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
        assert exported.platforms == (platform,)
