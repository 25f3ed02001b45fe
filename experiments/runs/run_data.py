"""What a run trains on and is scored on: the factor's values, the images held out, and how data are
known again.

They are known by their contents: where a file lies, and its name, may change.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.data import loading
from experiments.data.dataset import Dataset, hold_out, hold_out_instances, with_values
from experiments.data.npz_files import SUFFIX
from experiments.learning.configs import TrainConfig
from experiments.runs.directory import read_config
from experiments.runtime.errors import UsageError
from experiments.runtime.records import checksum


class Fingerprint(NamedTuple):
    """What data are known by; what a checkpoint remembers of them, by these names.

    Attributes:
        data: a number that changes with the training images and labels.
        test_data: one that changes with the test images and labels and with the names of the
            classes, of data in a file. None, which says nothing, of other data: the test images of
            affNIST are interpolated where JAX runs, and not all devices round alike; and of runs
            from before there was this number.
    """

    data: int
    test_data: int | None


def load_data(config: TrainConfig, data_dir: Path | None) -> Dataset:
    """What a run trains on and, as test set, what it is scored on.

    Raises UsageError as the functions of loading.py.
    """
    dataset = loading.load(config.dataset, data_dir)
    if config.factor is not None:
        dataset = with_values(dataset, config.factor, config.train_values)
    if config.holdout_instances:
        return hold_out_instances(dataset, config.holdout_instances)
    return hold_out(dataset, config.holdout)


def fingerprint(config: TrainConfig, dataset: Dataset) -> Fingerprint:
    """That of a config's data."""
    in_file = config.dataset.endswith(SUFFIX)
    names = json.dumps(dataset.class_names).encode()
    return Fingerprint(
        checksum(dataset.train_images, dataset.train_labels),
        checksum(dataset.test_images, dataset.test_labels, names) if in_file else None,
    )


def difference(trained_on: Fingerprint, here: Fingerprint) -> str:
    """Which of the data differ; empty if none do, as far as both fingerprints say."""
    if trained_on.data != here.data:
        return "training images"
    known = None not in (trained_on.test_data, here.test_data)
    return "test images or classes" if known and trained_on.test_data != here.test_data else ""


def as_known(config: TrainConfig, workdir: Path, data_dir: Path | None) -> TrainConfig:
    """This config, with the data's place as the run in a folder has it, if these are the data that
    it trains on.

    JAX is not used.

    Raises:
        UsageError: as `read_config` of the folder, and `load_data` of this config if it names
            another file.
    """
    if not config.dataset.endswith(SUFFIX) or not (workdir / "config.json").exists():
        return config
    there = read_config(workdir).dataset
    if there == config.dataset or not there.endswith(SUFFIX):
        return config
    trained_on = recorded_fingerprint(workdir / "checkpoints")
    if trained_on is None or difference(
        trained_on, fingerprint(config, load_data(config, data_dir))
    ):
        return config
    return dataclasses.replace(config, dataset=there)


def recorded_fingerprint(checkpoints: Path) -> Fingerprint | None:
    """That of the data of a run, from the newest checkpoint that says it; None if there is none."""
    steps = sorted(
        (path for path in checkpoints.glob("*") if path.name.isdigit()),
        key=lambda path: int(path.name),
        reverse=True,
    )
    for step in steps:
        try:
            facts = json.loads((step / "facts" / "metadata").read_text(encoding="utf-8"))
            return remembered(facts)
        except (OSError, ValueError, KeyError, TypeError):  # damaged
            continue
    return None


def remembered(facts: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint in a checkpoint's facts. Raises KeyError if there is none."""
    return Fingerprint(facts["data"], facts.get("test_data"))


def now_at(config: TrainConfig, place: Path | None) -> TrainConfig:
    """The config of a run whose data file is at another place now; None is that of the config.

    Raises:
        UsageError: its data are not in a file, or there can be none of that name.
    """
    if place is None:
        return config
    if not config.dataset.endswith(SUFFIX) or place.suffix != SUFFIX:
        raise UsageError(
            f"dataset is where the {SUFFIX} file of a run is now; got {place} for a run on "
            f"{config.dataset}"
        )
    return dataclasses.replace(config, dataset=str(place))


def check_data(trained_on: Fingerprint, here: Fingerprint, config: TrainConfig, run: str) -> None:
    """Raise UsageError if the fingerprint of a config's data is not that of what a run
    trains on and is scored on.
    """
    if differing := difference(trained_on, here):
        there_are = f"there are now in {config.dataset}"
        raise UsageError(
            f"{run} is of a run on other {differing} than {there_are}; give it back its data set"
        )
