"""The network of vector capsules and the decoder: sizes, what they compute, gradients,
and errors.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcaps import margin_loss
from emcaps.dynamic import Decoder, DynamicCapsNet, dynamic_routing, reconstruction_loss, squash
from emcaps.dynamic.capsnet import StridedConv
from emcaps.dynamic.decoder import masked

SMALL = DynamicCapsNet(
    3, conv_channels=3, primary_capsules=2, primary_size=4, class_size=5, num_iterations=2
)
IMAGES = np.random.default_rng(0).uniform(size=(4, 20, 21, 1)).astype(np.float32)


@functools.cache
def small_variables():
    """Those of `SMALL`."""
    return jax.jit(SMALL.init)(jax.random.key(0), IMAGES)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def test_the_papers_network_has_8_2_million_parameters():
    network = jax.eval_shape(DynamicCapsNet(10).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    decoder = jax.eval_shape(
        Decoder((28, 28, 1)).init, jax.random.key(0), jnp.zeros((1, 10, 16)), jnp.zeros(1, int)
    )
    assert (count(network), count(network) + count(decoder)) == (6_804_224, 8_215_568)


def test_the_network_is_its_layers():
    variables = small_variables()
    (poses, activations), out = jax.jit(SMALL.apply)(variables, IMAGES)
    chex.assert_shape([out["conv"], out["primary"]], [(4, 12, 13, 3), (4, 2, 3, 2, 4)])
    chex.assert_shape([poses, activations], [(4, 3, 5), (4, 3)])
    assert set(out) == {"conv", "primary", "class_caps"}
    params = variables["params"]
    features = jax.lax.conv_general_dilated(
        out["conv"],
        params["primary"]["conv"]["kernel"],
        (2, 2),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    vectors = jax.jit(squash)((features + params["primary"]["conv"]["bias"]).reshape(4, 2, 3, 2, 4))
    np.testing.assert_allclose(out["primary"], vectors, atol=1e-5)
    votes = np.einsum(
        "bnd,njde->bnje",
        np.asarray(out["primary"]).reshape(4, 12, 4),
        params["class_caps"]["transforms"],
    )
    chex.assert_trees_all_close(
        out["class_caps"], dynamic_routing(votes, num_iterations=2), atol=1e-5
    )


@pytest.mark.parametrize(
    "kernel, stride, sides",
    [
        (4, 2, (9, 8)),
        (5, 3, (5, 12)),
        (2, 3, (7, 9)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((9, 2, (20, 21)), (3, 1, (5, 7)))
        ),
    ],
)
def test_a_strided_convolution_is_that_of_flax(kernel, stride, sides, x64):
    """Values, and gradients by the input and by the parameters."""
    images = np.random.default_rng(0).normal(size=(2, *sides, 3))
    ours, theirs = (
        StridedConv(4, kernel, stride),
        nn.Conv(4, (kernel, kernel), stride, padding="VALID", param_dtype=float),
    )
    variables = jax.device_get(jax.jit(theirs.init)(jax.random.key(0), images))
    variables["params"]["bias"] = variables["params"]["bias"] + np.arange(4)
    chex.assert_trees_all_equal_shapes(
        variables, jax.eval_shape(ours.init, jax.random.key(0), images)
    )

    def value_and_gradients(module):
        apply = lambda variables, images: module.apply(variables, images)  # noqa: E731
        weighted = lambda *given: (apply(*given) ** 2).sum()  # noqa: E731
        return jax.jit(lambda *given: (apply(*given), jax.grad(weighted, (0, 1))(*given)))(
            variables, images
        )

    chex.assert_trees_all_close(
        value_and_gradients(ours), value_and_gradients(theirs), rtol=1e-10, atol=1e-10
    )


def test_every_gradient_is_finite_and_not_zero():
    decoder = Decoder(IMAGES.shape[1:], (6, 7))
    labels = np.arange(4) % 3
    params = {
        "network": small_variables(),
        "decoder": jax.jit(decoder.init)(jax.random.key(1), jnp.zeros((1, 3, 5)), labels[:1]),
    }

    def loss(params):
        (poses, activations), _ = SMALL.apply(params["network"], IMAGES)
        images = decoder.apply(params["decoder"], poses, labels)
        return (
            margin_loss(activations, labels) + 0.0005 * reconstruction_loss(IMAGES, images)
        ).mean()

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(
            path
        )


@pytest.mark.parametrize("pose", [(5,), (4, 4)])
def test_only_the_chosen_pose_is_decoded(pose):
    random = np.random.default_rng(1)
    poses, chosen = random.normal(size=(3, 4, *pose)).astype(np.float32), np.array([2, 0, 3])
    decoder = Decoder((6, 7, 2), (8, 9))
    variables, decode = (
        jax.jit(decoder.init)(jax.random.key(0), poses, chosen),
        jax.jit(decoder.apply),
    )
    images = decode(variables, poses, chosen)
    assert images.shape == (3, 6, 7, 2) and 0 < images.min() < images.max() < 1
    others = poses + random.normal(size=poses.shape).astype(np.float32)
    others[np.arange(3), chosen] = poses[np.arange(3), chosen]
    np.testing.assert_array_equal(decode(variables, others, chosen), images)
    assert (np.asarray(decode(variables, poses, (chosen + 1) % 4)) != np.asarray(images)).any()


def test_a_pose_that_is_not_chosen_may_be_anything():
    poses = np.array([[[1.0, 2.0], [np.inf, np.nan]]], np.float32)
    np.testing.assert_array_equal(masked(poses, np.array([0])), [[[1, 2], [0, 0]]])


def test_a_pose_is_chosen_among_more_classes_than_a_dtype_can_count():
    poses = np.ones((1, 300, 2), np.float32)
    np.testing.assert_array_equal(
        np.flatnonzero(masked(poses, np.array([20], np.uint8))[0, :, 0]), [20]
    )


def test_the_reconstruction_loss_is_a_sum_over_pixels():
    images = np.zeros((2, 3, 4, 1), np.float32)
    np.testing.assert_allclose(
        reconstruction_loss(images, images + np.array([0.5, 2], np.float32).reshape(2, 1, 1, 1)),
        [3, 48],
    )


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: DynamicCapsNet(3).init(jax.random.key(0), jnp.zeros((1, 16, 20, 1))),
            ValueError,
            "primary: its input is 8x12",
        ),
        (
            lambda: DynamicCapsNet(3).init(jax.random.key(0), jnp.zeros((1, 8, 20, 1))),
            ValueError,
            "conv: its input is 8x20",
        ),
        (
            lambda: DynamicCapsNet(3).init(jax.random.key(0), jnp.zeros((20, 20, 1))),
            ValueError,
            r"got shape \[20, 20, 1\]",
        ),
        (
            lambda: DynamicCapsNet(3).init(jax.random.key(0), jnp.zeros((1, 20, 20, 1), int)),
            TypeError,
            "floating point",
        ),
        (
            lambda: decoded(np.zeros((2, 3, 5)), np.array([0, 3])),
            ValueError,
            r"chosen must lie in \[0, 2\]; got 3",
        ),
        (
            lambda: decoded(np.zeros((2, 3, 5)), np.array([0.0, 1.0])),
            TypeError,
            "chosen must be integers",
        ),
        (
            lambda: decoded(np.zeros((2, 3, 5)), np.array([0])),
            ValueError,
            r"chosen must have shape \[2\]; got shape \[1\]",
        ),
        (
            lambda: decoded(np.zeros((2, 3)), np.array([0, 1])),
            ValueError,
            r"poses must have shape \[B, J, ...\]",
        ),
        (
            lambda: reconstruction_loss(IMAGES, IMAGES[:, 1:]),
            ValueError,
            "reconstructed must have shape",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def decoded(poses, chosen):
    return Decoder((2, 2, 1)).init(jax.random.key(0), poses, chosen)
