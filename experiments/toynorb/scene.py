"""Where smallNORB's cameras and lamps are, and what they see of a toy.

smallNORB's toys stand on a turntable, and lamps and cameras stay. Here the toy stays, and cameras
and lamps go around it together: lighting and background do not depend on the azimuth.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.toynorb.render import (
    CENTER,
    Camera,
    Each,
    Light,
    Shape,
    by_platform,
    render_lights,
)

ELEVATIONS = tuple(range(30, 71, 5))  # degrees above the ground
AZIMUTHS = tuple(range(0, 360, 20))
DISTANCE = 5.0
EXTENT = 0.225  # half the width of what a camera sees, at distance 1
EYES = 6.0  # degrees between the two cameras

# Of each lighting: the lamp's azimuth from the camera's and its elevation in degrees, brightness,
# ambient brightness, hardness. On the ground all of them together are a plain light gray, from 0.68
# to 0.9 of white.
LIGHTINGS = np.array(
    [
        [-60.0, 55.0, 0.47, 0.50, 2.0],
        [65.0, 50.0, 0.48, 0.42, 2.5],
        [150.0, 45.0, 0.52, 0.52, 2.0],
        [-140.0, 60.0, 0.48, 0.48, 3.0],
        [10.0, 65.0, 0.40, 0.33, 2.0],
        [100.0, 40.0, 0.62, 0.37, 4.0],
    ],
    np.float32,
)


class View(NamedTuple):
    """From where and how a toy is seen. All float32 of one shape, `[N]` for many.

    Attributes:
        elevation: of the cameras, degrees above the ground.
        azimuth: degrees around the vertical.
        roll: degrees by which the toy turns in the image, clockwise.
        zoom: by what factor it is larger.
        right: by how much it is moved to the right, in widths of the image.
        down: the same, downwards, in heights.
    """

    elevation: jax.Array
    azimuth: jax.Array
    roll: jax.Array
    zoom: jax.Array
    right: jax.Array
    down: jax.Array


def stereo(elevation: jax.Array, azimuth: jax.Array) -> Camera:
    """The left and the right camera, as fields with a first axis of 2.

    Args:
        elevation: degrees above the ground, between 0 and 90.
        azimuth: degrees around the vertical.
    """
    right = direction(jnp.zeros_like(elevation), azimuth + 90.0)
    middle = direction(elevation, azimuth)

    def eye(side: jax.Array) -> Camera:
        angle = jnp.radians(side * EYES / 2)
        position = jnp.array(CENTER) + DISTANCE * (jnp.cos(angle) * middle + jnp.sin(angle) * right)
        return Camera(position, jnp.array(CENTER), right, jnp.float32(EXTENT))

    return jax.vmap(eye)(jnp.array([-1.0, 1.0]))


def lamps(azimuth: jax.Array) -> Light:
    """The six lightings, as fields with a first axis of 6, for cameras at `azimuth` degrees."""
    turns, elevations, brightness, ambient, hardness = jnp.array(LIGHTINGS).T
    return Light(jax.vmap(direction)(elevations, azimuth + turns), brightness, ambient, hardness)


def direction(elevation: jax.Array, azimuth: jax.Array) -> jax.Array:
    """The unit vector `[3]` from the middle to what is at these angles, in degrees; a turn of 360
    is none, to the last bit.
    """
    elevation, azimuth = jnp.radians(elevation), jnp.radians(jnp.mod(azimuth, 360.0))
    level = jnp.cos(elevation)
    return jnp.stack([level * jnp.cos(azimuth), level * jnp.sin(azimuth), jnp.sin(elevation)])


@partial(jax.jit, static_argnames=("size", "samples"))
def photograph(
    shape: Shape, elevation: jax.Array, azimuth: jax.Array, size: int = 48, samples: int = 2
) -> jax.Array:
    """Stereo pairs of one toy in all lightings.

    Args:
        shape: the toy.
        elevation: `[N]`, degrees.
        azimuth: `[N]`, degrees.
        size: of the images.
        samples: rays per pixel in each direction.

    Returns:
        uint8 `[N, 6, 2, size, size]`: views, lightings, left and right.
    """

    def take(shape: Shape, elevation: jax.Array, azimuth: jax.Array, each: Each) -> jax.Array:
        def view(angles: tuple[jax.Array, jax.Array]) -> jax.Array:
            lights = lamps(angles[1])
            images = each(
                lambda camera: render_lights(shape, camera, lights, size, samples, each),
                stereo(*angles),
            )
            return jnp.round(255 * images).astype(jnp.uint8).swapaxes(0, 1)

        return each(view, (elevation, azimuth))

    return by_platform(take, shape, elevation, azimuth)


@partial(jax.jit, static_argnames=("size", "samples"))
def snapshots(
    shape: Shape, views: View, lightings: jax.Array, size: int = 48, samples: int = 2
) -> jax.Array:
    """Stereo pairs of one toy, each view in one lighting.

    Args:
        shape: the toy.
        views: with fields `[N]`.
        lightings: of `LIGHTINGS`, `[N]`, integers.
        size: of the images.
        samples: rays per pixel in each direction.

    Returns:
        uint8 `[N, 2, size, size]`: left and right.
    """

    def take(shape: Shape, views: View, lightings: jax.Array, each: Each) -> jax.Array:
        def snapshot(given: tuple[View, jax.Array]) -> jax.Array:
            view, lighting = given
            light = jax.tree.map(lambda field: field[lighting][None], lamps(view.azimuth))
            cameras = jax.vmap(lambda camera: moved(camera, view))(
                stereo(view.elevation, view.azimuth)
            )
            images = each(
                lambda camera: render_lights(shape, camera, light, size, samples, each)[0], cameras
            )
            return jnp.round(255 * images).astype(jnp.uint8)

        return each(snapshot, (views, lightings))

    return by_platform(take, shape, views, lightings)


def moved(camera: Camera, view: View) -> Camera:
    """The camera as it must be for the toy to be rolled, larger and elsewhere in its image."""
    sight = camera.target - camera.position
    forward = sight / jnp.linalg.norm(sight)
    right = camera.right - (camera.right @ forward) * forward
    right /= jnp.linalg.norm(right)
    up = jnp.cross(right, forward)
    angle, extent = jnp.radians(view.roll), camera.extent / view.zoom
    rolled_right, rolled_up = (
        jnp.cos(angle) * right + jnp.sin(angle) * up,
        jnp.cos(angle) * up - jnp.sin(angle) * right,
    )
    shift = (
        2 * extent * jnp.linalg.norm(sight) * (view.down * rolled_up - view.right * rolled_right)
    )
    return Camera(camera.position + shift, camera.target + shift, rolled_right, extent)
