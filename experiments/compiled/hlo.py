"""A compiled XLA program as text: its computations, how often its loops run, and how much it
launches.
"""

import functools
import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INDEX = re.compile(r"index=(\d+)")
_CALLED = re.compile(
    r"(?:to_apply|calls|(?:true|false)_computation|branch_computations)=\{?(%[\w.\-]+(?:, "
    r"%[\w.\-]+)*)"
)
# What is there for the compiler's sake.
_NOT_LAUNCHED = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "add-dependency",
    "opt-barrier",
)


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
        opcode: `fusion`, `while`, ...
        shapes: of its result, as they are written.
        given: what is between its parentheses: of a constant its value, otherwise names of
            instructions.
        line: all of it.
        trips: how often a `while` runs; None if nobody knows, or it is none.
    """

    opcode: str
    shapes: str
    given: str
    line: str
    trips: int | None = None

    @property
    def operands(self) -> list[str]:
        return _NAME.findall(self.given)

    @property
    def loop(self) -> tuple[str, str]:
        """The computations of a `while`: its condition, and its body."""
        names = _LOOP.search(self.line)
        assert names is not None
        return names[1], names[2]

    @property
    def called(self) -> list[str]:
        """Other computations that it names: of a fusion, a call, a reduction, the branches of a
        conditional.
        """
        return [name for names in _CALLED.findall(self.line) for name in _NAME.findall(names)]


Computation = dict[str, Instruction]  # by name, in the order in which they run


class Program(NamedTuple):
    """A program.

    Attributes:
        entry: the computation that it starts with.
        computations: by name.
    """

    entry: str
    computations: dict[str, Computation]


def parse_program(text: str) -> Program:
    """A program, from what `as_text()` of a compiled one gives."""
    computations: dict[str, Computation] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name = header[1]
            computations[name] = {}
            entry = name if line.startswith("ENTRY") else entry
        elif name and (found := _INSTRUCTION.match(line)):
            computations[name][found[1]] = Instruction(found[3], found[2], found[4], line)
    for computation in computations.values():
        for name, instruction in computation.items():
            if instruction.opcode == "while":
                computation[name] = instruction._replace(
                    trips=_trips(instruction, computation, computations)
                )
    return Program(entry, computations)


def _trips(
    loop: Instruction, around: Computation, computations: dict[str, Computation]
) -> int | None:
    """How often a `while` runs: as the compiler says or, where it does not (TPU), as JAX counts, by
    ones up to a limit.
    """
    if said := _TRIPS.search(loop.line):
        return int(said[1])
    condition = computations.get(loop.loop[0], {})
    test = next(
        (
            one
            for one in condition.values()
            if one.opcode == "compare" and "direction=LT" in one.line
        ),
        None,
    )
    start = around.get(loop.operands[0])
    if test is None or start is None or start.opcode != "tuple":
        return None
    counter, limit = (condition[name] for name in test.operands)
    if (
        counter.opcode != "get-tuple-element"
        or limit.opcode != "constant"
        or not (index := _INDEX.search(counter.line))
    ):
        return None
    first = around.get(start.operands[int(index[1])])
    while first is not None and first.opcode == "copy":
        first = around.get(first.operands[0])
    return (
        None if first is None or first.opcode != "constant" else int(limit.given) - int(first.given)
    )


def count_launches(text: str) -> int:
    """How many operations a program runs, each loop's as often as it does: on a GPU kernels,
    library calls, copies, collectives.

    A loop and a conditional count as one more each, for their control; of the branches of a
    conditional the largest is counted. What is started in one place and waited for in another
    counts once.

    Raises:
        ValueError: nobody knows how often a loop runs.
    """
    entry, computations = parse_program(text)

    @functools.cache
    def of(computation: str) -> int:
        return sum(map(launches, computations[computation].values()))

    def launches(instruction: Instruction) -> int:
        opcode = instruction.opcode
        if opcode in _NOT_LAUNCHED or opcode.endswith("-done"):
            return 0
        if opcode == "call":
            return sum(map(of, instruction.called))
        if opcode == "conditional":
            return 1 + max(map(of, instruction.called))
        if opcode == "while":
            _, body = instruction.loop
            if instruction.trips is None:
                raise ValueError(f"nobody knows how often the loop {body} runs")
            return 1 + instruction.trips * of(body)
        return 1

    return of(entry)
