"""Training steps, one after the other: what computes them, and their metrics."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data.batches import Batch, TrainingBatches
from experiments.data.dataset import Dataset
from experiments.data.preprocessing import evaluation_view
from experiments.data.stratified import sample
from experiments.devices.parallel import Execution, ParallelStep, parallelize
from experiments.learning.configs import TrainConfig
from experiments.learning.network import (
    make_model,
    make_temperatures,
    network_intermediates,
    routing_diagnostics,
)
from experiments.learning.scoring import Scores, make_evaluator
from experiments.learning.step import Metrics, TrainState, init_state, make_train_step
from experiments.runs.divergence import Guard, copied, examined
from experiments.runtime import processes
from experiments.runtime.records import Record

DIAGNOSED = 64  # test images whose routing is described beside each evaluation


class Beginning(NamedTuple):
    """What a seed decides.

    Attributes:
        batches: the batch of a step.
        init: makes the state before the first step, on one device.
    """

    batches: TrainingBatches
    init: Callable[[], TrainState]


class Programs(NamedTuple):
    """What runs of a config compute with. All of it is compiled where it is first used, once for
    all seeds.

    Attributes:
        begin: from a seed to what it decides.
        step: of training.
        examine: a step that says where it is not finite.
        evaluate: scores parameters; see `make_evaluator`.
        diagnose: how parameters route some test images after a step.
        temperatures: that parameters have learned.
    """

    begin: Callable[[int], Beginning]
    step: ParallelStep
    examine: ParallelStep
    evaluate: Callable[..., Scores]
    diagnose: Callable[[Any, int], Any]
    temperatures: Callable[[Any], Record]


def diagnosed_examples(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Test images of which it is told how they are routed, of each class its share, and labels."""
    chosen = sample(dataset.test_labels, min(DIAGNOSED, len(dataset.test_labels)))
    return dataset.test_images[chosen], dataset.test_labels[chosen]


def make_programs(config: TrainConfig, dataset: Dataset, execution: Execution) -> Programs:
    """What runs compute with, of a config, whatever its seed, a data set and devices that fit
    together.
    """
    num_classes = len(dataset.class_names)
    model = make_model(config.model, num_classes)
    # Devices that share parent types see another network than the one whose parameters are made.
    shared = make_model(config.model, num_classes, execution.parent_axis)
    init = jax.jit(functools.partial(init_state, config, model))
    step = make_train_step(config, shared)
    diagnosed, _ = diagnosed_examples(dataset)

    def begin(seed: int) -> Beginning:
        init_key, data_key = jax.random.split(jax.random.key(seed))
        batches = TrainingBatches(
            dataset.train_images, dataset.train_labels, data_key, config.batch_size, config.images
        )
        return Beginning(batches, functools.partial(init, batches(0).images, init_key))

    @jax.jit
    def diagnose(params: Any, images: jax.Array, step: jax.Array) -> Any:
        return routing_diagnostics(
            config, model, params, evaluation_view(config.images, images), step
        )

    def diagnose_on_one_device(params: Any, step: int) -> Any:
        # Divided among several, the program would hold an address of this process, so that no other
        # run could find it among the compiled ones.
        return jax.device_get(diagnose(jax.tree.map(processes.fetch, params), diagnosed, step))

    intermediates = functools.partial(network_intermediates, config, shared)
    return Programs(
        begin=begin,
        step=parallelize(step, execution),
        examine=parallelize(examined(step, intermediates), execution),
        evaluate=make_evaluator(config, shared, execution.mesh),
        diagnose=diagnose_on_one_device,
        temperatures=make_temperatures(model),
    )


def take_steps(
    train_step: ParallelStep, batches: Callable[[int], Batch], state: TrainState, steps: range
) -> Iterator[tuple[TrainState, Metrics]]:
    """The new state and the metrics of each of these steps, as soon as it has been started: not
    more than two are under way.

    Args:
        train_step: of training, on devices.
        batches: the batch of a step.
        state: on the devices, before the first of them; it is given up.
        steps: their numbers, counted from 0.
    """
    before: Metrics | None = None
    for step in steps:
        state, metrics = train_step.step(state, train_step.shard(batches(step)))
        jax.block_until_ready(before)
        yield state, metrics
        before = metrics


class StepWindow:
    """The steps since the last look: the state before them, and their metrics, which until then
    stay on the device.

    Args:
        batch_size: images in a step.
        state: before the first step; it is copied, since the step gives it up.
        earlier: metrics of steps before that, since the last look of the process that took them.
    """

    def __init__(self, batch_size: int, state: TrainState, earlier: Sequence[Metrics] = ()):
        self._batch_size = batch_size
        self._before = copied(state)
        self._earlier = list(earlier)
        self._metrics: list[Metrics] = []
        self._start = time.perf_counter()

    def add(self, metrics: Metrics) -> None:
        """Note a step that has been started."""
        self._metrics.append(metrics)

    def checked(self, guard: Guard) -> list[Metrics]:
        """The metrics of all steps of the window.

        Raises NonfiniteError: a loss or gradient is not finite.
        """
        window = jax.device_get(self._metrics)
        guard.check_steps(self._before, window)
        return self._earlier + window

    def close(self, step: int, guard: Guard) -> Record:
        """The means over the window that ends at `step`. Raises NonfiniteError as `checked`."""
        window = self.checked(guard)
        means = {
            name: float(np.mean([getattr(metrics, name) for metrics in window]))
            for name in Metrics._fields
        }
        speed = len(self._metrics) * self._batch_size / (time.perf_counter() - self._start)
        return {"step": step, "split": "train", **means, "images_per_second": speed}
