"""Objects from new viewpoints: `python -m experiments.viewpoints --factor azimuth`, the paper's
section 5.1.

Capsules and the paper's CNN are trained on a third of the views and tested, on objects not trained
on, from these familiar views and from the new ones. Networks of different accuracy would not show
which one generalizes better, so both are compared when their errors on familiar views are equal:
the one that is better at its end is trained again, and stopped at the step at which it is as good
as the other one is at its end. (In the paper it is always the capsules that are stopped.) Nothing
is chosen by the new views.

Any data set with a factor will do: `--dataset affnist --factor affine` asks the same of shifted and
transformed digits.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.experiment import SeedExperiment, run_seeds
from experiments.claims.networks import NETWORKS
from experiments.claims.style import PAIR
from experiments.data import loading
from experiments.devices.hardware import choose_devices
from experiments.devices.parallel import device_mesh
from experiments.learning.configs import TrainConfig
from experiments.learning.scoring import make_evaluator
from experiments.runs.directory import read_result
from experiments.runs.loop import TARGET_TOLERANCE
from experiments.runs.restore import restore
from experiments.runs.run_data import load_data
from experiments.runs.summary import table
from experiments.runs.trained import trained
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import UsageError
from experiments.runtime.records import Record

# 300, 320 .. 40 degrees; the three lowest.
NORB_VIEWS = {"azimuth": (15, 16, 17, 0, 1, 2), "elevation": (0, 1, 2)}
FAMILIAR = {name: NORB_VIEWS for name in ("smallnorb", "toynorb", "toynorb96")} | {
    "affnist": {"affine": (0,)}
}
# A training that is stopped is looked at so many times, at least so many steps apart: each look
# scores all familiar test images.
LOOKS, LOOK_EVERY = 100, 5


@dataclasses.dataclass(frozen=True)
class ViewpointsCommand(SeedExperiment):
    """Train on familiar views, test on new ones."""

    experiment = "viewpoints"
    factor: str = "azimuth"
    """The factor of the data set that says from where an object is seen."""
    train_values: tuple[int, ...] = ()
    """Its familiar values; the default is the paper's for azimuth and elevation of smallnorb and
    toynorb.
    """
    capsules: str = "capsules"
    """Which capsules the CNN is compared with: a name of `experiments.claims.networks.NETWORKS`."""

    def __post_init__(self):
        if self.capsules not in NETWORKS or self.capsules.startswith("cnn"):
            names = ", ".join(name for name in NETWORKS if not name.startswith("cnn"))
            raise ValueError(f"capsules must be one of {names}; got {self.capsules!r}")

    @property
    def familiar(self) -> tuple[int, ...]:
        """The values that are trained on.

        Raises UsageError if neither the user nor the paper says so.
        """
        values = self.train_values or FAMILIAR.get(self.study.dataset, {}).get(self.factor, ())
        if not values:
            raise UsageError(
                f"which values of {self.factor} are familiar? Give them by --train-values"
            )
        return values

    @property
    def folder(self) -> Path:
        """Of the records and runs."""
        return self.study.folder / f"{self.experiment}-{self.factor}"

    def own_settings(self, seed: int) -> dict[str, Any]:
        return {"factor": self.factor, "train_values": self.familiar, "network": self.capsules}

    def workdir(self, name: str, seed: int) -> Path:
        """The run of one of the two networks, `capsules` or `cnn`."""
        return self.folder / f"{name}-{seed}"

    def runs(self, seed: int) -> dict[Path, TrainConfig]:
        choice = {"factor": self.factor, "train_values": self.familiar}
        configs = self.study.networks((self.capsules, "cnn"), seed).values()
        return {
            self.workdir(name, seed): dataclasses.replace(config, **choice)
            for name, config in zip(PAIR, configs, strict=True)
        }


def check(command: ViewpointsCommand, missing: Sequence[int]) -> None:
    """Raise UsageError unless the data set has these familiar views, and others."""
    study = command.study
    load_data(next(iter(command.runs(missing[0]).values())), study.data_dir)
    values = np.unique(
        loading.load(study.dataset, study.data_dir).test_factors[command.factor]
    ).tolist()
    if set(values) <= set(command.familiar):
        raise UsageError(
            f"there are no new views: the test images have no {command.factor} but {values}"
        )


def measure(command: ViewpointsCommand, seed: int, typed: str) -> Record:
    """Match the networks of a seed, of which one may have to be trained again, and score them, by
    value of the factor.
    """
    data_dir, runs = command.study.data_dir, command.runs(seed)
    workdirs = {name: command.workdir(name, seed) for name in PAIR}
    # Of the familiar views.
    errors = {name: finished(workdir)["test_error"] for name, workdir in workdirs.items()}
    at_end = {name: score(runs[workdir], workdir, data_dir) for name, workdir in workdirs.items()}
    matched, stopped = dict(at_end), None
    better, worse = sorted(errors, key=errors.__getitem__)
    if errors[worse] - errors[better] > TARGET_TOLERANCE:
        stopped = better
        config = runs[workdirs[better]]
        eval_every = max(LOOK_EVERY, config.steps // LOOKS)
        config = dataclasses.replace(config, target_error=errors[worse], eval_every=eval_every)
        workdir = command.folder / f"{better}-{seed}-stopped"
        trained(config, workdir, data_dir, typed)
        matched[better] = score(config, workdir, data_dir)
    familiar = [found["familiar_error"] for found in matched.values()]
    equal = max(familiar) - min(familiar) <= TARGET_TOLERANCE
    return {"stopped": stopped, "matched": equal, "networks": matched, "unmatched": at_end}


def score(config: TrainConfig, workdir: Path, data_dir: Path | None) -> Record:
    """The errors of a finished run on all test images."""
    devices = choose_devices(config.batch_size)
    restored, result = restore(config, workdir, data_dir, None, devices), finished(workdir)
    dataset = loading.load(config.dataset, data_dir)
    evaluate = make_evaluator(config, restored.model, device_mesh(devices))
    assert config.factor is not None
    seen_at = dataset.test_factors[config.factor]
    wrong, number = {}, {}
    for value in np.unique(seen_at).tolist():
        chosen = seen_at == value
        scores = evaluate(
            restored.state.params,
            dataset.test_images[chosen],
            dataset.test_labels[chosen],
            restored.step,
        )
        wrong[value], number[value] = scores.num_examples - scores.num_correct, scores.num_examples
    new = [value for value in wrong if value not in config.train_values]
    found = {
        "num_parameters": result["num_parameters"],
        "steps": result["steps"],
        "train_seconds": result["train_seconds"],
    }
    for name, values in (("familiar", wrong.keys() - set(new)), ("new", new)):
        examples = sum(number[value] for value in values)
        found |= {
            f"{name}_error": sum(wrong[value] for value in values) / examples,
            f"{name}_examples": examples,
        }
    return found | {
        "errors_by_value": {str(value): wrong[value] / number[value] for value in wrong}
    }


def finished(workdir: Path) -> Record:
    """The result of a run that is finished."""
    result = read_result(workdir)
    assert result is not None
    return result


def rows(record: Record) -> list[dict[str, Any]]:
    """What the command prints of a seed."""
    shown = ("steps", "familiar_error", "new_error")
    return [
        {
            "seed": record["seed"],
            "network": f"{name}{', stopped' if name == record['stopped'] else ''}",
        }
        | {field: found[field] for field in shown}
        | {"matched": record["matched"]}
        for name, found in record["networks"].items()
    ]


def run(command: ViewpointsCommand, typed: str) -> None:
    """Train, match, score, and print the table."""
    found = run_seeds(command, typed, check, functools.partial(measure, typed=typed))
    print(table([row for record in found for row in rows(record)]))


main = entry_point("experiments.viewpoints", ViewpointsCommand, run)

if __name__ == "__main__":
    sys.exit(main())
