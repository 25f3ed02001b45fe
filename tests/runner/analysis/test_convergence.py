"""How votes gather around the class capsules: against the routing's own means, and against votes
made one by one.
"""

import chex
import jax
import numpy as np
import pytest

from emcaps import CapsNet, RoutingOptions
from experiments.analysis.convergence import class_layer_input, class_votes, measure_convergence

# Assignments that differ from child to child, so that it matters whose they are.
DECIDED = RoutingOptions(num_iterations=3, assignment_temperature=1.0, mass_epsilon=1e-12)


@pytest.fixture(
    scope="module",
    params=[True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["coordinates", "none"],
)
def network(request):
    """A network that adds coordinates or does not, with variables and images."""
    model = CapsNet(
        3,
        4,
        2,
        (2,),
        routing=(RoutingOptions(num_iterations=1), DECIDED),
        add_coordinates=request.param,
    )
    images = jax.random.uniform(jax.random.key(0), (2, 15, 13, 1))
    return model, jax.jit(model.init)(jax.random.key(1), images), images


def votes_and_child_activations(model, variables, images):
    children, coordinates = class_layer_input(model, variables, images)
    votes = class_votes(
        children.poses, variables["params"]["class_caps"]["transforms"], coordinates
    )
    return np.asarray(votes, np.float64), np.asarray(children.activations, np.float64).reshape(
        len(images), -1
    )


def test_votes_have_the_class_poses_as_means(network):
    model, variables, images = network
    votes, activations = votes_and_child_activations(*network)
    result = model.apply(variables, images)[1]["class_caps"]
    weights = (
        np.asarray(result.assignments, np.float64).reshape(votes.shape[:-1])
        * activations[..., None]
    )
    means = np.einsum("bnj,bnjp->bjp", weights, votes) / weights.sum(1)[..., None]
    np.testing.assert_allclose(result.poses[:, 0, 0].reshape(means.shape), means, atol=1e-5)
    assert np.ptp(weights / activations[..., None]) > 0.1


def test_votes_one_by_one(network):
    model, variables, images = network
    votes, _ = votes_and_child_activations(*network)
    poses = np.asarray(model.apply(variables, images)[1]["conv_caps_1"].poses, np.float64)
    transforms = np.asarray(variables["params"]["class_caps"]["transforms"], np.float64)
    _, height, width, types = poses.shape[:4]
    # A 5x5 kernel with stride 2 and a 3x3 kernel with stride 2: centers start at pixel 4.5 and are
    # 4 pixels apart.
    for n, (y, x, i) in enumerate(np.ndindex(height, width, types)):
        vote = poses[0, y, x, i] @ transforms[i, 2]
        if model.add_coordinates:
            vote[0, 3] += (4.5 + 4 * y) / 15
            vote[1, 3] += (4.5 + 4 * x) / 13
        np.testing.assert_allclose(votes[0, n, 2], vote.ravel(), atol=1e-6)


def test_convergence_of_each_iteration(network):
    model, variables, images = network
    votes, activations = votes_and_child_activations(*network)
    measured = measure_convergence(*network)
    chex.assert_shape((measured.distances, measured.assignments), (3, *votes.shape[:-1]))
    np.testing.assert_allclose(measured.assignments[0], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(measured.assignments.sum(-1), 1, rtol=1e-5)
    for distances, assignments in zip(measured.distances, measured.assignments, strict=True):
        weights = assignments * activations[..., None]
        means = np.einsum("bnj,bnjp->bjp", weights, votes) / weights.sum(1)[..., None]
        expected = np.sqrt(((votes - means[:, None]) ** 2).sum(-1))
        np.testing.assert_allclose(distances, expected, atol=1e-5)
    np.testing.assert_array_equal(
        measured.activations[-1], model.apply(variables, images)[0].activations
    )
