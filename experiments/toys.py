"""Would other toys have said the same? `python -m experiments.toys` scores capsules and CNNs on a
hundred toys more.

toynorb's test split has five toys of each category, as smallNORB's has, and a few of them make most
of the errors: which toys are tested is a matter of chance, as a seed is. Here networks that were
trained as for `experiments.parameters` are scored on many toys that nothing was trained, chosen or
tested on, drawn as the test toys are. Of each seed there is a record,
RUNS/DATASET/toys/seed-SEED.json.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.claims.experiment import SeedExperiment, run_seeds
from experiments.claims.networks import check_networks
from experiments.claims.study import check_rendered, check_trained_on_all_toys, load_network
from experiments.claims.toys import toys_table
from experiments.data.toynorb_builders import ToyNorb, ToyNorbTuning
from experiments.devices.parallel import device_mesh
from experiments.learning.configs import TrainConfig
from experiments.learning.scoring import make_evaluator
from experiments.runs.run_data import load_data
from experiments.runtime.command_line import entry_point
from experiments.runtime.fields import check_positive
from experiments.runtime.records import Record
from experiments.toynorb.collection import of_each_toy
from experiments.toynorb.scene import AZIMUTHS, ELEVATIONS, photograph
from experiments.toynorb.shapes import CATEGORIES, INSTANCES, toy

# A third of them, as of the toys that hyper-parameters are chosen on.
ELEVATION_LABELS = (1, 4, 7)
QUICK_TOYS = 1


@dataclasses.dataclass(frozen=True)
class ToysCommand(SeedExperiment):
    """Score capsules and CNNs on toys that are new to everybody."""

    experiment = "toys"
    networks: tuple[str, ...] = ("capsules", "cnn", "cnn-68k", "capsules-32-8-8-8", "cnn-25k")
    """Which: names of `experiments.claims.networks.NETWORKS`."""
    num_toys: int = 20
    """New toys of each of the five categories."""

    def __post_init__(self):
        check_positive(self, "num_toys")
        check_rendered(self.study)
        check_networks(self.networks)

    def quick_fields(self) -> dict[str, Any]:
        return {"num_toys": min(self.num_toys, QUICK_TOYS)}

    def own_settings(self, seed: int) -> dict[str, Any]:
        return {"networks": self.networks, "num_toys": self.num_toys}

    def runs(self, seed: int) -> dict[Path, TrainConfig]:
        return self.study.networks(self.networks, seed)


class Toys(NamedTuple):
    """Images of toys.

    Attributes:
        images: uint8 `[N, size, size, 2]`.
        labels: the categories, int32 `[N]`.
        instances: int32 `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray
    instances: np.ndarray


def new_instances(number: int) -> list[int]:
    """The first so many instances of a category that are of the kinds of the test toys, and after
    all that are trained, tested or chosen on.
    """
    kinds = ToyNorb.SPLITS["test"]
    first = 1 + max(ToyNorbTuning.SPLITS["test"]) // INSTANCES
    return [
        INSTANCES * (first + index // len(kinds)) + kinds[index % len(kinds)]
        for index in range(number)
    ]


@functools.cache
def take_new_toys(number: int) -> Toys:
    """So many new toys of each category, from all azimuths, in all lightings."""
    toys = list(product(range(len(CATEGORIES)), new_instances(number)))
    views = list(product([ELEVATIONS[label] for label in ELEVATION_LABELS], AZIMUTHS))
    elevations, azimuths = jnp.array(views, jnp.float32).T

    def take(category: int, instance: int) -> np.ndarray:
        pairs = photograph(toy(category, instance), elevations, azimuths, size=ToyNorb.SIZE)
        return np.asarray(pairs).reshape(-1, *pairs.shape[2:])

    taken = of_each_toy(take, toys)
    images = np.concatenate(taken).transpose(0, 2, 3, 1)
    labels, instances = (
        np.repeat(np.array(column, np.int32), len(taken[0])) for column in zip(*toys, strict=True)
    )
    return Toys(images, labels, instances)


def errors_by_toy(wrong: np.ndarray, toys: Toys) -> dict[str, list[float]]:
    """The share of each toy's images `[N]` that are wrong, by category, in the order of the
    instances.
    """
    found = {}
    for label, category in enumerate(CATEGORIES):
        of_category = toys.labels == label
        found[category] = [
            float(wrong[of_category & (toys.instances == instance)].mean())
            for instance in np.unique(toys.instances[of_category])
        ]
    return found


def check(command: ToysCommand, missing: Sequence[int]) -> None:
    """Raise UsageError unless the networks are trained on all training toys, and so scored on all
    test toys.
    """
    check_trained_on_all_toys(command.study, command.networks, missing[0])


def measure(command: ToysCommand, seed: int) -> Record:
    """The errors of a seed's networks on each of the test toys, and on each of the new ones."""
    study = command.study
    dataset = load_data(study.network(command.networks[0], seed), study.data_dir)
    tested = Toys(dataset.test_images, dataset.test_labels, dataset.test_factors["instance"])
    toys = {"tested": tested, "new": take_new_toys(command.num_toys)}
    errors: Record = {}
    with tqdm(
        total=len(command.networks) * len(toys), desc=f"scoring seed {seed}", unit=" sets"
    ) as progress:
        for name in command.networks:
            network = load_network(study, name, seed)
            evaluate = make_evaluator(network.config, network.model, device_mesh(jax.devices()))
            errors[name] = {}
            for which, given in toys.items():
                scores = evaluate(network.params, given.images, given.labels, network.step)
                errors[name][which] = errors_by_toy(scores.predictions != given.labels, given)
                progress.update()
    return {"errors": errors}


def run(command: ToysCommand, typed: str) -> None:
    """Train, score, and print the table."""
    print(toys_table(run_seeds(command, typed, check, measure)).markdown())


main = entry_point("experiments.toys", ToysCommand, run)

if __name__ == "__main__":
    sys.exit(main())
