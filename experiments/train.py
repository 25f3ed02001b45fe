"""Train a capsule network: `python -m experiments.train --workdir RUN`; see configs.py for what can be set.

The same command continues a run that was stopped, or killed.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import hosts
from experiments.command_line import exit_code, parse
from experiments.configs import FAMILIES, Preset, TrainConfig, as_cnn, default_config
from experiments.hardware import Hardware
from experiments.known_data import as_known, load_data
from experiments.results import table
from experiments.run_directory import Record, check_usable, is_finished, read_result
from experiments.training import check_fits, train


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a matrix capsule network with EM routing; the same command continues a run that was stopped."""

    config: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    preset: Preset = "emcaps"
    """Constants and initial values of the routing, which other flags may change: ours, the paper's, or IBM's."""
    baseline: bool = False
    """Then train the paper's CNN on the same data for as many steps, into the folder WORKDIR-cnn, and print both results."""
    workdir: Path | None = None
    """The run's folder; the default is runs/ and the data set's name, without .npz or what is before it."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""
    resume: bool = True
    """An unfinished run of the same flags in that folder goes on; otherwise it is refused."""
    fall_back: bool = False
    """Where its newest checkpoints are damaged, a run goes on from the newest that is whole."""
    hardware: Hardware = dataclasses.field(default_factory=Hardware)

    def __post_init__(self):
        family = self.config.model.family
        if family != "capsules" and self.preset != "emcaps":
            raise ValueError(f"{FAMILIES[family]} no EM routing, of which there could be a preset; got {self.preset}")
        if family == "cnn" and self.baseline:
            raise ValueError("--baseline trains the cnn beside capsules; got --model cnn")
        if self.hardware.model_axis > 1 and (family != "capsules" or self.baseline):
            raise ValueError("--model-axis divides the parent types of matrix capsules; give --model capsules and --no-baseline")


def default_command(words: Sequence[str]) -> TrainCommand:
    """What no flag says, given the words of a command. Of toynorb nothing is published to compare with: the CNN is trained too."""
    config = default_config(words)
    return TrainCommand(config=config, baseline=config.dataset == "toynorb" and config.model.family == "capsules")


def planned_runs(command: TrainCommand) -> dict[Path, TrainConfig]:
    """What is to be trained, by folder. Raises UsageError if a folder cannot be used, or there is nothing to do."""
    workdir = command.workdir or Path("runs", Path(command.config.dataset).stem)
    runs = {workdir: command.config}
    if command.baseline:
        runs[workdir.with_name(f"{workdir.name}-cnn")] = as_cnn(command.config)
    known = {path: as_known(config, path, command.data_dir) for path, config in runs.items()}
    unfinished = {path: config for path, config in known.items() if not is_finished(path, config)}
    for path, config in (unfinished or known).items():
        check_usable(path, config, command.resume)
    return runs


def check_runs(
    runs: Mapping[Path, TrainConfig], data_dir: Path | None, hardware: Hardware | None = None, resume: bool = True
) -> None:
    """Raise UsageError unless each of these runs on the same data, if it is not finished, can be trained.

    A mistake in the last one is found before the first is trained. Nothing is compiled or written.

    Args:
        runs: configs by folder.
        data_dir, hardware, resume: see `trained`.
    """
    known = {path: as_known(config, path, data_dir) for path, config in runs.items()}
    unfinished = {path: config for path, config in runs.items() if not is_finished(path, known[path])}
    if not unfinished:
        return
    for path in unfinished:
        check_usable(path, known[path], resume)
    executions = [(hardware or Hardware()).execution(config.batch_size) for config in unfinished.values()]
    dataset = load_data(next(iter(unfinished.values())), data_dir)
    for config, execution in zip(unfinished.values(), executions, strict=True):
        check_fits(config, dataset, execution)


def trained(
    config: TrainConfig,
    workdir: Path,
    data_dir: Path | None,
    typed: str,
    hardware: Hardware | None = None,
    resume: bool = True,
    fall_back: bool = False,
) -> Record:
    """The result of the run of this config in a folder, which is trained, or continued, if it is not finished.

    Args:
        config: of the run; it may name another place of its data than the run in the folder.
        workdir: its folder.
        data_dir: TFDS folder.
        typed: the command that asks for it, for the record.
        hardware: on what; None for as many devices as divide the batch size.
        resume, fall_back: see `train`.

    Raises:
        UsageError, RunnerError, NonfiniteError, Stopped: as `train` does.
    """
    known = as_known(config, workdir, data_dir)
    if is_finished(workdir, known):
        announce(f"{workdir} is finished")
    else:
        check_usable(workdir, known, resume)
        execution = (hardware or Hardware()).execution(config.batch_size)
        dataset = load_data(config, data_dir)
        train(known, dataset, workdir, execution=execution, resume=resume, fall_back=fall_back, command=typed)
    return read_result(workdir) or {}


def announce(text: str) -> None:
    """Print in one of the processes."""
    if hosts.is_first():
        print(text)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = parse(TrainCommand, "python -m experiments.train", arguments, default_command(arguments))

    def run(typed: str) -> None:
        runs = planned_runs(command)
        command.hardware.start()
        if len(runs) > 1:  # of one alone its training begins with the same
            check_runs(runs, command.data_dir, command.hardware, command.resume)
        results = [
            trained(config, workdir, command.data_dir, typed, command.hardware, command.resume, command.fall_back)
            for workdir, config in runs.items()
        ]
        same = {"command": typed} if len(results) > 1 else {}
        announce(table([{name: value for name, value in result.items() if name not in same} for result in results]))

    return exit_code(run, "experiments.train", arguments)


if __name__ == "__main__":
    sys.exit(main())
