"""Whether a step is the same however it is divided: five steps of one small network on many kinds
of hardware, real or simulated.

`python -m experiments.scaling --parts equality` compares them in a table.
`python -m experiments.equality --output FILE`, with the flags of `Hardware`, leaves in an .npz file
what one of them gives: this is how the table gets what several processes give.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from experiments.devices.hardware import Hardware
from experiments.runtime import processes
from experiments.runtime.command_line import entry_point
from experiments.runtime.records import save_arrays
from experiments.verification.step_equality import BATCH, as_arrays, take_steps


@dataclasses.dataclass(frozen=True)
class EqualityCommand:
    """Take the five steps on some hardware, and save what they give."""

    output: Path
    """An .npz file to write."""
    precision: Literal["float32", "float64"] = "float32"
    """Of all arrays."""
    hardware: Hardware = dataclasses.field(default_factory=Hardware)


def run(command: EqualityCommand, _: str) -> None:
    """Take the steps, and save what they give."""
    command.hardware.start()
    arrays = as_arrays(take_steps(command.hardware.execution(BATCH), command.precision))
    if processes.is_first():
        save_arrays(command.output, arrays)
    processes.wait_for_all("the arrays are saved")


main = entry_point("experiments.equality", EqualityCommand, run)

if __name__ == "__main__":
    sys.exit(main())
