"""A small renderer in pure JAX: sphere tracing of matt grey toys on a plain ground, with soft shadows.

`render(shape, camera, light)` is one image; `jax.vmap` makes many. A map over lights alone traces what the camera sees once.

Coordinates are in units of about half an object's length: the ground is the plane z = 0, the object stands on it inside the ball of
radius `BOUND` around `CENTER`. Every pixel is an element of the last axis, and the primitives are a loop that the compiler unrolls:
one kernel evaluates a whole distance function in registers.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

CENTER = (0.0, 0.0, 0.4)
BOUND = 1.1
PRIMARY_STEPS = 24
SHADOW_STEPS = 10
SHADOW_REACH = 1.6
STEP = 0.9  # of the distance: tapering and blending make the distances a little too large
HIT = 0.012  # what is nearer than this is the surface; a sample of a 48 x 48 image with 2 x 2 samples is 0.03 wide
GROUND = 1e-4  # rays end so far in front of the ground, lest it be hit as if it were the object

Vector = tuple[jax.Array, jax.Array, jax.Array]  # x, y, z, each [N]


class Shape(NamedTuple):
    """P solids, joined smoothly. Each is a rounded rectangle, extruded along its own z axis, possibly tapering.

    All are float32. With the sizes as they need be it is a box, a cylinder, a cone, a capsule or a ball.

    Attributes:
        center: `[P, 3]`.
        rotation: `[P, 3, 3]`, whose columns are the solid's own axes.
        half_size: `[P, 3]`, along its own axes.
        taper: `[P, 2]`, by how much the half sizes x and y grow per unit of z.
        roundness: `[P]`, from 0 (a rectangle) to 1 (a circle, if x and y are equal).
        edge: `[P]`, the radius of the edges at both ends.
        blend: `[P]`, how far away it begins to melt into the solids before it.
    """

    center: jax.Array
    rotation: jax.Array
    half_size: jax.Array
    taper: jax.Array
    roundness: jax.Array
    edge: jax.Array
    blend: jax.Array


class Camera(NamedTuple):
    """A pinhole camera with a square image, upright. All float32.

    Attributes:
        position: `[3]`.
        target: `[3]`, the point in the middle of the image.
        extent: the half width of the image, divided by the focal length.
    """

    position: jax.Array
    target: jax.Array
    extent: jax.Array


class Light(NamedTuple):
    """A lamp far away, and light from everywhere. All float32.

    Attributes:
        direction: `[3]`, towards the lamp; of length 1.
        lamp: its brightness, on a surface that faces it.
        ambient: the brightness of the light from above; that from below is weaker.
        hardness: of the shadows; the inverse of the lamp's width as an angle in radians.
    """

    direction: jax.Array
    lamp: jax.Array
    ambient: jax.Array
    hardness: jax.Array


@partial(jax.jit, static_argnames=("size", "samples"))
def render(shape: Shape, camera: Camera, light: Light, size: int = 48, samples: int = 2) -> jax.Array:
    """One image `[size, size]`, float32, from 0 (black) to 1; each pixel is the mean of `samples` x `samples` rays."""
    direction = rays(camera, size * samples)
    point, normal, occlusion, on_object = look(shape, camera.position, direction)
    brightness = shade(shape, light, point, normal, occlusion, on_object)
    return brightness.reshape(size, samples, size, samples).mean((1, 3))


def rays(camera: Camera, size: int) -> Vector:
    """Unit vectors through the centres of `size` x `size` samples, row by row from the upper left."""
    forward = normalize(camera.target - camera.position)
    right = normalize(jnp.cross(forward, jnp.array([0.0, 0.0, 1.0])))
    up = jnp.cross(right, forward)
    across = camera.extent * ((jnp.arange(size) + 0.5) * (2 / size) - 1)
    x, y = jnp.tile(across, size), jnp.repeat(-across, size)
    length = jnp.sqrt(1 + x * x + y * y)
    return tuple((forward[i] + x * right[i] + y * up[i]) / length for i in range(3))  # pyright: ignore[reportReturnType]


def look(shape: Shape, origin: jax.Array, direction: Vector) -> tuple[Vector, Vector, jax.Array, jax.Array]:
    """What the rays meet: the points, their normals, how open they are to the sky (0..1), and whether they are on the object."""
    depth, on_object = trace(shape, origin, direction)
    point = along(tuple(origin), direction, depth)
    slope = gradient(shape, point)
    normal = tuple(jnp.where(on_object, slope[i], 1.0 if i == 2 else 0.0) for i in range(3))
    near = distance(shape, along(point, normal, jnp.float32(0.12)))
    # On the object the object itself is 0.12 away if nothing else is near; on the ground it may be anywhere.
    occlusion = jnp.clip(0.3 + 0.7 * near / 0.12, 0.3, 1.0)
    return point, normal, occlusion, on_object  # pyright: ignore[reportReturnType]


def trace(shape: Shape, origin: jax.Array, direction: Vector) -> tuple[jax.Array, jax.Array]:
    """How far rays go until they meet the object or the ground, `[N]`, and whether it is the object.

    Args:
        shape: the object.
        origin: `[3]`, above the ground and outside the bounding ball.
        direction: of length 1, pointing down.
    """
    to_ground = -origin[2] / direction[2]
    offset = origin - jnp.array(CENTER)
    middle = -sum(offset[i] * direction[i] for i in range(3))
    discriminant = middle**2 - offset @ offset + BOUND**2
    half_chord = jnp.sqrt(jnp.maximum(discriminant, 0.0))
    end = jnp.where(discriminant > 0, jnp.minimum(middle + half_chord, to_ground - GROUND), 0.0)

    def step(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        depth, _ = state
        gap = distance(shape, along(tuple(origin), direction, depth))
        return jnp.where(gap < HIT / 4, depth, jnp.minimum(depth + STEP * gap, end)), gap

    depth, gap = jax.lax.fori_loop(0, PRIMARY_STEPS, step, (middle - half_chord, jnp.full_like(middle, BOUND)))
    on_object = (depth < end) & (gap < HIT)
    return jnp.where(on_object, depth, to_ground), on_object


def shade(shape: Shape, light: Light, point: Vector, normal: Vector, occlusion: jax.Array, on_object: jax.Array) -> jax.Array:
    """The brightness of surface points `[N]`: Lambert's law for what reaches them of the lamp, and light from the sky."""
    facing = jnp.maximum(sum(normal[i] * light.direction[i] for i in range(3)), 0.0)
    lamp = light.lamp * facing * lit(shape, light, along(point, normal, jnp.float32(0.03)))
    sky = light.ambient * occlusion * (0.75 + 0.25 * normal[2])
    return jnp.clip(lamp + sky, 0.0, 1.0)


def lit(shape: Shape, light: Light, point: Vector) -> jax.Array:
    """How much of the lamp points see, `[N]`, from 0 to 1.

    A ray that passes the object at distance d after travelling t sees about d / t times the hardness of it.
    """
    towards = tuple(light.direction)

    def step(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        travelled, seen = state
        gap = distance(shape, along(point, towards, travelled))
        seen = jnp.minimum(seen, 0.5 + 0.5 * light.hardness * gap / travelled)
        return travelled + jnp.clip(gap, 0.03, SHADOW_REACH / 3), seen

    start = jnp.full_like(point[0], 0.03), jnp.ones_like(point[0])
    seen = jnp.clip(jax.lax.fori_loop(0, SHADOW_STEPS, step, start)[1], 0.0, 1.0)
    return seen * seen * (3 - 2 * seen)


def distance(shape: Shape, point: Vector) -> jax.Array:
    """About the signed distance of points `[N]` from the object's surface."""
    nearest = jnp.full_like(point[0], 10.0)
    for i in range(shape.center.shape[0]):
        solid = Shape(*(field[i] for field in shape))
        nearest = smooth_minimum(nearest, solid_distance(solid, point), solid.blend)
    return nearest


def solid_distance(solid: Shape, point: Vector) -> jax.Array:
    """The signed distance of points `[N]` from one solid, whose fields lack the first axis."""
    moved = [point[i] - solid.center[i] for i in range(3)]
    x, y, z = (sum(solid.rotation[i, axis] * moved[i] for i in range(3)) for axis in range(3))
    height = jnp.clip(z, -solid.half_size[2], solid.half_size[2])
    half_x = solid.half_size[0] + solid.taper[0] * height
    half_y = solid.half_size[1] + solid.taper[1] * height
    corner = solid.roundness * jnp.minimum(half_x, half_y)
    across = rounded(jnp.abs(x) - half_x, jnp.abs(y) - half_y, corner)
    return rounded(across, jnp.abs(z) - solid.half_size[2], jnp.minimum(solid.edge, jnp.minimum(half_x, half_y)))


def rounded(a: jax.Array, b: jax.Array, radius: jax.Array) -> jax.Array:
    """The distance from the corner where a = 0 and b = 0 meet, from inside negative, rounded by `radius`."""
    a, b = a + radius, b + radius
    outside = jnp.sqrt(jnp.maximum(a, 0.0) ** 2 + jnp.maximum(b, 0.0) ** 2)
    return outside + jnp.minimum(jnp.maximum(a, b), 0.0) - radius


def smooth_minimum(a: jax.Array, b: jax.Array, blend: jax.Array) -> jax.Array:
    """The lesser of two distances; where they differ by less than `blend` (positive), a little less than both."""
    overlap = jnp.maximum(blend - jnp.abs(a - b), 0.0)
    return jnp.minimum(a, b) - overlap * overlap / (4 * blend)


def gradient(shape: Shape, point: Vector) -> Vector:
    """Unit normals of the surface, from the distances at the corners of a tetrahedron around each point."""
    corners = jnp.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], jnp.float32)

    def step(i: int, total: Vector) -> Vector:
        gap = distance(shape, along(point, tuple(corners[i]), jnp.float32(0.004)))
        return tuple(total[k] + corners[i, k] * gap for k in range(3))  # pyright: ignore[reportReturnType]

    total = jax.lax.fori_loop(0, 4, step, tuple(jnp.zeros_like(axis) for axis in point))
    length = jnp.sqrt(sum(axis * axis for axis in total) + 1e-20)
    return tuple(axis / length for axis in total)  # pyright: ignore[reportReturnType]


def along(origin: tuple[jax.Array, ...], direction: tuple[jax.Array, ...], depth: jax.Array) -> Vector:
    """The points `depth` away from `origin`."""
    return tuple(origin[i] + depth * direction[i] for i in range(3))  # pyright: ignore[reportReturnType]


def normalize(vector: jax.Array) -> jax.Array:
    return vector / jnp.linalg.norm(vector)
