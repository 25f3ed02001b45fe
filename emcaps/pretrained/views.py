"""From stored images to what a network sees of them: pure functions, to be jitted by
their callers.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from emcaps.checks import check_bool, check_pixels, check_positive_int


def prepare_images(
    images: jax.Array, *, downsample: int = 1, standardize: bool = False
) -> jax.Array:
    """Whole images as numbers of the size of 1: `[B, H, W, C]` to
    `[B, H / downsample, W / downsample, C]`.

    Args:
        images: uint8, or floating in [0, 1], by which the result can be differentiated: 1 is the
            255 of uint8. The range is not checked.
        downsample: the factor by which height and width become smaller: each pixel is the mean of
            `downsample` x `downsample` of them.
        standardize: each image to mean 0 and variance 1 over its pixels and channels; an image that
            is the same everywhere is 0. Otherwise values are in [0, 1].

    Returns:
        float32 for uint8, otherwise in the dtype of `images`.

    Raises:
        TypeError: images are no array, or neither uint8 nor floating point; `downsample` is no int,
            or `standardize` no bool.
        ValueError: images have another rank; height or width cannot be divided by `downsample`, or
            this is below 1.
    """
    check_pixels("images", images)
    check_positive_int("downsample", downsample)
    check_bool("standardize", standardize)
    if images.ndim != 4:
        raise ValueError(f"images must have shape [B, H, W, C]; got shape {list(np.shape(images))}")
    batch, height, width, channels = images.shape
    if height % downsample or width % downsample:
        raise ValueError(
            f"downsample must divide the images' height and width, {height}x{width}; got "
            f"{downsample}"
        )
    if jnp.issubdtype(images.dtype, jnp.integer):
        images = images.astype(jnp.float32) / 255
    if downsample > 1:
        images = images.reshape(batch, height // downsample, downsample, width, channels).mean(2)
        images = images.reshape(
            batch, height // downsample, width // downsample, downsample, channels
        ).mean(3)
    if standardize:
        images = images - images.mean((1, 2, 3), keepdims=True)
        variance = (images**2).mean((1, 2, 3), keepdims=True)
        deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1))  # at 0 the root has no slope
        numbers = math.prod(images.shape[1:])
        # What one pixel off by one gray level would make.
        images = images / jnp.maximum(deviation, 1 / 255 / numbers**0.5)
    return images


@dataclasses.dataclass(frozen=True)
class View:
    """What a network sees of an image: `prepare_images`, and of this the square in the center.

    Attributes:
        downsample: see `prepare_images`.
        standardize: see `prepare_images`.
        crop: side of the square, after `downsample`; None: all of it.

    Raises:
        TypeError, ValueError: a size is not an int of at least 1, or `standardize` not a bool.
    """

    downsample: int = 1
    standardize: bool = False
    crop: int | None = None

    def __post_init__(self):
        check_positive_int("downsample", self.downsample)
        check_bool("standardize", self.standardize)
        if self.crop is not None:
            check_positive_int("crop", self.crop)

    def __call__(self, images: jax.Array) -> jax.Array:
        """From images `[B, H, W, C]` to `[B, crop, crop, C]`, or, where `crop` is None, to
        `[B, H / downsample, W / downsample, C]`.

        Dtypes and errors as of `prepare_images`; ValueError, too, if the images are smaller than
        the crop.
        """
        images = prepare_images(images, downsample=self.downsample, standardize=self.standardize)
        if self.crop is None:
            return images
        if min(images.shape[1:3]) < self.crop:
            raise ValueError(
                f"crop must be at most the images' height and width, {images.shape[1:3]}; got "
                f"{self.crop}"
            )
        row, column = (round((size - self.crop) / 2) for size in images.shape[1:3])
        return images[:, row : row + self.crop, column : column + self.crop]
