"""Weights to begin with: those of another run, or of a classifier."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import emcaps
from experiments.data.dataset import Dataset
from experiments.learning.configs import TrainConfig
from experiments.runs.checkpoints import Checkpoints, differing_arrays, named_arrays
from experiments.runs.directory import read_config
from experiments.runs.restore import state_like
from experiments.runtime.errors import UsageError, first_line


class InitialWeights(NamedTuple):
    """What a run begins with.

    Attributes:
        params: as the run's network has them, in NumPy arrays.
        origin: what they are of, for the record.
    """

    params: Any
    origin: str


def initial_weights(config: TrainConfig, dataset: Dataset) -> InitialWeights | None:
    """The weights that a config names as `init_from`; None if it names none.

    Raises:
        UsageError: they cannot be had, or are of another network; the message names the first
            parameter that differs.
        DamagedCheckpoint: they cannot be read.
    """
    source = config.init_from
    if source is None:
        return None
    found = of_run(Path(source), dataset) if Path(source).is_dir() else of_classifier(source)
    like = state_like(config, dataset).params
    arrays = named_arrays(like)
    if differences := differing_arrays(named_arrays(found.params), arrays):
        raise UsageError(f"the weights of {source} are not those of this network: {differences}")
    # Dictionaries have their leaves in the order of the names.
    leaves = jax.tree.leaves(found.params)
    return InitialWeights(
        jax.tree.unflatten(jax.tree.structure(like), map(np.asarray, leaves)), found.origin
    )


def of_run(workdir: Path, dataset: Dataset) -> InitialWeights:
    """The weights of the newest checkpoint of a run, for images and classes as the data set has
    them.
    """
    config = read_config(workdir)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        if not (steps := checkpoints.steps()):
            raise UsageError(f"{workdir} has no checkpoints yet")
        one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        state = checkpoints.restore(steps[-1], state_like(config, dataset), one_device)
    return InitialWeights(state.params, f"{workdir}, step {steps[-1]}")


def of_classifier(name: str) -> InitialWeights:
    """The weights of what `emcaps.pretrained.load_classifier` takes."""
    try:
        return InitialWeights(emcaps.pretrained.load_classifier(name).params, name)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"init_from must be the folder of a run, or a classifier: {first_line(error)}"
        ) from error
