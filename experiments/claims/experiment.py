"""Commands about the networks of a study: what `--quick` makes of them, and records of each seed,
that are measured once.
"""

import abc
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from experiments.claims.study import Study
from experiments.devices.hardware import start_jax
from experiments.learning.configs import TrainConfig
from experiments.runs.trained import check_runs, trained
from experiments.runtime.errors import UsageError
from experiments.runtime.records import Record, check_folder, read_record, write_atomically


@dataclasses.dataclass(frozen=True)
class StudyCommand(abc.ABC):
    """A command about the networks of a study."""

    study: Study = dataclasses.field(default_factory=Study)

    @abc.abstractmethod
    def runs(self, seed: int) -> dict[Path, TrainConfig]:
        """The runs of a seed that are to be finished first, by folder."""

    def asked(self) -> Self:
        """The command as it is carried out: shortened if `--quick` is given."""
        if not self.study.quick:
            return self
        return dataclasses.replace(self, study=self.study.shortened(), **self.quick_fields())

    def quick_fields(self) -> dict[str, Any]:
        """What is smaller in a quick command, beside its study."""
        return {}


@dataclasses.dataclass(frozen=True)
class SeedExperiment(StudyCommand):
    """A command that measures something of each seed of a study, once."""

    experiment: ClassVar[str]
    """Its name: that of the command."""

    @property
    def folder(self) -> Path:
        """Of the records."""
        return self.study.folder / self.experiment

    def file(self, seed: int) -> Path:
        """The record of a seed."""
        return self.folder / f"seed-{seed}.json"

    def settings(self, seed: int) -> dict[str, Any]:
        """What the record of a seed depends on."""
        of_study, own = self.study.settings(self.experiment, seed), self.own_settings(seed)
        assert not of_study.keys() & own.keys()
        return of_study | own

    @abc.abstractmethod
    def own_settings(self, seed: int) -> dict[str, Any]:
        """What the record of a seed depends on beside the study."""


Command = TypeVar("Command", bound=SeedExperiment)


def is_measured(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a file holds what an experiment with these settings, in terms of JSON, has found.

    Raises:
        UsageError: it holds findings with other settings; they are never overwritten.
        RunnerError: it is damaged.
    """
    check_folder(path.parent)
    if not path.exists():
        return False
    record, settings = read_record(path), json.loads(json.dumps(settings))
    if different := [name for name, value in settings.items() if record.get(name) != value]:
        there = ", ".join(
            f"{name}: {record.get(name)} there, {settings[name]} here" for name in different
        )
        raise UsageError(
            f"{path} was measured with other settings ({there}) and is not overwritten; choose "
            "another --runs"
        )
    return True


def measured_once(
    path: Path, settings: dict[str, Any], typed: str, measure: Callable[[], Record]
) -> Record:
    """What an experiment with these settings has found: read from a file, or else measured and
    written to it.

    Args:
        path: of a JSON file, that begins with the settings.
        settings: what determines the finding, in terms of JSON.
        typed: the command, for the record.
        measure: makes the rest of the record.

    Raises:
        UsageError, RunnerError: as `is_measured`.
    """
    if is_measured(path, settings):
        print(f"{path} is finished")
        return read_record(path)
    start = time.perf_counter()
    record = json.loads(json.dumps(settings)) | measure()
    record |= {"seconds": time.perf_counter() - start, "command": typed}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=2) + "\n")
    return record


def run_seeds(
    command: Command,
    typed: str,
    check: Callable[[Command, list[int]], None],
    measure: Callable[[Command, int], Record],
) -> list[Record]:
    """The record of each seed of what was asked for. Nothing is trained before all that is missing
    has been checked.

    Args:
        command: the flags.
        typed: the command line, for the records.
        check: of the command and the seeds that are missing, one or more; raises UsageError unless
            they can be measured.
        measure: from the command and a seed, whose runs are finished, to what was found.
    """
    command = command.asked()
    start_jax()
    data_dir = command.study.data_dir
    missing = [
        seed
        for seed in command.study.seeds
        if not is_measured(command.file(seed), command.settings(seed))
    ]
    if missing:
        check(command, missing)
        check_runs(
            {path: config for seed in missing for path, config in command.runs(seed).items()},
            data_dir,
        )

    def train_and_measure(seed: int) -> Record:
        for path, config in command.runs(seed).items():
            trained(config, path, data_dir, typed)
        return measure(command, seed)

    return [
        measured_once(
            command.file(seed),
            command.settings(seed),
            typed,
            functools.partial(train_and_measure, seed),
        )
        for seed in command.study.seeds
    ]
