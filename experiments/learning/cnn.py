"""The convolutional network that the paper compares with (its section 4.1)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emcaps.checks import check_shapes

KEPT = 0.5  # of the hidden units, in training


class BaselineCNN(nn.Module):
    """Two 5x5 convolutions with ReLU, each followed by 2x2 max pooling; hidden units with ReLU and
    dropout; the classes.

    The paper does not say how its convolutions are padded. With zeros around the image, so that
    only pooling makes maps smaller, there are 4,253,349 parameters for 32x32 images of 2 channels
    and 5 classes: the paper's 4.2M.

    Attributes:
        num_classes: of the output.
        channels: of the two convolutions.
        hidden_units: of the layer between them and the classes.

    Raises:
        ValueError: images have a wrong rank, or are smaller than 4x4.
        TypeError: images are not floating point.
    """

    num_classes: int
    channels: tuple[int, int] = (32, 64)
    hidden_units: int = 1024

    @nn.compact
    def __call__(
        self, images: jax.Array, dropout_keys: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Classify images.

        Args:
            images: `[B, height, width, channels]`, floating.
            dropout_keys: in training, the raw data of a key for each image, uint32 `[B, 2]`: which
                hidden units are dropped does not depend on how many devices share the batch. None
                drops nothing.

        Returns:
            The probabilities of the classes, `[B, num_classes]`; and what each layer gave, by name,
            in the order of the data: `conv_1`, `conv_2`, `hidden`, and `classes`, the logits
            `[B, num_classes]`.
        """
        check_shapes({"images": (images, "B height width channels")})
        if min(images.shape[1:3]) < 4:
            raise ValueError(f"images must be at least 4x4; got shape {list(images.shape)}")
        out: dict[str, Any] = {}
        values = images
        for index, channels in enumerate(self.channels, start=1):
            features = nn.relu(nn.Conv(channels, (5, 5), name=f"conv_{index}")(values))
            values = out[f"conv_{index}"] = nn.max_pool(features, (2, 2), strides=(2, 2))
        flat = values.reshape(len(images), math.prod(values.shape[1:]))
        hidden = nn.relu(nn.Dense(self.hidden_units, name="hidden")(flat))
        if dropout_keys is not None:
            hidden = dropout(hidden, dropout_keys)
        out["hidden"] = hidden
        out["classes"] = nn.Dense(self.num_classes, name="classes")(hidden)
        return jax.nn.softmax(out["classes"]), out


def dropout(values: jax.Array, keys: jax.Array) -> jax.Array:
    """Each of `[B, units]` is 0 or divided by the probability of not being 0; `keys` `[B, 2]`
    decide for each example.
    """
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, KEPT, values.shape[1:]))(
        jax.random.wrap_key_data(keys)
    )
    return jnp.where(kept, values / KEPT, 0)
