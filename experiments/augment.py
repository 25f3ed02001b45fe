"""From stored images to what the network sees: pure functions, to be jitted by their callers."""

import jax
import jax.numpy as jnp


def random_shift(key: jax.Array, images: jax.Array, max_shift: int) -> jax.Array:
    """Shift every image by its own whole number of rows and columns, uniform in [-max_shift, max_shift]; zeros come in.

    Args:
        key: decides all shifts; image i's depend on its place in the batch, not on the other images.
        images: `[B, H, W, C]`, any dtype.
        max_shift: static, >= 0.
    """
    offsets = jax.random.randint(key, (images.shape[0], 2), 0, 2 * max_shift + 1)
    padded = jnp.pad(images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0)))

    def window(image: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])

    return jax.vmap(window)(padded, offsets)


def to_float(images: jax.Array) -> jax.Array:
    """From uint8 to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255
