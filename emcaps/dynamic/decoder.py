"""Images from class capsules: the decoder of "Dynamic Routing Between Capsules", for vectors and
for matrices alike.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from emcaps.checks import check_floating, check_labels, check_shapes, check_sizes

RECONSTRUCTION_WEIGHT = 0.0005
"""Of the squared error, `reconstruction_loss`, beside a margin loss, from that paper's
section 4.1.
"""


class Decoder(nn.Module):
    """Three dense layers, ReLU, ReLU and sigmoid, from the pose of one class capsule to an image;
    the other poses count as 0.

    Attributes:
        image_shape: (height, width, channels).
        hidden_units: of the first two layers.
    """

    image_shape: Sequence[int]
    hidden_units: Sequence[int] = (512, 1024)

    @nn.compact
    def __call__(self, poses: jax.Array, chosen: jax.Array) -> jax.Array:
        """Reconstruct images.

        Args:
            poses: of the class capsules, `[B, J, ...]`, floating: vectors or matrices.
            chosen: integers `[B]` in [0, J), the class whose pose counts: in training the label,
                otherwise the class with the highest activation. Checked where they are known; where
                they are traced, a class out of range counts as none.

        Returns:
            Images in (0, 1), `[B, *image_shape]`.

        Raises:
            TypeError: poses are not floating point, or `chosen` not integers; an attribute is not
                of ints.
            ValueError: shapes do not match, or a known class is out of range; an attribute is not
                of ints of at least 1.
        """
        check_sizes("image_shape", self.image_shape, 3)
        check_sizes("hidden_units", self.hidden_units)
        values = masked(poses, chosen).reshape(poses.shape[0], math.prod(poses.shape[1:]))
        for index, units in enumerate(self.hidden_units, start=1):
            values = nn.relu(nn.Dense(units, name=f"hidden_{index}")(values))
        pixels = nn.Dense(math.prod(self.image_shape), name="pixels")(values)
        return jax.nn.sigmoid(pixels).reshape(poses.shape[0], *self.image_shape)


def masked(poses: jax.Array, chosen: jax.Array) -> jax.Array:
    """Poses `[B, J, ...]` with 0 for all but the chosen class of each example, `[B]`.

    Errors as `Decoder`.
    """
    check_floating("poses", poses)
    if poses.ndim < 3 or 0 in poses.shape:
        raise ValueError(
            f"poses must have shape [B, J, ...], no axis empty; got shape {list(poses.shape)}"
        )
    chosen = check_labels("chosen", chosen, poses.shape[:1], poses.shape[1])
    kept = jax.nn.one_hot(chosen, poses.shape[1], dtype=bool)
    return jnp.where(kept.reshape(*kept.shape, *(1,) * (poses.ndim - 2)), poses, 0)


def reconstruction_loss(images: jax.Array, reconstructed: jax.Array) -> jax.Array:
    """The sum of squared differences over the pixels of each image, `[B]`; both are
    `[B, height, width, channels]`, floating.

    Raises:
        TypeError: an argument is not floating point.
        ValueError: shapes differ.
    """
    shape = "B height width channels"
    check_shapes({"images": (images, shape), "reconstructed": (reconstructed, shape)})
    return ((images - reconstructed) ** 2).sum(tuple(range(1, images.ndim)))
