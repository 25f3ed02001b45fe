"""Score a trained network on the test set; `python -m experiments.evaluate --workdir RUN` repeats a run's own evaluation."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from experiments.checkpoints import Checkpoints
from experiments.classes import untested
from experiments.command_line import exit_code, parse
from experiments.configs import TrainConfig, check_positive
from experiments.errors import UsageError
from experiments.hardware import choose_devices, start_jax
from experiments.known_data import check_data, fingerprint, load_data, now_at
from experiments.learner import Network, TrainState, class_logits, init_state, log_activations, losses, make_model, network_stages
from experiments.parallel import Devices, device_mesh, map_chunks, shardings
from experiments.run_directory import read_config, read_result
from experiments.views import crop_places, test_view

# Examples that a device scores at a time, whatever the training batch was.
EXAMPLES_PER_DEVICE = 50


class Scores(NamedTuple):
    """What a network makes of N labelled images.

    Attributes:
        activations: of the classes (a CNN's probabilities), `[N, num_classes]`, the mean over the crops.
        loss: the mean of the config's loss, over images and crops.
        predictions: the class with the highest activation (by its logarithm: activations can round to 1), `[N]`.
        num_correct: how many predictions are the label.
        num_examples: N.
    """

    activations: np.ndarray
    loss: float
    predictions: np.ndarray
    num_correct: int
    num_examples: int

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_examples

    @property
    def error(self) -> float:
        return (self.num_examples - self.num_correct) / self.num_examples


def make_evaluator(
    config: TrainConfig, model: Network, mesh: jax.sharding.Mesh, crops: int = 1
) -> Callable[[Any, np.ndarray, np.ndarray, int], Scores]:
    """The function `evaluate(params, images, labels, step)`, which scores each image, as things are at that step, on all devices.

    An image is classified by the mean of its class activations over so many crops, the central one first (`crop_places`).
    """

    def classify_view(given: tuple[Any, jax.Array, jax.Array], images: jax.Array) -> jax.Array:
        params, step, place = given
        return class_logits(network_stages(config, model, params, test_view(config.images, images, place), step))

    classify = map_chunks(classify_view, mesh, EXAMPLES_PER_DEVICE)

    def evaluate(params: Any, images: np.ndarray, labels: np.ndarray, step: int) -> Scores:
        places = crop_places(crops)
        logits = jnp.stack([classify((params, jnp.int32(step), jnp.asarray(place)), images) for place in places])  # [crops, N, J]
        loss = jnp.stack([losses(config, seen, jnp.asarray(labels), step) for seen in logits]).mean()
        log_means = jax.nn.logsumexp(log_activations(model, logits), axis=0) - jnp.log(crops)
        predictions = np.asarray(log_means).argmax(-1)
        return Scores(np.exp(log_means), float(loss), predictions, int((predictions == labels).sum()), len(images))

    return evaluate


class Restored(NamedTuple):
    """A run as it was after `step` steps.

    Attributes:
        step: of the checkpoint.
        state: what the checkpoint holds, on all devices.
        dataset: that of the run.
        model: that of the config.
    """

    step: int
    state: TrainState
    dataset: datasets.Dataset
    model: Network


def restore(config: TrainConfig, workdir: Path, data_dir: Path | None, step: int | None, devices: Devices) -> Restored:
    """Load what a run has left at a step; None is its newest checkpoint.

    Raises:
        UsageError: there is no such checkpoint, it is of other arrays, or its run was on other data.
        DamagedCheckpoint: it cannot be read.
    """
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UsageError(f"{workdir} has no checkpoints yet")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UsageError(f"{workdir} has checkpoints of the steps {steps}; none of step {step}")
        dataset = load_data(config, data_dir)
        if "data" in (facts := checkpoints.facts(step)):
            check_data(facts["data"], fingerprint(dataset), config, f"the checkpoint of step {step} in {checkpoints.folder}")
        like = state_like(config, dataset)
        state = checkpoints.restore(step, like, shardings(like, device_mesh(devices)))
    return Restored(step, state, dataset, make_model(config.model, len(dataset.class_names)))


def state_like(config: TrainConfig, dataset: datasets.Dataset) -> TrainState:
    """Shapes and dtypes of a state of such a run on such a data set. Raises UsageError if the network does not fit the images."""
    model = make_model(config.model, len(dataset.class_names))
    images = jax.ShapeDtypeStruct((1, *dataset.test_images.shape[1:]), dataset.test_images.dtype)
    try:
        return jax.eval_shape(lambda images: init_state(config, model, test_view(config.images, images), jax.random.key(0)), images)
    except ValueError as error:
        raise UsageError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Restore a checkpoint of a run and score it on the test set."""

    workdir: Path
    """The run's folder."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""
    dataset: Path | None = None
    """Where the .npz file of the run is now; the default is where it was."""
    step: int | None = None
    """Which checkpoint; the default is the newest."""
    crops: int = 1
    """Crops of each test image over which class activations are averaged, the first in the centre."""
    devices: int | None = None
    """How many devices; the default is the run's own number, because another one rounds differently."""

    def __post_init__(self):
        check_positive(self, "crops")
        if self.devices is not None:
            check_positive(self, "devices")


def run(command: EvaluateCommand) -> int:
    """Print the scores, and whether they are those in result.json. Returns the exit code: 1 if they are not."""
    config, result = now_at(read_config(command.workdir), command.dataset), read_result(command.workdir)
    if command.crops > 1 and config.images.crop is None:
        raise UsageError(f"this run's network sees whole images, of which there are no {command.crops} crops")
    num_devices = command.devices or (result["devices"] if result else None)
    start_jax(num_devices)
    devices = choose_devices(num_devices or config.batch_size, num_devices)
    step, state, dataset, model = restore(config, command.workdir, command.data_dir, command.step, devices)
    evaluate = make_evaluator(config, model, device_mesh(devices), command.crops)
    scores = evaluate(state.params, dataset.test_images, dataset.test_labels, step)
    wrong = scores.num_examples - scores.num_correct
    print(f"step {step}: {config.scored} error {scores.error:.4%} ({wrong} of {scores.num_examples}), loss {scores.loss:.6f}")
    if missing := untested(dataset, config.scored):
        print(missing)

    if result is None or step != result["steps"] or command.crops > 1:
        return 0
    same = scores.error == result["test_error"] and scores.num_examples == result["test_examples"]
    print(f"result.json has {result['test_error']:.4%}: {'reproduced exactly' if same else 'NOT reproduced'}")
    return 0 if same else 1


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = parse(EvaluateCommand, "python -m experiments.evaluate", arguments)
    return exit_code(lambda _: run(command), "experiments.evaluate", arguments)


if __name__ == "__main__":
    sys.exit(main())
