"""Objects from new viewpoints: `python -m experiments.viewpoints --factor azimuth`, the paper's section 5.1.

Capsules and the paper's CNN are trained on a third of the views and tested, on objects not trained on, from these familiar views
and from the new ones. Networks of different accuracy would not show which one generalizes better, so both are compared when their
errors on familiar views are equal: the one that is better at its end is trained again, and stopped at the step at which it is as
good as the other one is at its end. (In the paper it is always the capsules that are stopped.) Nothing is chosen by the new views.

Any data set with a factor will do: `--dataset affnist --factor affine` asks the same of shifted and transformed digits.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims.study import NETWORKS, Study, missing_seeds, run_seeds
from experiments.data import loading
from experiments.devices.hardware import choose_devices
from experiments.devices.parallel import device_mesh
from experiments.learning.configs import TrainConfig
from experiments.learning.scoring import make_evaluator
from experiments.runs.directory import read_result
from experiments.runs.loop import TARGET_TOLERANCE
from experiments.runs.restore import restore
from experiments.runs.summary import table
from experiments.runs.trained import check_runs, trained
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import UsageError
from experiments.runtime.records import Record

NORB_VIEWS = {"azimuth": (15, 16, 17, 0, 1, 2), "elevation": (0, 1, 2)}  # 300, 320 .. 40 degrees; the three lowest
FAMILIAR = {name: NORB_VIEWS for name in ("smallnorb", "toynorb", "toynorb96")} | {"affnist": {"affine": (0,)}}
MATCH_EVERY = 5  # steps between two looks at whether a network is as good as the other one


@dataclasses.dataclass(frozen=True)
class ViewpointsCommand:
    """Train on familiar views, test on new ones."""

    study: Study = dataclasses.field(default_factory=Study)
    factor: str = "azimuth"
    """The factor of the data set that says from where an object is seen."""
    train_values: tuple[int, ...] = ()
    """Its familiar values; the default is the paper's for azimuth and elevation of smallnorb and toynorb."""
    capsules: str = "capsules"
    """Which capsules the CNN is compared with: a name of `experiments.claims.study.NETWORKS`."""

    def __post_init__(self):
        if self.capsules not in NETWORKS or self.capsules.startswith("cnn"):
            names = ", ".join(name for name in NETWORKS if not name.startswith("cnn"))
            raise ValueError(f"capsules must be one of {names}; got {self.capsules!r}")

    def shortened(self) -> "ViewpointsCommand":
        """What `--quick` asks for."""
        return dataclasses.replace(self, study=self.study.shortened())

    @property
    def familiar(self) -> tuple[int, ...]:
        """The values that are trained on. Raises UsageError if neither the user nor the paper says so."""
        values = self.train_values or FAMILIAR.get(self.study.dataset, {}).get(self.factor, ())
        if not values:
            raise UsageError(f"which values of {self.factor} are familiar? Give them by --train-values")
        return values

    def configs(self, seed: int) -> dict[str, TrainConfig]:
        """How the two networks of a seed are trained."""
        choice = {"factor": self.factor, "train_values": self.familiar}
        networks = {"capsules": self.capsules, "cnn": "cnn"}
        return {name: dataclasses.replace(self.study.network(network, seed), **choice) for name, network in networks.items()}

    @property
    def folder(self) -> Path:
        """Of the records and runs."""
        return self.study.folder / f"viewpoints-{self.factor}"

    def file(self, seed: int) -> Path:
        """The record of a seed."""
        return self.folder / f"seed-{seed}.json"

    def settings(self, seed: int) -> dict[str, Any]:
        """What the record of a seed depends on."""
        own = {"factor": self.factor, "train_values": self.familiar, "capsules": self.capsules}
        return self.study.settings("viewpoints", seed) | own


def check(command: ViewpointsCommand) -> None:
    """Raise UsageError unless all that is not yet measured can be: before anything is trained."""
    study = command.study
    missing = missing_seeds(command)
    if not missing:
        return
    runs = {command.folder / f"{name}-{seed}": config for seed in missing for name, config in command.configs(seed).items()}
    check_runs(runs, study.data_dir)
    values = np.unique(loading.load(study.dataset, study.data_dir).test_factors[command.factor]).tolist()
    if set(values) <= set(command.familiar):
        raise UsageError(f"there are no new views: the test images have no {command.factor} but {values}")


def measure(command: ViewpointsCommand, typed: str, seed: int) -> Record:
    """Train the networks of a seed, match them and score them, by value of the factor."""
    study, folder = command.study, command.folder
    configs = command.configs(seed)
    workdirs = {name: folder / f"{name}-{seed}" for name in configs}
    errors = {
        name: trained(config, workdirs[name], study.data_dir, typed)["test_error"]  # of the familiar views
        for name, config in configs.items()
    }
    at_end = {name: score(configs[name], workdirs[name], study.data_dir) for name in configs}
    matched, stopped = dict(at_end), None
    better, worse = sorted(errors, key=errors.__getitem__)
    if errors[worse] - errors[better] > TARGET_TOLERANCE:
        stopped = better
        config = dataclasses.replace(configs[better], target_error=errors[worse], eval_every=MATCH_EVERY)
        workdir = folder / f"{better}-{seed}-stopped"
        trained(config, workdir, study.data_dir, typed)
        matched[better] = score(config, workdir, study.data_dir)
    familiar = [found["familiar_error"] for found in matched.values()]
    equal = max(familiar) - min(familiar) <= TARGET_TOLERANCE
    return {"stopped": stopped, "matched": equal, "networks": matched, "unmatched": at_end}


def score(config: TrainConfig, workdir: Path, data_dir: Path | None) -> Record:
    """The errors of a finished run on all test images."""
    devices = choose_devices(config.batch_size)
    restored = restore(config, workdir, data_dir, None, devices)
    result = read_result(workdir)
    assert result is not None
    dataset = loading.load(config.dataset, data_dir)
    evaluate = make_evaluator(config, restored.model, device_mesh(devices))
    assert config.factor is not None
    seen_at = dataset.test_factors[config.factor]
    wrong, number = {}, {}
    for value in np.unique(seen_at).tolist():
        chosen = seen_at == value
        scores = evaluate(restored.state.params, dataset.test_images[chosen], dataset.test_labels[chosen], restored.step)
        wrong[value], number[value] = scores.num_examples - scores.num_correct, scores.num_examples
    new = [value for value in wrong if value not in config.train_values]
    found = {"num_parameters": result["num_parameters"], "steps": result["steps"], "train_seconds": result["train_seconds"]}
    for name, values in (("familiar", wrong.keys() - set(new)), ("new", new)):
        examples = sum(number[value] for value in values)
        found |= {f"{name}_error": sum(wrong[value] for value in values) / examples, f"{name}_examples": examples}
    return found | {"errors_by_value": {str(value): wrong[value] / number[value] for value in wrong}}


def rows(record: Record) -> list[dict[str, Any]]:
    """What the command prints of a seed."""
    shown = ("steps", "familiar_error", "new_error")
    return [
        {"seed": record["seed"], "network": f"{name}{', stopped' if name == record['stopped'] else ''}"}
        | {field: found[field] for field in shown}
        | {"matched": record["matched"]}
        for name, found in record["networks"].items()
    ]


def run(command: ViewpointsCommand, typed: str) -> None:
    """Train, match, score, and print the table."""
    found = run_seeds(command, typed, check, measure)
    print(table([row for record in found for row in rows(record)]))


main = entry_point("experiments.viewpoints", ViewpointsCommand, run)

if __name__ == "__main__":
    sys.exit(main())
