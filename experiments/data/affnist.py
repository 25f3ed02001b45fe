"""affNIST's recipe: digits of MNIST on a larger black square, each rotated, sheared, scaled and
moved by random amounts.

By https://www.cs.toronto.edu/~tijmen/affNIST: rotation by up to 20 degrees, shear by up to 0.2,
vertical and horizontal scale from 0.8 to 1.2, each uniform, and then uniform translation to
anywhere in 40x40 where the whole digit is inside. Networks that have only seen shifted digits are
tested on them (Sabour, Frosst, Hinton 2017, section 5.1). The page does not say in which order the
maps are applied and how pixels are interpolated. Here a digit is scaled, then sheared, then rotated
about its image's center, and interpolation is bilinear.
"""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

SIDE = 40
MAX_ANGLE = 20.0  # degrees
MAX_SHEAR = 0.2
SCALES = (0.8, 1.2)
AT_A_TIME = 500  # images in memory as floats


def affine_matrix(angle: jax.Array, shear: jax.Array, scales: jax.Array) -> jax.Array:
    """The matrix `[2, 2]` that maps (row, column), counted from the center, to where it goes.

    Args:
        angle: scalar, degrees, counterclockwise as the image is looked at.
        shear: scalar, columns to the right for each row down.
        scales: vertical and horizontal, `[2]`.
    """
    sine, cosine = jnp.sin(jnp.radians(angle)), jnp.cos(jnp.radians(angle))
    rotation = jnp.array([[cosine, -sine], [sine, cosine]])
    return rotation @ jnp.array([[1.0, 0.0], [shear, 1.0]]) @ jnp.diag(scales)


def affine_image(image: jax.Array, matrix: jax.Array, place: jax.Array) -> jax.Array:
    """An image `[H, W]`, floating, mapped by a matrix `[2, 2]` about its center, on black of `SIDE`
    squared.

    Args:
        image: what is mapped; around it is black.
        matrix: see `affine_matrix`.
        place: rows and columns, `[2]` in [0, 1]: of all translations at which everything that is
            not black is inside, 0 is the first and 1 the last. Where there are none, the image
            comes in the middle of what there would have to be.
    """
    here = jnp.stack(jnp.meshgrid(*map(jnp.arange, image.shape), indexing="ij")).reshape(2, -1)
    here = here - (jnp.array(image.shape)[:, None] - 1) / 2
    there = matrix @ here
    # A pixel's light reaches, by interpolation, up to one pixel from it, before the map.
    reach = jnp.abs(matrix).sum(1)
    ink = image.reshape(-1) > 0
    top = jnp.where(ink, there, jnp.inf).min(1, initial=jnp.inf) - reach
    bottom = jnp.where(ink, there, -jnp.inf).max(1, initial=-jnp.inf) + reach
    first, last = -top, SIDE - 1 - bottom
    center = jnp.where(first <= last, first + place * (last - first), (first + last) / 2)
    center = jnp.where(ink.any(), center, (SIDE - 1) / 2)

    pixels = jnp.stack(jnp.meshgrid(jnp.arange(SIDE), jnp.arange(SIDE), indexing="ij")).reshape(
        2, -1
    )
    source = (
        jnp.linalg.inv(matrix) @ (pixels - center[:, None])
        + (jnp.array(image.shape)[:, None] - 1) / 2
    )
    return map_coordinates(image, list(source), order=1).reshape(SIDE, SIDE)


@jax.jit
def affine_digits(key: jax.Array, images: jax.Array) -> jax.Array:
    """Random affine maps of images: uint8 `[B, H, W, 1]` to uint8 `[B, SIDE, SIDE, 1]`.

    Image i's map depends on the key and i, not on the other images.

    Raises:
        ValueError: images have another shape or dtype.
    """
    check_digits(images)

    def draw(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        key, image = given
        keys = jax.random.split(key, 4)
        angle = jax.random.uniform(keys[0], minval=-MAX_ANGLE, maxval=MAX_ANGLE)
        shear = jax.random.uniform(keys[1], minval=-MAX_SHEAR, maxval=MAX_SHEAR)
        scales = jax.random.uniform(keys[2], (2,), minval=SCALES[0], maxval=SCALES[1])
        place = jax.random.uniform(keys[3], (2,))
        mapped = affine_image(
            image[..., 0].astype(jnp.float32), affine_matrix(angle, shear, scales), place
        )
        return jnp.round(mapped).astype(jnp.uint8)[..., None]

    return jax.lax.map(draw, (example_keys(key, len(images)), images), batch_size=AT_A_TIME)


def centered(images: jax.Array) -> jax.Array:
    """Images in the middle of black of `SIDE` squared: uint8 `[B, H, W, 1]` to
    `[B, SIDE, SIDE, 1]`.

    Errors as `affine_digits`.
    """
    check_digits(images)
    margins = [((SIDE - size) // 2, (SIDE - size + 1) // 2) for size in images.shape[1:3]]
    return jnp.pad(images, ((0, 0), *margins, (0, 0)))


@jax.jit
def placed(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images somewhere on black of `SIDE` squared, moved by whole pixels: as `centered`, and keys
    as for `affine_digits`.
    """
    check_digits(images)
    room = jnp.array([SIDE - size + 1 for size in images.shape[1:3]])

    def place(key: jax.Array, image: jax.Array) -> jax.Array:
        row, column = jax.random.randint(key, (2,), 0, room)
        return jax.lax.dynamic_update_slice(
            jnp.zeros((SIDE, SIDE, 1), jnp.uint8), image, (row, column, 0)
        )

    return jax.vmap(place)(example_keys(key, len(images)), images)


def example_keys(key: jax.Array, number: int) -> jax.Array:
    """A key for each example, `[number]`, whatever their number is."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(number))


def check_digits(images: jax.Array) -> None:
    """Raise ValueError unless images are uint8 `[B, H, W, 1]`, at most `SIDE` on a side."""
    shape, dtype = jnp.shape(images), images.dtype
    if dtype != jnp.uint8 or len(shape) != 4 or shape[3] != 1 or max(shape[1:3]) > SIDE:
        raise ValueError(
            f"images must be uint8 [B, H, W, 1], height and width at most {SIDE}; got {dtype} "
            f"{list(shape)}"
        )
