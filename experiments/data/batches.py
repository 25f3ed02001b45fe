"""The batches of a run: a pure function of (key, step), so that a resumed run sees what an
uninterrupted one would.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from experiments.data.preprocessing import ImageConfig, training_view


class Batch(NamedTuple):
    """Training examples.

    Attributes:
        images: `[B, H, W, C]`, float32 as the network sees them.
        labels: int32 `[B]`.
        dropout_keys: the raw data of random keys, uint32 `[B, 2]`, for what a network drops of each
            example; None drops nothing. Raw, because JAX is slow to hand typed keys to devices and
            programs.
    """

    images: jax.Array
    labels: jax.Array
    dropout_keys: jax.Array | None = None


@functools.partial(jax.jit, static_argnames=("batch_size", "num_examples"))
def epoch_order(key: jax.Array, step: jax.Array, batch_size: int, num_examples: int) -> jax.Array:
    """The order of the examples in the epoch of a step, `[num_examples]`."""
    return jax.random.permutation(
        jax.random.fold_in(key, step // (num_examples // batch_size)), num_examples
    )


@functools.partial(jax.jit, static_argnames=("batch_size", "config"))
def draw_batch(
    examples: Batch,
    order: jax.Array,
    step: jax.Array,
    view_key: jax.Array,
    dropout_key: jax.Array,
    batch_size: int,
    config: ImageConfig,
) -> tuple[Batch, jax.Array]:
    """The batch of a step, of random views of `examples`, whose images are uint8, in the order of
    its epoch; and the next step.
    """
    position = step % (len(order) // batch_size)
    indices = jax.lax.dynamic_slice(order, (position * batch_size,), (batch_size,))
    images = training_view(config, jax.random.fold_in(view_key, step), examples.images[indices])
    dropout_keys = jax.random.split(jax.random.fold_in(dropout_key, step), batch_size)
    return Batch(images, examples.labels[indices], jax.random.key_data(dropout_keys)), step + 1


def check_batch_size(batch_size: int, num_images: int) -> None:
    """Raise ValueError unless an epoch has a batch."""
    if not 0 < batch_size <= num_images:
        raise ValueError(
            f"batch_size must be at most the number of training images, {num_images}; got "
            f"{batch_size}"
        )


class TrainingBatches:
    """`batches(step)` is the batch of that step, counted from 0. The last, partial batch of an
    epoch is left out.

    The examples live on one device, which draws each batch whole: how many devices share the batch
    does not change it. The device counts the steps, too: as long as they come one after the other,
    nothing is sent to it.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        key: jax.Array,
        batch_size: int,
        config: ImageConfig,
    ):
        check_batch_size(batch_size, len(images))
        self._examples = jax.device_put(Batch(images, labels))  # pyright: ignore[reportArgumentType]
        self._order_key, *self._step_keys = jax.random.split(key, 3)
        self._batch_size = batch_size
        self._config = config
        self._epoch = self._next = -1

    def place(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and position of its batch in the epoch."""
        return divmod(step, len(self._examples.labels) // self._batch_size)

    def __call__(self, step: int) -> Batch:
        if step != self._next:
            self._step = jax.device_put(np.int32(step))
        epoch, _ = self.place(step)
        if epoch != self._epoch:
            self._order = epoch_order(
                self._order_key, self._step, self._batch_size, len(self._examples.labels)
            )
            self._epoch = epoch
        batch, self._step = draw_batch(
            self._examples,
            self._order,
            self._step,
            *self._step_keys,
            self._batch_size,
            self._config,
        )
        self._next = step + 1
        return batch
