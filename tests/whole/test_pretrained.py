"""The weights that come with the package: their size, their examples, and the errors that are
published.
"""

import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emcaps
from emcaps.pretrained import load_classifier
from experiments.data import loading
from experiments.data.toynorb_builders import ToyNorb
from experiments.toynorb.scene import AZIMUTHS, ELEVATIONS, photograph
from experiments.toynorb.shapes import toy

PARAMETERS = {"mnist": 68_309, "toynorb": 68_619}
EXAMPLES = {"mnist": 0, "toynorb": 5}


@pytest.mark.parametrize("name", emcaps.pretrained.PRETRAINED)
def test_the_weights_that_come_with_the_package_are_small_and_have_their_examples(name):
    classifier = load_classifier(name)
    assert (emcaps.pretrained.classifier.WEIGHTS / f"{name}.safetensors").stat().st_size < 1e6
    assert sum(leaf.size for leaf in jax.tree.leaves(classifier.params)) == PARAMETERS[name]
    assert len(classifier.examples.labels) == EXAMPLES[name]


@pytest.mark.parametrize("name", [pytest.param("mnist", marks=pytest.mark.slow), "toynorb"])
def test_the_examples_are_classified_right(name):
    classifier = load_classifier(name)
    images, labels = classifier.examples
    np.testing.assert_array_equal(classifier.predict(images).classes, labels)


def wrong_share(classifier, images, labels):
    return (np.asarray(classifier.predict(images).classes) != labels).mean()


@pytest.mark.parametrize(
    ("number", "tolerance"),
    # Three standard deviations; two images, by rounding.
    [(2000, 0.005), pytest.param(10_000, 2e-4, marks=pytest.mark.slow)],
)
def test_the_mnist_weights_make_the_errors_that_are_published(number, tolerance, optimized):
    root = os.environ.get("TFDS_DATA_DIR")
    if not root or not Path(root, "mnist").is_dir():
        pytest.skip("MNIST is not prepared in TFDS_DATA_DIR")
    classifier, dataset = load_classifier("mnist"), loading.load("mnist")
    assert classifier.facts["test_examples"] == len(dataset.test_labels)
    found = wrong_share(classifier, dataset.test_images[:number], dataset.test_labels[:number])
    assert found == pytest.approx(classifier.facts["test_error"], abs=tolerance)


def rendered(views):
    """Stereo pairs, in all lightings, and the categories of test toys: for each of (category,
    instance, elevation, azimuths).
    """
    images, labels = [], []
    for category, instance, elevation, azimuths in views:
        azimuths = jnp.array([AZIMUTHS[label] for label in azimuths], jnp.float32)
        pairs = np.asarray(
            photograph(
                toy(category, instance), jnp.full_like(azimuths, ELEVATIONS[elevation]), azimuths
            )
        )
        images.append(np.moveaxis(pairs.reshape(-1, 2, 48, 48), 1, -1))
        labels += [category] * len(images[-1])
    return np.concatenate(images), np.array(labels)


@pytest.mark.slow
def test_the_toynorb_weights_make_about_the_errors_that_are_published(optimized):
    """On three views of each test toy, from one elevation: 450 pairs, of which those of a toy are
    alike.
    """
    toys = enumerate(itertools.product(range(5), ToyNorb.SPLITS["test"]))
    views = [
        (*which, number % 9, [(number + place) % 18 for place in (0, 6, 12)])
        for number, which in toys
    ]
    classifier = load_classifier("toynorb")
    assert wrong_share(classifier, *rendered(views)) == pytest.approx(
        classifier.facts["test_error"], abs=0.05
    )


@pytest.mark.slow
def test_the_toynorb_weights_make_exactly_the_errors_that_are_published(optimized):
    views = itertools.product(range(5), ToyNorb.SPLITS["test"], range(9), [range(18)])
    classifier, (images, labels) = load_classifier("toynorb"), rendered(views)
    assert len(labels) == classifier.facts["test_examples"]
    assert wrong_share(classifier, images, labels) == pytest.approx(
        classifier.facts["test_error"], abs=2e-4
    )
