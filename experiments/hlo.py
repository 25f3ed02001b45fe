"""A compiled XLA program as text: its computations, how often its loops run, and how much it launches."""

import functools
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"= (.*?) ([a-z][\w\-]*)\(")
_BODY = re.compile(r" while\(.*body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r"(?:to_apply|calls|(?:true|false)_computation|branch_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")
# What is there for the compiler's sake, and the ends of what was started before.
_NOT_LAUNCHED = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "opt-barrier")


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
        opcode: `fusion`, `while`, ...
        shapes: of its result, as they are written.
        line: all of it.
    """

    opcode: str
    shapes: str
    line: str

    @property
    def body(self) -> str:
        """The computation that a `while` repeats."""
        loop = _BODY.search(self.line)
        assert loop is not None
        return loop[1]

    @property
    def trips(self) -> int | None:
        """How often a `while` does, where that is known."""
        trips = _TRIPS.search(self.line)
        return None if trips is None else int(trips[1])

    @property
    def called(self) -> list[str]:
        """The other computations that it names: of a fusion, a call, a reduction, the branches of a conditional."""
        return [name[1:] for names in _CALLED.findall(self.line) for name in names.split(", ")]


class Program(NamedTuple):
    """A program.

    Attributes:
        entry: the computation that it starts with.
        computations: the instructions of each.
    """

    entry: str
    computations: dict[str, list[Instruction]]


def parse_program(text: str) -> Program:
    """A program, from what `as_text()` of a compiled one gives."""
    computations: dict[str, list[Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[1]
            computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name and (found := _INSTRUCTION.search(line)):
            computations[name].append(Instruction(found[2], found[1], line))
    return Program(entry, computations)


def count_launches(text: str) -> int:
    """How many kernels, library calls and copies a program starts on a GPU, each loop's as often as it runs.

    A loop and a conditional count as one more each, for their control; of the branches of a conditional the largest is counted.

    Raises:
        ValueError: nobody knows how often a loop runs.
    """
    entry, computations = parse_program(text)

    @functools.cache
    def of(computation: str) -> int:
        return sum(map(launches, computations[computation]))

    def launches(instruction: Instruction) -> int:
        opcode = instruction.opcode
        if opcode in _NOT_LAUNCHED or opcode.endswith("-done"):
            return 0
        if opcode == "call":
            return sum(map(of, instruction.called))
        if opcode == "conditional":
            return 1 + max(map(of, instruction.called))
        if opcode == "while":
            if instruction.trips is None:
                raise ValueError(f"nobody knows how often the loop {instruction.body} runs")
            return 1 + instruction.trips * of(instruction.body)
        return 1

    return of(entry)
