"""The records of a run for TensorBoard, in event files that are made of metrics.jsonl and nothing
else.

tensorboardX writes them. It is of the extra `tensorboard`, and imported only where files are
written.
"""

import importlib.util
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.runtime.errors import UsageError
from experiments.runtime.records import Record

NO_SCALARS = ("step", "split", "seconds")  # an event has a step, a time, and names of its own


def is_installed() -> bool:
    """Whether event files can be written here."""
    return importlib.util.find_spec("tensorboardX") is not None


def check_installed() -> None:
    """Raise UsageError unless event files can be written here."""
    if not is_installed():
        raise UsageError("--tensorboard needs the package tensorboardX: pip install tensorboardX")


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record of metrics.jsonl, by what TensorBoard calls them: `train/loss`,
    `temperatures/assignment_temperature/class_caps`.
    """
    numbers = {name: value for name, value in record.items() if name not in NO_SCALARS}
    return dict(_flat(record["split"], numbers))


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for inner, entry in value.items():
        yield from _flat(f"{name}/{inner}", entry)


class EventFiles:
    """The event files in a folder, which hold these records and those that are added.

    Those that were there are deleted: a run that goes on has all of its records in one file, and
    none twice. An event is in the file when `add` returns; if it cannot be written, that is an
    error there.

    An event's time is that at which its record was made, but for the seconds in which a run begins,
    and as if it had never been interrupted.
    """

    def __init__(self, folder: Path, records: Sequence[Record]):
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(exist_ok=True)
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._began = time.time() - max((record["seconds"] for record in records), default=0)
        self._writer = EventsWriter(str(folder / "events"))
        for record in records:
            self._write(record)
        self._writer.flush()

    def add(self, record: Record) -> None:
        """Write the event of a record."""
        self._write(record)
        self._writer.flush()

    def _write(self, record: Record) -> None:
        # Classes that protobuf makes when it is imported, of which pyright does not know.
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

        values = [
            Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record).items()
        ]
        event = Event(
            step=record["step"],
            wall_time=self._began + record["seconds"],
            summary=Summary(value=values),
        )
        self._writer.write_event(event)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
