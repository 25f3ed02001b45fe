"""The batches of a run: a pure function of (key, step), so that a resumed run sees what an uninterrupted one would."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from experiments.configs import ImageConfig
from experiments.views import training_view


class Batch(NamedTuple):
    """Training examples.

    Attributes:
        images: `[B, H, W, C]`, float32 as the network sees them.
        labels: int32 `[B]`.
        dropout_keys: random keys `[B]` for what a network drops of each example; None drops nothing.
    """

    images: jax.Array
    labels: jax.Array
    dropout_keys: jax.Array | None = None


@functools.partial(jax.jit, static_argnames="num_examples")
def epoch_order(key: jax.Array, epoch: jax.Array | int, num_examples: int) -> jax.Array:
    """The order of the examples in an epoch, `[num_examples]`."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


@functools.partial(jax.jit, static_argnames=("batch_size", "config"))
def draw_batch(
    examples: Batch,
    order: jax.Array,
    position: jax.Array | int,
    view_key: jax.Array,
    dropout_key: jax.Array,
    batch_size: int,
    config: ImageConfig,
) -> Batch:
    """Batch number `position` of the epoch that is in this order, of random views of `examples`, whose images are uint8."""
    indices = jax.lax.dynamic_slice(order, (position * batch_size,), (batch_size,))
    images = training_view(config, view_key, examples.images[indices])
    return Batch(images, examples.labels[indices], jax.random.split(dropout_key, batch_size))


def check_batch_size(batch_size: int, num_images: int) -> None:
    """Raise ValueError unless an epoch has a batch."""
    if not 0 < batch_size <= num_images:
        raise ValueError(f"batch_size must be at most the number of training images, {num_images}; got {batch_size}")


class TrainingBatches:
    """`batches(step)` is the batch of that step, counted from 0. The last, partial batch of an epoch is left out.

    The examples live on one device, which draws each batch whole: how many devices share the batch does not change it.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, key: jax.Array, batch_size: int, config: ImageConfig):
        check_batch_size(batch_size, len(images))
        self._examples = jax.device_put(Batch(images, labels))  # pyright: ignore[reportArgumentType]
        self._order_key, *self._step_keys = jax.random.split(key, 3)
        self._batch_size = batch_size
        self._config = config
        self._epoch = -1

    def place(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and position of its batch in the epoch."""
        return divmod(step, len(self._examples.labels) // self._batch_size)

    def __call__(self, step: int) -> Batch:
        num_examples = len(self._examples.labels)
        epoch, position = self.place(step)
        if epoch != self._epoch:
            self._order = epoch_order(self._order_key, epoch, num_examples)
            self._epoch = epoch
        keys = (jax.random.fold_in(key, step) for key in self._step_keys)
        return draw_batch(self._examples, self._order, position, *keys, self._batch_size, self._config)
