"""How much noise fools them? `python -m experiments.adversarial` attacks capsules and CNNs: white
box, and from one to another.

The paper's claim is that capsules withstand adversarial images better than a CNN does. The attacks
are those of analysis/attacks.py; what they are given, and how large a change they may make, is in
the tables of claims/attack_programs.py. Of each seed there is a record,
RUNS/DATASET/adversarial/seed-SEED.json, and beside it images to look at, and `experiments.report`
compares them.
"""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.analysis.attacks import gradient_statistics
from experiments.claims.attack_programs import (
    ATTACKS,
    OBJECTIVES,
    Examples,
    Goal,
    Programs,
    make_programs,
)
from experiments.claims.experiment import SeedExperiment, run_seeds
from experiments.claims.study import TrainedNetwork, load_network
from experiments.claims.style import PAIR
from experiments.data.dataset import Dataset
from experiments.learning.configs import TrainConfig
from experiments.runs.run_data import load_data
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import RunnerError, UsageError
from experiments.runtime.fields import check_positive
from experiments.runtime.records import Record, numbers, save_arrays
from experiments.runtime.tables import Table

SHOWN = 5  # images that are kept to look at, at most: the first of each class
QUICK_IMAGES = 16
# Objective, attack, targeted: what is tried on other networks, and shown.
BLACK_BOX = ("logits", "bim", False)


@dataclasses.dataclass(frozen=True)
class AdversarialCommand(SeedExperiment):
    """Attack capsules and CNNs with images that are made to fool them."""

    experiment = "adversarial"
    num_images: int = 100
    """Test images that are attacked, drawn by the seed."""
    epsilons: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.2)
    """By how much a pixel may change, if black is 0 and white is 1."""

    def __post_init__(self):
        check_positive(self, "num_images")
        if not self.epsilons or list(self.epsilons) != sorted({*self.epsilons, 0.0})[1:]:
            raise ValueError(
                "epsilons must be one or more positive numbers, in increasing order; got "
                f"{list(self.epsilons)}"
            )

    def quick_fields(self) -> dict[str, Any]:
        return {"num_images": min(self.num_images, QUICK_IMAGES), "epsilons": self.epsilons[-2:]}

    def next_seed(self, seed: int) -> int:
        """The seed whose networks see the images that were made for those of this one."""
        seeds = self.study.seeds
        return seeds[(seeds.index(seed) + 1) % len(seeds)]

    def own_settings(self, seed: int) -> dict[str, Any]:
        return {
            "num_images": self.num_images,
            "epsilons": [0.0, *self.epsilons],
            "victim_seed": self.next_seed(seed),
        }

    def runs(self, seed: int) -> dict[Path, TrainConfig]:
        return self.study.networks(PAIR, seed) | self.study.networks(PAIR, self.next_seed(seed))


class Sample(NamedTuple):
    """The images of a seed that are attacked.

    Attributes:
        true: the images, with their labels.
        wanted: the same images, each with another class, drawn at random.
    """

    true: Examples
    wanted: Examples


def check(command: AdversarialCommand, missing: Sequence[int]) -> None:
    """Raise UsageError unless there are as many images as are to be attacked."""
    available = len(
        load_data(command.study.network(PAIR[0], missing[0]), command.study.data_dir).test_labels
    )
    if command.num_images > available:
        raise UsageError(
            f"num_images must be at most the {available} test images; got {command.num_images}"
        )


def draw_sample(dataset: Dataset, num_images: int, seed: int) -> Sample:
    """Test images, no image twice."""
    available, num_classes = len(dataset.test_labels), len(dataset.class_names)
    image_key, class_key, start_key = jax.random.split(jax.random.key(seed), 3)
    chosen = np.asarray(jax.random.choice(image_key, available, (num_images,), replace=False))
    images, labels = (
        dataset.test_images[chosen].astype(np.float32) / 255,
        dataset.test_labels[chosen],
    )
    others = (
        labels + np.asarray(jax.random.randint(class_key, (num_images,), 1, num_classes))
    ) % num_classes
    true = Examples(
        images, labels, np.asarray(jax.random.key_data(jax.random.split(start_key, num_images)))
    )
    return Sample(true, true._replace(labels=others.astype(labels.dtype)))


class Trial(NamedTuple):
    """What an attack has made of the images.

    Attributes:
        row: the entry of the record.
        images: as they are now.
        predictions: of the network that was attacked, `[N]`.
    """

    row: Record
    images: np.ndarray
    predictions: np.ndarray


def attack_network(
    name: str, victim: TrainedNetwork, programs: Programs, sample: Sample, epsilons: Sequence[float]
) -> Iterator[Trial]:
    """Each attack with each objective and each epsilon, in this order; with an epsilon of 0 the
    images are as they were.

    Raises:
        RunnerError: an attack has met a gradient that is not finite.
    """
    for index, objective in enumerate(OBJECTIVES):
        for attack, targeted in [
            (attack, targeted) for attack, chosen in ATTACKS.items() for targeted in chosen.targeted
        ]:
            examples, sign = (sample.wanted, -1.0) if targeted else (sample.true, 1.0)
            for epsilon in epsilons:
                goal = Goal(victim.params, victim.step, index, sign, epsilon)
                images = programs.attack[attack](goal, examples) if epsilon else examples.images
                if not np.isfinite(images).all():
                    raise RunnerError(
                        f"{attack} on the {objective} of {name}: the gradient is not finite for "
                        "some images"
                    )
                predictions = programs.classify((victim.params, victim.step), images)
                row = {
                    "network": name,
                    "objective": objective,
                    "attack": attack,
                    "targeted": targeted,
                    "epsilon": epsilon,
                }
                accuracy = float((predictions == sample.true.labels).mean())
                success = float((predictions == sample.wanted.labels).mean()) if targeted else None
                yield Trial(row | {"accuracy": accuracy, "success": success}, images, predictions)


def describe_network(victim: TrainedNetwork, programs: Programs, sample: Sample) -> Record:
    """What the record says of a network before any attack."""

    def gradients(examples: Examples, sign: float) -> Record:
        return {
            name: numbers(
                gradient_statistics(
                    programs.differentiate(
                        Goal(victim.params, victim.step, index, sign, 0.0), examples
                    )
                )
            )
            for index, name in enumerate(OBJECTIVES)
        }

    predictions = programs.classify((victim.params, victim.step), sample.true.images)
    return {
        "num_parameters": victim.result["num_parameters"],
        "test_error": victim.result["test_error"],
        "clean_accuracy": float((predictions == sample.true.labels).mean()),
        "gradients": gradients(sample.true, 1.0),
        "targeted_gradients": gradients(sample.wanted, -1.0),
    }


def attack_seed(
    command: AdversarialCommand,
    seed: int,
    load: Callable[[str, int], TrainedNetwork],
    programs: Mapping[str, Programs],
) -> Record:
    """Attack the networks of a seed, try the images on those of the next, and save some of the
    images beside the record.

    Args:
        command: what is asked for.
        seed: one of it.
        load: from name and seed to the network.
        programs: by name, for networks of that kind.

    Returns:
        The findings: `num_classes` of the data set, `networks`, `white_box` and `black_box`.
    """
    epsilons, victim_seed = [0.0, *command.epsilons], command.next_seed(seed)
    dataset = load_data(command.study.network(PAIR[0], seed), command.study.data_dir)
    sample = draw_sample(dataset, command.num_images, seed)
    networks, white_box, black_box = {}, [], []
    kept = np.unique(sample.true.labels, return_index=True)[1][:SHOWN]
    shown: dict[str, Any] = {
        "images": sample.true.images[kept],
        "labels": sample.true.labels[kept],
        "class_names": np.array(dataset.class_names),
        "epsilons": np.array(epsilons),
    }
    with progress_bar(f"attacking seed {seed}", epsilons) as progress:
        for source in PAIR:
            networks[source] = describe_network(load(source, seed), programs[source], sample)
            transferred: list[Trial] = []
            for trial in attack_network(
                source, load(source, seed), programs[source], sample, epsilons
            ):
                white_box.append(trial.row)
                if (
                    tuple(trial.row[field] for field in ("objective", "attack", "targeted"))
                    == BLACK_BOX
                ):
                    transferred.append(trial)
                progress.update()
            shown[f"{source}_images"] = np.stack([trial.images[kept] for trial in transferred])
            shown[f"{source}_predictions"] = np.stack(
                [trial.predictions[kept] for trial in transferred]
            )
            for name in PAIR:
                if (name, victim_seed) == (source, seed):
                    continue
                victim = load(name, victim_seed)
                for trial in transferred:
                    predictions = programs[name].classify(
                        (victim.params, victim.step), trial.images
                    )
                    accuracy = float((predictions == sample.true.labels).mean())
                    row = {
                        "source": source,
                        "victim": name,
                        "victim_seed": victim_seed,
                        "epsilon": trial.row["epsilon"],
                    }
                    black_box.append(row | {"accuracy": accuracy})
    save_arrays(command.file(seed).with_suffix(".npz"), shown)
    return {
        "num_classes": len(dataset.class_names),
        "networks": networks,
        "white_box": white_box,
        "black_box": black_box,
    }


def progress_bar(name: str, epsilons: Sequence[float]) -> tqdm:
    """A bar of the entries of `white_box`; not redrawn often where it cannot be redrawn
    in place.
    """
    modes = sum(len(attack.targeted) for attack in ATTACKS.values())
    total = modes * len(PAIR) * len(OBJECTIVES) * len(epsilons)
    return tqdm(total=total, desc=name, mininterval=0.1 if sys.stderr.isatty() else 10)


def table(records: Sequence[Record]) -> Table:
    """Accuracy against attacks on the logits that want any other class, the mean over
    the records.
    """
    epsilons = records[0]["epsilons"]
    found: dict[tuple[str, str, float], list[float]] = {}
    for row in (row for record in records for row in record["white_box"]):
        if row["objective"] == "logits" and not row["targeted"]:
            found.setdefault((row["network"], row["attack"], row["epsilon"]), []).append(
                100 * row["accuracy"]
            )
    rows = [
        (
            network,
            attack,
            *(f"{statistics.mean(found[network, attack, epsilon]):.1f}" for epsilon in epsilons),
        )
        for network in PAIR
        for attack in ATTACKS
    ]
    return Table(
        "Untargeted attacks on the logits: accuracy, %",
        ("network", "attack", *map("{:g}".format, epsilons)),
        rows,
    )


def run(command: AdversarialCommand, typed: str) -> None:
    """Train, attack, and print the table."""
    # Those of a seed are attacked, and see what was made for those of another.
    load = functools.cache(load_network)
    programs: dict[str, Programs] = {}

    def measure(command: AdversarialCommand, seed: int) -> Record:
        for name in PAIR:
            if name not in programs:  # they are for networks of all seeds
                programs[name] = make_programs(
                    load(command.study, name, seed), jax.devices(), command.num_images
                )
        return attack_seed(command, seed, functools.partial(load, command.study), programs)

    print(table(run_seeds(command, typed, check, measure)).markdown())


main = entry_point("experiments.adversarial", AdversarialCommand, run)

if __name__ == "__main__":
    sys.exit(main())
