"""The parts that toys are made of: each function returns one solid, in NumPy; `assemble` puts them
together as one `Shape`.

Toys are built lengthwise along x (the front is at +x), y is their left, z is up; in any units, as
`assemble` scales them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.toynorb.render import BOUND, CENTER, Shape

NUM_SOLIDS = 20
Point = tuple[float, float, float]
Solid = Shape  # with NumPy arrays that lack the first axis


class Dice:
    """Random choices that depend on nothing but the key."""

    def __init__(self, key: jax.Array, number: int = 128):
        self.throws = iter(np.asarray(jax.random.uniform(key, (number,))).tolist())

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * next(self.throws)

    def chance(self, probability: float) -> bool:
        return next(self.throws) < probability

    def choice(self, *options: str) -> str:
        return options[int(next(self.throws) * len(options))]


def box(
    center: Point,
    size: Point,
    edge: float = 0.03,
    narrowing: tuple[float, float] = (1.0, 1.0),
    turned: np.ndarray | None = None,
    roundness: float = 0.15,
    blend: float = 0.02,
) -> Solid:
    """A box of full sizes `size`; its top is by the factors `narrowing` shorter and narrower than
    its bottom.
    """
    half = np.array(size, np.float32) / 2
    shrink = (np.array(narrowing) - 1) / (np.array(narrowing) + 1)
    taper = half[:2] * shrink / half[2]
    rotation = np.eye(3) if turned is None else turned
    return solid(center, rotation, half, taper, roundness, min(edge, half.min()), blend)


def limb(
    start: Point,
    end: Point,
    start_radius: float,
    end_radius: float,
    blend: float = 0.05,
) -> Solid:
    """A capsule from point to point, tapering."""
    a, b = np.array(start, np.float64), np.array(end, np.float64)
    length = np.linalg.norm(b - a)
    radius = (start_radius + end_radius) / 2
    half = np.array([radius, radius, length / 2 + radius * 0.7])
    growth = (end_radius - start_radius) / (2 * half[2])
    rotation = upright((b - a) / max(length, 1e-9))
    return solid((a + b) / 2, rotation, half, (growth, growth), 1.0, radius, blend)


def ball(center: Point, size: Point, blend: float = 0.05) -> Solid:
    """Something round of these full sizes."""
    half = np.array(size) / 2
    return solid(center, np.eye(3), half, (0.0, 0.0), 1.0, half.min(), blend)


def wheel(center: Point, radius: float, width: float) -> Solid:
    """A cylinder that rolls along x."""
    return solid(
        center,
        upright(np.array([0.0, 1.0, 0.0])),
        (radius, radius, width / 2),
        (0.0, 0.0),
        1.0,
        0.02,
        0.004,
    )


def wing(
    root: Point,
    tip: Point,
    root_chord: float,
    tip_chord: float,
    root_thickness: float,
    tip_thickness: float,
    blend: float = 0.03,
) -> Solid:
    """A flat solid from root to tip, whose chord lies along x (as far as the direction allows)."""
    a, b = np.array(root, np.float64), np.array(tip, np.float64)
    length = np.linalg.norm(b - a)
    axis = (b - a) / length
    # Columns: the chord (x made normal to the axis), across the wing, and the axis.
    chord = np.array([1.0, 0.0, 0.0]) - axis[0] * axis
    chord /= np.linalg.norm(chord)
    rotation = np.stack([chord, np.cross(axis, chord), axis], 1)
    half = np.array(
        [(root_chord + tip_chord) / 4, (root_thickness + tip_thickness) / 4, length / 2]
    )
    taper = (
        (tip_chord - root_chord) / (2 * length),
        (tip_thickness - root_thickness) / (2 * length),
    )
    return solid(
        (a + b) / 2, rotation, half, taper, 0.9, min(tip_thickness, root_thickness) / 2, blend
    )


def solid(
    center: Any,
    rotation: Any,
    half_size: Any,
    taper: Any,
    roundness: float,
    edge: float,
    blend: float,
) -> Solid:
    """A solid of these fields, as `Shape` explains them."""
    fields: list[Any] = [
        np.asarray(field, np.float32)
        for field in (center, rotation, half_size, taper, roundness, edge, blend)
    ]
    return Shape(*fields)


def upright(axis: np.ndarray) -> np.ndarray:
    """A rotation `[3, 3]` that takes z to `axis`, and keeps its own x in the plane of
    `axis` and z.
    """
    helper = np.array([1.0, 0.0, 0.0]) if abs(axis[2]) > 0.999 else np.array([0.0, 0.0, 1.0])
    y = np.cross(axis, helper)
    y /= np.linalg.norm(y)
    return np.stack([np.cross(y, axis), y, axis], 1)


def turn(axis: int, degrees: float) -> np.ndarray:
    """The rotation `[3, 3]` by an angle around x, y or z (0, 1, 2)."""
    angle = np.radians(degrees)
    rotation = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    rotation[i, i] = rotation[j, j] = np.cos(angle)
    sign = -1 if axis == 1 else 1
    rotation[i, j], rotation[j, i] = -sign * np.sin(angle), sign * np.sin(angle)
    return rotation


def tilted(parts: Sequence[Solid], degrees: float, pivot: Point) -> list[Solid]:
    """Solids turned around an axis through `pivot` that points to their left; the front goes down
    by positive angles.
    """
    rotation: Any = turn(1, degrees).astype(np.float32)
    middle = np.array(pivot, np.float32)
    return [
        part._replace(
            center=rotation @ (part.center - middle) + middle, rotation=rotation @ part.rotation
        )
        for part in parts
    ]


def mirrored(part: Solid) -> list[Solid]:
    """A solid and its mirror image on the other side of y = 0."""
    flip = np.diag([1.0, -1.0, 1.0]).astype(np.float32)
    # The solids are symmetric in their own axes, so the mirror image of a rotation may be turned
    # back into a rotation.
    return [
        part,
        part._replace(
            center=flip @ part.center,
            rotation=flip @ part.rotation @ np.diag([1, -1, 1]).astype(np.float32),
        ),
    ]


def assemble(
    parts: Sequence[Solid],
    size: float = 1.0,
    heading: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Shape:
    """The shape of a toy: its parts, scaled and put on the ground, and as many empty ones as are
    missing.

    Args:
        parts: at most `NUM_SOLIDS`.
        size: 1 fills the bounding ball.
        heading: degrees that the toy is turned around the vertical.
        shift: of its middle from the middle of the turntable.
    """
    if len(parts) > NUM_SOLIDS:
        raise ValueError(f"{len(parts)} solids; at most {NUM_SOLIDS} fit")
    fields: list[Any] = [np.stack(field) for field in zip(*parts, strict=True)]
    shape = Shape(*fields)
    low, high = bounds(shape)
    middle = (low + high) / 2
    middle[2] = low[2]
    corners = shape.center - middle
    reach = solid_reach(shape)
    # The largest scale at which every solid's own bounding ball is within the common one, around
    # CENTER.
    scale, target = 1.0, np.array(CENTER)
    for _ in range(20):
        outermost = (np.linalg.norm(scale * corners - target, axis=1) + scale * reach).max()
        scale *= (BOUND - 0.05) / outermost
    scale *= size
    spin: Any = turn(2, heading).astype(np.float32)
    placed = Shape(
        center=(scale * corners) @ spin.T + np.array([*shift, 0.0]),
        rotation=spin @ shape.rotation,
        half_size=scale * shape.half_size,
        taper=shape.taper,
        roundness=shape.roundness,
        edge=scale * shape.edge,
        blend=scale * shape.blend,
    )
    missing = NUM_SOLIDS - len(parts)
    # Nothing is a point inside the first solid, which is nearer than it from everywhere outside.
    nothing = solid(placed.center[0], np.eye(3), (0.0, 0.0, 0.0), (0.0, 0.0), 0.0, 0.0, 1e-3)
    padded = (
        np.concatenate([a, np.repeat(b[None], missing, 0)])
        for a, b in zip(placed, nothing, strict=True)
    )
    return Shape(*(jnp.asarray(a, jnp.float32) for a in padded))


def solid_reach(shape: Shape) -> np.ndarray:
    """About the radius `[P]` of each solid around its center."""
    half = np.asarray(shape.half_size)
    widest = half[:, :2] + np.abs(shape.taper) * half[:, 2:]
    across = np.where(shape.roundness > 0.5, widest.max(1), np.linalg.norm(widest, axis=1))
    edge = np.asarray(shape.edge)
    if_round = np.hypot(np.maximum(across - edge, 0), half[:, 2] - edge) + edge
    return np.where(shape.roundness > 0.5, if_round, np.hypot(across, half[:, 2]))


def bounds(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest corner `[3]` of a box around all solids, rounded ends taken into
    account.
    """
    edge = np.asarray(shape.edge)[:, None]
    widest = np.asarray(shape.half_size).copy()
    widest[:, :2] += np.abs(shape.taper) * widest[:, 2:]
    inner = np.maximum(widest - edge, 0)
    extent = (np.abs(shape.rotation) * inner[:, None, :]).sum(2) + edge
    # Around their own axis round solids are no larger than their radius; a box's corners are.
    rotation, half = np.asarray(shape.rotation), np.asarray(shape.half_size)
    axis = np.abs(rotation[:, :, 2])
    round_extent = (
        axis * (half[:, 2:] - edge)
        + np.sqrt(
            ((rotation[:, :, :2] * np.maximum(widest[:, None, :2] - edge[:, None], 0)) ** 2).sum(2)
        )
        + edge
    )
    extent = np.where(np.asarray(shape.roundness)[:, None] > 0.5, round_extent, extent)
    center = np.asarray(shape.center)
    return (center - extent).min(0), (center + extent).max(0)
