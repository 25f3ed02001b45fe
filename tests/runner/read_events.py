"""Reads event files of TensorBoard, without TensorBoard."""

import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from experiments.runs.directory import read_records
from experiments.runs.event_files import scalars


def events(file: Path) -> Iterator[Any]:
    """The events of a file: of each there is its length, a checksum of that, the event, and a
    checksum of the event.
    """
    contents = file.read_bytes()
    while contents:
        (size,) = struct.unpack("<Q", contents[:8])
        for start, end in ((0, 8), (12, 12 + size)):
            (expected,) = struct.unpack("<I", contents[end : end + 4])
            found = crc32c(contents[start:end])
            assert ((found >> 15 | found << 17) + 0xA282EAD8) % 2**32 == expected
        yield Event.FromString(contents[12 : 12 + size])
        contents = contents[16 + size :]


def assert_same_events(workdir: Path) -> None:
    """The event files of a run hold the records of metrics.jsonl, in this order, each once."""
    (file,) = (workdir / "tensorboard").iterdir()
    first, *rest = events(file)
    assert first.file_version == "brain.Event:2"
    records = read_records(workdir)
    assert records and len(records) == len(rest)
    for record, event in zip(records, rest, strict=True):
        found = {value.tag: value.simple_value for value in event.summary.value}
        assert event.step == record["step"]
        assert found == {name: np.float32(value) for name, value in scalars(record).items()}
    for (one, other), (before, after) in zip(
        itertools.pairwise(records), itertools.pairwise(rest), strict=True
    ):
        apart = other["seconds"] - one["seconds"]
        assert abs(after.wall_time - before.wall_time - apart) < 1e-3
