"""The folder of a run: what is in it, who may write to it, and when it is finished.

    config.json     the TrainConfig
    metrics.jsonl   one record a line: step, split, loss, accuracy, ...
    checkpoints/    see checkpoints.py
    figures/        PNG files; `experiments.figures` can add to them later
    tensorboard/    the records once more, if asked for; see event_files.py
    compiled/       programs that JAX has compiled, for the next process; of no other use
    damaged/        checkpoints that were passed over, if there were any
    result-N.json   the result of the first N steps, if the run has been made longer since
    nonfinite/      only after a stop at a value that is not finite; see divergence.py
    result.json     written last: its presence says that the run is finished

Nothing but pictures is written to a finished run, unless it is made longer: the same config with
more steps goes on from its last, but for a run that ended before, at its target error. An
unfinished one can be continued by the same config, by one process at a time.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from experiments.learning.configs import TrainConfig, from_json, to_json
from experiments.runs.event_files import EventFiles, check_installed, is_installed
from experiments.runtime import processes
from experiments.runtime.errors import UsageError
from experiments.runtime.locks import lock
from experiments.runtime.records import (
    Record,
    check_folder,
    read_lines,
    read_record,
    write_atomically,
)

FILES = ("metrics.jsonl", "result.json")
FOLDERS = ("checkpoints", "figures", "tensorboard", "compiled")  # that training makes


class RunDirectory:
    """A run's folder, open for writing. A context manager: it holds the folder's lock, where there
    are locks.

    Of several processes only the first writes; the others see the same folder. A run that begins,
    and fails before anything is saved, leaves no trace.

    Attributes:
        locked: whether other processes are kept away, which not all systems can do.
    """

    def __init__(
        self, path: Path, config: TrainConfig, resume: bool = True, tensorboard: bool = False
    ):
        check_usable(path, config, resume)
        if tensorboard:
            check_installed()
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        # Event files that are there already must not fall behind.
        self._tensorboard = tensorboard or ((path / "tensorboard").is_dir() and is_installed())
        self._events: EventFiles | None = None
        self._config = config
        self._lock: IO[str] | None = None
        self._made: list[Path] = []  # folders, the innermost first
        self._begins = False
        self.locked = True

    def __enter__(self) -> Self:
        # What the first process writes, another one must not find there when it looks.
        processes.wait_for_all("the run directory is checked")
        if processes.is_first():
            try:
                self._open()
            except BaseException:
                self._leave(failed=True)
                raise
        processes.wait_for_all("the run directory is open")
        return self

    def _open(self) -> None:
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "w", encoding="utf-8")
        try:
            self.locked = lock(self._lock)
        except BlockingIOError:
            raise UsageError(f"{self.path} is in use: another process is training there") from None
        check_usable(self.path, self._config)  # it may have finished since
        self._begins = not (self.path / "config.json").exists()
        if (self.path / "result.json").exists():  # of a run that is made longer
            os.replace(self.path / "result.json", earlier_result(self.path, read_config(self.path)))
        write_atomically(self.path / "config.json", to_json(self._config))
        self.figures.mkdir(exist_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._events is not None:
                self._events.close()
        finally:
            self._leave(failed=kind is not None)

    def _leave(self, failed: bool) -> None:
        """Let other processes in. What failed before it had saved anything leaves no trace."""
        if self._lock is None:
            return
        nothing_saved = self._begins and failed and not self._has_saved()
        if nothing_saved:
            for name in FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
            for file in ("config.json", "metrics.jsonl"):
                (self.path / file).unlink(missing_ok=True)
        self._lock.close()
        if nothing_saved:
            (self.path / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # what somebody else has put there stays
                for folder in self._made:
                    folder.rmdir()

    def _has_saved(self) -> bool:
        """Whether there is anything that the next process, or its user, could want."""
        steps = (path.name.isdigit() for path in self.checkpoints.glob("*"))
        return (
            any(steps)
            or bool(self.records())
            or any((self.path / name).exists() for name in ("result.json", "nonfinite"))
        )

    def records(self) -> list[Record]:
        """All records of metrics.jsonl; a last line that a killed process left unfinished is passed
        over.
        """
        return read_records(self.path)

    def append(self, record: Record) -> None:
        """Add a line to metrics.jsonl."""
        if not processes.is_first():
            return
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._events is not None:
            self._events.add(record)

    def rewind(self, step: int) -> None:
        """Drop the records after `step`: the run goes on from there and will write them again."""
        if processes.is_first():
            kept = [record for record in self.records() if record["step"] <= step]
            write_atomically(
                self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept)
            )
            if self._tensorboard:
                self._events = EventFiles(self.path / "tensorboard", kept)
        processes.wait_for_all("later records are dropped")

    def extended_at(self) -> list[int]:
        """After which steps this run was finished, before it was made longer."""
        return sorted(int(path.stem.partition("-")[2]) for path in self.path.glob("result-*.json"))

    def finish(self, result: Record) -> None:
        """Write result.json."""
        if processes.is_first():
            write_atomically(self.path / "result.json", json.dumps(result, indent=2) + "\n")
        processes.wait_for_all("the result is written")


def check_usable(path: Path, config: TrainConfig, resume: bool = True) -> None:
    """Raise UsageError, saying why, unless a run of this config may start in the folder, or (with
    `resume`) go on.

    A finished run goes on if it is made longer, unless it ended at its target error.
    """
    check_folder(path)
    if (path / "config.json").exists():
        there = read_config(path)
        was_finished = (path / "result.json").exists() or earlier_result(path, there).exists()
        if resume and was_finished and is_longer(config, there):
            result = read_result(path) or read_record(earlier_result(path, there))
            if result["steps"] < there.steps:
                raise UsageError(
                    f"{path} holds a run that ended at its target error after {result['steps']} "
                    "steps, where a longer one would end as well; choose another folder"
                )
            return
        differences = differing_fields(there, config)
        other = f" of another config ({differences})" if differences else ""
        if (path / "result.json").exists():
            raise UsageError(
                f"{path} holds a finished run{other}, which is never overwritten; choose another "
                "folder"
            )
        if differences:
            raise UsageError(
                f"{path} holds an unfinished run{other}; give the same flags to continue it, or "
                "choose another folder"
            )
        if not resume:
            raise UsageError(
                f"{path} holds an unfinished run of this config; give --resume to continue it, or "
                "choose another folder"
            )
    elif any((path / name).exists() for name in (*FILES, *FOLDERS)):
        raise UsageError(
            f"{path} holds files of something else (no config.json); choose another folder"
        )


def is_longer(config: TrainConfig, there: TrainConfig) -> bool:
    """Whether a config is another one with more steps."""
    return config.steps > there.steps and config == dataclasses.replace(there, steps=config.steps)


def earlier_result(path: Path, config: TrainConfig) -> Path:
    """Where the result of a run of this config is when the run is made longer."""
    return path / f"result-{config.steps}.json"


def is_finished(path: Path, config: TrainConfig) -> bool:
    """Whether the folder holds a finished run of this config."""
    return (path / "result.json").exists() and not differing_fields(read_config(path), config)


def differing_fields(there: TrainConfig, here: TrainConfig) -> str:
    """For example `steps: 100 there, 200 here`; empty if the configs are equal."""
    old, new = flat_fields(there), flat_fields(here)
    return ", ".join(
        f"{name}: {old[name]} there, {new[name]} here" for name in old if old[name] != new[name]
    )


def flat_fields(config: Any) -> dict[str, Any]:
    """The fields of a config, and of the configs in it, by name."""
    fields: dict[str, Any] = {}
    for name, value in vars(config).items():
        fields |= flat_fields(value) if dataclasses.is_dataclass(value) else {name: value}
    return fields


def read_config(path: Path) -> TrainConfig:
    """The config of the run in a folder.

    Raises UsageError if there is none that this version understands.
    """
    file = path / "config.json"
    if not file.exists():
        raise UsageError(f"{path} holds no run: there is no {file}")
    try:
        return from_json(file.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{file} is not the config of a run: {error}") from error


def read_result(path: Path) -> Record | None:
    """The result of the run in a folder; None if it is not finished.

    Raises RunnerError if it is damaged.
    """
    file = path / "result.json"
    return read_record(file) if file.exists() else None


def read_records(path: Path) -> list[Record]:
    """The records of the run in a folder. Raises RunnerError if one is damaged."""
    file = path / "metrics.jsonl"
    return read_lines(file) if file.exists() else []
