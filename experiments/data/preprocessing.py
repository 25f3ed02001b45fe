"""From stored images to what the network sees: its settings, and pure functions to be jitted by
their callers.

An image is first prepared whole (`prepare`), then a view of it is taken: a random one in training,
the center in test. For smallNORB this is the paper's pipeline: 96x96 to 48x48, each image to zero
mean and unit variance, 32x32 of it, other contrast and brightness.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from emcaps.pretrained import prepare_images
from experiments.runtime.fields import check_not_negative, check_positive, check_positive_or_none


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """What the network sees of an image; see the functions below."""

    downsample: int = 1
    """Images become smaller by this factor in height and width: each pixel the mean of so many
    squared.
    """
    standardize: bool = False
    """Each image to mean 0 and variance 1; otherwise pixels are in [0, 1]."""
    crop: int | None = None
    """Side of the square that the network sees: at a random place in training, at the center in
    test.
    """
    max_shift: int = 2
    """Training images are shifted at random by up to this many pixels."""
    max_rotation: float = 0.0
    """Training images are turned at random by up to this many degrees, either way."""
    max_scaling: float = 0.0
    """Training images are scaled by a random factor of 1 plus or minus up to this."""
    contrast: float = 0.0
    """Training images are stretched about their mean by a random factor of 1 plus or minus up to
    this.
    """
    brightness: float = 0.0
    """To training images a random number of up to plus or minus this is added."""

    def __post_init__(self):
        check_positive(self, "downsample")
        check_positive_or_none(self, "crop")
        check_not_negative(self, "max_shift", "max_rotation", "brightness")
        if not 0 <= self.max_scaling < 1:
            raise ValueError(f"max_scaling must lie in [0, 1); got {self.max_scaling}")
        if not 0 <= self.contrast <= 1:
            raise ValueError(f"contrast must lie in [0, 1]; got {self.contrast}")


# The paper's pipeline for smallNORB. It gives no numbers for contrast and brightness; these are
# ours.
NORB_IMAGES = ImageConfig(
    downsample=2, standardize=True, crop=32, max_shift=0, contrast=0.5, brightness=0.5
)
TOYNORB_IMAGES = dataclasses.replace(NORB_IMAGES, downsample=1)
# What the network sees of data sets for which it is not the default of `ImageConfig`.
DATASET_IMAGES = {
    "affnist": ImageConfig(max_shift=6),  # to anywhere
    "smallnorb": NORB_IMAGES,
    "toynorb": TOYNORB_IMAGES,
    "toynorb96": NORB_IMAGES,
    "toynorb_tuning": TOYNORB_IMAGES,
}


def prepare(config: ImageConfig, images: jax.Array) -> jax.Array:
    """Whole images as numbers of the size of 1, as the config has it:
    `emcaps.pretrained.prepare_images`.
    """
    return prepare_images(images, downsample=config.downsample, standardize=config.standardize)


def training_view(config: ImageConfig, key: jax.Array, images: jax.Array) -> jax.Array:
    """A random view of each of the images `[B, H, W, C]`, uint8: moved, turned, scaled, of other
    contrast and brightness.

    Image i's view depends on its place in the batch, not on the other images.
    """
    shift_key, crop_key, contrast_key, brightness_key = jax.random.split(key, 4)
    views = random_shift(shift_key, prepare(config, images), config.max_shift)
    if config.max_rotation or config.max_scaling:
        low, high = (
            np.array([-config.max_rotation, -config.max_scaling]),
            np.array([config.max_rotation, config.max_scaling]),
        )
        degrees, scaling = jax.random.uniform(
            jax.random.fold_in(key, 4), (2, len(views)), minval=low[:, None], maxval=high[:, None]
        )
        views = turned(views, jnp.deg2rad(degrees), 1 + scaling)
    if config.crop is not None:
        offsets = jax.random.randint(
            crop_key, (len(views), 2), 0, crop_room(config.crop, views.shape[1:3]) + 1
        )
        views = windows(views, offsets, (config.crop, config.crop))
    if config.contrast:
        factor = 1 + jax.random.uniform(
            contrast_key, (len(views), 1, 1, 1), minval=-config.contrast, maxval=config.contrast
        )
        mean = views.mean((1, 2, 3), keepdims=True)
        views = mean + factor * (views - mean)
    if config.brightness:
        views += jax.random.uniform(
            brightness_key,
            (len(views), 1, 1, 1),
            minval=-config.brightness,
            maxval=config.brightness,
        )
    return views


def evaluation_view(
    config: ImageConfig, images: jax.Array, place: tuple[float, float] | jax.Array = (0.5, 0.5)
) -> jax.Array:
    """The view of each of the images `[B, H, W, C]` whose crop lies at `place`: (0, 0) is top left,
    (1, 1) bottom right.

    Pixels are uint8, or floating in [0, 1], as for `prepare_images`.
    """
    views = prepare(config, images)
    if config.crop is None:
        return views
    offsets = jnp.round(jnp.asarray(place) * crop_room(config.crop, views.shape[1:3])).astype(
        jnp.int32
    )
    return windows(views, jnp.broadcast_to(offsets, (len(views), 2)), (config.crop, config.crop))


def crop_places(number: int) -> np.ndarray:
    """Places for `evaluation_view`, `[number, 2]` in [0, 1]: the center, and then as even as can be
    whatever their number is.

    They are Roberts's additive recurrence with the plastic number, 1.3247, the root of x^3 = x + 1.
    """
    plastic = 1.32471795724475
    return (0.5 + np.arange(number)[:, None] * np.array([1 / plastic, 1 / plastic**2])) % 1


def crop_room(crop: int, size: tuple[int, ...]) -> np.ndarray:
    """By how many rows and columns a square can move in an image of this height and width, `[2]`.

    Raises ValueError if by none.
    """
    room = np.array(size) - crop
    if room.min() < 0:
        raise ValueError(
            f"crop must be at most the images' height and width, {size[0]}x{size[1]}; got {crop}"
        )
    return room


def random_shift(key: jax.Array, images: jax.Array, max_shift: int) -> jax.Array:
    """Shift every image by its own whole number of rows and columns, uniform in [-max_shift,
    max_shift]; zeros come in.

    Args:
        key: decides all shifts; image i's depend on its place in the batch, not on the other
            images.
        images: `[B, H, W, C]`, any dtype.
        max_shift: static, >= 0.
    """
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * max_shift + 1)
    padded = jnp.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)))
    return windows(padded, offsets, (images.shape[1], images.shape[2]))


def turned(images: jax.Array, angles: jax.Array, factors: jax.Array) -> jax.Array:
    """Each image `[B, H, W, C]`, floating, turned counterclockwise and made larger about its
    center; edges go on outside.

    Pixels are interpolated linearly.

    Args:
        images: floating.
        angles: in radians, `[B]`.
        factors: above 0, `[B]`.
    """
    height, width = images.shape[1:3]
    rows, columns = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )

    def turn(image: jax.Array, angle: jax.Array, factor: jax.Array) -> jax.Array:
        cosine, sine = jnp.cos(angle) / factor, jnp.sin(angle) / factor
        source_rows = cosine * rows + sine * columns + (height - 1) / 2
        source_columns = cosine * columns - sine * rows + (width - 1) / 2
        sample = functools.partial(
            map_coordinates, coordinates=[source_rows, source_columns], order=1, mode="nearest"
        )
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(turn)(images, angles, factors)


def windows(images: jax.Array, offsets: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Of each image `[B, H, W, C]` the window of that height and width that starts at its row and
    column of `offsets` `[B, 2]`.
    """

    def window(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (*size, image.shape[-1]))

    return jax.vmap(window)(images, offsets)
