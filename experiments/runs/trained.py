"""Runs that are trained one after the other, those that are finished excepted."""

from collections.abc import Mapping
from pathlib import Path

from experiments.devices.hardware import Hardware
from experiments.learning.configs import TrainConfig
from experiments.runs.directory import check_usable, is_finished, read_result
from experiments.runs.loop import check_fits, train
from experiments.runs.run_data import as_known, load_data
from experiments.runtime import processes
from experiments.runtime.records import Record


def check_runs(
    runs: Mapping[Path, TrainConfig],
    data_dir: Path | None,
    hardware: Hardware | None = None,
    resume: bool = True,
) -> None:
    """Raise UsageError unless each of these runs on the same data, if it is not finished, can be
    trained.

    A mistake in the last one is found before the first is trained. Nothing is compiled or written.

    Args:
        runs: configs by folder.
        data_dir, hardware, resume: see `trained`.
    """
    known = {path: as_known(config, path, data_dir) for path, config in runs.items()}
    unfinished = {
        path: config for path, config in runs.items() if not is_finished(path, known[path])
    }
    if not unfinished:
        return
    for path in unfinished:
        check_usable(path, known[path], resume)
    executions = [
        (hardware or Hardware()).execution(config.batch_size) for config in unfinished.values()
    ]
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
    tensorboard: bool = False,
) -> Record:
    """The result of the run of this config in a folder, which is trained, or continued, if it is
    not finished.

    Args:
        config: of the run; it may name another place of its data than the run in the folder.
        workdir: its folder.
        data_dir: TFDS folder.
        typed: the command that asks for it, for the record.
        hardware: on what; None for as many devices as divide the batch size.
        resume, fall_back, tensorboard: see `train`.

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
        train(
            known,
            dataset,
            workdir,
            execution=execution,
            resume=resume,
            fall_back=fall_back,
            tensorboard=tensorboard,
            command=typed,
        )
    return read_result(workdir) or {}


def announce(text: str) -> None:
    """Print in one of the processes."""
    if processes.is_first():
        print(text)
