"""Is everything right on this hardware? `python -m experiments.verify`: to be run first where
emcaps has not run before.

On the devices that are there it compares routing with float64 on the host, the training step with
the CPU's, and scratch memory with what emcaps promises. It prints what it finds as it goes, leaves
it in verify.json, and exits with 1 if anything is off.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from experiments.devices.hardware import all_devices, describe, start_jax
from experiments.devices.parallel import Execution
from experiments.runtime.command_line import entry_point
from experiments.runtime.fields import check_positive
from experiments.runtime.records import check_folder, write_atomically
from experiments.runtime.tables import line
from experiments.verification.memory import check_memory
from experiments.verification.routing import (
    Finding,
    check_divided,
    check_precision,
    check_routing,
    failed,
)
from experiments.verification.step_equality import Division, as_arrays, differences, take_steps

Check = Literal["routing", "precision", "divided", "steps", "memory"]
STEPS = 10
# After ten steps of Adam, which divides gradients by their size: where one is rounding noise, so is
# a part of the learning rate.
STEP_BOUNDS = {"losses": 1e-3, "gradient": 1e-3, "params": 1e-2}

WIDTHS = (-10, -92, 9, 9, -10, -4, 0)  # of the table's columns


@dataclasses.dataclass(frozen=True)
class VerifyCommand:
    """Verify routing and training on the devices that are there."""

    checks: tuple[Check, ...] = get_args(Check)
    """Which checks to make."""
    seconds: int = 180
    """No new check is begun after so many; what has not been looked at by then is not passed."""
    output: Path = Path("runs/verify")
    """Folder for verify.json."""

    def __post_init__(self):
        check_positive(self, "seconds")
        if not self.checks:
            raise ValueError(
                f"checks must be one or more of {', '.join(get_args(Check))}; got none"
            )


def check_steps(number: int = STEPS) -> Iterator[list[Finding]]:
    """Training steps on all devices against the same on one of the CPU: losses, the first gradient,
    the parameters at the end.
    """
    host = jax.devices("cpu")[0]
    # A power of 2, which divides the batch and the types.
    devices = 1 << (min(8, len(jax.devices())).bit_length() - 1)

    def steps_on(execution: Execution, precision: str | None = "highest") -> Any:
        with jax.default_device(host), jax.default_matmul_precision(precision):
            return as_arrays(take_steps(execution, "float32", number))

    expected = steps_on(Execution([host]))
    divisions = [Division(devices), Division(devices, "pmap")] + [
        Division(devices, model_axis=devices)
    ] * (devices > 1)
    for division in divisions:
        name = f"{number} steps, {division}"
        try:
            arrays = steps_on(
                Execution(jax.devices()[:devices], division.parallel, division.model_axis)
            )
        except Exception as error:
            yield [failed("steps", name, error)]
            continue
        found = differences(arrays, expected)
        findings = [
            Finding("steps", f"{name}: {part}", found[part], bound)
            for part, bound in STEP_BOUNDS.items()
        ]
        yield [
            *findings,
            Finding("steps", f"{name}: compiled", float(arrays[".programs"]), 1, "programs"),
        ]
    if jax.devices()[0].platform != "cpu":
        found = differences(steps_on(Execution(jax.devices()[:devices]), None), expected)
        note = "as the runner computes convolutions here"
        name = f"{number} steps at the device's default precision"
        yield [Finding("steps", f"{name}: {part}", found[part], note=note) for part in STEP_BOUNDS]


# In order of what matters most, should time run out.
CHECKED: dict[Check, Callable[[], Iterator[list[Finding]]]] = {
    "routing": check_routing,
    "precision": check_precision,
    "divided": check_divided,
    "steps": check_steps,
    "memory": check_memory,
}


def findings(command: VerifyCommand) -> Iterator[Finding]:
    """What the checks find, as they find it; an error in one is a finding that has not passed, and
    does not stop the others.
    """
    end = time.monotonic() + command.seconds
    for check in CHECKED:
        if check not in command.checks:
            continue
        if time.monotonic() > end:
            yield Finding(
                check, "not looked at", None, note=f"the {command.seconds} seconds were over"
            )
            continue
        over = False
        try:
            for found in CHECKED[check]():
                if over:  # and this was not the last
                    yield Finding(
                        check,
                        "the rest of it",
                        None,
                        note=f"the {command.seconds} seconds were over",
                    )
                    break
                yield from found
                over = time.monotonic() > end
        except Exception as error:
            yield failed(check, "the check itself", error)


def cells(finding: Finding) -> tuple[str, ...]:
    """A row of the table."""
    found = "-" if finding.found is None else f"{finding.found:.3g}"
    bound = "" if finding.bound is None else f"{finding.bound:.2g}"
    verdict = "off" if not finding.passed else "ok" if finding.bound is not None else ""
    return finding.check, finding.case, found, bound, f" {finding.unit}", verdict, finding.note


def run(command: VerifyCommand, _: str) -> int:
    """Make the checks, print what they find, and write verify.json after each. Returns 1 if
    anything is off, otherwise 0.

    Raises:
        UsageError: there can be no such folder, or no CPU to compare with; nothing has been looked
            at.
    """
    start_jax()
    all_devices("cpu")
    check_folder(command.output)
    command.output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "devices": describe(jax.devices()),
        "platform": jax.devices()[0].client.platform_version,
        "jax_version": jax.__version__,
        "findings": [],
    }
    start = time.monotonic()
    print(f"emcaps on {record['devices']}, jax {jax.__version__}")
    print(line(WIDTHS, ("check", "case", "found", "bound")), flush=True)
    for finding in findings(command):
        print(line(WIDTHS, cells(finding)), flush=True)
        record["findings"].append({**finding._asdict(), "passed": finding.passed})
        record["passed"] = all(found["passed"] for found in record["findings"])
        record["seconds"] = time.monotonic() - start
        write_atomically(command.output / "verify.json", json.dumps(record, indent=2) + "\n")
    off = sum(not found["passed"] for found in record["findings"])
    print(
        f"{f'{off} off' if off else 'all as it should be'}, after {record['seconds']:.0f} s; "
        f"written to {command.output}"
    )
    return int(off > 0)


main = entry_point("experiments.verify", VerifyCommand, run)

if __name__ == "__main__":
    sys.exit(main())
