"""What the network sees of an image: preparation, crops, shifts, contrast and brightness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import preprocessing
from experiments.data.preprocessing import NORB_IMAGES, ImageConfig, crop_places

# Jitted: as operations one by one they would take longer to compile.
prepare, central_view, training_view = (
    jax.jit(function, static_argnums=0)
    for function in (
        preprocessing.prepare,
        preprocessing.evaluation_view,
        preprocessing.training_view,
    )
)
random_shift = jax.jit(preprocessing.random_shift, static_argnums=2)
KEY = jax.random.key(0)
PLAIN = ImageConfig(max_shift=0)


def images(number=50, size=6, channels=2):
    return np.random.default_rng(0).integers(1, 256, (number, size, size, channels), dtype=np.uint8)


# Preparation.


def test_pixels_become_floats_in_the_unit_interval():
    floats = prepare(PLAIN, jnp.array([0, 51, 255], jnp.uint8).reshape(1, 1, 3, 1))
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats.ravel(), [0, 0.2, 1], rtol=1e-6)


def test_downsampling_takes_means():
    pairs = images(size=6).astype(float).reshape(50, 3, 2, 3, 2, 2).mean((2, 4)) / 255
    np.testing.assert_allclose(
        prepare(ImageConfig(downsample=2), jnp.asarray(images())), pairs, rtol=1e-5
    )


def test_standardized_images_have_mean_0_and_variance_1_each():
    faint = images() // 100 + 7  # nine gray levels at most
    prepared = np.asarray(
        prepare(ImageConfig(standardize=True), jnp.asarray(np.concatenate([images(), faint]))),
        float,
    )
    np.testing.assert_allclose(prepared.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(prepared.var((1, 2, 3)), 1, rtol=1e-4)


def test_an_image_that_is_the_same_everywhere_is_standardized_to_0():
    np.testing.assert_allclose(
        prepare(ImageConfig(standardize=True), jnp.full((1, 4, 4, 1), 200, jnp.uint8)), 0, atol=1e-4
    )


@pytest.mark.parametrize("config", [PLAIN, NORB_IMAGES])
def test_floats_in_the_unit_interval_are_seen_as_the_pixels_they_stand_for(config):
    stored = jnp.asarray(images(number=5, size=96))
    np.testing.assert_array_equal(
        central_view(config, stored.astype(jnp.float32) / 255), central_view(config, stored)
    )


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_view_has_a_finite_slope_even_where_an_image_is_the_same_everywhere(level):
    weights = jnp.arange(16.0).reshape(1, 4, 4, 1)
    weighted = lambda floats: (weights * prepare(ImageConfig(standardize=True), floats)).sum()  # noqa: E731
    slope = np.asarray(jax.jit(jax.grad(weighted))(np.full((1, 4, 4, 1), level, np.float32)))
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


# Views.


def test_the_papers_pipeline_for_smallnorb():
    stereo = jnp.asarray(images(number=20, size=96))
    training, center = training_view(NORB_IMAGES, KEY, stereo), central_view(NORB_IMAGES, stereo)
    assert training.shape == center.shape == (20, 32, 32, 2)
    np.testing.assert_array_equal(center, prepare(NORB_IMAGES, stereo)[:, 8:40, 8:40])


def test_crops_are_pieces_of_the_image_and_all_places_are_equally_likely():
    rows, columns = np.indices((6, 6))
    config = ImageConfig(crop=4, max_shift=0)
    numbered = jnp.asarray(
        np.tile((6 * rows + columns)[None, :, :, None], (4000, 1, 1, 1)).astype(np.uint8)
    )
    corners = np.round(np.asarray(training_view(config, KEY, numbered))[:, :, :, 0] * 255).astype(
        int
    )
    offsets = np.stack(np.divmod(corners[:, 0, 0], 6), 1)
    for crop, (row, column) in zip(corners[:50], offsets[:50], strict=True):
        np.testing.assert_array_equal(
            crop, (6 * rows + columns)[row : row + 4, column : column + 4]
        )
    counts = np.zeros((3, 3), int)
    np.add.at(counts, tuple(offsets.T), 1)
    assert np.abs(counts - 4000 / 9).max() < 5 * np.sqrt(4000 / 9)


@pytest.mark.parametrize("channels", [1, 2])
def test_contrast_and_brightness_are_uniform_in_their_ranges(channels):
    config = ImageConfig(max_shift=0, standardize=True, contrast=0.4, brightness=0.3)
    seen = np.asarray(
        training_view(config, KEY, jnp.asarray(images(number=2000, channels=channels))), float
    )
    brightness, contrast = seen.mean((1, 2, 3)), seen.std((1, 2, 3))
    for values, low, high in ((brightness, -0.3, 0.3), (contrast, 0.6, 1.4)):
        assert low - 1e-3 <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high + 1e-3
        quarters = np.histogram(values, 4, (low - 1e-3, high + 1e-3))[0]
        assert np.abs(quarters - 500).max() < 5 * np.sqrt(500)
    assert abs(np.corrcoef(brightness, contrast)[0, 1]) < 0.1


def test_a_quarter_turn_is_exact_and_counterclockwise():
    square = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype(np.float32)
    quarter = preprocessing.turned(square, jnp.full(3, jnp.pi / 2), jnp.ones(3))
    np.testing.assert_allclose(quarter, np.rot90(square, axes=(1, 2)), atol=1e-4)


def test_an_image_is_scaled_about_its_center_and_its_edges_go_on_outside():
    # Value: the row.
    ramp = np.broadcast_to(np.arange(7.0, dtype=np.float32)[:, None, None], (2, 7, 5, 1))
    scaled = preprocessing.turned(ramp, jnp.zeros(2), jnp.array([2.0, 0.5]))
    np.testing.assert_allclose(scaled[0, :, 0, 0], 3 + (np.arange(7) - 3) / 2, atol=1e-5)
    np.testing.assert_allclose(
        scaled[1, :, 0, 0], np.clip(3 + (np.arange(7) - 3) * 2, 0, 6), atol=1e-5
    )


def test_images_are_turned_and_scaled_at_random_within_their_ranges(monkeypatch):
    given = {}
    monkeypatch.setattr(
        preprocessing, "turned", lambda images, *drawn: given.update(drawn=drawn) or images
    )
    preprocessing.training_view(
        dataclasses.replace(PLAIN, max_rotation=90.0, max_scaling=0.25),
        KEY,
        jnp.asarray(images(2000)),
    )
    angles, factors = given["drawn"]
    for drawn, low, high in ((angles, -np.pi / 2, np.pi / 2), (factors, 0.75, 1.25)):
        assert (
            low <= drawn.min() < low + 0.01 * (high - low)
            and high - 0.01 * (high - low) < drawn.max() <= high
        )
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


def test_a_view_depends_on_the_key_and_not_on_the_other_images():
    config = ImageConfig(max_shift=1, standardize=True, crop=4, contrast=0.4, brightness=0.3)
    changed = images()
    changed[1:] = 7
    first, again = (training_view(config, KEY, jnp.asarray(batch)) for batch in (images(), changed))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(
        first[0], training_view(config, jax.random.key(1), jnp.asarray(images()))[0]
    )


def test_the_first_crop_is_central_and_the_others_spread():
    places = crop_places(13)
    np.testing.assert_array_equal(places[0], 0.5)
    assert places.min() >= 0 and places.max() <= 1
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(13)
    assert apart.min() > 0.1
    np.testing.assert_array_equal(crop_places(5), places[:5])


def test_places_reach_the_corners():
    config, one = ImageConfig(crop=4), jnp.asarray(images(number=1))
    whole = prepare(config, one)
    np.testing.assert_array_equal(central_view(config, one, (0.0, 0.0)), whole[:, :4, :4])
    np.testing.assert_array_equal(central_view(config, one, (1.0, 0.0)), whole[:, 2:, :4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 7}, "crop must be at most the images' height and width, 6x6; got 7"),
        ({"downsample": 4}, "downsample must divide the images' height and width, 6x6; got 4"),
    ],
)
def test_views_that_do_not_fit_are_refused(changes, message):
    config = dataclasses.replace(PLAIN, **changes)
    for view in (central_view, lambda config, images: training_view(config, KEY, images)):
        with pytest.raises(ValueError, match=message):
            view(config, jnp.asarray(images()))


# Shifts.


def test_no_shift_is_the_identity():
    np.testing.assert_array_equal(random_shift(KEY, jnp.asarray(images()), 0), images())


def test_a_shift_moves_the_whole_image_and_brings_in_zeros():
    shifted = np.asarray(random_shift(KEY, images(), 2))
    assert shifted.shape == images().shape and shifted.dtype == np.uint8
    offsets = set()
    for before, after in zip(
        np.pad(images(), ((0, 0), (2, 2), (2, 2), (0, 0))), shifted, strict=True
    ):
        found = [
            (r, c)
            for r in range(5)
            for c in range(5)
            if (before[r : r + 6, c : c + 6] == after).all()
        ]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 15  # of 25


def test_all_shifts_are_equally_likely():
    points = np.zeros((4000, 5, 5, 1), np.uint8)
    points[:, 2, 2] = 1
    counts = np.asarray(random_shift(KEY, jnp.asarray(points), 1), int).sum((0, 3))
    assert counts.sum() == 4000 and counts[1:4, 1:4].sum() == 4000
    assert np.abs(counts[1:4, 1:4] - 4000 / 9).max() < 5 * np.sqrt(4000 / 9)


def test_an_image_is_shifted_without_regard_to_the_others():
    changed = images()
    changed[1:] = 0
    np.testing.assert_array_equal(
        random_shift(KEY, jnp.asarray(changed), 2)[0],
        random_shift(KEY, jnp.asarray(images()), 2)[0],
    )
