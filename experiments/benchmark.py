"""How fast is the routing, and how much memory does it take? `python -m experiments.benchmark`, on
an otherwise idle machine.

In one process it measures, side by side, the textbook formulation (measurements/textbook.py) and
each `implementation` that is a program of its own here (on a CPU all but `"kernels"`, which is
`"streamed"` there), `"streamed"` as a plain call on one device and with the batch divided among all
devices (on a CPU: one per core). It measures one layer, forward and with its gradient, and a
training step of a whole network; then the parts of the streamed routing against the multiply-adds
that they cannot do without, at the machine's own rate; and how cost grows with each size. At last
the class capsules of dynamic routing, with votes in memory and without, and the strided convolution
below them; and what a run costs beside its steps.

Three parts are for accelerators and have to be asked for, `--parts accelerator torch profile`: two
whole networks and their first routing layers at several batch sizes; the same in PyTorch, where it
is installed; and a profile of the training step.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from experiments.devices.hardware import choose_devices, start_jax
from experiments.measurements import accelerator, picture
from experiments.measurements.layer import (
    SWEEPS,
    Layer,
    benchmark_kernels,
    benchmark_layer,
    benchmark_sweeps,
)
from experiments.measurements.loop_cost import CONFIG as LOOP
from experiments.measurements.loop_cost import benchmark_loop
from experiments.measurements.timing import Ceilings, Measurement, fit_exponent, measure_ceilings
from experiments.measurements.training_step import Widths, benchmark_dynamic, benchmark_step
from experiments.runtime.command_line import entry_point
from experiments.runtime.fields import check_positive
from experiments.runtime.records import Record, check_folder, write_atomically
from experiments.runtime.tables import lines

CpuPart = Literal["layer", "step", "kernels", "sweeps", "dynamic", "loop"]
AcceleratorPart = Literal["accelerator", "torch", "profile"]
Part = Literal[CpuPart, AcceleratorPart]
PARTS: tuple[CpuPart, ...] = get_args(CpuPart)


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    layer: Layer = dataclasses.field(default_factory=Layer)
    parts: tuple[Part, ...] = PARTS
    """Which measurements to make."""
    repeats: int = 7
    """Samples of each function; the median counts."""
    networks: tuple[str, ...] = ("32/32/32/32", "64/8/16/16")
    """Widths of the networks on an accelerator."""
    batches: tuple[int, ...] = (64, 256, 16)
    """Their batch sizes. What comes first is compiled first."""
    limit: int = 300
    """On an accelerator: seconds after which no compilation is begun, and seconds for each way of
    running PyTorch; what is not begun, or of PyTorch not done, by then is left out.
    """
    output: Path = Path("runs/benchmark")
    """Folder for benchmark.json and benchmark.png."""

    def __post_init__(self):
        check_positive(self, "repeats", "limit")
        for name, choices in (
            ("parts", get_args(Part)),
            ("networks", ["widths"]),
            ("batches", ["batch sizes"]),
        ):
            if not getattr(self, name):
                raise ValueError(f"{name} must be one or more of {', '.join(choices)}; got none")
        if min(self.batches) < 1:
            raise ValueError(f"batches must be at least 1; got {min(self.batches)}")
        for widths in self.networks:
            Widths.parse(widths)
        smallest = min(SWEEPS["size"])
        if "sweeps" in self.parts and self.layer.kernel > smallest:
            raise ValueError(
                f"kernel must be at most the smallest size of the sweeps, {smallest}; got "
                f"{self.layer.kernel}"
            )


def report_side_by_side(title: str, results: dict[str, Measurement], pairs: int, unit: str) -> None:
    """A table of one measurement of `measure`, with ratios to the first of it."""
    reference = next(iter(results.values())).seconds
    rows: list[tuple[str, ...]] = [("", unit, "x first", "scratch MB", "compile s")]
    for name, result in results.items():
        amount = 1e9 * result.seconds / pairs if pairs > 1 else 1e3 * result.seconds
        values = (
            amount,
            reference / result.seconds,
            result.scratch_bytes / 1e6,
            result.compile_seconds,
        )
        rows.append((name, *map("{:.1f}".format, values)))
    print(f"\n{title}\n{lines((-24, 14, 12, 12, 11), rows)}")


def layer_part(config: BenchmarkConfig) -> Any:
    results = benchmark_layer(config.layer, config.repeats)
    for direction, measurements in results.items():
        report_side_by_side(
            f"One layer, {direction}", measurements, config.layer.pairs, "ns per pair"
        )
    return {direction: as_record(measurements) for direction, measurements in results.items()}


def step_part(config: BenchmarkConfig) -> Any:
    measurements = benchmark_step(config.layer.batch, config.repeats, config.layer.iterations)
    report_side_by_side("Training step, 32/8/16/16, 32x32x2", measurements, 1, "ms")
    return as_record(measurements)


def kernels_part(config: BenchmarkConfig) -> Any:
    rows = benchmark_kernels(config.layer, config.repeats)
    rate = rows["multiply-adds"]["per_second"]
    print(
        f"\nParts of streamed routing, one device; floor at {rate / 1e9:.1f} billion multiply-adds "
        "a second"
    )
    parts = {name: row for name, row in rows.items() if name != "multiply-adds"}
    fields = ("ns_per_pair", "floor_ns", "times_floor")
    cells = [(name, *(f"{row[field]:.1f}" for field in fields)) for name, row in parts.items()]
    print(lines((-24, 14, 8, 9), [("", "ns per pair", "floor", "x floor"), *cells]))
    return rows


def sweeps_part(config: BenchmarkConfig) -> Any:
    record, sweeps = {}, benchmark_sweeps(config.layer, max(3, config.repeats // 2))
    rows: list[tuple[str, ...]] = [("", "exponent", "unit, last to first")]
    for name, sweep in sweeps.items():
        exponent = fit_exponent(sweep["sizes"], sweep["seconds"])
        record[name] = {**sweep, "exponent": exponent}
        costs = "  ".join(
            f"{n}: {1e3 * s:.1f} ms" for n, s in zip(sweep["sizes"], sweep["seconds"], strict=True)
        )
        per_unit = [
            second / size for second, size in zip(sweep["seconds"], sweep["sizes"], strict=True)
        ]
        rows.append((name, f"{exponent:.2f}", f"{per_unit[-1] / per_unit[0]:.2f}", f"   {costs}"))
    print(f"\nStreamed with gradient, one device: how cost grows\n{lines((-12, 10, 21, 0), rows)}")
    return record


def dynamic_part(config: BenchmarkConfig) -> Any:
    results = benchmark_dynamic(config.layer.batch, config.repeats)
    for title, measurements in results.items():
        report_side_by_side(f"Dynamic routing: {title}", measurements, 1, "ms")
    return {title: as_record(measurements) for title, measurements in results.items()}


def loop_part(config: BenchmarkConfig) -> Any:
    milliseconds = benchmark_loop(max(3, config.repeats // 2))
    bare, loop = (float(np.median(milliseconds[name])) for name in ("bare", "loop"))
    print(
        f"\nTraining, default recipe, 28x28 images, batch {LOOP.batch_size}, a checkpoint every 50 "
        "steps, ms a step"
    )
    print(
        f"bare step {bare:.1f}, loop {loop:.1f}: {loop / bare - 1:+.1%}; "
        f"{1e3 * LOOP.batch_size / loop:.0f} images/s"
    )
    return milliseconds


def ceilings_part(config: BenchmarkConfig) -> Ceilings:
    """What the parts for accelerators are compared with."""
    ceilings = measure_ceilings(config.repeats)
    print(
        f"\n{ceilings.multiply_adds / 1e12:.3f} T element-wise multiply-adds/s, "
        f"{ceilings.bytes / 1e9:.0f} GB/s",
        flush=True,
    )
    return ceilings


def accelerator_part(config: BenchmarkConfig) -> Any:
    ceilings = ceilings_part(config)
    loads = accelerator.workloads(config.networks, config.batches)
    rows = kept(
        config,
        "accelerator",
        accelerator.benchmark_accelerator(loads, ceilings, config.repeats, config.limit),
        "compile s, side by side",
    )
    return {"ceilings": ceilings._asdict(), "rows": rows}


def torch_part(config: BenchmarkConfig) -> Any:
    ceilings = ceilings_part(config)
    given = config.networks, config.batches, ceilings, config.repeats, config.limit, config.output
    rows = kept(config, "torch", accelerator.benchmark_torch(*given), "first call s")
    return {"ceilings": ceilings._asdict(), "rows": rows}


def profile_part(config: BenchmarkConfig) -> Any:
    files = accelerator.profile_step(
        Widths.parse(config.networks[0]), config.batches[0], config.output
    )
    print(f"\nprofile of the training step: {', '.join(map(str, files))}")
    return [file.name for file in files]


def kept(
    config: BenchmarkConfig, name: str, found: Iterable[list[Record]], compiling: str
) -> list[Record]:
    """All rows; each printed, and kept in a file of one a line, as soon as it is there; see
    `accelerator.report`.
    """
    file = config.output / f"{name}.jsonl"
    file.unlink(missing_ok=True)
    all_rows = []
    for rows in found:
        accelerator.report(rows, compiling)
        accelerator.append(rows, file)
        all_rows += rows
    return all_rows


# Each measures, prints what it has found, and returns what benchmark.json shall hold of it. PyTorch
# comes first: the others leave the GPU's memory to JAX.
MEASURED: dict[Part, Callable[[BenchmarkConfig], Any]] = {
    "torch": torch_part,
    "layer": layer_part,
    "step": step_part,
    "kernels": kernels_part,
    "sweeps": sweeps_part,
    "dynamic": dynamic_part,
    "loop": loop_part,
    "accelerator": accelerator_part,
    "profile": profile_part,
}


def as_record(measurements: dict[str, Measurement]) -> dict[str, Any]:
    """What `measure` gives, in terms of JSON."""
    return {name: measurement._asdict() for name, measurement in measurements.items()}


def run(config: BenchmarkConfig, _: str) -> None:
    """Measure the parts asked for, print them, and write benchmark.json and benchmark.png.

    Raises:
        UsageError: there can be no such folder, or the devices cannot share the batch; nothing has
            been measured.
    """
    if "torch" in config.parts:  # beside which JAX may not take most of the GPU's memory at once
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    start_jax()
    check_folder(config.output)
    if {"layer", "step"} & set(config.parts):
        choose_devices(config.layer.batch, len(jax.devices()))
    config.output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "devices": len(jax.devices()),
        "device_kind": jax.devices()[0].device_kind,
        "jax_version": jax.__version__,
    }
    for part, measured in MEASURED.items():
        if part in config.parts:
            record[part] = measured(config)
            write_atomically(config.output / "benchmark.json", json.dumps(record, indent=2) + "\n")
    if {"layer", "sweeps"} <= set(config.parts):
        picture.benchmark(record).savefig(config.output / "benchmark.png", dpi=120)
    print(f"\nwritten to {config.output}")


main = entry_point("experiments.benchmark", BenchmarkConfig, run)

if __name__ == "__main__":
    sys.exit(main())
