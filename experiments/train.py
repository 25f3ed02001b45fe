"""Train a capsule network: `python -m experiments.train --workdir RUN`; see runs/flags.py for what
can be set.

The same command continues a run that was stopped, or killed.
"""

import sys
from pathlib import Path

from experiments.learning.configs import TrainConfig, as_cnn
from experiments.runs.directory import check_usable, is_finished
from experiments.runs.event_files import check_installed
from experiments.runs.flags import TrainCommand, default_command
from experiments.runs.run_data import as_known
from experiments.runs.summary import table
from experiments.runs.trained import announce, check_runs, trained
from experiments.runtime.command_line import entry_point


def planned_runs(command: TrainCommand) -> dict[Path, TrainConfig]:
    """What is to be trained, by folder.

    Raises UsageError if a folder cannot be used, a package is missing, or there is nothing to do.
    """
    if command.tensorboard:
        check_installed()
    workdir = command.workdir or Path("runs", Path(command.config.dataset).stem)
    runs = {workdir: command.config}
    if command.baseline:
        runs[workdir.with_name(f"{workdir.name}-cnn")] = as_cnn(command.config)
    known = {path: as_known(config, path, command.data_dir) for path, config in runs.items()}
    unfinished = {path: config for path, config in known.items() if not is_finished(path, config)}
    for path, config in (unfinished or known).items():
        check_usable(path, config, command.resume)
    return runs


def run(command: TrainCommand, typed: str) -> None:
    """Train what is not finished, and print the results."""
    runs = planned_runs(command)
    command.hardware.start()
    if len(runs) > 1:  # of one alone its training begins with the same
        check_runs(runs, command.data_dir, command.hardware, command.resume)
    results = [
        trained(
            config,
            workdir,
            command.data_dir,
            typed,
            command.hardware,
            command.resume,
            command.fall_back,
            command.tensorboard,
        )
        for workdir, config in runs.items()
    ]
    same = {"command": typed} if len(results) > 1 else {}
    announce(
        table(
            [
                {name: value for name, value in result.items() if name not in same}
                for result in results
            ]
        )
    )


main = entry_point("experiments.train", TrainCommand, run, default_command)

if __name__ == "__main__":
    sys.exit(main())
