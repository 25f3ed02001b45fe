"""Line drawings of parts in places, such as a face: what an object is when its parts are somewhere
else can be asked of them.

Each object has an outline, the same ones in all classes, and four features inside. Drawings of a
class differ in how each part is placed and sized, and the whole is rotated, scaled and shifted.
`moved` takes every feature away from its place: at 1 it is where another feature of the object
belongs.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SIDE = 28
STROKE = 0.055  # half the width of a line; the image reaches from -1 to 1
BLUR = 0.06  # over which ink fades
MAX_ANGLE, SCALES, MAX_SHIFT = 20.0, (0.8, 1.0), 0.1  # of the whole
PLACE_JITTER, SIZE_JITTER = 0.04, 0.15  # of each part
AT_A_TIME = 500
SPLITS = {"train": 6000, "test": 1000}


class Part(NamedTuple):
    """An ellipse or a rectangle.

    Of many, its fields are arrays with first axes.

    Attributes:
        center: (right, down).
        size: half width and half height.
        corners: 0 is an ellipse, 1 a rectangle.
        filled: 0 is an outline, 1 full of ink.
    """

    center: Any
    size: Any
    corners: Any = 0.0
    filled: Any = 1.0


def box(
    right: float, down: float, half_width: float, half_height: float, filled: float = 1.0
) -> Part:
    """A rectangle."""
    return Part((right, down), (half_width, half_height), 1.0, filled)


def ellipse(
    right: float, down: float, half_width: float, half_height: float, filled: float = 1.0
) -> Part:
    """An ellipse."""
    return Part((right, down), (half_width, half_height), 0.0, filled)


# Half width and half height; of every object, an ellipse or a rectangle by chance.
OUTLINE = (0.8, 0.85)
# In such an order that each feature differs from the next one, whose place it takes when moved.
OBJECTS: dict[str, tuple[Part, ...]] = {
    "face": (
        ellipse(-0.3, -0.25, 0.14, 0.1),
        box(0, 0.08, 0.05, 0.2),
        ellipse(0.3, -0.25, 0.14, 0.1),
        box(0, 0.5, 0.34, 0.06),
    ),
    "house": (
        box(-0.3, -0.2, 0.2, 0.2, 0),
        box(0, 0.5, 0.15, 0.27),
        box(0.3, -0.2, 0.2, 0.2, 0),
        box(0, -0.58, 0.4, 0.05),
    ),
    "car": (
        ellipse(-0.4, 0.3, 0.2, 0.2),
        box(-0.1, -0.2, 0.4, 0.1, 0),
        ellipse(0.4, 0.3, 0.2, 0.2),
        ellipse(0.5, 0, 0.1, 0.1),
    ),
    "clock": (
        ellipse(0, -0.65, 0.08, 0.08),
        box(0, -0.2, 0.04, 0.3),
        ellipse(0, 0.65, 0.08, 0.08),
        box(0.2, 0.08, 0.22, 0.05),
    ),
    "fish": (
        ellipse(-0.45, -0.1, 0.1, 0.1),
        box(0.55, 0, 0.07, 0.35),
        ellipse(-0.1, 0.2, 0.2, 0.08),
        box(0, -0.4, 0.18, 0.12),
    ),
}


def draw_split(split: str, moved: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The drawings of a split, `train` or `test`, the same every time but for where features are:
    as `draw`.
    """
    images, labels = draw(jax.random.key(list(SPLITS).index(split)), SPLITS[split], moved)
    return np.asarray(images), np.asarray(labels)


@functools.partial(jax.jit, static_argnames="number")
def draw(
    key: jax.Array, number: int, moved: jax.Array | float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Drawings of all objects in turn, white on black.

    With another `moved` the same key gives the same drawings, but for where their features are.

    Args:
        key: decides all about each drawing but its object.
        number: N. Static.
        moved: in [0, 1]: how far each feature is on its way to the place of the next one.

    Returns:
        Images, uint8 `[N, SIDE, SIDE, 1]`, and labels, int32 `[N]`, in the order of `OBJECTS`.
    """
    labels = jnp.arange(number) % len(OBJECTS)
    features = stacked([stacked(features) for features in OBJECTS.values()])

    def one(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, label = given
        image = drawing(
            jax.random.fold_in(key, index),
            jax.tree.map(lambda field: field[label], features),
            moved,
        )
        return jnp.round(255 * image).astype(jnp.uint8)[..., None]

    return jax.lax.map(one, (jnp.arange(number), labels), batch_size=AT_A_TIME), labels.astype(
        jnp.int32
    )


def stacked(parts: Sequence[Part]) -> Part:
    """Many as one, whose fields are arrays."""
    return Part(*(jnp.array(field, jnp.float32) for field in zip(*parts, strict=True)))


def drawing(key: jax.Array, features: Part, moved: jax.Array | float) -> jax.Array:
    """One drawing, `[SIDE, SIDE]`, float32 in [0, 1]; fields of `features` have a first axis."""
    outline_key, place_key, size_key, angle_key, scale_key, shift_key = jax.random.split(key, 6)
    center = features.center + PLACE_JITTER * jax.random.normal(place_key, features.center.shape)
    center += moved * (jnp.roll(center, -1, axis=0) - center)
    outline = Part(
        jnp.zeros(2),
        jnp.array(OUTLINE),
        jax.random.bernoulli(outline_key).astype(float),
        jnp.float32(0),
    )
    parts = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest]),
        outline,
        features._replace(center=center),
    )
    size = parts.size * (
        1 + SIZE_JITTER * jax.random.uniform(size_key, parts.size.shape, minval=-1, maxval=1)
    )

    angle = jnp.radians(jax.random.uniform(angle_key, minval=-MAX_ANGLE, maxval=MAX_ANGLE))
    scale = jax.random.uniform(scale_key, minval=SCALES[0], maxval=SCALES[1])
    shift = jax.random.uniform(shift_key, (2,), minval=-MAX_SHIFT, maxval=MAX_SHIFT)
    axis = (jnp.arange(SIDE) + 0.5) * (2 / SIDE) - 1
    right, down = jnp.meshgrid(axis, axis)
    seen = jnp.stack([right, down], -1) - shift
    turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    inside = (seen @ turn / scale)[:, :, None] - parts.center  # [SIDE, SIDE, parts, 2]

    # Distances to the edge, negative inside: exact for rectangles, nearly for ellipses that are not
    # very long.
    beyond = jnp.abs(inside) - size
    rectangle = jnp.linalg.norm(jnp.maximum(beyond, 0) + 1e-9, axis=-1) + jnp.minimum(
        beyond.max(-1), 0
    )
    relative = jnp.linalg.norm(inside / size + 1e-9, axis=-1)
    round_edge = (
        (relative - 1) * relative / jnp.maximum(jnp.linalg.norm(inside / size**2, axis=-1), 1e-6)
    )
    distance = jnp.where(
        parts.corners > 0, rectangle, jnp.where(relative < 1e-6, -size.min(-1), round_edge)
    )
    line = jnp.where(parts.filled > 0, distance, jnp.abs(distance) - STROKE)
    return jnp.clip(0.5 - line / BLUR, 0, 1).max(-1)
