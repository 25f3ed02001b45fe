"""What a report is made of: pictures and sections, and what all claims have in common."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.claims.intervals import percent, verdict
from experiments.runtime.records import Record
from experiments.runtime.tables import Table


class Picture(NamedTuple):
    """A figure.

    Attributes:
        name: of its file, without suffix.
        caption: what to see in it.
        figure: to be saved.
    """

    name: str
    caption: str
    figure: Figure


class Section(NamedTuple):
    """What was found about a claim.

    Attributes:
        heading: of the section.
        claim: the paper's, in a sentence or two, with its numbers.
        tables: in order.
        pictures: in order.
        sources: each command that was used, and the time behind its numbers.
    """

    heading: str
    claim: str
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    sources: Sequence[str]


def by_seed(records: Iterable[Record], value: Callable[[Record], float]) -> dict[int, float]:
    """A number of each record, by its seed."""
    return {record["seed"]: value(record) for record in records}


def compared(better: dict[int, float], worse: dict[int, float]) -> tuple[str, str]:
    """By how much the first numbers exceed the second, and whether they do, over the seeds that
    both have.
    """
    differences = [better[seed] - worse[seed] for seed in better if seed in worse]
    return (percent(differences), verdict(differences)) if differences else ("", "undecided")


def sources(records: Sequence[Record], seconds: str) -> list[str]:
    """The commands behind records, and how long they took, by the name of that field."""
    totals: dict[str, float] = {}
    for record in records:
        totals[record["command"]] = totals.get(record["command"], 0) + record[seconds]
    return [f"`{command}`: {total / 60:.0f} minutes" for command, total in totals.items()]
