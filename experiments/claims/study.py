"""What the experiments about the paper's claims have in common: networks, trained with several
seeds, and each only once.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.claims.networks import NETWORKS, is_capsules
from experiments.data.toynorb_builders import ToyNorb
from experiments.learning.configs import TrainConfig, to_json
from experiments.learning.network import Network
from experiments.runs.directory import read_result
from experiments.runs.flags import check_left_open, config_of
from experiments.runs.restore import restore
from experiments.runtime.errors import UsageError
from experiments.runtime.fields import check_positive_or_none, check_seeds
from experiments.runtime.records import Record

QUICK_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Study:
    """What the experiments have in common; what is finished in the folder `runs` is not
    repeated.
    """

    dataset: str = "toynorb"
    """Data set, as of `experiments.train`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    steps: int | None = None
    """Training steps; the default is that of the data set."""
    flags: str = ""
    """More flags of `experiments.train`, for every network."""
    capsule_flags: str = ""
    """The same, for networks of matrix capsules only: flags of routing, and of their widths."""
    quick: bool = False
    """Only see that everything works, in at most three minutes: one seed, few steps, few images,
    into RUNS/quick.
    """
    runs: Path = Path("runs/claims")
    """The folder of all results."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""

    def __post_init__(self):
        check_seeds(self)
        check_positive_or_none(self, "steps")
        for flags in (self.flags, self.capsule_flags):
            check_left_open(flags, "--dataset", "--seed", "--steps", "--eval-every")

    def shortened(self) -> "Study":
        """What `quick` asks for: the first seed, and few steps."""
        return dataclasses.replace(self, seeds=self.seeds[:1], steps=self.steps or QUICK_STEPS)

    @property
    def folder(self) -> Path:
        """Where the results of this data set go."""
        return (self.runs / "quick" if self.quick else self.runs) / Path(self.dataset).stem

    def workdir(self, name: str, seed: int) -> Path:
        """The run of one of `NETWORKS`."""
        return self.folder / f"{name}-{seed}"

    def network(self, name: str, seed: int) -> TrainConfig:
        """How one of `NETWORKS` is trained, and scored once, after the last step.

        A flag that is not understood ends the process as for `experiments.train`.
        """
        words = ["--dataset", self.dataset, *self.flags.split()]
        if is_capsules(name):
            words += self.capsule_flags.split()
        config = config_of(words, NETWORKS[name])
        steps = self.steps or config.steps
        return dataclasses.replace(config, steps=steps, eval_every=steps, seed=seed)

    def networks(self, names: Iterable[str], seed: int) -> dict[Path, TrainConfig]:
        """How these of `NETWORKS` are trained, by folder.

        Raises UsageError if there are flags for capsules, and none are among them.
        """
        names = list(names)
        if self.capsule_flags and not any(map(is_capsules, names)):
            raise UsageError(
                "--capsule-flags are for networks of matrix capsules, and there are none among "
                f"{', '.join(names)}"
            )
        return {self.workdir(name, seed): self.network(name, seed) for name in names}

    def settings(self, experiment: str, seed: int) -> dict[str, Any]:
        """What the networks of a seed are, for the record of an experiment with them."""
        config, dataset = self.network("capsules", seed), Path(self.dataset).stem
        given = {
            "experiment": experiment,
            "dataset": dataset,
            "seed": seed,
            "steps": config.steps,
            "flags": self.flags,
        }
        return given | {"capsules": json.loads(to_json(config))}


def check_rendered(study: Study) -> None:
    """Raise ValueError unless the data set is of toys that can be rendered anew."""
    if study.dataset != ToyNorb.name:
        raise ValueError(
            f"dataset must be {ToyNorb.name}, whose toys can be rendered anew; got {study.dataset}"
        )


def check_trained_on_all_toys(study: Study, names: Iterable[str], seed: int) -> None:
    """Raise UsageError unless these networks are trained on the whole training split."""
    for name in names:
        config = study.network(name, seed)
        if config.scored != "test" or config.factor is not None:
            raise UsageError(
                f"{name} must be trained on all views of all toys of the training split; choose "
                "other --flags"
            )


class TrainedNetwork(NamedTuple):
    """A network of a study as it is after its training.

    Attributes:
        config: of its run.
        model: that of the config.
        params: its parameters, on all devices.
        step: after which.
        result: of its run.
    """

    config: TrainConfig
    model: Network
    params: Any
    step: int
    result: Record


def load_network(study: Study, name: str, seed: int) -> TrainedNetwork:
    """A network of the study, as its finished run has left it."""
    config, folder = study.network(name, seed), study.workdir(name, seed)
    result = read_result(folder)
    assert result is not None
    restored = restore(config, folder, study.data_dir, result["steps"], jax.devices())
    return TrainedNetwork(config, restored.model, restored.state.params, restored.step, result)
