"""The networks that the paper's claims are about, trained with several seeds: each once, by the experiment that needs it first."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import jax

from experiments.devices.hardware import start_jax
from experiments.learning.configs import TrainConfig, default_config, to_json
from experiments.learning.network import Network
from experiments.runs.directory import read_result
from experiments.runs.flags import TrainCommand
from experiments.runs.restore import restore
from experiments.runs.trained import check_runs, trained
from experiments.runtime.command_line import parse
from experiments.runtime.errors import UsageError
from experiments.runtime.fields import check_positive_or_none
from experiments.runtime.records import Record, check_folder, read_record, write_atomically

# As flags of experiments.train. Each network of capsules has a CNN of about its size beside it, whose learning rate was chosen on
# held-out toys of toynorb.
DYNAMIC = "--model dynamic --dynamic-channels 64 --dynamic-capsules 8"  # a quarter of the paper's widths
NETWORKS: dict[str, str] = {
    "capsules": "",
    "capsules-32-8-8-8": "--conv-channels 32 --conv-capsules 8 8",
    "capsules-32-32-32-32": "--conv-channels 32 --primary-capsules 32 --conv-capsules 32 32",
    "capsules-decoder": "--reconstruction",
    "dynamic": DYNAMIC,
    "dynamic-once": f"{DYNAMIC} --dynamic-iterations 1",
    "dynamic-decoder": f"{DYNAMIC} --reconstruction",
    "dynamic-once-decoder": f"{DYNAMIC} --dynamic-iterations 1 --reconstruction",
    "cnn": "--model cnn",
    "cnn-25k": "--model cnn --cnn-channels 8 16 --cnn-hidden-units 20 --learning-rate 3e-3",
    "cnn-68k": "--model cnn --cnn-channels 16 32 --cnn-hidden-units 26 --learning-rate 3e-3",
    "cnn-310k": "--model cnn --cnn-channels 32 64 --cnn-hidden-units 64 --learning-rate 3e-3",
}
QUICK_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Study:
    """What the experiments have in common; what is finished in the folder `runs` is not repeated."""

    dataset: str = "toynorb"
    """Data set, as of `experiments.train`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    steps: int | None = None
    """Training steps; the default is that of the data set."""
    flags: str = ""
    """More flags of `experiments.train`, for every network."""
    quick: bool = False
    """Only see that everything works, in at most three minutes: one seed, few steps, few images, into RUNS/quick."""
    runs: Path = Path("runs/claims")
    """The folder of all results."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be one or more different numbers; got {list(self.seeds)}")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must not be negative; got {list(self.seeds)}")
        check_positive_or_none(self, "steps")

    def shortened(self) -> "Study":
        """What `quick` asks for: the first seed, and few steps."""
        return dataclasses.replace(self, seeds=self.seeds[:1], steps=self.steps or QUICK_STEPS)

    @property
    def folder(self) -> Path:
        """Where the results of this data set go."""
        return (self.runs / "quick" if self.quick else self.runs) / Path(self.dataset).stem

    def workdir(self, name: str, seed: int) -> Path:
        """The run of one of `NETWORKS`."""
        return self.folder / f"{name}-{seed}"

    def network(self, name: str, seed: int) -> TrainConfig:
        """How one of `NETWORKS` is trained, and scored once, after the last step.

        A flag that is not understood ends the process as for `experiments.train`.
        """
        words = ["--dataset", self.dataset, *NETWORKS[name].split(), *self.flags.split(), "--seed", str(seed)]
        config = parse(TrainCommand, "python -m experiments.train", words, TrainCommand(config=default_config(words))).config
        steps = self.steps or config.steps
        return dataclasses.replace(config, steps=steps, eval_every=steps)

    def settings(self, experiment: str, seed: int) -> dict[str, Any]:
        """What the networks of a seed are, for the record of an experiment with them."""
        config, dataset = self.network("capsules", seed), Path(self.dataset).stem
        given = {"experiment": experiment, "dataset": dataset, "seed": seed, "steps": config.steps, "flags": self.flags}
        return given | {"capsules": json.loads(to_json(config))}


def check_networks(networks: Sequence[str], known: Iterable[str]) -> None:
    """Raise ValueError unless these are one or more of the known names, each once."""
    if not networks or not set(networks) <= set(known) or len(set(networks)) < len(networks):
        raise ValueError(f"networks must be of {', '.join(known)}, each once; got {', '.join(networks)}")


class TrainedNetwork(NamedTuple):
    """A network of a study as it is after its training.

    Attributes:
        config: of its run.
        model: that of the config.
        params: its parameters, on all devices.
        step: after which.
        result: of its run.
    """

    config: TrainConfig
    model: Network
    params: Any
    step: int
    result: Record


def check_trainable(study: Study, names: Iterable[str], seeds: Iterable[int]) -> None:
    """Raise UsageError unless these networks of the study can be trained, as far as they have not been."""
    check_runs({study.workdir(name, seed): study.network(name, seed) for seed in seeds for name in names}, study.data_dir)


def train_network(study: Study, name: str, seed: int, typed: str) -> Record:
    """The result of a network of the study, trained unless it has been; `typed` is the command, for the record."""
    return trained(study.network(name, seed), study.workdir(name, seed), study.data_dir, typed)


def load_network(study: Study, name: str, seed: int) -> TrainedNetwork:
    """A network of the study, from the newest checkpoint of its finished run."""
    config, folder = study.network(name, seed), study.workdir(name, seed)
    restored = restore(config, folder, study.data_dir, None, jax.devices())
    return TrainedNetwork(config, restored.model, restored.state.params, restored.step, read_result(folder) or {})


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
        there = ", ".join(f"{name}: {record.get(name)} there, {settings[name]} here" for name in different)
        raise UsageError(f"{path} was measured with other settings ({there}) and is not overwritten; choose another --runs")
    return True


def measured_once(path: Path, settings: dict[str, Any], typed: str, measure: Callable[[], Record]) -> Record:
    """What an experiment with these settings has found: read from a file, or else measured and written to it.

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


class StudyCommand(Protocol):
    """A command about the networks of a study."""

    @property
    def study(self) -> Study: ...
    def shortened(self) -> Self: ...


class SeedExperiment(StudyCommand, Protocol):
    """A command that measures something of each seed of a study, once."""

    def file(self, seed: int) -> Path: ...
    def settings(self, seed: int) -> dict[str, Any]: ...


Command = TypeVar("Command", bound=StudyCommand)
Experiment = TypeVar("Experiment", bound=SeedExperiment)


def asked(command: Command) -> Command:
    """The command as it is carried out: `shortened` if `--quick` is given."""
    return command.shortened() if command.study.quick else command


def missing_seeds(command: SeedExperiment) -> list[int]:
    """The seeds that are not yet measured. Raises UsageError as `is_measured`."""
    return [seed for seed in command.study.seeds if not is_measured(command.file(seed), command.settings(seed))]


def measured_seeds(command: SeedExperiment, typed: str, measure: Callable[[int], Record]) -> list[Record]:
    """The record of each seed; `measure` finds what is missing. Arguments and errors as of `measured_once`."""
    return [
        measured_once(command.file(seed), command.settings(seed), typed, functools.partial(measure, seed))
        for seed in command.study.seeds
    ]


def run_seeds(
    command: Experiment,
    typed: str,
    check: Callable[[Experiment], None],
    measure: Callable[[Experiment, str, int], Record],
) -> list[Record]:
    """The record of each seed of what was asked for.

    Args:
        command: what was typed, as flags,
        typed: and as text, for the records.
        check: raises UsageError unless all that is missing can be measured: before anything is trained.
        measure: from the command, its text and a seed to what was found.
    """
    command = asked(command)
    start_jax()
    check(command)
    return measured_seeds(command, typed, functools.partial(measure, command, typed))
