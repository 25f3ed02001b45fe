"""affNIST's recipe: the maps against ones that are known exactly, what is drawn, and that no digit
is cut off.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from experiments.data import affnist, loading
from experiments.data.affnist import (
    SIDE,
    affine_digits,
    affine_image,
    affine_matrix,
    centered,
    placed,
)
from experiments.data.dataset import with_values

IDENTITY = jnp.eye(2)
MIDDLE = jnp.array([0.5, 0.5])


def blob(height=28, width=28):
    """An image that is not the same turned or mirrored, black around the border."""
    image = np.zeros((height, width), np.float32)
    image[5 : height - 5, 8 : width - 8] = 100
    image[7 : height // 2, 9 : width // 2] = 255
    return image


def digits(number=6):
    random = np.random.default_rng(0)
    images = np.zeros((number, 28, 28, 1), np.uint8)
    for image in images:
        top, left, height, width = random.integers((4, 4, 5, 5), (8, 8, 16, 16))
        image[top : top + height, left : left + width] = random.integers(1, 256, (height, width, 1))
    return jnp.asarray(images)


def mapped(image, angle=0.0, shear=0.0, scales=(1.0, 1.0), place=MIDDLE):
    matrix = affine_matrix(jnp.array(angle), jnp.array(shear), jnp.array(scales))
    return np.asarray(affine_image(jnp.asarray(image), matrix, place))


def extent(image, axis):
    """How many rows or columns the light takes up, by its second moment: that of an even bar of
    this length.
    """
    at = np.arange(len(image)) if axis == 0 else np.arange(image.shape[1])
    mass = image.sum(1 - axis) / image.sum()
    mean = (mass * at).sum()
    return np.sqrt(12 * ((mass * (at - mean) ** 2).sum()) + 1)


def test_nothing_changes_nothing():
    """Ink of an even and of an odd size, at a place of whole pixels."""
    for place in (0.0, 1.0):
        image = blob()
        ink = image[5:23, 8:20]
        out = mapped(image, place=jnp.full(2, place))
        np.testing.assert_allclose(
            out[1:19, 1:13] if place == 0 else out[-19:-1, -13:-1], ink, atol=1e-3
        )
        assert out.sum() == pytest.approx(ink.sum(), rel=1e-5)


def test_a_quarter_turn_is_counterclockwise():
    turned = mapped(np.rot90(blob()))
    np.testing.assert_allclose(mapped(blob(), angle=90.0), turned, atol=0.05)


def test_scales_are_vertical_and_horizontal():
    plain = mapped(blob())
    for axis, scales in enumerate([(1.2, 1.0), (1.0, 1.2)]):
        scaled = mapped(blob(), scales=scales)
        assert extent(scaled, axis) == pytest.approx(1.2 * extent(plain, axis), rel=0.02)
        assert extent(scaled, 1 - axis) == pytest.approx(extent(plain, 1 - axis), rel=0.02)


def test_shear_moves_rows_sideways():
    out = mapped(blob(), shear=0.2)
    columns = [(row * np.arange(SIDE)).sum() / row.sum() for row in out if row.sum() > 100]
    assert np.median(np.diff(columns[8:])) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_no_ink_is_cut_off(place):
    for image in digits():
        whole = mapped(image[..., 0].astype(jnp.float32), 20.0, -0.2, (1.2, 0.8))
        moved = mapped(image[..., 0].astype(jnp.float32), 20.0, -0.2, (1.2, 0.8), jnp.array(place))
        assert moved.sum() == pytest.approx(whole.sum(), rel=0.02)
        edges = [
            moved[0] if place[0] == 0 else moved[-1],
            moved[:, 0] if place[1] == 0 else moved[:, -1],
        ]
        assert max(edge.max() for edge in edges) < 30


def test_what_does_not_fit_and_what_is_not_there_come_in_the_middle():
    out = mapped(np.full((28, 28), 100, np.float32), scales=(1.6, 1.6))
    np.testing.assert_allclose(out, 100, atol=1e-3)
    assert mapped(np.zeros((28, 28), np.float32)).sum() == 0


def test_what_is_drawn_fills_the_ranges(monkeypatch):
    seen = []
    monkeypatch.setattr(affnist, "affine_matrix", lambda *given: seen.append(given) or IDENTITY)
    monkeypatch.setattr(
        jax.lax,
        "map",
        lambda function, given, batch_size: [
            function(tuple(g[i] for g in given)) for i in range(40)
        ],
    )
    monkeypatch.setattr(affnist, "affine_image", lambda image, matrix, place: image)
    affine_digits.__wrapped__(jax.random.key(0), digits(40))
    angles, shears, scales = (np.array(values) for values in zip(*seen, strict=True))
    for values, low, high in (
        (angles, -20, 20),
        (shears, -0.2, 0.2),
        (scales[:, 0], 0.8, 1.2),
        (scales[:, 1], 0.8, 1.2),
    ):
        assert (
            low <= values.min() < low + 0.15 * (high - low)
            and high - 0.15 * (high - low) < values.max() <= high
        )
    assert abs(np.corrcoef(scales.T)[0, 1]) < 0.5


@pytest.mark.parametrize("make", [affine_digits, placed])
def test_a_digits_place_depends_on_the_key_and_not_on_the_others(make):
    key, images = jax.random.key(1), digits()
    out = np.asarray(make(key, images))
    assert out.shape == (6, SIDE, SIDE, 1) and out.dtype == np.uint8
    np.testing.assert_array_equal(out[:2], make(key, images[:2]))
    assert (out != np.asarray(make(jax.random.key(2), images))).any((1, 2, 3)).all()


def test_placed_digits_are_the_digits_somewhere():
    images = digits()
    for image, out in zip(images, np.asarray(placed(jax.random.key(0), images)), strict=True):
        places = [
            (r, c)
            for r in range(13)
            for c in range(13)
            if (out[r : r + 28, c : c + 28] == image).all()
        ]
        assert places and out.sum() == image.sum()


@pytest.mark.parametrize(
    "images, came",
    [
        (jnp.zeros((2, 28, 28, 1)), "float32"),
        (jnp.zeros((2, 41, 28, 1), jnp.uint8), r"uint8 \[2, 41, 28, 1\]"),
    ],
)
def test_other_images_are_refused(images, came):
    with pytest.raises(ValueError, match=f"height and width at most 40; got {came}"):
        affine_digits(jax.random.key(0), images)


def test_the_data_set_has_moved_and_transformed_digits(monkeypatch):
    mnist = tiny_run.dataset(num_train=4, num_test=5)
    made = loading.transformed_digits(mnist)
    assert (made.name, made.class_names) == ("affnist", mnist.class_names)
    np.testing.assert_array_equal(made.train_images, centered(jnp.asarray(mnist.train_images)))
    assert made.test_images.shape == (10, SIDE, SIDE, 1)
    np.testing.assert_array_equal(made.test_labels, [*mnist.test_labels, *mnist.test_labels])
    np.testing.assert_array_equal(made.test_factors["affine"], [0] * 5 + [1] * 5)
    assert made.test_images[:5].sum() == mnist.test_images.sum()
    familiar = with_values(made, "affine", [0])
    assert (len(familiar.train_labels), len(familiar.test_labels)) == (4, 5)
    np.testing.assert_array_equal(loading.transformed_digits(mnist).test_images, made.test_images)
    monkeypatch.setattr(loading, "load_tfds", lambda builder: mnist._replace(name=builder.name))
    assert loading.load("affnist").name == "affnist"
