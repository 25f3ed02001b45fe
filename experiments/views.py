"""From stored images to what the network sees: pure functions, to be jitted by their callers.

An image is first prepared whole (`prepare`), then a view of it is taken: a random one in training, the centre in test. For
smallNORB this is the paper's pipeline: 96x96 to 48x48, each image to zero mean and unit variance, 32x32 of it, other contrast and
brightness.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from emcaps import prepare_images
from experiments.configs import ImageConfig


def prepare(config: ImageConfig, images: jax.Array) -> jax.Array:
    """Whole images as numbers of the size of 1, as the config has it: `emcaps.prepare_images`."""
    return prepare_images(images, downsample=config.downsample, standardize=config.standardize)


def training_view(config: ImageConfig, key: jax.Array, images: jax.Array) -> jax.Array:
    """A random view of each of the images `[B, H, W, C]`, uint8: moved, turned, scaled, of other contrast and brightness.

    Image i's view depends on its place in the batch, not on the other images.
    """
    shift_key, crop_key, contrast_key, brightness_key = jax.random.split(key, 4)
    views = random_shift(shift_key, prepare(config, images), config.max_shift)
    if config.max_rotation or config.max_scaling:
        low, high = np.array([-config.max_rotation, -config.max_scaling]), np.array([config.max_rotation, config.max_scaling])
        degrees, scaling = jax.random.uniform(
            jax.random.fold_in(key, 4), (2, len(views)), minval=low[:, None], maxval=high[:, None]
        )
        views = turned(views, jnp.deg2rad(degrees), 1 + scaling)
    if config.crop is not None:
        offsets = jax.random.randint(crop_key, (len(views), 2), 0, crop_room(config.crop, views.shape[1:3]) + 1)
        views = windows(views, offsets, (config.crop, config.crop))
    if config.contrast:
        factor = 1 + jax.random.uniform(contrast_key, (len(views), 1, 1, 1), minval=-config.contrast, maxval=config.contrast)
        mean = views.mean((1, 2, 3), keepdims=True)
        views = mean + factor * (views - mean)
    if config.brightness:
        views += jax.random.uniform(brightness_key, (len(views), 1, 1, 1), minval=-config.brightness, maxval=config.brightness)
    return views


def test_view(config: ImageConfig, images: jax.Array, place: tuple[float, float] | jax.Array = (0.5, 0.5)) -> jax.Array:
    """The view of each of the images `[B, H, W, C]` whose crop lies at `place`: (0, 0) is top left, (1, 1) bottom right.

    Pixels are uint8, or floating in [0, 1], as for `prepare_images`.
    """
    views = prepare(config, images)
    if config.crop is None:
        return views
    offsets = jnp.round(jnp.asarray(place) * crop_room(config.crop, views.shape[1:3])).astype(jnp.int32)
    return windows(views, jnp.broadcast_to(offsets, (len(views), 2)), (config.crop, config.crop))


test_view.__test__ = False  # pytest: not a test


def crop_places(number: int) -> np.ndarray:
    """Places for `test_view`, `[number, 2]` in [0, 1]: the centre, and then as even as can be whatever their number is.

    They are Roberts's additive recurrence with the plastic number, 1.3247, the root of x^3 = x + 1.
    """
    plastic = 1.32471795724475
    return (0.5 + np.arange(number)[:, None] * np.array([1 / plastic, 1 / plastic**2])) % 1


def crop_room(crop: int, size: tuple[int, ...]) -> np.ndarray:
    """By how many rows and columns a square can move in an image of this height and width, `[2]`. Raises ValueError if by none."""
    room = np.array(size) - crop
    if room.min() < 0:
        raise ValueError(f"crop must be at most the images' height and width, {size[0]}x{size[1]}; got {crop}")
    return room


def random_shift(key: jax.Array, images: jax.Array, max_shift: int) -> jax.Array:
    """Shift every image by its own whole number of rows and columns, uniform in [-max_shift, max_shift]; zeros come in.

    Args:
        key: decides all shifts; image i's depend on its place in the batch, not on the other images.
        images: `[B, H, W, C]`, any dtype.
        max_shift: static, >= 0.
    """
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * max_shift + 1)
    padded = jnp.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)))
    return windows(padded, offsets, (images.shape[1], images.shape[2]))


def turned(images: jax.Array, angles: jax.Array, factors: jax.Array) -> jax.Array:
    """Each image `[B, H, W, C]`, floating, turned counterclockwise and made larger about its centre; edges go on outside.

    Pixels are interpolated linearly.

    Args:
        images: floating.
        angles: in radians, `[B]`.
        factors: above 0, `[B]`.
    """
    height, width = images.shape[1:3]
    rows, columns = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")

    def turn(image: jax.Array, angle: jax.Array, factor: jax.Array) -> jax.Array:
        cosine, sine = jnp.cos(angle) / factor, jnp.sin(angle) / factor
        source_rows = cosine * rows + sine * columns + (height - 1) / 2
        source_columns = cosine * columns - sine * rows + (width - 1) / 2
        sample = functools.partial(map_coordinates, coordinates=[source_rows, source_columns], order=1, mode="nearest")
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(turn)(images, angles, factors)


def windows(images: jax.Array, offsets: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Of each image `[B, H, W, C]` the window of that height and width that starts at its row and column of `offsets` `[B, 2]`."""

    def window(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (*size, image.shape[-1]))

    return jax.vmap(window)(images, offsets)
