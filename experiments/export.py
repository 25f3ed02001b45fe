"""The network of a run as a file for `emcaps.pretrained`, or as a program for any JAX:
`python -m experiments.export --workdir RUN --out FILE`.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from emcaps import CapsNet
from emcaps.pretrained import Classifier, Examples, View, save_classifier
from emcaps.pretrained.classifier import SUFFIX
from experiments.data.dataset import Dataset
from experiments.devices.hardware import start_jax
from experiments.learning.configs import TrainConfig
from experiments.learning.network import DECODER, network_at
from experiments.runs.directory import read_config, read_result
from experiments.runs.restore import restore
from experiments.runs.run_data import now_at
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import RunnerError, UsageError
from experiments.runtime.records import write_atomically

PROGRAM = ".stablehlo"
FACTS = (
    "dataset",
    "num_parameters",
    "seed",
    "steps",
    "scored_on",
    "test_error",
    "test_examples",
    "jax_version",
)


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Write a finished run's network, with what it takes to use it, into one file."""

    workdir: Path
    """The run's folder."""
    out: Path
    """The file. One that ends in .safetensors is for load_classifier; one that ends in .stablehlo
    is a program for jax.export.deserialize, which needs neither emcaps nor Flax; it has
    neither the names of the classes nor examples."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""
    dataset: Path | None = None
    """Where the .npz file of the run is now; the default is where it was."""
    examples: bool = True
    """Put the first test image of each class that has one into the file."""

    def __post_init__(self):
        if self.out.suffix not in (SUFFIX, PROGRAM):
            raise ValueError(f"out must end in {SUFFIX} or {PROGRAM}; got {self.out}")


def export(command: ExportCommand) -> Classifier:
    """Write the file, and return what is in it.

    Raises:
        UsageError: the run is not one of a finished `CapsNet`, or the file is there already or has
            no folder to be in.
        RunnerError: the file cannot be written.
    """
    config, result = (
        now_at(read_config(command.workdir), command.dataset),
        read_result(command.workdir),
    )
    if config.model.family != "capsules":
        raise UsageError(
            f"only networks of matrix capsules are exported; {command.workdir} holds a "
            f"{config.model.family}"
        )
    if result is None:
        raise UsageError(f"{command.workdir} is not finished; the command that trains it goes on")
    if command.out.exists():
        raise UsageError(
            f"{command.out} is there already, and is not overwritten; choose another --out"
        )
    if not command.out.parent.is_dir():
        raise UsageError(
            f"there is no folder {command.out.parent} to write {command.out.name} into"
        )
    step, state, dataset, model = restore(
        config, command.workdir, command.data_dir, result["steps"], start_jax(1)[:1]
    )
    model = network_at(config, model, step)
    assert isinstance(model, CapsNet)
    try:
        classifier = Classifier(
            model,
            {name: branch for name, branch in state.params.items() if name != DECODER},
            view_of(config),
            dataset.test_images.shape[1:],
            dataset.class_names,
            first_of_each_class(dataset)
            if command.examples
            else Examples(dataset.test_images[:0], dataset.test_labels[:0]),
            {name: result[name] for name in FACTS if name in result},
        )
        if command.out.suffix == PROGRAM:
            write_atomically(command.out, classifier.export())
        else:
            save_classifier(command.out, classifier)
    except (ImportError, OSError, ValueError) as error:
        raise RunnerError(str(error)) from error
    return classifier


def view_of(config: TrainConfig) -> View:
    """What the run's network sees of a test image."""
    return View(config.images.downsample, config.images.standardize, config.images.crop)


def first_of_each_class(dataset: Dataset) -> Examples:
    """The first test image of each class that has one, in the order of the classes."""
    _, chosen = np.unique(dataset.test_labels, return_index=True)
    return Examples(dataset.test_images[chosen], dataset.test_labels[chosen])


def run(command: ExportCommand, _: str) -> None:
    """Write the file."""
    classifier = export(command)
    facts = classifier.facts
    print(
        f"{command.out}: {command.out.stat().st_size} bytes, error {facts['test_error']:.4%} "
        f"on the {facts.get('scored_on', 'test set')}"
    )


main = entry_point("experiments.export", ExportCommand, run)

if __name__ == "__main__":
    sys.exit(main())
