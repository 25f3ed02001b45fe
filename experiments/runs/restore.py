"""A run read back from a checkpoint: its configuration, its network, its parameters,
and its data.
"""

from pathlib import Path
from typing import NamedTuple

import jax

from experiments.data.dataset import Dataset
from experiments.data.preprocessing import evaluation_view
from experiments.devices.parallel import Devices, device_mesh, shardings
from experiments.learning.configs import TrainConfig
from experiments.learning.network import Network, make_model
from experiments.learning.step import TrainState, init_state
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.run_data import check_data, fingerprint, load_data, remembered
from experiments.runtime.errors import UsageError


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
    dataset: Dataset
    model: Network


def restore(
    config: TrainConfig, workdir: Path, data_dir: Path | None, step: int | None, devices: Devices
) -> Restored:
    """Load what a run has left at a step; None is its newest checkpoint.

    Raises:
        UsageError: there is no such checkpoint, it is of other arrays, or its run was on other
            data.
        DamagedCheckpoint: it cannot be read.
    """
    # Before a step is chosen: a run that goes on meanwhile deletes older ones.
    dataset = load_data(config, data_dir)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise UsageError(f"{workdir} has no checkpoints yet")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UsageError(f"{workdir} has checkpoints of the steps {steps}; none of step {step}")
        if "data" in (facts := checkpoints.facts(step)):
            check_data(
                remembered(facts),
                fingerprint(config, dataset),
                config,
                f"the checkpoint of step {step} in {checkpoints.folder}",
            )
        like = state_like(config, dataset)
        state = checkpoints.restore(step, like, shardings(like, device_mesh(devices)))
    return Restored(step, state, dataset, make_model(config.model, len(dataset.class_names)))


def state_like(config: TrainConfig, dataset: Dataset) -> TrainState:
    """Shapes and dtypes of a state of such a run on such a data set.

    Raises UsageError if the network does not fit the images.
    """
    model = make_model(config.model, len(dataset.class_names))
    images = jax.ShapeDtypeStruct((1, *dataset.test_images.shape[1:]), dataset.test_images.dtype)
    try:
        return jax.eval_shape(
            lambda images: init_state(
                config, model, evaluation_view(config.images, images), jax.random.key(0)
            ),
            images,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
