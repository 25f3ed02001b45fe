"""A data set and a run that are small enough to train in a test."""

import functools
from pathlib import Path

import jax
import numpy as np

from emcaps import RoutingOptions
from experiments.batches import Batch
from experiments.configs import ImageConfig, ModelConfig, TrainConfig
from experiments.datasets import Dataset
from experiments.learner import TrainState, init_state, make_model

IMAGE_SHAPE = (13, 13, 1)
MODEL = ModelConfig(conv_channels=4, primary_capsules=2, conv_capsules=(3,), routing=RoutingOptions(num_iterations=1))
CONFIG = TrainConfig(
    model=MODEL, dataset="mnist", steps=6, batch_size=8, eval_every=4, images=ImageConfig(max_shift=1), warmup_steps=0
)


def dataset(num_train: int = 20, num_test: int = 37) -> Dataset:
    """Noise, brighter in the third of the image that is the label."""
    random = np.random.default_rng(0)

    def split(size: int) -> tuple[np.ndarray, np.ndarray]:
        labels = random.integers(0, 3, size).astype(np.int32)
        images = random.integers(0, 100, (size, *IMAGE_SHAPE)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[4 * label : 4 * label + 4] += 150
        return images, labels

    return Dataset("mnist", ("top", "middle", "bottom"), *split(num_train), *split(num_test))


def write_npz(path: Path) -> None:
    """A data set like `dataset`, with more to train on, as a file."""
    data = dataset(num_train=60)
    split = np.array(["train"] * len(data.train_labels) + ["test"] * len(data.test_labels))
    images = np.concatenate([data.train_images, data.test_images])
    np.savez(path, image=images, label=np.concatenate([data.train_labels, data.test_labels]), split=split)


@functools.cache
def initial_state() -> TrainState:
    """A state before the first step, in NumPy arrays, which no training step can take away."""
    init = jax.jit(functools.partial(init_state, CONFIG, make_model(MODEL, 3)))
    return jax.device_get(init(np.zeros((1, *IMAGE_SHAPE), np.float32), jax.random.key(0)))


def with_raw_keys(batch: Batch) -> Batch:
    """A batch with the raw data of its keys, which NumPy can compare."""
    assert batch.dropout_keys is not None
    return batch._replace(dropout_keys=jax.random.key_data(batch.dropout_keys))
