"""The benchmark on an accelerator: the paper's two networks at several batch sizes, each
formulation beside the multiply-add floor.

`python -m experiments.benchmark --parts accelerator torch profile`. What takes time here is
compiling: all programs are compiled side by side, what matters most first, and what has not been
begun in time is left out and named.
"""

import gzip
import itertools
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.measurements.layer import costs, layer_arguments, routings, with_gradient
from experiments.measurements.timing import Ceilings, Program, available_bytes, lower, time_in_turns
from experiments.measurements.training_step import Widths, step_arguments, steps
from experiments.runtime.errors import first_line
from experiments.runtime.processes import processors
from experiments.runtime.records import Record, read_lines
from experiments.runtime.tables import lines

TASKS = ("step", "layer, gradient", "layer, forward")
# In the order in which they are compiled; dense, which is slowest and largest, is the last. On an
# accelerator fused is streamed.
ORDER = ("kernels", "streamed", "textbook", "dense")
TORCH_MODES = ("eager", "compile")
PROFILED_STEPS = 3


class Workload(NamedTuple):
    """What is measured.

    Attributes:
        widths: of the network.
        batch: examples.
        task: one of `TASKS`: a training step, or the first routing layer.
    """

    widths: Widths
    batch: int
    task: str

    def __str__(self) -> str:
        return f"{self.widths}, batch {self.batch}, {self.task}"

    def functions(self) -> dict[str, Callable]:
        """By formulation."""
        if self.task == "step":
            return steps(self.widths)
        functions = routings(self.widths.first_layer(self.batch))
        return (
            {name: with_gradient(f) for name, f in functions.items()}
            if self.task == "layer, gradient"
            else functions
        )

    def arguments(self) -> tuple:
        """Of each of its functions."""
        return (
            step_arguments(self.widths, self.batch)
            if self.task == "step"
            else layer_arguments(self.widths.first_layer(self.batch))
        )

    def multiply_adds(self) -> int:
        """Those of the routing, that no formulation can do without."""
        layer = self.widths.first_layer(self.batch)
        needed = costs(layer.iterations)
        if self.task == "step":
            return needed.gradient * self.widths.pairs(self.batch)
        return layer.pairs * (needed.gradient if self.task == "layer, gradient" else needed.forward)

    def row(self, contender: str, ceilings: Ceilings, seconds: float, **more: Any) -> Record:
        """What was measured of one contender."""
        where = {
            "network": str(self.widths),
            "batch": self.batch,
            "task": self.task,
            "contender": contender,
        }
        floor = self.multiply_adds() / ceilings.multiply_adds
        found = {
            "seconds": seconds,
            "times_floor": seconds / floor,
            "images_per_second": self.batch / seconds,
        }
        return {**where, **found, **more}

    def missing(self, contender: str, why: str) -> Record:
        """Why one contender was not measured."""
        return {
            "network": str(self.widths),
            "batch": self.batch,
            "task": self.task,
            "contender": contender,
            "missing": why,
        }


def workloads(networks: Sequence[str], batches: Sequence[int]) -> list[Workload]:
    """All of them, in the order of the batch sizes."""
    return [
        Workload(Widths.parse(widths), batch, task)
        for batch in batches
        for widths in networks
        for task in TASKS
    ]


def benchmark_accelerator(
    loads: Sequence[Workload], ceilings: Ceilings, repeats: int, limit: float
) -> Iterator[list[Record]]:
    """The rows of each workload, as they are measured. Their `compile_seconds` are of several
    compilations side by side.

    Args:
        loads: what to measure.
        ceilings: of the first device, on which it is measured.
        repeats: samples of each.
        limit: seconds after which no compilation is begun; those that are are waited for.
    """
    end = time.monotonic() + limit
    pool = ThreadPoolExecutor(processors())
    arguments = {load: load.arguments() for load in loads}
    compiling: dict[tuple[Workload, str], Future[Program]] = {}
    for name, load in itertools.product(ORDER, loads):
        if time.monotonic() < end:
            compiling[load, name] = start_compiling(pool, load.functions()[name], arguments[load])
    wait(compiling.values(), max(0.0, end - time.monotonic()))
    # Those that are under way cannot be stopped, and would run beside what is timed.
    pool.shutdown(cancel_futures=True)
    for load in loads:
        programs, rows = {}, []
        for name in ORDER:
            why = why_not(compiling.get((load, name)))
            if why is None:
                programs[name] = compiling[load, name].result()
            else:
                rows.append(load.missing(name, why))
        try:
            measured = time_in_turns(programs, repeats)
            rows += [
                load.row(name, ceilings, **found._asdict()) for name, found in measured.items()
            ]
        except RuntimeError as error:  # what others left in memory may be too much after all
            rows += [load.missing(name, first_line(error)) for name in programs]
        yield rows


def start_compiling(
    pool: ThreadPoolExecutor, function: Callable, arguments: tuple
) -> Future[Program]:
    """Trace here, which threads cannot do side by side, and compile there; an error is part of the
    result.
    """
    try:
        return pool.submit(lower(function, arguments).compile)
    except Exception as error:
        failed: Future[Program] = Future()
        failed.set_exception(error)
        return failed


def why_not(compiling: Future[Program] | None) -> str | None:
    """Why a program cannot be measured, or None if it can."""
    if compiling is None or not compiling.done() or compiling.cancelled():
        return "not compiled in time"
    try:
        program = compiling.result()
        if program.bytes > 0.95 * available_bytes():
            return f"needs {program.bytes / 1e9:.0f} GB"
        program.sample(1)
    except Exception as error:  # out of memory, most likely; the others are measured all the same
        return first_line(error)
    return None


def benchmark_torch(
    networks: Sequence[str],
    batches: Sequence[int],
    ceilings: Ceilings,
    repeats: int,
    limit: float,
    folder: Path,
) -> Iterator[list[Record]]:
    """The textbook's formulation in PyTorch, in processes of their own: their memory and their
    crashes are their own.

    Args:
        networks, batches: see `workloads`.
        ceilings: as measured by JAX.
        repeats: samples of each.
        limit: seconds for each way of running it.
        folder: where each leaves what it finds, a line a workload.
    """
    for mode in TORCH_MODES:
        file = folder / f"torch-{mode}.jsonl"
        file.unlink(missing_ok=True)
        words = ["--mode", mode, "--networks", *networks, "--batches", *map(str, batches)]
        words += ["--repeats", str(repeats), "--output", str(file)]
        command = [
            sys.executable,
            "-c",
            "from experiments.measurements.torch_peer import main; main()",
            *words,
        ]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        with (folder / f"torch-{mode}.log").open("w", encoding="utf-8") as log:
            try:
                code = subprocess.run(
                    command, stdout=log, stderr=log, timeout=limit, env=environment
                ).returncode
            except subprocess.TimeoutExpired:
                code = "time over"
        by_place = (
            {(r["network"], r["batch"], r["task"]): r for r in read_lines(file)}
            if file.exists()
            else {}
        )
        name = f"PyTorch, {mode}"
        rows = []
        for load in workloads(networks, batches):
            found = by_place.get(
                (str(load.widths), load.batch, load.task), {"missing": f"not measured ({code})"}
            )
            given = {
                key: value
                for key, value in found.items()
                if key not in ("network", "batch", "task")
            }
            rows.append(
                load.missing(name, found["missing"])
                if "missing" in found
                else load.row(name, ceilings, **given)
            )
        yield rows


def profile_step(widths: Widths, batch: int, folder: Path) -> list[Path]:
    """A profile of some steps (for XProf or TensorBoard) and the compiled program's text, packed
    files in a folder.
    """
    arguments = step_arguments(widths, batch)
    program = lower(steps(widths)["kernels"], arguments).compile()
    program.sample(PROFILED_STEPS)

    def traces() -> set[Path]:
        return set((folder / "trace").rglob("*.xplane.pb"))

    earlier = traces()
    with jax.profiler.trace(str(folder / "trace")):
        program.sample(PROFILED_STEPS)
    packed, text = folder / "xplane.zip", folder / "step.hlo.txt.gz"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for trace in sorted(traces() - earlier):
            out.write(trace, trace.name)
    text.write_bytes(gzip.compress(program.compiled.as_text().encode()))
    return [packed, text]


def report(rows: Sequence[Record], compiling: str) -> None:
    """A table of each workload, with ratios to the textbook in JAX.

    Args:
        rows: what was measured.
        compiling: what `compile_seconds` are, the title of their column.
    """
    places = dict.fromkeys((row["network"], row["batch"], row["task"]) for row in rows)
    for place in places:
        here = [row for row in rows if (row["network"], row["batch"], row["task"]) == place]
        textbook = next(
            (row["seconds"] for row in here if row["contender"] == "textbook" and "seconds" in row),
            None,
        )
        network, batch, task = place
        print(f"\n{network}, batch {batch}, {task}")
        table: list[tuple[str, ...]] = [
            ("", "ms", "x textbook", "x floor", "images/s", "scratch MB", compiling)
        ]
        for row in here:
            if "missing" in row:
                table.append((row["contender"], *[""] * 6, f"   {row['missing']}"))
                continue
            table.append(
                (
                    row["contender"],
                    f"{1e3 * row['seconds']:.3f}",
                    f"{textbook / row['seconds']:.1f}" if textbook else "",
                    f"{row['times_floor']:.1f}",
                    f"{row['images_per_second']:.0f}",
                    f"{row['scratch_bytes'] / 1e6:.1f}",
                    f"{row['compile_seconds']:.1f}",
                    f"   values off by {row['off']:.0e}" if "off" in row else "",
                )
            )
        print(lines((-20, 10, 12, 9, 10, 12, len(compiling) + 2, 0), table), flush=True)


def append(rows: Sequence[Record], file: Path) -> None:
    """Add rows to a file of one a line, so that they are there whatever happens next."""
    with file.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
