"""All of emcaps in each of JAX's own ways of sharing a batch:
`python -m experiments.meshes --output runs/meshes`.

Every public function of arrays and every module, on simulated devices: by explicit and automatic
axes of a mesh, `jax.shard_map`, `jax.pmap`, one example at a time by `jax.vmap` (of a whole batch,
or of one that is divided), and exported for a batch of any size. Values and gradients are compared
with one call on one device, and the collectives of the compiled program are counted: result and
gradient together may have all-reduces, and no others.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.devices.hardware import start_jax
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import UsageError
from experiments.runtime.records import Record, check_folder, write_atomically
from experiments.runtime.tables import Table
from experiments.verification.meshes import BATCH, WAYS, cases, compare, expect


@dataclasses.dataclass(frozen=True)
class MeshesCommand:
    """Compare all of emcaps, divided in each of JAX's ways, with one device."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """How many share the batch."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Which of explicit, automatic, shard_map, pmap, vmap, explicit-vmap,
    shard_map-vmap, export.
    """
    cases: tuple[str, ...] = ()
    """Names of functions and modules as the table has them; none: all."""
    output: Path = Path("runs/meshes")
    """Folder for meshes.json."""

    def __post_init__(self):
        if not self.ways or not set(self.ways) <= set(WAYS):
            raise ValueError(f"ways must be some of {', '.join(WAYS)}; got {list(self.ways)}")
        if not self.devices or any(number < 1 or BATCH % number for number in self.devices):
            raise ValueError(
                f"devices must be divisors of the batch of {BATCH}; got {list(self.devices)}"
            )


def compare_all(command: MeshesCommand) -> list[Record]:
    """A record for each case, way and number of devices; a case that cannot be run has an error in
    place of numbers.
    """
    rows: list[Record] = []
    known = {case.name: case for case in cases()}
    if unknown := set(command.cases) - set(known):
        raise UsageError(
            f"cases must be some of {', '.join(map(repr, known))}; got "
            f"{', '.join(map(repr, sorted(unknown)))}"
        )
    for case in tqdm([known[name] for name in command.cases or known], "comparing"):
        expected = expect(case)
        for name in command.ways:
            for number in command.devices if WAYS[name].kind is not None else (1,):
                row: Record = {"case": case.name, "way": name, "devices": number}
                try:
                    row |= compare(case, expected, WAYS[name], number)
                except Exception as error:  # whatever it is, it belongs in the table
                    row |= {"right": False, "error": f"{type(error).__name__}: {error}"[:500]}
                rows.append(row)
    return rows


def table(rows: Sequence[Record]) -> Table:
    """A line for each case, a column for each way: the largest difference, the collectives, and
    what is not right.
    """
    ways = list(dict.fromkeys(row["way"] for row in rows))
    cells = []
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [[row for row in rows if (row["case"], row["way"]) == (case, way)] for way in ways]
        cells.append((case, *map(_cell, mine)))
    title = (
        "Largest relative difference from one device (bfloat16: from float32), and the "
        "collectives of result and gradient"
    )
    return Table(title, ("", *ways), cells)


def _cell(rows: Sequence[Record]) -> str:
    """What one case in one way came to, on all numbers of devices."""
    failed = [str(row["devices"]) for row in rows if "error" in row]
    if failed:
        return f"FAILED on {', '.join(failed)}"
    kinds = sorted({f"{runs} {kind}" for row in rows for kind, runs in row["collectives"].items()})
    wrong = "" if all(row["right"] for row in rows) else " NOT RIGHT"
    return (
        f"{np.max([row['difference'] for row in rows]):.0e}"
        + (f", {', '.join(kinds)}" if kinds else "")
        + wrong
    )


def run(command: MeshesCommand, typed: str) -> int:
    """Compare, print and save; 1 if anything is not right."""
    check_folder(command.output)
    start_jax(max(command.devices))
    rows = compare_all(command)
    print(f"\n{table(rows).markdown()}")
    wrong = [row for row in rows if not row["right"]]
    for row in wrong:
        print(f"not right: {row}")
    command.output.mkdir(parents=True, exist_ok=True)
    record = {"command": typed, "jax_version": jax.__version__, "rows": rows}
    write_atomically(command.output / "meshes.json", json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {command.output}")
    return int(bool(wrong))


main = entry_point("experiments.meshes", MeshesCommand, run)

if __name__ == "__main__":
    sys.exit(main())
