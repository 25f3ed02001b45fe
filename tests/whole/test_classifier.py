"""Classifiers: what they say of images, and what they can be made of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import emcaps
from emcaps import CapsNet, RoutingOptions
from emcaps.pretrained import View, load_classifier, prepare_images, save_classifier
from experiments.data.preprocessing import evaluation_view as central_view


@pytest.fixture
def small():
    return tiny_run.classifier()


@functools.cache
def capsules_of_examples():
    """Those of the network itself."""
    small = tiny_run.classifier()
    capsules, _ = jax.jit(small.model.apply)(
        {"params": small.params}, small.view(small.examples.images)
    )
    return capsules


@pytest.mark.parametrize(
    "number, at_once",
    [
        (0, 4),
        (1, 4),
        (3, 4),
        (4, 4),
        (7, 4),
        *(pytest.param(number, 128, marks=pytest.mark.slow) for number in (2, 128, 131)),
    ],
)
def test_any_number_of_images_is_classified_each_by_itself(small, number, at_once, monkeypatch):
    monkeypatch.setattr(emcaps.pretrained.classifier, "AT_ONCE", at_once)
    images = np.resize(small.examples.images, (number, 15, 14, 2))
    classes, activations, poses = small.predict(images)
    assert (classes.shape, activations.shape, poses.shape) == (
        (number,),
        (number, 3),
        (number, 3, 4, 4),
    )
    assert classes.dtype == np.int32
    capsules = capsules_of_examples()
    np.testing.assert_allclose(activations, np.resize(capsules.activations, (number, 3)), rtol=1e-4)
    np.testing.assert_allclose(
        poses, np.resize(capsules.poses, (number, 3, 4, 4)), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_array_equal(classes, np.asarray(activations).argmax(-1))


def test_bytes_and_numbers_up_to_1_are_the_same_image(small):
    images = small.examples.images
    np.testing.assert_allclose(
        small.predict(images / np.float32(255)).poses,
        small.predict(images).poses,
        rtol=1e-3,
        atol=1e-4,
    )


def test_predictions_are_part_of_other_programs(small):
    """Under `jit`, and differentiable by the images."""
    images = jnp.asarray(small.examples.images / np.float32(255))

    @functools.partial(jax.grad, has_aux=True)
    def slope_of_first(images):
        activations = small.predict(images).activations
        return activations[:, 0].sum(), activations

    slope, activations = jax.jit(slope_of_first)(images)
    np.testing.assert_allclose(activations, small.predict(images).activations, rtol=1e-4)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([[0]], TypeError, "images must be an array; got list"),
        (
            np.zeros((1, 15, 14, 2), np.int32),
            TypeError,
            "images must be uint8, or floating point in .*; got int32",
        ),
        (
            np.zeros((15, 14, 2), np.uint8),
            ValueError,
            r"images must have shape \[N, 15, 14, 2\]; got shape \[15, 14, 2\]",
        ),
        (
            np.zeros((1, 14, 15, 2), np.uint8),
            ValueError,
            r"images must have shape .*; got shape \[1, 14, 15, 2\]",
        ),
        (
            np.zeros((1, 2, 15, 14), np.uint8),
            ValueError,
            r"got shape \[1, 2, 15, 14\]: do channels come first\?",
        ),
        (np.full((1, 15, 14, 2), 7.0), ValueError, r"images must lie in \[0, 1\]; got 7"),
        (np.full((1, 15, 14, 2), np.nan), ValueError, r"images must lie in \[0, 1\]; got nan"),
    ],
)
def test_wrong_images_are_refused(small, images, error, message):
    with pytest.raises(error, match=message):
        small.predict(images)


@pytest.mark.parametrize(
    "settings",
    [
        {"conv_capsules": [2]},
        {"routing": [RoutingOptions(num_iterations=1)] * 2},
        {
            "routing": RoutingOptions(
                num_iterations=1,
                assignment_temperature=jnp.float32(16),
                inverse_temperature=np.array(1.0),
            )
        },
        {"transform_init": emcaps.NearIdentity(jnp.float32(0.5))},
        {"capsule_kernels": [3], "capsule_strides": [2]},
    ],
)
def test_networks_with_lists_and_arrays_classify(small, tmp_path, settings):
    classifier = dataclasses.replace(small, model=small.model.clone(**settings))
    expected = small.predict(small.examples.images)
    np.testing.assert_array_equal(classifier.predict(small.examples.images).poses, expected.poses)
    save_classifier(tmp_path / "a.safetensors", classifier)
    loaded = load_classifier(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(loaded.predict(small.examples.images).poses, expected.poses)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": None}, TypeError, "model must be a CapsNet; got NoneType"),
        (
            {"model": CapsNet(3, 4, 2, np.array([2]))},
            TypeError,
            "conv_capsules must be a tuple of ints",
        ),  # pyright: ignore
        ({"params": [1]}, ValueError, "variables must be those of the model"),
        ({"view": None}, TypeError, "view must be a View; got NoneType"),
        (
            {"image_shape": 15},
            TypeError,
            "image_shape must be a tuple, list or array of one axis; got 15",
        ),
        ({"image_shape": (15, 14)}, ValueError, "image_shape must be a tuple of 3 ints"),
        (
            {"image_shape": (15.0, 14, 2)},
            TypeError,
            "each entry of image_shape must be a Python int.*; got 15.0",
        ),
        (
            {"class_names": "abc"},
            TypeError,
            "class_names must be a tuple, list or array of one axis; got 'abc'",
        ),
        ({"class_names": np.arange(3)}, TypeError, "class_names must be strings; got 0"),
        ({"examples": None}, TypeError, "examples must be Examples"),
        ({"facts": [1]}, TypeError, "facts must be a mapping; got list"),
    ],
)
def test_what_is_no_classifier_is_refused_by_name(small, changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(small, **changes)


def test_labels_of_examples_are_of_the_classes(small):
    with pytest.raises(ValueError, match=r"labels of examples must lie in \[0, 2\]; got 3"):
        dataclasses.replace(small, examples=small.examples._replace(labels=np.array([0, 3, 1, 2])))


def test_a_traced_temperature_is_no_part_of_a_classifier(small):
    def classify(temperature):
        routing = RoutingOptions(num_iterations=1, assignment_temperature=temperature)
        return dataclasses.replace(small, model=small.model.clone(routing=routing)).predict(
            small.examples.images
        )

    with pytest.raises(
        TypeError, match="assignment_temperature of a classifier's network must be a known number"
    ):
        jax.jit(classify)(16.0)


@pytest.mark.parametrize("view", [View(), View(downsample=2, standardize=True, crop=5)])
def test_a_view_is_what_the_experiments_call_an_evaluation_view(view):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 14, 16, 2), np.uint8))
    config = dataclasses.replace(tiny_run.CONFIG.images, **dataclasses.asdict(view))
    np.testing.assert_array_equal(view(images), central_view(config, images))


def test_wrong_views_are_refused():
    with pytest.raises(ValueError, match="crop must be at most the images' height and width"):
        View(crop=9)(jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(
        ValueError, match="downsample must divide the images' height and width, 7x8; got 2"
    ):
        View(downsample=2)(jnp.zeros((1, 7, 8, 1)))
    for wrong in ({"downsample": 0}, {"crop": -1}):
        with pytest.raises(ValueError, match="must be at least 1"):
            View(**wrong)
    images = jnp.zeros((1, 8, 8, 1))
    mine = np.random.default_rng(0).uniform(size=images.shape).astype(np.float32)
    kept = mine.copy()
    prepare_images(mine, standardize=True)
    np.testing.assert_array_equal(mine, kept)
    for given, error, message in (
        ([0.5], TypeError, "images must be an array; got list"),
        (images.astype(jnp.int32), TypeError, "images must be uint8, or floating point"),
        (images[0], ValueError, r"images must have shape \[B, H, W, C\]; got shape \[8, 8, 1\]"),
    ):
        with pytest.raises(error, match=message):
            prepare_images(given)
    with pytest.raises(ValueError, match="downsample must be at least 1; got 0"):
        prepare_images(images, downsample=0)
    with pytest.raises(TypeError, match="standardize must be True or False"):
        prepare_images(images, standardize=1)
