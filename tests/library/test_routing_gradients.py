"""Gradients of EM routing: right by finite differences, and finite where it is hard."""

import functools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import routing_cases
from finite_differences import dot, slope_along
from jax.test_util import check_grads

from emcaps import em_routing

ROUTES = routing_cases.ROUTES
# What is compared to the last digits has the kernels that users have; see conftest.py.
KERNELS = (
    {"xla_cpu_use_fusion_emitters": True}
    if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]
    else {}
)


# In float64.


def arguments(name, num_iterations, assignment_temperature):
    """Arrays and constants. Of maps there are so many that votes are streamed in several blocks."""
    route = ROUTES[name]
    if name.startswith("conv"):
        many = {each: (40, *route.shapes[each][1:]) for each in ("poses", "activations")}
        route = route._replace(shapes=route.shapes | many)
    constants = {
        "inverse_temperature": np.linspace(0.5, 1, num_iterations),
        "min_variance": np.array(0.1),
        "mass_epsilon": np.array(0.01),
        "mass_scale": np.array(0.1),
        "assignment_temperature": np.array(assignment_temperature),
    }
    return route.arrays(dtype=np.float64), constants


@functools.cache
def program(name, num_iterations, **options):
    """One number from every field of the result, and its derivatives with respect to every array
    and every number: compiled, for `arguments` of any values.
    """

    def total(arrays, constants):
        return weighted_sum(
            ROUTES[name].function(*arrays, num_iterations=num_iterations, **options, **constants)
        )

    given = arguments(name, num_iterations, 1.0)
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*given).compile(KERNELS)


def weighted_sum(result):
    weights = [np.random.default_rng(i).normal(size=f.shape) for i, f in enumerate(result)]
    return sum(jnp.sum(w * f) for w, f in zip(weights, result, strict=True))


NORMALIZED = {"normalize_costs": True}
OTHER_FORM = {"competition": "positions", "initial_assignments": "types", "damping": 0.3}


# The gradient of the procedure, in any form, is the same code for streamed and fused votes.
@pytest.mark.parametrize(
    ("name", "num_iterations", "assignment_temperature", "options"),
    [
        ("em", 2, 4.0, NORMALIZED),
        ("conv-fused", 2, 4.0, OTHER_FORM),
        ("conv-streamed", 3, 4.0, NORMALIZED),
        pytest.param("em", 1, 1.0, {}, marks=pytest.mark.slow),
        pytest.param("em", 3, 1.0, {}, marks=pytest.mark.slow),
        pytest.param("conv-dense", 2, 4.0, NORMALIZED, marks=pytest.mark.slow),
        pytest.param("conv-fused", 2, 4.0, NORMALIZED, marks=pytest.mark.slow),
        pytest.param("conv-streamed", 3, 1.0, {}, marks=pytest.mark.slow),
        pytest.param("conv-streamed", 2, 4.0, OTHER_FORM, marks=pytest.mark.slow),
        pytest.param("class", 2, 4.0, NORMALIZED, marks=pytest.mark.slow),
    ],
)
def test_gradients(name, num_iterations, assignment_temperature, options, x64):
    """Against finite differences in a random direction."""
    compiled = program(name, num_iterations, **options)
    evaluate = lambda *given: jax.device_get(compiled(*given))  # noqa: E731
    given = arguments(name, num_iterations, assignment_temperature)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), given)
    found = slope_along(lambda given: evaluate(*given)[0], given, direction)
    expected = dot(direction, evaluate(*given)[1])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_routing_again_on_the_way_back_changes_no_gradient(x64):
    kept, again = (
        program("conv-streamed", 3, **NORMALIZED, **options) for options in ({}, {"remat": True})
    )
    given = arguments("conv-streamed", 3, 4.0)
    chex.assert_trees_all_close(again(*given), kept(*given), rtol=1e-12)
    memory, less = (each.memory_analysis().temp_size_in_bytes for each in (kept, again))
    assert less < 0.8 * memory


@pytest.mark.slow
def test_second_derivatives(x64):
    """The dense implementation is plain JAX: it can be differentiated again."""
    route = ROUTES["conv-dense"]

    @jax.jit
    def activations(poses, activations, transforms):
        betas = route.arrays(dtype=np.float64)[3:]
        keywords = routing_cases.settings(2, np.float64)
        return route.function(poses, activations, transforms, *betas, **keywords).activations

    arrays = route.arrays(dtype=np.float64)[:3]
    check_grads(activations, arrays, order=2, modes=["rev"], eps=1e-6, atol=1e-6, rtol=1e-6)


# A result that depends on them has other slopes than the finite differences above.
@pytest.mark.slow
def test_gradient_through_stopped_constants(x64):
    """What has a stopped gradient is replaced by 1 (by chex), so no result can depend on it.

    (It does so only while it traces. The shape is one that no other test uses: an earlier trace
    would be used again here, and this one by a later test.)
    """
    rng = np.random.default_rng(0)
    votes, activations = rng.normal(size=(4, 7, 16)), rng.uniform(0.1, 0.9, size=4)
    beta_u, beta_a = rng.normal(size=(2, 7))

    def total(size):
        keywords = routing_cases.settings(2, np.float64)
        return em_routing(size * votes, activations, beta_u, beta_a, **keywords).activations.sum()

    # One number in: chex multiplies the tolerance by the size of the first argument.
    tolerance = {"atol": 1e-6, "rtol": 1e-6}
    chex.assert_numerical_grads(total, (jnp.array(1.3),), order=1, modes=["rev"], **tolerance)


# In float32.


@functools.cache
def value_and_gradient(function, num_iterations, normalize_costs):
    """One number from every field of the result, and its derivative with respect to every array."""

    def total(arrays):
        result = function(*arrays, num_iterations=num_iterations, normalize_costs=normalize_costs)
        return weighted_sum(result), result

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 100])
def test_float32_gradients_are_the_float64_ones(scale):
    """Within 1e-3 of each gradient's largest magnitude, also where EM has all but converged."""
    route = ROUTES["conv-streamed"]
    poses, *rest = route.arrays()
    arrays = (np.float32(scale) * poses, *rest)
    evaluate = value_and_gradient(route.function, 3, True)
    gradients = jax.device_get(evaluate(arrays)[1])
    with jax.enable_x64(True):
        expected = jax.device_get(evaluate(routing_cases.cast(arrays, np.float64))[1])
    for argument, a, b in zip(route.shapes, gradients, expected, strict=True):
        assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max(), argument


def hard_arrays(route):
    """Pairs of what is hard and arrays: votes of 1e-4 to 1e4, all different or all the same."""
    children, activations, *rest = route.arrays()
    ends = np.random.default_rng(1).choice([0, 1], size=activations.shape).astype(np.float32)
    for scale in (1e-4, 1.0, 1e4):
        for kind, votes in (("different", children), ("identical", np.ones_like(children))):
            same = [np.ones_like(x) if kind == "identical" and x.ndim > 2 else x for x in rest]
            for a in (np.zeros_like(activations), np.ones_like(activations), ends):
                description = f"votes {scale:g}, {kind}; activations {a.min():g} to {a.max():g}"
                yield description, (np.float32(scale) * votes, a, *same)


@pytest.mark.parametrize(
    ("name", "num_iterations", "normalize_costs"),
    [
        pytest.param("em", 1, True, marks=pytest.mark.slow),
        pytest.param("em", 2, False, marks=pytest.mark.slow),
        # Extreme calls are such, of these votes and of dense ones.
        pytest.param("em", 5, True, marks=pytest.mark.slow),
        pytest.param("conv-dense", 3, True, marks=pytest.mark.slow),
        ("conv-streamed", 3, True),
        pytest.param("em", 10, False, marks=pytest.mark.slow),
        pytest.param("conv-streamed", 10, False, marks=pytest.mark.slow),
    ],
)
def test_hard_inputs_give_finite_numbers(name, num_iterations, normalize_costs):
    assert_finite(ROUTES[name], num_iterations, normalize_costs)


@pytest.mark.parametrize(
    ("size", "normalize_costs"),
    [
        # One parent is there in the extreme calls, one child on the map.
        pytest.param("one parent", True, marks=pytest.mark.slow),
        pytest.param("one child", False, marks=pytest.mark.slow),
        pytest.param("one of each", True, marks=pytest.mark.slow),
    ],
)
def test_a_single_child_or_parent_gives_finite_numbers(size, normalize_costs):
    N, J = {"one child": (1, 3), "one parent": (4, 1), "one of each": (1, 1)}[size]
    shapes = {"votes": (2, N, J, 16), "activations": (2, N), "beta_u": (J,), "beta_a": (J,)}
    assert_finite(routing_cases.EM_ROUTE._replace(shapes=shapes), 3, normalize_costs)


# One parent is one parent of `em_routing` to all that sees the types together.
@pytest.mark.parametrize("size", ["one child", pytest.param("one parent", marks=pytest.mark.slow)])
def test_a_single_child_or_parent_type_on_the_map_gives_finite_numbers(size):
    K, J = {"one child": (1, 2), "one parent": (2, 1)}[size]
    shapes = {
        "poses": (1, 3, 3, 1, 4, 4),
        "activations": (1, 3, 3, 1),
        "transforms": (K, K, 1, J, 4, 4),
        "beta_u": (J,),
        "beta_a": (J,),
    }
    assert_finite(ROUTES["conv-streamed"]._replace(shapes=shapes), 3, False)


def assert_finite(route, num_iterations, normalize_costs):
    evaluate = value_and_gradient(route.function, num_iterations, normalize_costs)
    for description, arrays in hard_arrays(route):
        (value, result), gradient = evaluate(arrays)
        assert np.isfinite(value), description
        for name, field in result._asdict().items():
            assert np.isfinite(field).all(), f"{name}: {description}"
        for name, slope in zip(route.shapes, gradient, strict=True):
            assert np.isfinite(slope).all(), f"gradient of {name}: {description}"
        activations, variances = np.asarray(result.activations), np.asarray(result.variances)
        assert ((activations >= 0) & (activations <= 1)).all(), description
        assert (variances > 0).all(), description
