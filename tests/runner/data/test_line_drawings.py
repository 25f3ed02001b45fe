"""Line drawings: what moves and what does not, and what one drawing depends on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import line_drawings
from experiments.data.line_drawings import OBJECTS, SIDE, Part, draw, draw_split, drawing, stacked


def test_all_objects_are_drawn_in_turn():
    images, labels = draw(jax.random.key(0), 12, 0.0)
    assert images.shape == (12, SIDE, SIDE, 1) and images.dtype == jnp.uint8
    np.testing.assert_array_equal(labels, np.arange(12) % len(OBJECTS))
    inked = (np.asarray(images) > 127).mean((1, 2, 3))
    assert ((inked > 0.05) & (inked < 0.5)).all()
    assert len({image.tobytes() for image in np.asarray(images)}) == 12
    np.testing.assert_array_equal(draw(jax.random.key(0), 7, 0.0)[0], images[:7])


def test_splits_differ_and_are_the_same_every_time(monkeypatch):
    monkeypatch.setattr(line_drawings, "SPLITS", {"train": 12, "test": 7})
    (train, _), (test, labels) = draw_split("train"), draw_split("test")
    assert (len(train), len(test)) == (12, 7) and (train[:7] != test).any()
    np.testing.assert_array_equal(test, draw_split("test")[0])
    moved, same_labels = draw_split("test", 1.0)
    np.testing.assert_array_equal(labels, same_labels)
    assert (moved != test).mean() > 0.02


def test_features_move_to_each_others_places(monkeypatch):
    """If all are alike, nothing has changed when each is where another was, and something has half
    way.
    """
    monkeypatch.setattr(line_drawings, "SIZE_JITTER", 0.0)
    places = [(-0.3, -0.3), (0.3, -0.3), (0.0, 0.1), (0.2, 0.5)]
    features = stacked([Part(place, (0.1, 0.15)) for place in places])
    draw_at = jax.jit(lambda moved: drawing(jax.random.key(3), features, moved))
    np.testing.assert_allclose(draw_at(1.0), draw_at(0.0), atol=1e-4)
    assert np.abs(np.asarray(draw_at(0.5) - draw_at(0.0))).max() > 0.9


def test_a_part_is_where_it_says(monkeypatch):
    """Its ink has the right center and extent, and is inside only where it is filled."""
    for name, value in {
        "MAX_ANGLE": 0.0,
        "SCALES": (1.0, 1.0),
        "MAX_SHIFT": 0.0,
        "PLACE_JITTER": 0.0,
        "SIZE_JITTER": 0.0,
    }.items():
        monkeypatch.setattr(line_drawings, name, value)
    monkeypatch.setattr(line_drawings, "OUTLINE", (3.0, 3.0))  # beyond the image
    center, size = np.array([0.25, -0.1]), np.array([0.4, 0.3])
    drawn = jax.jit(lambda part: drawing(jax.random.key(0), part, 0.0))
    for corners, filled in itertools.product((0.0, 1.0), repeat=2):
        part = stacked([Part(tuple(center), tuple(size), corners, filled)])
        check_part(np.asarray(drawn(part)), center, size, corners, filled)


def check_part(image, center, size, corners, filled):
    rows, columns = np.nonzero(image > 0.5)
    to_unit = lambda pixel: (pixel + 0.5) * 2 / SIDE - 1  # noqa: E731
    pixel = 2 / SIDE
    middles = [to_unit((places.min() + places.max()) / 2) for places in (columns, rows)]
    np.testing.assert_allclose(middles, center, atol=pixel / 2)
    reach = np.array([np.ptp(columns), np.ptp(rows)]) * pixel / 2
    np.testing.assert_allclose(reach, size + (0 if filled else line_drawings.STROKE), atol=pixel)
    middle = image[tuple(np.round((center[::-1] + 1) * SIDE / 2 - 0.5).astype(int))]
    assert (middle > 0.9) == bool(filled)
    corner = image[rows.min() + 1, columns.min() + 1]
    assert (corner > 0.5) == bool(corners)
