"""How much noise fools them? `python -m experiments.adversarial` attacks capsules and CNNs: white box, and from one to another.

The paper's claim is that capsules withstand adversarial images better than a CNN does. The attacks are those of attacks.py; what
they are given, and how large a change they may make, is in the tables below. Of each seed there is a record,
RUNS/DATASET/adversarial/seed-SEED.json, and beside it images to look at, and `experiments.report` compares them.
"""

import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

import emcaps
from experiments.attacks import bim, fgsm, gradient_statistics, pgd, value_and_gradient
from experiments.baseline import BaselineCNN
from experiments.command_line import exit_code, parse
from experiments.configs import TrainConfig, check_positive
from experiments.datasets import Dataset
from experiments.errors import RunnerError
from experiments.evaluate import EXAMPLES_PER_DEVICE, restore
from experiments.learner import Network, class_logits, network_stages
from experiments.parallel import Devices, map_chunks, split_cpu
from experiments.results import numbers
from experiments.run_directory import Record, read_result, write_atomically
from experiments.study import Study
from experiments.train import trained
from experiments.views import test_view

VICTIMS = ("capsules", "cnn")
MARGIN = 0.9  # of the spread loss, as at the end of the training
SHOWN = 5  # images that are kept to look at
QUICK_IMAGES = 16


def activations_loss(model: Network, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The spread loss of activations, of a CNN's probabilities, `[B]`: 0, and without a slope, where the label wins clearly."""
    activations = jax.nn.softmax(logits) if isinstance(model, BaselineCNN) else jax.nn.sigmoid(logits)
    return emcaps.spread_loss(activations, labels, MARGIN)


def logits_loss(model: Network, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The cross-entropy of a softmax over the logits, `[B]`, of capsules too: it has a slope everywhere."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


class Attack(NamedTuple):
    """An attack.

    Attributes:
        change: from objective, images, epsilon and a key for each image to images.
        targeted: whether a certain class is wanted, of all the ways in which it is tried.
    """

    change: Callable[..., jax.Array]
    targeted: tuple[bool, ...]


OBJECTIVES = {"logits": logits_loss, "activations": activations_loss}
ATTACKS = {
    "fgsm": Attack(lambda objective, images, epsilon, keys: fgsm(objective, images, epsilon), (False, True)),
    "bim": Attack(lambda objective, images, epsilon, keys: bim(objective, images, epsilon, num_steps=10), (False, True)),
    "pgd": Attack(functools.partial(pgd, num_steps=10, num_restarts=2), (False,)),
}
BLACK_BOX = ("logits", "bim", False)  # objective, attack, targeted: what is tried on other networks, and shown


@dataclasses.dataclass(frozen=True)
class AdversarialCommand:
    """Attack capsules and CNNs with images that are made to fool them."""

    study: Study = dataclasses.field(default_factory=Study)
    num_images: int = 100
    """Test images that are attacked, drawn by the seed."""
    epsilons: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    """By how much a pixel may change, if black is 0 and white is 1."""

    def __post_init__(self):
        check_positive(self, "num_images")
        if not self.epsilons or list(self.epsilons) != sorted({*self.epsilons, 0.0})[1:]:
            raise ValueError(f"epsilons must be one or more positive numbers, in increasing order; got {list(self.epsilons)}")
        if self.study.quick:
            object.__setattr__(self, "num_images", min(self.num_images, QUICK_IMAGES))

    def next_seed(self, seed: int) -> int:
        """The seed whose networks see the images that were made for those of this one."""
        seeds = self.study.seeds
        return seeds[(seeds.index(seed) + 1) % len(seeds)]

    def settings(self, seed: int) -> dict[str, Any]:
        """What the record of a seed depends on, besides the networks."""
        return {"num_images": self.num_images, "epsilons": [0.0, *self.epsilons], "victim_seed": self.next_seed(seed)}

    def file(self, seed: int) -> Path:
        """The record of a seed."""
        return self.study.folder / "adversarial" / f"seed-{seed}.json"


class Victim(NamedTuple):
    """A trained network.

    Attributes:
        config: of its run.
        model: that of the config.
        params: its parameters, on all devices.
        step: after which.
        dataset: that of its run.
        result: of its run.
    """

    config: TrainConfig
    model: Network
    params: Any
    step: int
    dataset: Dataset
    result: Record


def load_victim(study: Study, name: str, seed: int) -> Victim:
    """A network of the study, from the newest checkpoint of its finished run."""
    config, folder = study.network(name, seed), study.folder / f"{name}-{seed}"
    step, state, dataset, model = restore(config, folder, study.data_dir, None, jax.devices())
    return Victim(config, model, state.params, step, dataset, read_result(folder) or {})


class Examples(NamedTuple):
    """Images and what is to be made of them, NumPy arrays.

    Attributes:
        images: float32 `[N, H, W, C]`, in [0, 1].
        labels: int32 `[N]`, what an objective is about: the true class, or the one that is wanted.
        key_data: uint32 `[N, 2]`, of a key for each image.
    """

    images: np.ndarray
    labels: np.ndarray
    key_data: np.ndarray


class Goal(NamedTuple):
    """What an attack is given beside the images; none of it is compiled in.

    Attributes:
        params: of the network.
        step: after which it is meant.
        objective: int32, which of `OBJECTIVES`.
        sign: 1 if that is to be large, -1 if small.
        epsilon: by how much a pixel may change.
    """

    params: Any
    step: int
    objective: int
    sign: float
    epsilon: float


class Programs(NamedTuple):
    """What is compiled for the networks of one kind, once for all of their seeds.

    Attributes:
        classify: from `(params, step)` and images to classes, `[N]`.
        differentiate: from a goal and examples to the gradients of the objective, as the images.
        attack: by name, from a goal and examples to images.
    """

    classify: Callable[[Any, np.ndarray], np.ndarray]
    differentiate: Callable[[Goal, Examples], np.ndarray]
    attack: Mapping[str, Callable[[Goal, Examples], np.ndarray]]


def make_programs(victim: Victim, devices: Devices, num_images: int) -> Programs:
    """The programs for networks that differ from this one only in their parameters."""

    def logits(params: Any, step: Any, images: jax.Array) -> jax.Array:
        view = test_view(victim.config.images, images)
        return class_logits(network_stages(victim.config, victim.model, params, view, step))

    def objective_of(goal: Goal, labels: Any) -> Callable[[jax.Array], jax.Array]:
        losses = [functools.partial(loss, victim.model) for loss in OBJECTIVES.values()]
        return lambda images: goal.sign * jax.lax.switch(goal.objective, losses, logits(goal.params, goal.step, images), labels)

    def classify(network: tuple[Any, Any], images: jax.Array) -> jax.Array:
        return logits(*network, images).argmax(-1)

    def differentiate(goal: Goal, examples: Any) -> jax.Array:
        return value_and_gradient(objective_of(goal, examples.labels), examples.images)[1]

    def change(attack: Attack, goal: Goal, examples: Any) -> jax.Array:
        keys = jax.random.wrap_key_data(examples.key_data)
        return attack.change(objective_of(goal, examples.labels), examples.images, goal.epsilon, keys)

    per_device = min(EXAMPLES_PER_DEVICE, -(-num_images // len(devices)))
    on_devices = functools.partial(map_chunks, devices=devices, per_device=per_device)
    attacks = {name: on_devices(functools.partial(change, attack)) for name, attack in ATTACKS.items()}
    return Programs(on_devices(classify), on_devices(differentiate), attacks)


class Sample(NamedTuple):
    """The images of a seed that are attacked.

    Attributes:
        true: the images, with their labels.
        wanted: the same images, each with another class, drawn at random.
    """

    true: Examples
    wanted: Examples


def draw_sample(dataset: Dataset, num_images: int, seed: int) -> Sample:
    """Test images, no image twice. Raises RunnerError if there are not as many."""
    available, num_classes = len(dataset.test_labels), len(dataset.class_names)
    if num_images > available:
        raise RunnerError(f"num_images must be at most the {available} test images; got {num_images}")
    image_key, class_key, start_key = jax.random.split(jax.random.key(seed), 3)
    chosen = np.asarray(jax.random.choice(image_key, available, (num_images,), replace=False))
    images, labels = dataset.test_images[chosen].astype(np.float32) / 255, dataset.test_labels[chosen]
    others = (labels + np.asarray(jax.random.randint(class_key, (num_images,), 1, num_classes))) % num_classes
    true = Examples(images, labels, np.asarray(jax.random.key_data(jax.random.split(start_key, num_images))))
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


def attack_network(name: str, victim: Victim, programs: Programs, sample: Sample, epsilons: Sequence[float]) -> Iterator[Trial]:
    """Each attack with each objective and each epsilon, in this order; with an epsilon of 0 the images are as they were.

    Raises:
        RunnerError: an attack has met a gradient that is not finite.
    """
    for index, objective in enumerate(OBJECTIVES):
        for attack, targeted in [(name, targeted) for name, chosen in ATTACKS.items() for targeted in chosen.targeted]:
            examples, sign = (sample.wanted, -1.0) if targeted else (sample.true, 1.0)
            for epsilon in epsilons:
                goal = Goal(victim.params, victim.step, index, sign, epsilon)
                images = programs.attack[attack](goal, examples) if epsilon else examples.images
                if not np.isfinite(images).all():
                    raise RunnerError(f"{attack} on the {objective} of {name}: the gradient is not finite for some images")
                predictions = programs.classify((victim.params, victim.step), images)
                row = {"network": name, "objective": objective, "attack": attack, "targeted": targeted, "epsilon": epsilon}
                accuracy = float((predictions == sample.true.labels).mean())
                success = float((predictions == sample.wanted.labels).mean()) if targeted else None
                yield Trial(row | {"accuracy": accuracy, "success": success}, images, predictions)


def describe_network(victim: Victim, programs: Programs, sample: Sample) -> Record:
    """What the record says of a network before any attack."""

    def gradients(objective: int) -> np.ndarray:
        return programs.differentiate(Goal(victim.params, victim.step, objective, 1.0, 0.0), sample.true)

    predictions = programs.classify((victim.params, victim.step), sample.true.images)
    return {
        "num_parameters": victim.result["num_parameters"],
        "test_error": victim.result["test_error"],
        "clean_accuracy": float((predictions == sample.true.labels).mean()),
        "gradients": {name: numbers(gradient_statistics(gradients(index))) for index, name in enumerate(OBJECTIVES)},
    }


def attack_seed(
    command: AdversarialCommand,
    seed: int,
    load: Callable[[str, int], Victim],
    programs: Mapping[str, Programs],
    progress: tqdm,
) -> tuple[Record, dict[str, np.ndarray]]:
    """Attack the networks of a seed, and try the images on those of the next.

    Args:
        command: what is asked for.
        seed: one of it.
        load: from name and seed to the network.
        programs: by name, for networks of that kind.
        progress: moves by one for each entry of `white_box`.

    Returns:
        The record, without what it took to make it, and the arrays of the pictures: `images`, `labels`, `class_names`, `epsilons`,
        and for each network its `NAME_images` `[E, n, H, W, C]` and `NAME_predictions` `[E, n]`.
    """
    epsilons, victim_seed = [0.0, *command.epsilons], command.next_seed(seed)
    dataset = load(VICTIMS[0], seed).dataset
    sample = draw_sample(dataset, command.num_images, seed)
    networks, white_box, black_box = {}, [], []
    shown: dict[str, Any] = {
        "images": sample.true.images[:SHOWN],
        "labels": sample.true.labels[:SHOWN],
        "class_names": np.array(dataset.class_names),
        "epsilons": np.array(epsilons),
    }
    for source in VICTIMS:
        networks[source] = describe_network(load(source, seed), programs[source], sample)
        transferred: list[Trial] = []
        for trial in attack_network(source, load(source, seed), programs[source], sample, epsilons):
            white_box.append(trial.row)
            if tuple(trial.row[field] for field in ("objective", "attack", "targeted")) == BLACK_BOX:
                transferred.append(trial)
            progress.update()
        shown[f"{source}_images"] = np.stack([trial.images[:SHOWN] for trial in transferred])
        shown[f"{source}_predictions"] = np.stack([trial.predictions[:SHOWN] for trial in transferred])
        for name in VICTIMS:
            if (name, victim_seed) == (source, seed):
                continue
            victim = load(name, victim_seed)
            for trial in transferred:
                predictions = programs[name].classify((victim.params, victim.step), trial.images)
                accuracy = float((predictions == sample.true.labels).mean())
                row = {"source": source, "victim": name, "victim_seed": victim_seed, "epsilon": trial.row["epsilon"]}
                black_box.append(row | {"accuracy": accuracy})
    record = {
        "experiment": "adversarial",
        "dataset": dataset.name,
        "seed": seed,
        **command.settings(seed),
        "networks": networks,
        "white_box": white_box,
        "black_box": black_box,
    }
    return record, shown


def attack_seeds(command: AdversarialCommand, seeds: Sequence[int], typed: str) -> dict[int, Record]:
    """Attack the networks of these seeds, which are trained, and write a record of each; `typed` is the command for it."""
    load = functools.cache(functools.partial(load_victim, command.study))
    devices = jax.devices()
    programs = {name: make_programs(load(name, seeds[0]), devices, command.num_images) for name in VICTIMS}
    trials = sum(len(attack.targeted) for attack in ATTACKS.values()) * len(VICTIMS) * len(OBJECTIVES) * (1 + len(command.epsilons))
    records = {}
    for seed in seeds:
        start = time.perf_counter()
        with tqdm(total=trials, desc=f"attacking seed {seed}", mininterval=0.1 if sys.stderr.isatty() else 10) as progress:
            record, shown = attack_seed(command, seed, load, programs, progress)
        records[seed] = record | {"seconds": time.perf_counter() - start, "command": typed}
        write(command.file(seed), records[seed], shown)
    return records


def finished(command: AdversarialCommand, seed: int) -> Record | None:
    """The record of a seed, if there is one. Raises RunnerError if it was made with other settings."""
    file = command.file(seed)
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    here = command.settings(seed)
    if different := [f"{name}: {record.get(name)} there, {here[name]} here" for name in here if record.get(name) != here[name]]:
        raise RunnerError(
            f"{file} was made with other settings ({'; '.join(different)}) and is never overwritten; "
            "give the same flags, move it away, or choose other --runs"
        )
    return record


def write(file: Path, record: Record, shown: Mapping[str, np.ndarray]) -> None:
    """Write a record and, before it, its pictures: where there is a record, all is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".npz.tmp")
    with scratch.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **shown)
    os.replace(scratch, file.with_suffix(".npz"))
    write_atomically(file, json.dumps(record, indent=2) + "\n")


def table(records: Sequence[Record]) -> str:
    """Markdown: accuracy in per cent against attacks on the logits that want any other class, the mean over the records."""
    epsilons = records[0]["epsilons"]
    lines = [
        "| network | attack | " + " | ".join(f"{epsilon:g}" for epsilon in epsilons) + " |",
        "|---" * (2 + len(epsilons)) + "|",
    ]
    found: dict[tuple[str, str, float], list[float]] = {}
    for row in (row for record in records for row in record["white_box"]):
        if row["objective"] == "logits" and not row["targeted"]:
            found.setdefault((row["network"], row["attack"], row["epsilon"]), []).append(100 * row["accuracy"])
    for network in VICTIMS:
        for attack in ATTACKS:
            cells = [f"{statistics.mean(found[network, attack, epsilon]):.1f}" for epsilon in epsilons]
            lines.append(f"| {network} | {attack} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = parse(AdversarialCommand, "python -m experiments.adversarial", arguments)
    study = command.study

    def run(typed: str) -> None:
        split_cpu()
        records = {seed: finished(command, seed) for seed in study.seeds}
        missing = [seed for seed, record in records.items() if record is None]
        needed = dict.fromkeys(seed for first in missing for seed in (first, command.next_seed(first)))
        for seed in needed:
            for name in VICTIMS:
                trained(study.network(name, seed), study.folder / f"{name}-{seed}", study.data_dir, typed)
        if missing:
            records |= attack_seeds(command, missing, typed)
        print(table([record for record in records.values() if record]))

    return exit_code(run, "experiments.adversarial", arguments)


if __name__ == "__main__":
    sys.exit(main())
