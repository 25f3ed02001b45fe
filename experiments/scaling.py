"""What more devices change, and what not: `python -m experiments.scaling --output runs/scaling`.

Simulated devices of the CPU (and processes of this host) verify that results are the same, and are
what programs are compiled for whose collectives are counted. What an accelerator's compiler makes
of the step says `python -m experiments.aot`.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from emcaps import TRAINABLE
from experiments.compiled.collectives import collectives, compiled_step, totals
from experiments.data.preprocessing import ImageConfig
from experiments.devices.hardware import start_jax
from experiments.devices.parallel import Execution
from experiments.learning.configs import ModelConfig, TrainConfig
from experiments.measurements.training_step import IMAGE_SHAPE, NUM_CLASSES
from experiments.runtime.command_line import entry_point
from experiments.runtime.records import Record, check_folder, write_atomically
from experiments.runtime.tables import Table
from experiments.verification.step_equality import (
    DIVISIONS,
    PRECISIONS,
    Division,
    arrays_of,
    differences,
)

PARTS = ("equality", "collectives")
NUM_DEVICES = (1, 2, 4, 8, 16, 32, 64)
SHARED_BY = (2, 4, 8)
WIDTH = 32  # of all layers, the paper's


@dataclasses.dataclass(frozen=True)
class ScalingCommand:
    """Compare results on 1 to 8 devices, and count the collectives of 1 to 64."""

    parts: tuple[str, ...] = PARTS
    """Which of equality, collectives."""
    output: Path = Path("runs/scaling")
    """Folder for scaling.json."""

    def __post_init__(self):
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"parts must be some of {', '.join(PARTS)}; got {list(self.parts)}")


def network_config(width: int, num_devices: int) -> TrainConfig:
    """A network whose layers all have this width, with an example for each device: collectives do
    not depend on how many.
    """
    model = ModelConfig(
        conv_channels=width, primary_capsules=width, conv_capsules=(width, width), routing=TRAINABLE
    )
    images = ImageConfig(max_shift=0)
    return TrainConfig(model=model, dataset="smallnorb", images=images, batch_size=num_devices)


def compare() -> list[Record]:
    """How far each of `DIVISIONS` is from one device, in each precision."""
    rows: list[Record] = []
    reference = {precision: arrays_of(Division(1), precision) for precision in PRECISIONS}
    for division in tqdm(DIVISIONS, "comparing"):
        row: Record = {"division": str(division)}
        for precision in PRECISIONS:
            row[precision] = differences(arrays_of(division, precision), reference[precision])
        rows.append(row)
    return rows


def count() -> list[Record]:
    """The collectives of the paper's network on more and more devices, and with its parent types
    divided.
    """
    rows = []
    executions = [(number, 1) for number in NUM_DEVICES] + [(8, axis) for axis in SHARED_BY]
    for number, model_axis in tqdm(executions, "compiling"):
        config = network_config(WIDTH, number // model_axis)
        compiled = compiled_step(
            config, Execution(jax.devices()[:number], "jit", model_axis), IMAGE_SHAPE, NUM_CLASSES
        )
        found = totals(collectives(compiled.as_text()))
        rows.append({"devices": number, "model_axis": model_axis, "collectives": found})
    return rows


def equality_table(rows: Sequence[Record]) -> Table:
    """Relative differences."""
    parts = ("losses", "gradient", "params")
    header = ("division", *(f"{part}, {precision}" for precision in PRECISIONS for part in parts))
    cells = [
        (
            row["division"],
            *(f"{row[precision][part]:.0e}" for precision in PRECISIONS for part in parts),
        )
        for row in rows
    ]
    return Table("Largest relative differences from one device, after five steps", header, cells)


def collectives_table(rows: Sequence[Record]) -> Table:
    """Kinds, how often a step runs them, and what a device sends."""
    cells = []
    for row in rows:
        kinds = row["collectives"]
        runs = ", ".join(f"{found['runs']} {kind}" for kind, found in kinds.items()) or "none"
        sent = sum(found["megabytes_sent"] for found in kinds.values())
        cells.append((str(row["devices"]), str(row["model_axis"]), runs, f"{sent:.2f}"))
    header = ("devices", "share parent types", "collectives in a step", "MB sent by a device")
    return Table(
        "Collectives of the compiled step of the paper's network, an example for each group of "
        "devices",
        header,
        cells,
    )


def run(command: ScalingCommand, typed: str) -> None:
    """Compare and count, print and save."""
    check_folder(command.output)
    start_jax(max(NUM_DEVICES))
    record: dict[str, Any] = {"command": typed, "jax_version": jax.__version__}
    if "equality" in command.parts:
        record["equality"] = rows = compare()
        print(f"\n{equality_table(rows).markdown()}")
    if "collectives" in command.parts:
        record["collectives"] = rows = count()
        print(f"\n{collectives_table(rows).markdown()}")
    command.output.mkdir(parents=True, exist_ok=True)
    write_atomically(command.output / "scaling.json", json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {command.output}")


main = entry_point("experiments.scaling", ScalingCommand, run)

if __name__ == "__main__":
    sys.exit(main())
