"""Train a capsule network: `python -m experiments.train --workdir RUN`; see learning/configs.py for what can be set.

The same command continues a run that was stopped, or killed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.learning.configs import TrainConfig, as_cnn
from experiments.runs.directory import check_usable, is_finished
from experiments.runs.flags import TrainCommand, default_command
from experiments.runs.known_data import as_known
from experiments.runs.summary import table
from experiments.runs.trained import announce, check_runs, trained
from experiments.runtime.command_line import exit_code, parse


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
