"""What accelerators that are not here would run: `python -m experiments.aot`.

The training step of the runner, on 32x32x2 images of five classes, is compiled by the vendors' own
compilers for described devices (compiled/ahead_of_time.py). Counted are its operations, which on a
GPU are launches, its memory, and its collectives; it is not run, so no time is measured but the
compiler's. Routing is the paper's procedure, which the textbook's form (measurements/textbook.py)
has too.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from tqdm import tqdm

from emcaps import PAPER
from experiments.compiled.ahead_of_time import SLICES, described_devices, kernels_for_h100
from experiments.compiled.collectives import collectives, compiled_step, totals
from experiments.compiled.hlo import count_launches
from experiments.devices.parallel import Execution
from experiments.learning.configs import ModelConfig, TrainConfig
from experiments.learning.network import make_model
from experiments.measurements.textbook import TextbookNetwork
from experiments.measurements.training_step import IMAGE_SHAPE, NUM_CLASSES
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import first_line
from experiments.runtime.fields import check_positive
from experiments.runtime.records import Record, check_folder, write_atomically
from experiments.runtime.tables import Table

Accelerator = Literal["h100", "v5e", "v5p", "v6e"]
Routing = Literal["kernels", "streamed", "dense", "textbook"]


class Case(NamedTuple):
    """A training step to compile.

    Attributes:
        accelerator: see `described_devices`.
        chips: how many.
        widths: of the convolution, the primary capsules, and two layers of convolutional capsules.
        divided: all chips share the parent types and see the same examples; otherwise they share
            the examples.
        routing: an `implementation` of emcaps, or `textbook`.
        examples: on each chip.
        iterations: of routing.
    """

    accelerator: str
    chips: int
    widths: tuple[int, ...]
    divided: bool
    routing: str
    examples: int
    iterations: int

    def __str__(self) -> str:
        return f"{self.chips} x {self.accelerator}, {written(self.widths)}, {self.routing}"

    def compiled(self) -> Any:
        """The step, compiled."""
        implementation = "dense" if self.routing == "textbook" else self.routing
        routing = dataclasses.replace(
            PAPER, num_iterations=self.iterations, implementation=implementation
        )
        conv_channels, primary_capsules, *conv_capsules = self.widths
        model = ModelConfig(
            conv_channels=conv_channels,
            primary_capsules=primary_capsules,
            conv_capsules=tuple(conv_capsules),
            routing=routing,
            class_iterations=None,
        )
        model_axis = self.chips if self.divided else 1
        batch_size = self.examples * self.chips // model_axis
        config = TrainConfig(
            model=model, dataset="smallnorb", batch_size=batch_size, schedule="cosine"
        )
        execution = Execution(described_devices(self.accelerator, self.chips), "jit", model_axis)
        network: Any = make_model(model, NUM_CLASSES)
        textbook = TextbookNetwork(network) if self.routing == "textbook" else None
        return compiled_step(config, execution, IMAGE_SHAPE, NUM_CLASSES, textbook)


@dataclasses.dataclass(frozen=True)
class AotCommand:
    """Compile the training step for accelerators that are not here, and count what they
    would run.
    """

    accelerators: tuple[Accelerator, ...] = ("h100",)
    """For which: NVIDIA's H100, Google's TPU v5e, v5p, v6e."""
    chips: tuple[int, ...] = (1, 8)
    """On how many of them: of TPUs 1, 4 or 8."""
    networks: tuple[str, ...] = ("64/8/16/16", "32/32/32/32")
    """Networks whose batch the chips share, by their widths: channels, primary capsules, two layers
    of convolutional capsules.
    """
    divided: tuple[str, ...] = ("320/320/320/320",)
    """Networks whose parent types the chips share; not for one chip, and not by the textbook."""
    routings: tuple[Routing, ...] = ("kernels", "streamed", "dense", "textbook")
    """Which forms of routing."""
    examples: int = 64
    """On each chip."""
    iterations: int = 3
    """Of routing."""
    output: Path = Path("runs/aot")
    """Folder for aot.json."""

    def __post_init__(self):
        check_positive(self, "examples", "iterations")
        for accelerator in self.accelerators:
            possible = SLICES.get(accelerator, self.chips)
            if not set(self.chips) <= set(possible) or min(self.chips, default=1) < 1:
                raise ValueError(
                    f"chips must be positive, and of a TPU 1, 4 or 8; got {list(self.chips)}"
                )
        if not self.cases():
            raise ValueError(
                "there is nothing to compile: give accelerators, chips, networks and routings"
            )
        for case in self.cases():
            if case.divided and any(types % case.chips for types in case.widths[2:]):
                raise ValueError(
                    f"{case.chips} chips cannot share the parent types of {written(case.widths)}"
                )

    def cases(self) -> list[Case]:
        """What is to be compiled, in the order of the table."""
        networks = [(read_widths(text), False) for text in self.networks] + [
            (read_widths(text), True) for text in self.divided
        ]
        return [
            Case(accelerator, chips, widths, divided, routing, self.examples, self.iterations)
            for accelerator in self.accelerators
            for widths, divided in networks
            for chips in self.chips
            for routing in self.routings
            if not divided or (chips > 1 and routing != "textbook")
            if accelerator == "h100" or routing != "kernels"  # which is streamed there
        ]


def read_widths(text: str) -> tuple[int, ...]:
    """Raises ValueError unless there are four positive numbers between slashes."""
    widths = tuple(int(part) if part.isdecimal() else 0 for part in text.split("/"))
    if len(widths) != 4 or min(widths) < 1:
        raise ValueError(f"a network is given by four widths, such as 64/8/16/16; got {text}")
    return widths


def written(widths: Sequence[int]) -> str:
    return "/".join(map(str, widths))


def stay_off_devices() -> None:
    """To be called before JAX is used: devices that are here are left alone, and plugins do not ask
    for what these need.
    """
    jax.config.update("jax_platforms", "cpu")


def measure(case: Case) -> Record:
    """What the compiler makes of a case, or why it gives up; bytes of one chip.

    In a process that does nothing else.
    """
    stay_off_devices()
    jax.config.update("jax_enable_compilation_cache", False)
    start = time.perf_counter()
    try:
        with kernels_for_h100():
            compiled = case.compiled()
        seconds = time.perf_counter() - start
        text, memory = compiled.as_text(), compiled.memory_analysis()
        arguments, results = (
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes - memory.alias_size_in_bytes,
        )
        return {
            "launches": count_launches(text),
            "scratch_bytes": memory.temp_size_in_bytes,
            "total_bytes": arguments + results + memory.temp_size_in_bytes,
            "collectives": totals(collectives(text)),
            "compile_seconds": seconds,
        }
    # Of the compiler, and of what cannot be counted.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        return {"error": first_line(error)}


def measure_apart(case: Case) -> Record:
    """The same in a process of its own, which takes its memory with it, and alone ends where a
    compiler crashes.
    """
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(measure, case).result()
        except concurrent.futures.process.BrokenProcessPool:
            return {"error": "the compiler has crashed, or was killed for its memory"}


def table(rows: Sequence[Record]) -> Table:
    """Of each case, what was counted."""
    cells = []
    for row in rows:
        network = written(row["widths"]) + (", parent types divided" if row["divided"] else "")
        case = (f"{row['chips']} x {row['accelerator']}", network, row["routing"])
        if "error" in row:
            cells.append((*case, row["error"], *[""] * 5))
            continue
        kinds = row["collectives"]
        runs = ", ".join(f"{found['runs']} {kind}" for kind, found in kinds.items()) or "none"
        cells.append(
            (
                *case,
                f"{row['launches']:,}",
                f"{row['scratch_bytes'] / 1e6:,.0f}",
                f"{row['total_bytes'] / 1e6:,.0f}",
                runs,
                f"{sum(found['megabytes_sent'] for found in kinds.values()):.2f}",
                f"{row['compile_seconds']:.0f}",
            )
        )
    header = (
        "devices",
        "network",
        "routing",
        "launches",
        "scratch, MB",
        "in all, MB",
        "collectives",
        "MB sent",
        "compiled in s",
    )
    examples, iterations = rows[0]["examples"], rows[0]["iterations"]
    step = f"A training step, {examples} examples on each chip, {iterations} iterations"
    return Table(f"{step}; bytes of one chip; launches, of a TPU operations", header, cells)


def run(command: AotCommand, typed: str) -> None:
    """Compile, print, and write aot.json, which has the cases so far at any time."""
    check_folder(command.output)
    stay_off_devices()
    for accelerator in command.accelerators:
        described_devices(accelerator)
    command.output.mkdir(parents=True, exist_ok=True)
    rows: list[Record] = []
    for case in (progress := tqdm(command.cases())):
        progress.set_description(str(case))
        rows.append(case._asdict() | measure_apart(case))
        record = {"command": typed, "jax_version": jax.__version__, "cases": rows}
        write_atomically(command.output / "aot.json", json.dumps(record, indent=2) + "\n")
    print(f"\n{table(rows).markdown()}\n\nwritten to {command.output}")


main = entry_point("experiments.aot", AotCommand, run)

if __name__ == "__main__":
    sys.exit(main())
