"""The Flax modules and the whole network."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import emcaps
from emcaps import (
    CapsNet,
    Capsules,
    ClassCaps,
    ConvCaps,
    PrimaryCaps,
    RoutingOptions,
    RoutingResult,
    spread_loss,
)
from emcaps.dynamic import DynamicCapsNet

SMALL = dict(conv_channels=6, primary_capsules=2, conv_capsules=(3, 2))
# Where routing is beside the point, a program that compiles faster.
ONE_ITERATION = RoutingOptions(num_iterations=1)
SMALLEST = CapsNet(3, 4, 2, (3,), ONE_ITERATION)
IMAGES = np.random.default_rng(0).uniform(size=(4, 18, 18, 1)).astype(np.float32)


@functools.cache
def variables():
    """Those of `SMALLEST`."""
    return jax.jit(SMALLEST.init)(jax.random.key(0), IMAGES)


def loss_and_activations(params, model=SMALLEST):
    """Of the first step of a training."""
    (_, activations), _ = model.apply(params, IMAGES)
    return spread_loss(activations, jnp.arange(4) % 3, 0.9).mean(), activations


@functools.cache
def gradients_and_activations():
    """Those of `SMALLEST`."""
    return jax.jit(jax.grad(loss_and_activations, has_aux=True))(variables())


def count(params):
    return sum(array.size for array in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("widths", "published"),
    [((32, 32, (32, 32)), 316_650), ((64, 8, (16, 16)), 68_618)],
    ids=["310K", "68K"],
)
def test_parameter_counts_are_the_papers(widths, published):
    """The paper rounds to 310K and 68K; the released code has these numbers, without biases in the
    primary capsules.
    """
    model = CapsNet(5, *widths, routing=emcaps.PAPER)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 2)))
    assert count(params) == published


def test_the_default_is_the_papers_smaller_network_whose_class_capsules_learn_a_temperature():
    model = CapsNet(5)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 2)))["params"]
    assert count(params) == 68_618 + 1
    assert [routing.num_iterations for routing in model.layer_routing()] == [1, 1, 2]
    learned = {
        layer: [name for name in params[layer] if name.endswith("_log")]
        for layer in model.layer_names()
    }
    assert learned == {
        "conv_caps_1": [],
        "conv_caps_2": [],
        "class_caps": ["assignment_temperature_log"],
    }


def test_tabulate_shows_the_layers_and_their_parameters():
    model = CapsNet(3, **SMALL, routing=ONE_ITERATION)
    images = jnp.zeros((1, 20, 20, 1))
    shown = model.tabulate(jax.random.key(0), images)
    assert all(name in shown for name in ("conv", "primary", *model.layer_names()))
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    assert f"Total Parameters: {count(params):,}" in shown


def test_kernels_and_strides_are_attributes():
    model = CapsNet(
        3,
        4,
        2,
        (2, 3),
        ONE_ITERATION,
        conv_kernel=3,
        conv_stride=1,
        capsule_kernels=(2, 3),
        capsule_strides=(3, 2),
    )
    (_, out), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jnp.zeros((1, 19, 20, 1))
    )
    params = variables["params"]
    assert params["conv"]["kernel"].shape == (3, 3, 1, 4)
    assert params["conv_caps_1"]["transforms"].shape[:2] == (2, 2) and params["conv_caps_2"][
        "transforms"
    ].shape[:2] == (3, 3)
    # 19x20 -> 17x18 -> (17 - 2) // 3 + 1 = 6, (18 - 2) // 3 + 1 = 6 -> 2x2
    sizes = [out[name].activations.shape[1:3] for name in ("primary", "conv_caps_1", "conv_caps_2")]
    assert sizes == [(17, 18), (6, 6), (2, 2)]
    assert model.layer_geometry() == [(3, 1), (1, 1), (2, 3), (3, 2)]


def test_transforms_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"^shape must end in 4, 4; got \[2, 4, 3\]"):
        emcaps.NearIdentity()(jax.random.key(0), (2, 4, 3))


def test_initializers_and_the_dtype_of_parameters_are_attributes():
    ones = jax.nn.initializers.ones
    model = CapsNet(
        3,
        4,
        2,
        (2,),
        transform_init=emcaps.NearIdentity(2.0, 0.0),
        beta_u_init=ones,
        beta_a_init=ones,
        param_dtype=jnp.bfloat16,
    )
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 14, 14, 1)))["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    learned = model.layer_routing()[-1].learned(params["class_caps"])
    assert learned.assignment_temperature.dtype == jnp.float32
    for layer in ("conv_caps_1", "class_caps"):
        identity = np.broadcast_to(2 * np.eye(4), params[layer]["transforms"].shape)
        found = jax.device_get(params[layer])
        np.testing.assert_array_equal(found["transforms"].astype("float32"), identity)
        assert (found["beta_u"] == 1).all() and (found["beta_a"] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 18, 25, 3), (1, 21, 17, 1)])
def test_any_image_size_and_channels(shape):
    model = CapsNet(4, **SMALL, routing=ONE_ITERATION)
    images = jax.random.uniform(jax.random.key(1), shape)
    (poses, activations), out = model.init_with_output(jax.random.key(0), images)[0]
    chex.assert_shape(poses, (shape[0], 4, 4, 4))
    chex.assert_shape(activations, (shape[0], 4))
    assert list(out) == ["conv", "primary", "conv_caps_1", "conv_caps_2", "class_caps"]
    assert isinstance(out["primary"], Capsules) and isinstance(out["class_caps"], RoutingResult)
    height, width = out["conv_caps_2"].activations.shape[1:3]
    chex.assert_shape(out["class_caps"].assignments, (shape[0], 1, 1, height, width, 2, 4))
    np.testing.assert_array_equal(out["class_caps"].activations[:, 0, 0], activations)
    chex.assert_tree_all_finite(out)


@pytest.mark.slow
def test_streamed_and_dense_networks_agree():
    images = jax.random.uniform(jax.random.key(2), (3, 20, 20, 1))
    streamed, dense = (
        CapsNet(3, **SMALL, routing=RoutingOptions(implementation=name))
        for name in ("streamed", "dense")
    )
    variables = streamed.init(jax.random.key(0), images)
    ours, theirs = (jax.jit(model.apply)(variables, images)[0] for model in (streamed, dense))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        SMALLEST,
        *(
            pytest.param(
                CapsNet(3, **SMALL, routing=RoutingOptions(num_iterations=iterations)),
                marks=pytest.mark.slow,
            )
            for iterations in (1, 3)
        ),
    ],
    ids=["smallest", "small", "3 iterations"],
)
def test_every_gradient_is_finite_and_not_zero_at_the_first_step(model):
    if model is SMALLEST:
        gradients, _ = gradients_and_activations()
    else:
        params = jax.jit(model.init)(jax.random.key(0), IMAGES)
        of_model = functools.partial(loss_and_activations, model=model)
        gradients, _ = jax.jit(jax.grad(of_model, has_aux=True))(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_low_precision_ends_at_the_class_capsules():
    low = SMALLEST.clone(dtype=jnp.bfloat16)
    initial = jax.eval_shape(low.init, jax.random.key(0), IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {np.dtype("float32")}
    _, expected = gradients_and_activations()
    (_, activations), intermediates = jax.jit(low.apply)(variables(), IMAGES)
    routed = intermediates["conv_caps_1"]
    below = [
        intermediates["conv"],
        *intermediates["primary"],
        routed.poses,
        routed.activations,
        routed.assignments,
    ]
    assert {array.dtype for array in below} == {np.dtype(jnp.bfloat16)}
    assert {array.dtype for array in intermediates["class_caps"]} == {np.dtype("float32")}
    np.testing.assert_allclose(activations, expected, atol=0.03)
    assert np.abs(activations - expected).max() > 0


def test_an_examples_result_does_not_depend_on_its_batch():
    _, together = gradients_and_activations()
    alone = jax.jit(SMALLEST.apply)(variables(), IMAGES[3:4])[0].activations
    np.testing.assert_allclose(together[3:4], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("size", "layer"), [(4, "conv"), (8, "conv_caps_1"), (10, "conv_caps_2")])
def test_too_small_an_image_names_the_layer_that_cannot_take_it(size, layer):
    with pytest.raises(
        ValueError,
        match=rf"^{layer}: its input is \d+x\d+, too small for its \d+x\d+ kernel with stride \d",
    ):
        jax.eval_shape(CapsNet(3, **SMALL).init, jax.random.key(0), jnp.zeros((1, size, 20, 1)))


@pytest.mark.parametrize("model", [CapsNet(3, **SMALL), DynamicCapsNet(3)])
def test_channels_that_come_first_are_asked_about(model):
    with pytest.raises(
        ValueError, match=r"^conv: .* images have shape \[2, 3, 20, 24\]: do channels come first\?"
    ):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 3, 20, 24)))


@pytest.mark.parametrize(
    ("images", "error"),
    [(jnp.zeros((20, 20, 1)), ValueError), (jnp.zeros((1, 20, 20, 1), jnp.uint8), TypeError)],
)
def test_wrong_images_are_refused(images, error):
    with pytest.raises(error, match=r"^images must have"):
        CapsNet(3, **SMALL).init(jax.random.key(0), images)


@pytest.mark.slow
def test_modules_stand_alone():
    features = jax.random.uniform(jax.random.key(5), (2, 6, 5, 7))
    capsules, _ = PrimaryCaps(2).init_with_output(jax.random.key(0), features)
    chex.assert_shape(tuple(capsules), ((2, 6, 5, 2, 4, 4), (2, 6, 5, 2)))
    result, variables = ConvCaps(3, kernel=2, stride=3).init_with_output(
        jax.random.key(0), capsules
    )
    chex.assert_shape(result.poses, (2, 2, 2, 3, 4, 4))
    assert set(variables["params"]) == {"transforms", "beta_u", "beta_a"}
    result, variables = ClassCaps(4).init_with_output(jax.random.key(0), capsules)
    chex.assert_shape(result.activations, (2, 1, 1, 4))
    chex.assert_shape(variables["params"]["transforms"], (2, 4, 4, 4))


def test_class_capsules_add_the_coordinates_of_receptive_field_centers():
    """One child everywhere with a zero pose, one iteration: a class's pose is the mean coordinate
    of the positions.
    """
    children = Capsules(jnp.zeros((1, 3, 2, 1, 4, 4)), jnp.ones((1, 3, 2, 1)))
    rows, columns = np.array([0.1, 0.3, 0.8]), np.array([0.2, 0.7])
    layer = ClassCaps(2, RoutingOptions(num_iterations=1))

    @jax.jit
    def poses_of_classes(children):
        variables = layer.init(jax.random.key(0), children)
        return layer.apply(variables, children, (rows, columns)).poses[0, 0, 0]

    expected = np.zeros((2, 4, 4))
    expected[:, 0, 3], expected[:, 1, 3] = rows.mean(), columns.mean()
    np.testing.assert_allclose(poses_of_classes(children), expected, atol=1e-6)


def test_works_as_an_nnx_module():
    """What is asked here is known without compiling."""

    def activations(images):
        model = nnx.bridge.ToNNX(SMALLEST, rngs=nnx.Rngs(0)).lazy_init(images)
        return model(images)[0].activations

    chex.assert_shape(nnx.eval_shape(activations, IMAGES[:1]), (1, 3))


def test_the_same_network_is_not_traced_twice():
    """What is asked here is known without compiling."""
    chex.clear_trace_counter()
    apply = jax.jit(
        chex.assert_max_traces(lambda variables, images: SMALLEST.apply(variables, images)[0], n=1)
    )
    initial = jax.eval_shape(SMALLEST.init, jax.random.key(0), IMAGES)
    for given in (IMAGES, 1 - IMAGES):
        apply.eval_shape(initial, given)


def test_public_names_are_there():
    assert all(hasattr(emcaps, name) for name in emcaps.__all__)
