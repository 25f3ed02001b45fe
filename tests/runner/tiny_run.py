"""A data set, a run and a classifier that are small enough for a test."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcaps import CapsNet, RoutingOptions
from emcaps.pretrained import Classifier, Examples, View
from experiments.claims.networks import Recipe, with_model
from experiments.claims.study import Study, TrainedNetwork
from experiments.data.dataset import Dataset
from experiments.data.preprocessing import ImageConfig
from experiments.devices.parallel import Execution
from experiments.learning.configs import ModelConfig, TrainConfig, as_cnn
from experiments.learning.network import make_model
from experiments.learning.step import Metrics, TrainState, init_state
from experiments.runs import loop
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.steps import Programs, StepWindow, make_programs
from experiments.runtime.records import Record
from experiments.toynorb.shapes import CATEGORIES

IMAGE_SHAPE = (13, 13, 1)
MODEL = ModelConfig(
    conv_channels=4,
    primary_capsules=2,
    conv_capsules=(2,),  # of which two devices can have one each
    routing=RoutingOptions(num_iterations=1),
    class_iterations=None,
)
CONFIG = TrainConfig(
    model=MODEL,
    dataset="mnist",
    steps=6,
    batch_size=8,
    eval_every=4,
    images=ImageConfig(max_shift=1),
    margin_ramp=0.1,  # one step, and so the same program for runs of other lengths
    warmup_steps=0,
)
# The CNN beside it, whose step compiles fast.
CNN_CONFIG = with_model(as_cnn(CONFIG), cnn_channels=(2, 3), cnn_hidden_units=8)
PROGRAMS: dict[Any, Programs] = {}  # of `shared_programs`
# The same as flags of `experiments.train`, whose programs the tests share.
FLAGS = (
    "--dataset mnist --steps 6 --batch-size 8 --eval-every 4 --max-shift 1 "
    "--margin-ramp 0.1 --warmup-steps 0 "
    "--conv-channels 4 --primary-capsules 2 --conv-capsules 2 --num-iterations 1"
).split()


def cnn(hidden_units: int, **changes: Any) -> Recipe:
    """A CNN for `NETWORKS`, whose step compiles fast, with these changes of its config."""

    def recipe(config: TrainConfig) -> TrainConfig:
        model = {"cnn_channels": (2, 3), "cnn_hidden_units": hidden_units}
        return dataclasses.replace(with_model(as_cnn(config), **model), **changes)

    return recipe


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
    np.savez(
        path, image=images, label=np.concatenate([data.train_labels, data.test_labels]), split=split
    )


def init_of(config: TrainConfig) -> tuple[Callable[..., TrainState], Any]:
    """The program that makes the first state of a run of this config, and its first images."""
    init = jax.jit(functools.partial(init_state, config, make_model(config.model, 3)))
    return init, np.zeros((config.batch_size, *IMAGE_SHAPE), np.float32)


@functools.cache
def initial_state(config: TrainConfig = CONFIG) -> TrainState:
    """A state before the first step, in NumPy arrays, which no training step can take away."""
    init, images = init_of(config)
    return jax.device_get(init(images, jax.random.key(0)))


@functools.cache
def shapes_of_state(config: TrainConfig = CONFIG) -> TrainState:
    """What a state is like, of which nothing is compiled."""
    init, images = init_of(config)
    return jax.eval_shape(init, images, jax.random.key(0))


def newest_state(folder: Path, config: TrainConfig = CONFIG) -> TrainState:
    """The newest state in a folder of checkpoints of a run of this config."""
    with Checkpoints(folder, read_only=True) as checkpoints:
        one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return checkpoints.restore(checkpoints.steps()[-1], shapes_of_state(config), one_device)


def share_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs that differ in nothing that a program depends on trace their programs once, as the
    seeds of a study do.
    """
    monkeypatch.setattr(loop, "make_programs", shared_programs)


def shared_programs(config: TrainConfig, dataset: Dataset, execution: Execution) -> Programs:
    """Those of an earlier call, if they are the same."""
    config = dataclasses.replace(config, dataset="mnist", seed=0, eval_every=1, init_from=None)
    arrays = (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    contents = dataset.class_names, *(array.tobytes() for array in arrays)
    given = config, contents, tuple(execution.devices), execution[1:]
    if given not in PROGRAMS:
        PROGRAMS[given] = make_programs(config, dataset, execution)
    return PROGRAMS[given]


def deterministic(records: list[Record]) -> list[Record]:
    """Records without what a clock has measured."""
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "images_per_second")}
        for record in records
    ]


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
    """Call `action` when this step of the process has been started."""
    add, count = StepWindow.add, iter(range(1, 1000))

    def counting_add(window: StepWindow, metrics: Metrics) -> None:
        add(window, metrics)
        if next(count) == number:
            action()

    monkeypatch.setattr(StepWindow, "add", counting_add)


def crash() -> None:
    raise RuntimeError("crash")


def untrained_toy_network(asked: Study, name: str, seed: int) -> TrainedNetwork:
    """One of `NETWORKS` for pairs of toynorb, as it is before its training."""
    config = asked.network(name, seed)
    model = make_model(config.model, len(CATEGORIES))
    images = jnp.zeros((1, config.images.crop, config.images.crop, 2))
    state = jax.jit(lambda key: init_state(config, model, images, key))(jax.random.key(seed))
    return TrainedNetwork(config, model, state.params, 0, {})


@functools.cache
def classifier() -> Classifier:
    """A classifier of 15x14 images, untrained."""
    model = CapsNet(3, 4, 2, (2,), RoutingOptions(num_iterations=1))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 13, 13, 2)))["params"]
    images = np.random.default_rng(0).integers(0, 256, (4, 15, 14, 2), np.uint8)
    view, examples = (
        View(standardize=True, crop=13),
        Examples(images, np.array([0, 1, 2, 0], np.int32)),
    )
    return Classifier(
        model, params, view, (15, 14, 2), ("a", "b", "c"), examples, {"test_error": 0.5}
    )
