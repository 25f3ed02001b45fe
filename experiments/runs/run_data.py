"""What a run trains on and is scored on: the factor's values, the images held out, and how data are
known again.

They are known by their contents: where a file lies, and its name, may change.
"""

import dataclasses
import json
import zlib
from pathlib import Path

from experiments.data import loading
from experiments.data.dataset import Dataset, hold_out, hold_out_instances, with_values
from experiments.data.npz_files import SUFFIX
from experiments.learning.configs import TrainConfig
from experiments.runs.directory import read_config
from experiments.runtime.errors import UsageError


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


def fingerprint(dataset: Dataset) -> int:
    """A number that changes with the training images and labels."""
    return zlib.crc32(dataset.train_labels.tobytes(), zlib.crc32(dataset.train_images.tobytes()))


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
    same = trained_on is not None and trained_on == fingerprint(load_data(config, data_dir))
    return dataclasses.replace(config, dataset=there) if same else config


def recorded_fingerprint(checkpoints: Path) -> int | None:
    """That of the data of a run, from the newest checkpoint that says it; None if there is none."""
    steps = sorted(
        (path for path in checkpoints.glob("*") if path.name.isdigit()),
        key=lambda path: int(path.name),
        reverse=True,
    )
    for step in steps:
        try:
            return json.loads((step / "facts" / "metadata").read_text(encoding="utf-8"))["data"]
        except (OSError, ValueError, KeyError, TypeError):  # damaged
            continue
    return None


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


def check_data(trained_on: int, data: int, config: TrainConfig, run: str) -> None:
    """Raise UsageError if the fingerprint of a config's data is not that of what a run
    trains on.
    """
    if trained_on != data:
        there_are = f"there are now in {config.dataset}"
        raise UsageError(
            f"{run} is of a run on other training images than {there_are}; give it back its data "
            "set"
        )
