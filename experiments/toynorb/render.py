"""A small renderer in pure JAX: sphere tracing of matt gray toys on a plain ground, with soft
shadows.

`render(shape, camera, light)` is one image; `jax.vmap` makes many, and `render_lights` traces one
view for many lights.

Coordinates are in units of about half an object's length: the ground is the plane z = 0, the object
stands on it inside the ball of radius `BOUND` around `CENTER`. Rays are the elements of the last
axis, and the solids are a loop that the compiler unrolls: one kernel evaluates a whole distance
function in registers.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

CENTER = (0.0, 0.0, 0.4)
BOUND = 1.1
BLOCK = 12  # pixels in a row of a block, and rows
PRIMARY_STEPS = 28  # at most
SHADOW_STEPS = 12
OCCLUSION_REACH = 0.12
MARGIN = 0.03  # by which blending makes an object larger than its solids
PENUMBRA = 0.15  # half the width of the widest edge of a shadow
STEP = 0.9  # of the distance: tapering and blending make the distances a little too large
# What is nearer than this is the surface; a sample of a 48 x 48 image with 2 x 2 samples is 0.03
# wide.
HIT = 0.012
GROUND = 1e-4  # rays end so far in front of the ground, lest it be hit as if it were the object

AT_ONCE = 64  # of what is many, on accelerators: views (stereo pairs), and blocks of an image

Vector = tuple[jax.Array, jax.Array, jax.Array]  # x, y, z, each [N]
Each = Callable[[Callable, Any], Any]  # as jax.lax.map: each(function, given)


class Shape(NamedTuple):
    """P solids, joined smoothly. Each is a rounded rectangle, extruded along its own z axis,
    possibly tapering.

    All are float32. With the sizes as they need be it is a box, a cylinder, a cone, a capsule or a
    ball.

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
    """A pinhole camera with a square image. All float32.

    Attributes:
        position: `[3]`.
        target: `[3]`, the point in the middle of the image.
        right: `[3]`, about where the right of the image is; what of it is along the line of sight
            does not count.
        extent: the half width of the image, divided by the focal length.
    """

    position: jax.Array
    target: jax.Array
    right: jax.Array
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


class Surface(NamedTuple):
    """What N rays meet.

    Attributes:
        point: where.
        normal: of length 1.
        occlusion: float32 `[N]`, from 0.3 (in a crevice) to 1 (open to the sky).
        on_object: bool `[N]`; the rest is the ground.
    """

    point: Vector
    normal: Vector
    occlusion: jax.Array
    on_object: jax.Array


@partial(jax.jit, static_argnames=("size", "samples"))
def render(
    shape: Shape, camera: Camera, light: Light, size: int = 48, samples: int = 2
) -> jax.Array:
    """One image `[size, size]`, float32, from 0 (black) to 1; each pixel is the mean of `samples` x
    `samples` rays.
    """
    lights = jax.tree.map(lambda field: field[None], light)
    return by_platform(partial(render_lights, size=size, samples=samples), shape, camera, lights)[0]


def by_platform(function: Callable[..., jax.Array], *given: Any) -> jax.Array:
    """`function(*given, each=...)`, whose `each` is a loop in a program for CPUs, whose caches hold
    one block of rays.

    In programs for accelerators, to which each step of a loop is as many launches, it takes
    `AT_ONCE` together.
    """
    together = partial(jax.lax.map, batch_size=AT_ONCE)
    return jax.lax.platform_dependent(
        *given, cpu=partial(function, each=jax.lax.map), default=partial(function, each=together)
    )


def render_lights(
    shape: Shape, camera: Camera, lights: Light, size: int, samples: int, each: Each
) -> jax.Array:
    """The same view under L lights, `[L, size, size]`, float32: as `render`, but what the camera
    sees is traced once.

    One by one, blocks of rays are traced no further than the last ray of each has to go: most of
    them show bare ground.
    """
    block = math.gcd(BLOCK, size)
    number = size // block

    def brightness(direction: Vector) -> jax.Array:
        surface = look(shape, camera.position, direction)
        return jax.vmap(lambda light: shade(shape, light, surface, samples**2))(lights)

    def in_blocks(axis: jax.Array) -> jax.Array:
        """Blocks by rays, `[number^2, samples^2 * block^2]`: of all pixels the first sample, of all
        the second, and so on.
        """
        axes = axis.reshape(number, block, samples, number, block, samples)
        return axes.transpose(0, 3, 2, 5, 1, 4).reshape(number * number, -1)

    x, y, z = rays(camera, size * samples)
    blocks = each(brightness, (in_blocks(x), in_blocks(y), in_blocks(z)))
    pixels = blocks.reshape(number, number, -1, samples**2, block, block).mean(3)
    return pixels.transpose(2, 0, 3, 1, 4).reshape(-1, size, size)


def rays(camera: Camera, size: int) -> Vector:
    """Unit vectors through the centers of `size` x `size` samples, row by row from the
    upper left.
    """
    forward = normalize(camera.target - camera.position)
    right = normalize(camera.right - (camera.right @ forward) * forward)
    up = jnp.cross(right, forward)
    across = camera.extent * ((jnp.arange(size) + 0.5) * (2 / size) - 1)
    x, y = jnp.tile(across, size), jnp.repeat(-across, size)
    length = jnp.sqrt(1 + x * x + y * y)
    return tuple((forward[i] + x * right[i] + y * up[i]) / length for i in range(3))  # pyright: ignore[reportReturnType]


def look(shape: Shape, origin: jax.Array, direction: Vector) -> Surface:
    """What rays from `origin` `[3]` meet."""
    depth, on_object = trace(shape, origin, direction)
    point = along(tuple(origin), direction, depth)
    flat = tuple(jnp.full_like(depth, value) for value in (0.0, 0.0, 1.0))

    def normals() -> Vector:
        slope = gradient(shape, point)
        return tuple(jnp.where(on_object, slope[i], flat[i]) for i in range(3))  # pyright: ignore[reportReturnType]

    normal = jax.lax.cond(on_object.any(), normals, lambda: flat)
    probe = along(point, normal, jnp.float32(OCCLUSION_REACH))
    low, high = bounding_box(shape, MARGIN + OCCLUSION_REACH)
    near = jnp.full_like(depth, True, bool)
    for i in range(3):
        near &= (probe[i] > low[i]) & (probe[i] < high[i])
    # Where nothing else is near, the object (or the ground) that the probe has left is just so far
    # away.
    gap = jax.lax.cond(
        near.any(), lambda: distance(shape, probe), lambda: jnp.full_like(depth, OCCLUSION_REACH)
    )
    return Surface(point, normal, jnp.clip(0.3 + 0.7 * gap / OCCLUSION_REACH, 0.3, 1.0), on_object)


def trace(shape: Shape, origin: jax.Array, direction: Vector) -> tuple[jax.Array, jax.Array]:
    """How far rays go until they meet the object or the ground, `[N]`, and whether it is the
    object.

    Args:
        shape: the object.
        origin: `[3]`, above the ground and outside the object's bounding box.
        direction: of length 1, pointing down.
    """
    to_ground = -origin[2] / direction[2]
    enter, leave = crossing(shape, tuple(origin), direction, MARGIN)
    leave = jnp.minimum(leave, to_ground - GROUND)

    def going(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        count, depth, gap = state
        return (count < PRIMARY_STEPS) & ((depth < leave) & (gap > HIT / 4)).any()

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        count, depth, _ = state
        gap = distance(shape, along(tuple(origin), direction, depth))
        return count + 1, jnp.where(gap < HIT / 4, depth, depth + STEP * gap), gap

    _, depth, gap = jax.lax.while_loop(
        going, step, (jnp.int32(0), enter, jnp.full_like(enter, 1.0))
    )
    on_object = (depth < leave) & (gap < HIT)
    return jnp.where(on_object, depth, to_ground), on_object


def shade(shape: Shape, light: Light, surface: Surface, samples: int) -> jax.Array:
    """The brightness of surface points, `[N]`: Lambert's law for what reaches them of the lamp, and
    light from the sky.

    Shadows are soft and cost the most: each pixel's first sample tells for all its `samples`, of
    which N is a multiple.
    """
    point, normal, occlusion, _ = surface
    facing = jnp.maximum(sum(normal[i] * light.direction[i] for i in range(3)), 0.0)
    first = len(facing) // samples
    x, y, z = along(point, normal, jnp.float32(0.03))
    seen = lit(shape, light, (x[:first], y[:first], z[:first]), facing[:first] > 0)
    sky = light.ambient * occlusion * (0.75 + 0.25 * normal[2])
    return jnp.clip(light.lamp * facing * jnp.tile(seen, samples) + sky, 0.0, 1.0)


def lit(shape: Shape, light: Light, point: Vector, facing: jax.Array) -> jax.Array:
    """How much of the lamp points see, `[N]`, from 0 to 1; 0 for those that do not face it.

    A ray that grazes the object sees half of the lamp; one that passes at distance d after
    traveling t sees hardness * d / (2 t) more, and all of it from `PENUMBRA` away.
    """
    towards = tuple(light.direction)
    enter, leave = crossing(shape, point, towards, PENUMBRA)
    start = jnp.maximum(enter, 0.03)

    def going(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        count, traveled, seen = state
        return (count < SHADOW_STEPS) & ((traveled < leave) & (seen > 0)).any()

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        count, traveled, seen = state
        gap = distance(shape, along(point, towards, traveled))
        more = (
            0.5
            * gap
            * jnp.where(
                gap > 0,
                jnp.maximum(light.hardness / traveled, 1 / PENUMBRA),
                light.hardness / traveled,
            )
        )
        seen = jnp.minimum(seen, jnp.where(traveled < leave, 0.5 + more, 1.0))
        return count + 1, traveled + jnp.maximum(gap, 0.04), seen

    seen = jax.lax.while_loop(going, step, (jnp.int32(0), start, jnp.where(facing, 1.0, 0.0)))[2]
    seen = jnp.clip(seen, 0.0, 1.0)
    return seen * seen * (3 - 2 * seen)


def crossing(
    shape: Shape, origin: tuple[jax.Array, ...], direction: tuple[jax.Array, ...], margin: float
) -> tuple[jax.Array, jax.Array]:
    """How far rays go until they enter and until they leave the bounding box, both `[N]`; those
    that miss it leave before.
    """
    low, high = bounding_box(shape, margin)
    lower = [(low[i] - origin[i]) / direction[i] for i in range(3)]
    upper = [(high[i] - origin[i]) / direction[i] for i in range(3)]
    enter = reduce(jnp.maximum, map(jnp.minimum, lower, upper))
    leave = reduce(jnp.minimum, map(jnp.maximum, lower, upper))
    return enter, leave


def bounding_box(shape: Shape, margin: float) -> tuple[jax.Array, jax.Array]:
    """The lowest and the highest corner `[3]` of a box `margin` away from all solids."""
    half = shape.half_size.at[:, :2].add(jnp.abs(shape.taper) * shape.half_size[:, 2:])
    extent = jnp.abs(shape.rotation * half[:, None, :]).sum(2)
    return (shape.center - extent).min(0) - margin, (shape.center + extent).max(0) + margin


@jax.jit
def distance(shape: Shape, point: Vector) -> jax.Array:
    """About the signed distance of points `[N]` from the object's surface."""
    nearest = jnp.full_like(point[0], 10.0)
    for i in range(shape.center.shape[0]):
        solid = Shape(*(field[i] for field in shape))
        nearest = smooth_minimum(nearest, solid_distance(solid, point), solid.blend)
    return nearest


@jax.jit
def solid_distance(solid: Shape, point: Vector) -> jax.Array:
    """The signed distance of points `[N]` from one solid, whose fields lack the first axis."""
    moved = [point[i] - solid.center[i] for i in range(3)]
    x, y, z = (sum(solid.rotation[i, axis] * moved[i] for i in range(3)) for axis in range(3))
    height = jnp.clip(z, -solid.half_size[2], solid.half_size[2])
    half_x = solid.half_size[0] + solid.taper[0] * height
    half_y = solid.half_size[1] + solid.taper[1] * height
    corner = solid.roundness * jnp.minimum(half_x, half_y)
    across = rounded(jnp.abs(x) - half_x, jnp.abs(y) - half_y, corner)
    return rounded(
        across,
        jnp.abs(z) - solid.half_size[2],
        jnp.minimum(solid.edge, jnp.minimum(half_x, half_y)),
    )


def rounded(a: jax.Array, b: jax.Array, radius: jax.Array) -> jax.Array:
    """The distance from the corner where a = 0 and b = 0 meet, from inside negative, rounded by
    `radius`.
    """
    a, b = a + radius, b + radius
    outside = jnp.sqrt(jnp.maximum(a, 0.0) ** 2 + jnp.maximum(b, 0.0) ** 2)
    return outside + jnp.minimum(jnp.maximum(a, b), 0.0) - radius


def smooth_minimum(a: jax.Array, b: jax.Array, blend: jax.Array) -> jax.Array:
    """The lesser of two distances; where they differ by less than `blend` (positive), a little less
    than both.
    """
    overlap = jnp.maximum(blend - jnp.abs(a - b), 0.0)
    return jnp.minimum(a, b) - overlap * overlap / (4 * blend)


def gradient(shape: Shape, point: Vector) -> Vector:
    """Unit normals of the surface, from the distances at the corners of a tetrahedron around each
    point.
    """
    corners = jnp.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], jnp.float32)

    def step(i: int, total: Vector) -> Vector:
        gap = distance(shape, along(point, tuple(corners[i]), jnp.float32(0.004)))
        return tuple(total[k] + corners[i, k] * gap for k in range(3))  # pyright: ignore[reportReturnType]

    total = jax.lax.fori_loop(0, 4, step, tuple(jnp.zeros_like(axis) for axis in point))
    length = jnp.sqrt(sum(axis * axis for axis in total) + 1e-20)
    return tuple(axis / length for axis in total)  # pyright: ignore[reportReturnType]


def along(
    origin: tuple[jax.Array, ...], direction: tuple[jax.Array, ...], depth: jax.Array
) -> Vector:
    """The points `depth` away from `origin`."""
    return tuple(origin[i] + depth * direction[i] for i in range(3))  # pyright: ignore[reportReturnType]


def normalize(vector: jax.Array) -> jax.Array:
    return vector / jnp.linalg.norm(vector)
