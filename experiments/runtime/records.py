"""Records: JSON and arrays in files that are written as a whole or not at all."""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from experiments.runtime.errors import RunnerError, UsageError

Record = dict[str, Any]


def numbers(scalars: NamedTuple) -> dict[str, float]:
    """Named scalars, for JSON."""
    return {name: float(value) for name, value in scalars._asdict().items()}


def check_folder(path: Path) -> None:
    """Raise UsageError if a file is where this folder, or one that it is in, is or
    would be made.
    """
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir():
        raise UsageError(f"{nearest} is not a folder; choose another")


def read_lines(file: Path) -> list[Record]:
    """The records in a file of one a line; a last line without its end is passed over.

    Raises RunnerError if one is damaged.
    """
    lines = read_text(file).splitlines(keepends=True)
    return [parse_record(line, file) for line in lines if line.endswith("\n")]


def read_record(file: Path) -> Record:
    """The record in a file. Raises RunnerError if it is damaged."""
    return parse_record(read_text(file), file)


def read_text(file: Path) -> str:
    """What is written in a file. Raises RunnerError if that is no text."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RunnerError(f"{file} is damaged: {error}") from error


def parse_record(text: str, file: Path) -> Record:
    """The record that this text in a file is, in JSON. Raises RunnerError if it is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunnerError(f"{file} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise RunnerError(
            f"{file} is damaged: a record must be an object of JSON; got {type(record).__name__}"
        )
    return record


def write_atomically(path: Path, contents: str | bytes) -> None:
    """Write a file so that, whatever happens, it holds the old contents or the new."""
    with replacing(path) as file:
        file.write(contents.encode() if isinstance(contents, str) else contents)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file whole, or not at all.

    Raises ValueError if an array holds Python objects.
    """
    if objects := [name for name, array in arrays.items() if array.dtype.hasobject]:
        raise ValueError(f"arrays must not hold Python objects; {objects[0]} does")
    path.parent.mkdir(parents=True, exist_ok=True)
    by_name: dict[str, Any] = dict(arrays)
    with replacing(path) as file:
        np.savez_compressed(file, **by_name)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, which takes the place of the one at this path when all of it is written; where
    that fails it is gone.
    """
    scratch = path.with_name(path.name + ".tmp")
    try:
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a name could be on the disk before its contents
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def checksum(*parts: np.ndarray | bytes) -> int:
    """A number that changes with any of these, and not with the shapes of arrays."""
    number = 0
    for part in parts:
        number = zlib.crc32(
            part if isinstance(part, bytes) else np.ascontiguousarray(part).data, number
        )
    return number
