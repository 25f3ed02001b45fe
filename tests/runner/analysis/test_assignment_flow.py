"""Where the data goes: against loops over all children and parents, and what is conserved."""

import jax
import numpy as np
import pytest
import tiny_run

from experiments.analysis.assignment_flow import follow
from experiments.learning.network import make_model, network_intermediates


@pytest.fixture(scope="module")
def network():
    """The tiny network and what it makes of two images."""
    model = make_model(tiny_run.MODEL, 3)
    images = np.random.default_rng(0).uniform(size=(2, *tiny_run.IMAGE_SHAPE)).astype(np.float32)
    params = tiny_run.initial_state().params
    intermediates = jax.jit(
        lambda images: network_intermediates(tiny_run.CONFIG, model, params, images, 0)
    )(images)
    return model, jax.device_get(intermediates)


def test_the_flow_is_that_of_loops(network):
    model, intermediates = network
    flow = follow(model, intermediates, tiny_run.IMAGE_SHAPE[:2])
    assert list(flow) == ["primary", "conv_caps_1"]
    routed, classes = intermediates["conv_caps_1"], intermediates["class_caps"]
    batch, height, width, parents = routed.activations.shape
    expected = np.zeros((*intermediates["primary"].activations.shape, 3))
    for b, y, x, j in np.ndindex(batch, height, width, parents):
        to_class = classes.assignments[b, 0, 0, y, x, j]
        np.testing.assert_allclose(to_class.sum(), 1, rtol=1e-5)
        for k, l, i in np.ndindex(routed.assignments.shape[3:6]):  # noqa: E741
            expected[b, 2 * y + k, 2 * x + l, i] += (
                routed.assignments[b, y, x, k, l, i, j] * to_class
            )
    expected = (intermediates["primary"].activations[..., None] * expected).sum(3)
    np.testing.assert_allclose(flow["primary"].to_class, expected, rtol=1e-4, atol=1e-6)


def test_nothing_is_lost_where_a_parent_looks(network):
    model, intermediates = network
    for name, found in follow(model, intermediates, tiny_run.IMAGE_SHAPE[:2]).items():
        activations = intermediates[name].activations.sum(-1)
        total = found.to_class.sum(-1)
        seen = total > 0
        np.testing.assert_allclose(total[seen], activations[seen], rtol=1e-4)
        assert seen[:, :3, :3].all() and total.shape[1:] == (len(found.rows), len(found.columns))
        assert (np.diff(found.rows) > 0).all() and 0 < found.rows[0] < found.rows[-1] < 1
