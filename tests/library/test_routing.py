"""The laws that EM routing obeys whatever the numbers are."""

import functools
import logging
import operator

import chex
import jax
import numpy as np
import pytest
import routing_cases

from emcaps import RoutingResult, class_em_routing, conv_em_routing, em_routing

each_implementation = pytest.mark.parametrize("implementation", routing_cases.IMPLEMENTATIONS)
each_route = pytest.mark.parametrize(
    "route", routing_cases.ROUTES.values(), ids=routing_cases.ROUTES
)

# All implementations place children and parents with the same code, and so do class capsules: of
# a law of places, or of what JAX makes of a function, one case is quick.
the_streamed_implementation = pytest.mark.parametrize(
    "implementation",
    ["streamed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dense", "fused"))],
)
votes_and_a_map = routing_cases.quick(routing_cases.ROUTES, "em", "conv-streamed")


@functools.cache
def jitted(function):
    return jax.jit(function, static_argnames=("num_iterations", "implementation"))


def routed(function, *arrays, **changes):
    """By a program that is the same for all values, of constants and of coordinates, too."""
    function = function if isinstance(function, functools.partial) else functools.partial(function)
    keywords = function.keywords | routing_cases.settings(dtype=np.float64) | changes
    return jitted(function.func)(*arrays, **keywords)


# What the result is.


@each_route
def test_result_is_a_routing_result(route, x64):
    result = routed(route.function, *route.arrays(dtype=np.float64))
    assert isinstance(result, RoutingResult)
    np.testing.assert_allclose(
        result.activations, 1 / (1 + np.exp(-np.asarray(result.activation_logits))), rtol=1e-5
    )


# Streamed votes, and extreme calls, have float16.
@pytest.mark.parametrize("low", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_low_precision_is_computed_in_float32(low):
    """The result is the float32 result, in the inputs' dtype where that has the range."""
    arrays = routing_cases.EM_ROUTE.arrays(dtype=jax.numpy.dtype(low))
    result = em_routing(*arrays, **routing_cases.settings())
    expected = em_routing(*[x.astype("float32") for x in arrays], **routing_cases.settings())
    wide = ("activation_logits", "variances")
    assert {name: field.dtype for name, field in result._asdict().items()} == {
        name: "float32" if name in wide else low for name in result._fields
    }
    routing_cases.assert_results_close(result, expected, 2**-8 if low == "bfloat16" else 2**-10)


MAPS = [((5, 4), (3, 2), 1), ((6, 7), (3, 3), 2), ((8, 5), (2, 1), 3), ((4, 4), (4, 4), 1)]


@pytest.mark.parametrize(
    ("map_size", "kernel", "stride", "implementation"),
    [
        (*MAPS[0], "streamed"),
        # The oracle has these strides, and `em_routing` is one parent position.
        *(pytest.param(*sizes, "streamed", marks=pytest.mark.slow) for sizes in MAPS[1:]),
        # The competition is the same code for all implementations.
        *(
            pytest.param(*sizes, name, marks=pytest.mark.slow)
            for sizes in MAPS
            for name in ("dense", "fused")
        ),
    ],
)
def test_each_covered_child_spends_one_unit(map_size, kernel, stride, implementation, x64):
    """Over all types at all positions. Most children of the third map are not covered."""
    (H, W), (KH, KW), child_types, J = map_size, kernel, 2, 3
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(size=(2, H, W, child_types, 4, 4)),
        rng.uniform(size=(2, H, W, child_types)),
        rng.normal(size=(KH, KW, child_types, J, 4, 4)),
        *np.zeros((2, J)),
    )
    keywords = {"stride": stride, "implementation": implementation}
    keywords |= routing_cases.settings(dtype=np.float64)
    assignments = np.asarray(conv_em_routing(*arrays, **keywords).assignments)
    spent, covered = np.zeros((2, H, W, child_types)), np.zeros((H, W), bool)
    for oh, ow in np.ndindex(assignments.shape[1:3]):
        window = np.s_[oh * stride : oh * stride + KH, ow * stride : ow * stride + KW]
        spent[:, *window] += assignments[:, oh, ow].sum(-1)
        covered[window] = True
    assert covered.any()
    np.testing.assert_allclose(spent[:, covered], 1, atol=1e-5)
    assert assignments.min() >= 0


# The loop over the iterations is the same for a map.
@routing_cases.quick(routing_cases.ROUTES, "em")
def test_one_iteration_is_one_m_step(route, x64):
    """Means and variances of all votes alike, whatever the E-step's temperature."""
    arrays, keywords = route.arrays(dtype=np.float64), routing_cases.settings(1, np.float64)
    result = route.function(*arrays, **keywords)
    tempered = route.function(*arrays, **keywords, assignment_temperature=7.0)
    chex.assert_trees_all_equal(result, tempered)
    if route is routing_cases.EM_ROUTE:
        votes, activations, beta_u, beta_a = arrays
        data = np.broadcast_to(activations[:, :, None] / 3, (2, 5, 3))
        mass = data.sum(1)
        means = np.einsum("bnj,bnjp->bjp", data, votes) / (mass + 1e-6)[..., None]
        squares = (votes - means[:, None]) ** 2
        variances = np.einsum("bnj,bnjp->bjp", data, squares) / (mass + 1e-6)[..., None] + 0.1
        cost = (beta_u[:, None] + 0.5 * np.log(variances)).sum(-1) * mass * 0.1
        np.testing.assert_allclose(result.assignments, np.full((2, 5, 3), 1 / 3))
        np.testing.assert_allclose(result.poses, means, rtol=1e-12)
        np.testing.assert_allclose(result.variances, variances, rtol=1e-12)
        np.testing.assert_allclose(result.activation_logits, 0.5 * (beta_a - cost), rtol=1e-12)


@pytest.mark.parametrize("num_iterations", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_default_inverse_temperature_is_the_released_codes(num_iterations):
    arrays = routing_cases.EM_ROUTE.arrays()
    schedule = np.array([0.01 * (1 - 0.95 ** (t + 1)) for t in range(num_iterations)], np.float32)
    default = em_routing(*arrays, num_iterations=num_iterations)
    explicit = em_routing(*arrays, num_iterations=num_iterations, inverse_temperature=schedule)
    routing_cases.assert_results_close(default, explicit, 1e-6)


def test_normalized_costs_of_a_single_parent_type_leave_beta_a(x64):
    # Of the sizes of one of the oracle's cases, which has the program.
    rng, keywords = np.random.default_rng(0), routing_cases.settings(5, np.float64)
    votes, activations = rng.normal(size=(2, 5, 1, 16)), rng.uniform(size=(2, 5))
    betas = np.array([0.3]), np.array([0.7])
    result = em_routing(votes, activations, *betas, **keywords, normalize_costs=True)
    np.testing.assert_allclose(result.activation_logits, [[0.7]] * 2, rtol=1e-6)


# Symmetries.


@each_route
def test_children_may_come_in_any_order(route, x64):
    arrays = route.arrays(dtype=np.float64)
    result = routed(route.function, *arrays)
    children = arrays[0].shape[route.child_axes[0]]
    order = np.random.default_rng(1).permutation(children)[::-1] if children > 2 else [1, 0]
    shuffled = routed(route.function, *take(arrays, order, route.child_axes))
    assignments = np.take(np.asarray(result.assignments), order, route.child_axis)
    expected = result._replace(assignments=assignments)
    routing_cases.assert_results_close(shuffled, expected, 1e-12)


@each_route
def test_permuting_parents_permutes_the_result(route, x64):
    arrays = route.arrays(dtype=np.float64)
    result = routed(route.function, *arrays)
    order = [2, 0, 1]
    shuffled = routed(route.function, *take(arrays, order, route.parent_axes))
    expected = RoutingResult(*take(result, order, route.result_parent_axes))
    routing_cases.assert_results_close(shuffled, expected, 1e-12)


def take(arrays, order, axes):
    return [
        x if axis is None else np.take(np.asarray(x), order, axis)
        for x, axis in zip(arrays, axes, strict=True)
    ]


@each_route
def test_batch_elements_do_not_meet(route, x64):
    """What else is in the batch, even NaN, changes no bit of a row."""
    arrays = route.arrays(dtype=np.float64)
    # Where activations are known, NaN is refused; here they are traced.
    first = jax.tree.map(operator.itemgetter(0), jax.device_get(routed(route.function, *arrays)))
    for neighbor in (
        route.arrays(1, np.float64)[:2],
        [np.full_like(x, np.nan) for x in arrays[:2]],
    ):
        mixed = [np.stack([x[0], y[1]]) for x, y in zip(arrays[:2], neighbor, strict=True)]
        again = jax.device_get(routed(route.function, *mixed, *arrays[2:]))
        again = jax.tree.map(operator.itemgetter(0), again)
        chex.assert_trees_all_equal(first, again)


@votes_and_a_map
def test_jit_changes_nothing(route, x64):
    arrays, keywords = route.arrays(dtype=np.float64), routing_cases.settings(dtype=np.float64)
    plain = route.function(*arrays, **keywords)
    routing_cases.assert_results_close(routed(route.function, *arrays), plain, 1e-12)


@votes_and_a_map
def test_vmap_is_the_batch_axis(route, x64):
    (children, activations, *rest), keywords = (
        route.arrays(dtype=np.float64),
        routing_cases.settings(dtype=np.float64),
    )
    batched = jax.device_get(routed(route.function, children, activations, *rest))
    if route is not routing_cases.EM_ROUTE:  # these always have a batch axis: one of size 1 inside
        children, activations = children[:, None], activations[:, None]
        batched = jax.tree.map(lambda x: x[:, None], batched)

    def mapped(children, activations):
        return route.function(children, activations, *rest, **keywords)

    found = jax.jit(jax.vmap(mapped))(children, activations)
    routing_cases.assert_results_close(found, batched, 1e-12)


@each_route
def test_silent_children_do_not_matter(route, x64):
    """A child with activation 0 still divides itself, but what it votes for changes no parent."""
    children, activations, *rest = route.arrays(dtype=np.float64)
    activations = activations.copy()
    activations[:, 1] = 0
    changed = children.copy()
    changed[:, 1] = 10 * children[:, 1] + 3
    result = routed(route.function, children, activations, *rest)
    again = routed(route.function, changed, activations, *rest)
    routing_cases.assert_results_close(
        again._replace(assignments=result.assignments), result, 1e-12
    )
    assert not np.array_equal(again.assignments, result.assignments)


def test_silent_children_can_be_left_out(x64):
    rng = np.random.default_rng(0)
    votes, activations = rng.normal(size=(2, 12, 3, 16)), rng.uniform(size=(2, 12))
    betas = rng.normal(size=(2, 3))
    silent = np.arange(12) > 4
    result = routed(em_routing, votes, np.where(silent, 0, activations), *betas)
    fewer = routed(em_routing, votes[:, ~silent], activations[:, ~silent], *betas)
    result = result._replace(assignments=np.asarray(result.assignments)[:, ~silent])
    routing_cases.assert_results_close(fewer, result, 1e-12)


# The map.


# Of one position, which class capsules have in all implementations.
@the_streamed_implementation
def test_kernel_as_large_as_the_map_is_em_routing(implementation, x64):
    rng = np.random.default_rng(0)
    poses, activations = rng.normal(size=(2, 2, 3, 2, 4, 4)), rng.uniform(size=(2, 2, 3, 2))
    transforms, beta_u, beta_a = rng.normal(size=(2, 3, 2, 3, 4, 4)), *rng.normal(size=(2, 3))
    votes = np.einsum("bhwixy,hwijyz->bhwijxz", poses, transforms)
    assert_like_em_routing(
        routed(
            conv_em_routing,
            *(poses, activations, transforms, beta_u, beta_a),
            implementation=implementation,
        ),
        (votes, activations, beta_u, beta_a),
    )


@each_implementation
def test_class_em_routing_is_em_routing_of_votes_with_coordinates(implementation, x64):
    poses, activations, transforms, *betas = routing_cases.CLASS_ROUTE.arrays(dtype=np.float64)
    votes = np.einsum("bhwixy,ijyz->bhwijxz", poses, transforms)
    votes[..., :2, 3] += routing_cases.COORDINATES[:, :, None, None]
    function = functools.partial(routing_cases.CLASS_ROUTE.function, implementation=implementation)
    assert_like_em_routing(
        routed(function, poses, activations, transforms, *betas), (votes, activations, *betas)
    )


def assert_like_em_routing(result, arrays):
    """A result with one parent position, and what `em_routing` makes of these votes
    `[B, H, W, I, J, 4, 4]`, activations and betas.
    """
    votes, activations, *betas = arrays
    votes, activations = votes.reshape(2, 12, 3, 16), activations.reshape(2, 12)
    flat = jax.device_get(routed(em_routing, votes, activations, *betas))
    expected = RoutingResult(*(np.reshape(f, r.shape) for f, r in zip(flat, result, strict=True)))
    routing_cases.assert_results_close(result, expected, 1e-12)


@the_streamed_implementation
def test_class_em_routing_is_a_kernel_as_large_as_the_map(implementation, x64):
    """Where votes have no coordinates."""
    poses, activations, transforms, *betas = routing_cases.CLASS_ROUTE.arrays(dtype=np.float64)
    result, expected = (
        routed(function, poses, activations, held, *betas, implementation=implementation)
        for function, held in (
            (class_em_routing, transforms),
            (conv_em_routing, np.broadcast_to(transforms, (2, 3, *transforms.shape))),
        )
    )
    routing_cases.assert_results_close(result, expected, 1e-12)


@each_implementation
def test_coordinates_only_move_the_votes_they_are_added_to(implementation, x64):
    """The same everywhere, they shift the poses at [0, 3] and [1, 3] and change nothing else."""
    arrays = routing_cases.CLASS_ROUTE.arrays(dtype=np.float64)
    still, shift = np.zeros((2, 3, 2), np.float32), np.array([0.25, 0.75], np.float32)
    plain, moved = (
        routed(
            class_em_routing,
            *arrays,
            coordinates=coordinates,
            implementation=implementation,
            mass_epsilon=1e-15,  # which pulls all poses a little towards 0
        )
        for coordinates in (still, still + shift)
    )
    poses = np.array(plain.poses)
    poses[..., :2, 3] += shift
    routing_cases.assert_results_close(moved, plain._replace(poses=poses), 1e-10)


def random_map(H, W, child_types=2, J=2, K=2):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(1, H, W, child_types, 4, 4)),
        rng.uniform(size=(1, H, W, child_types)),
        rng.normal(size=(K, K, child_types, J, 4, 4)),
        *rng.normal(size=(2, J)),
    )


@the_streamed_implementation
def test_interior_is_translation_equivariant(implementation, x64):
    """Parents that no border effect can reach move with the image.

    Not all do: children within K - 1 of a border reach fewer parents, so their first assignments
    are larger, and each E-step carries the difference K - 1 further. After T iterations parents at
    least T (K - 1) from the border are untouched. (Only the left and right borders move here.)
    """
    poses, activations, *rest = random_map(5, 10)
    T, K = 3, 2
    keywords = {**routing_cases.settings(T, np.float64), "implementation": implementation}
    left = conv_em_routing(poses[:, :, :-1], activations[:, :, :-1], *rest, **keywords)
    right = conv_em_routing(poses[:, :, 1:], activations[:, :, 1:], *rest, **keywords)
    margin = T * (K - 1)
    columns = left.activations.shape[2]
    inside_left = np.s_[:, :, margin + 1 : columns - margin]
    inside_right = np.s_[:, :, margin : columns - margin - 1]
    expected, result = (
        RoutingResult(*(np.asarray(f)[inside] for f in fields))
        for fields, inside in ((left, inside_left), (right, inside_right))
    )
    assert expected.activations.size
    routing_cases.assert_results_close(result, expected, 1e-12)
    assert not np.allclose(left.poses[:, :, 1], right.poses[:, :, 0], rtol=1e-4)  # near the border


@the_streamed_implementation
@pytest.mark.parametrize("stride", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_object_on_an_empty_ground_is_translation_equivariant(implementation, stride, x64):
    """Where all that is active lies K - 1 inside the border, everything moves with it."""
    poses, activations, *rest = random_map(5, 9)
    keywords = {
        "stride": stride,
        "implementation": implementation,
        **routing_cases.settings(dtype=np.float64),
    }
    alive = np.zeros_like(activations)
    alive[:, 1:4, 1:4] = activations[:, 1:4, 1:4]
    here = conv_em_routing(poses, alive, *rest, **keywords)
    moved = conv_em_routing(np.roll(poses, 2, 2), np.roll(alive, 2, 2), *rest, **keywords)
    for name in ("poses", "activations", "variances"):
        expected = np.roll(getattr(here, name), 2 // stride, 2)
        np.testing.assert_allclose(getattr(moved, name), expected, rtol=1e-9, atol=1e-12)


# Compilation.


@each_route
def test_new_values_are_not_traced_again(route):
    """Nor are new constants, so that temperatures can be annealed in a jitted training step.

    What is asked here is known without compiling.
    """
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def routed(arrays, inverse_temperature, constants):
        return route.function(
            *arrays, num_iterations=2, inverse_temperature=inverse_temperature, **constants
        )

    names = ("min_variance", "mass_epsilon", "mass_scale", "assignment_temperature")
    for seed in (1, 2):
        constants = dict.fromkeys(names, seed / 10)
        routed.eval_shape(route.arrays(seed), np.full(2, 0.1 * seed, np.float32), constants)


@votes_and_a_map
def test_plain_calls_compile_once(route, caplog, x64):
    keywords = routing_cases.settings(dtype=np.float64)
    route.function(*route.arrays(dtype=np.float64), **keywords)
    with caplog.at_level(logging.WARNING, logger="jax"), jax.log_compiles():
        route.function(*route.arrays(1, np.float64), **{**keywords, "min_variance": 0.2})
        assert "Compiling" not in caplog.text
        jax.jit(lambda x: x + 1)(1.0)  # what a compilation looks like
        assert "Compiling" in caplog.text
