"""Diagnostics of routing, against slow loops, results made by hand, and what must hold of any
routing.
"""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import routing_cases

from emcaps import CapsNet, RoutingOptions, RoutingResult
from emcaps.diagnostics import diagnose, diagnose_iterations, diagnose_layers, results_by_iteration

ITERATIONS = (2, 3)


@pytest.fixture(scope="module")
def network():
    """A network whose layers differ in their iterations, with variables and images."""
    routing = tuple(RoutingOptions(num_iterations=num_iterations) for num_iterations in ITERATIONS)
    model = CapsNet(3, conv_channels=4, primary_capsules=2, conv_capsules=(2,), routing=routing)
    images = jax.random.uniform(jax.random.key(0), (2, 13, 11, 1))
    return model, jax.jit(model.init)(jax.random.key(1), images), images


def result_of_types(activations):
    """A result of `em_routing` with these activations `[..., J]`, two children, and nothing else of
    interest.
    """
    activations = np.asarray(activations, np.float32)
    *batch, num_parents = activations.shape
    poses = np.ones((*batch, num_parents, 16), np.float32)
    assignments = np.full((*batch, 2, num_parents), 1 / num_parents, np.float32)
    return RoutingResult(poses, activations, np.zeros_like(activations), poses, assignments)


def result_on_a_map(activations):
    """A result of `conv_em_routing` with these activations `[B, OH, OW, J]` and 2x1 kernels."""
    activations = np.asarray(activations, np.float32)
    poses = np.ones((*activations.shape, 4, 4), np.float32)
    assignments = np.full((*activations.shape[:3], 2, 1, 1, activations.shape[3]), 0.1, np.float32)
    return RoutingResult(poses, activations, np.zeros_like(activations), poses, assignments)


def routed_by(loops, route):
    """What the oracle makes of the arrays of a route, in float32 and without compiling."""
    result = loops(*route.arrays(), **routing_cases.settings())
    return RoutingResult(*(field.astype(np.float32) for field in result))


def mean_entropy(shares_of_children):
    """The mean over children of the entropy of each one's shares; `shares_of_children` is a list of
    lists.
    """
    entropies = []
    for shares in shares_of_children:
        assert abs(sum(shares) - 1) < 1e-5
        entropies.append(-sum(share * np.log(share) for share in shares if share > 0))
    return np.mean(entropies)


@pytest.mark.parametrize("stride", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_entropy_is_that_of_each_child_over_all_parents_that_it_reaches(stride):
    result = routed_by(
        functools.partial(oracle.conv_em_routing, stride=stride), routing_cases.CONV_ROUTE
    )
    shares = collections.defaultdict(list)
    for (b, y, x, ky, kx, i, _), share in np.ndenumerate(result.assignments.astype(np.float64)):
        shares[b, y * stride + ky, x * stride + kx, i].append(share)
    np.testing.assert_allclose(
        diagnose(result).assignment_entropy, mean_entropy(shares.values()), rtol=1e-5
    )


def test_entropy_of_children_that_reach_every_parent():
    result = routed_by(oracle.em_routing, routing_cases.EM_ROUTE)
    shares = result.assignments.astype(np.float64).reshape(-1, 3).tolist()
    np.testing.assert_allclose(diagnose(result).assignment_entropy, mean_entropy(shares), rtol=1e-5)


def test_entropy_of_certain_and_of_even_children():
    result = result_of_types([0.5, 0.5, 0.5, 0.5])
    certain, even, vanishing = [0, 1, 0, 0], [0.25] * 4, [1, 1e-40, 0, 0]
    for children, expected in [
        ((certain, certain), 0),
        ((certain, even), np.log(4) / 2),
        ((even, vanishing), np.log(4) / 2),
    ]:
        found = diagnose(result._replace(assignments=np.array(children, np.float32)))
        np.testing.assert_allclose(found.assignment_entropy, expected, atol=1e-7)


def test_a_parent_is_dead_or_saturated_only_if_it_is_so_for_every_example():
    activations = [[0.0, 0.005, 1.0, 0.999, 0.5], [0.009, 0.02, 0.995, 0.98, 0.5]]
    for shape in [(2, 5), (2, 1, 5)]:  # every leading axis is of the batch
        found = diagnose(result_of_types(np.reshape(activations, shape)))
        np.testing.assert_allclose((found.dead, found.saturated), (0.2, 0.2), rtol=1e-6)
    np.testing.assert_allclose(diagnose(result_of_types(activations[0])).dead, 0.4, rtol=1e-6)


def test_on_a_map_a_parent_is_a_type_at_a_position():
    activations = np.full((2, 1, 3, 2), 0.5)
    activations[:, 0, 0, 0] = 0  # this type is dead here only
    activations[0, 0, 1, 1] = 0  # and this one for one example only
    activations[:, 0, 2] = 1
    found = diagnose(result_on_a_map(activations))
    np.testing.assert_allclose((found.dead, found.saturated), (1 / 6, 2 / 6), rtol=1e-6)


def test_means_and_spreads():
    result = result_on_a_map([[[[0.1, 0.7], [0.3, 0.9]]]])
    logits = np.array([[[[-1, 3], [4, 4]]]], np.float32)  # standard deviations 2 and 0
    found = diagnose(result._replace(activation_logits=logits))
    expected = 0.5, np.std([0.1, 0.7, 0.3, 0.9]), 1
    np.testing.assert_allclose(
        (found.activation_mean, found.activation_spread, found.logit_spread), expected, rtol=1e-6
    )


def test_a_network_has_diagnostics_of_each_layer_that_routes(network):
    model, variables, images = network
    intermediates = model.apply(variables, images)[1]
    found = diagnose_layers(intermediates)
    assert list(found) == ["conv_caps_1", "class_caps"]
    for name, values in found.items():
        chex.assert_trees_all_equal(values, diagnose(intermediates[name]))


def test_iterations_end_with_the_diagnostics_of_the_network(network):
    model, variables, images = network
    found, last = (
        diagnose_iterations(model, variables, images),
        diagnose_layers(model.apply(variables, images)[1]),
    )
    assert list(found) == list(last)
    for name, num_iterations in zip(found, ITERATIONS, strict=True):
        chex.assert_shape(tuple(found[name]), (num_iterations,))
        chex.assert_trees_all_equal(
            jax.tree.map(lambda values: values[-1], found[name]), last[name]
        )


def test_iterations_begin_with_even_assignments_and_change_them(network):
    found = diagnose_iterations(*network)
    np.testing.assert_allclose(found["class_caps"].assignment_entropy[0], np.log(3), rtol=1e-6)
    for values in found.values():
        assert np.all(np.diff(values.assignment_entropy) < 0)


def test_results_by_iteration_are_those_of_a_network_with_fewer_iterations(network):
    model, variables, images = network
    results = results_by_iteration(model, variables, images, "class_caps")
    assert len(results) == 3
    fewer = model.clone(
        routing=(RoutingOptions(num_iterations=2), RoutingOptions(num_iterations=1))
    )
    chex.assert_trees_all_equal(results[0], fewer.apply(variables, images)[1]["class_caps"])


def test_one_routing_for_all_layers_serves_too(network):
    model, variables, images = network
    model = model.clone(routing=RoutingOptions(num_iterations=2))
    found = jax.eval_shape(lambda *arrays: diagnose_iterations(model, *arrays), variables, images)
    chex.assert_shape(found["class_caps"].dead, (2,))


def test_jit_changes_nothing(network):
    model, variables, images = network
    intermediates = model.apply(variables, images)[1]
    chex.assert_trees_all_close(
        jax.jit(diagnose_layers)(intermediates), diagnose_layers(intermediates), rtol=1e-6
    )


# Its parts are jitted above; that it can be traced as a whole, another test shows.
@pytest.mark.slow
def test_jit_changes_nothing_of_iterations(network):
    model, variables, images = network
    jitted = jax.jit(lambda *arrays: diagnose_iterations(model, *arrays))(variables, images)
    chex.assert_trees_all_close(
        jitted, diagnose_iterations(model, variables, images), rtol=1e-4, atol=1e-6
    )


def test_derivatives_are_finite_where_shares_and_spreads_are_zero():
    certain = result_of_types([[0.5], [0.5]])  # one type: no spread of logits or of activations
    certain = certain._replace(assignments=np.array([[[1.0], [0.0]]] * 2, np.float32))
    gradient = jax.grad(lambda result: sum(diagnose(result)))(jax.tree.map(jnp.asarray, certain))
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_scalars_of_at_least_single_precision(precision, expected, x64):
    result = jax.tree.map(
        lambda array: jnp.asarray(array, precision), result_of_types([[0.25, 0.75]])
    )
    for value in diagnose(result):
        chex.assert_shape(value, ())
        assert value.dtype == expected


def test_nan_is_not_hidden():
    broken = jax.tree.map(lambda array: np.full_like(array, np.nan), result_of_types([[0.5, 0.5]]))
    found = diagnose(broken)
    assert np.isnan(
        [
            found.assignment_entropy,
            found.activation_mean,
            found.activation_spread,
            found.logit_spread,
        ]
    ).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"activations": np.zeros(3, np.float32)},
            ValueError,
            "result.activations must have shape",
        ),
        (
            {"assignments": np.zeros((4, 2, 2), np.float32)},
            ValueError,
            "result.assignments must have the batch axes",
        ),
        (
            {"assignments": np.zeros((3, 2, 5), np.float32)},
            ValueError,
            "result.assignments must have shape",
        ),
        (
            {"activation_logits": np.zeros((1, 2), np.float32)},
            ValueError,
            "result.activation_logits must have the batch axes",
        ),
        ({"poses": np.zeros((3, 2, 4, 4), np.float32)}, ValueError, "result.poses must have shape"),
        (
            {"variances": np.zeros((3, 2, 16), int)},
            TypeError,
            "result.variances must have a floating point dtype",
        ),
    ],
)
def test_a_result_whose_fields_do_not_fit_is_refused(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        diagnose(result_of_types(np.zeros((3, 2)))._replace(**changes))


def test_other_things_are_refused(network):
    model, variables, images = network
    capsules, intermediates = model.apply(variables, images)
    with pytest.raises(TypeError, match=r"^result must be a RoutingResult; got Capsules"):
        diagnose(capsules)
    with pytest.raises(
        TypeError,
        match=r"^intermediates must be a mapping, the second output of CapsNet; got tuple",
    ):
        diagnose_layers((capsules, intermediates))
    with pytest.raises(
        ValueError, match=r"^layer must be one of 'conv_caps_1', 'class_caps'; got 'primary'"
    ):
        results_by_iteration(model, variables, images, "primary")
