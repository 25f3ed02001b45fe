"""What does a pose know? `python -m experiments.equivariance` reads the viewpoint from the class
capsules' poses, linearly.

A capsule's pose is meant to move with the object, so that what depends on the viewpoint is in it
and the activation does not depend on it. Here toys of toynorb are turned, rolled, enlarged and
moved, all at once and at random, and a linear map, fitted on the toys that the networks were
trained on, predicts from a network's last layer how each toy is seen, for toys that neither has
met. Of each seed there is a record, RUNS/DATASET/equivariance/seed-SEED.json, and beside it what
one toy's poses do as it moves.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from emcaps.types import POSE_ENTRIES
from experiments.analysis.linear_readout import Readings, r_squared
from experiments.claims.equivariance import equivariance_table
from experiments.claims.experiment import SeedExperiment, run_seeds
from experiments.claims.networks import check_networks
from experiments.claims.study import (
    TrainedNetwork,
    check_rendered,
    check_trained_on_all_toys,
    load_network,
)
from experiments.data.preprocessing import evaluation_view
from experiments.data.toynorb_builders import ToyNorb
from experiments.devices.parallel import device_mesh, map_chunks
from experiments.learning.configs import TrainConfig
from experiments.learning.network import class_poses, network_intermediates
from experiments.learning.scoring import EXAMPLES_PER_DEVICE
from experiments.runtime.command_line import entry_point
from experiments.runtime.fields import check_positive
from experiments.runtime.records import Record, save_arrays
from experiments.toynorb.collection import of_each_toy
from experiments.toynorb.scene import LIGHTINGS, View, snapshots
from experiments.toynorb.shapes import CATEGORIES, toy

# From where and how a toy is seen. The networks were trained on all azimuths and elevations, on
# crops at random places (up to a sixth of the width from the middle), and on no roll and no zoom.
RANGES = {
    "elevation": (30.0, 70.0),
    "azimuth": (0.0, 360.0),
    "roll": (-20.0, 20.0),
    "zoom": (0.85, 1.15),
    "right": (-0.12, 0.12),
    "down": (-0.12, 0.12),
}
SWEPT = (4, ToyNorb.SPLITS["test"][0])  # the toy that is shown: its category and instance
SWEEP_STEPS = 9
QUICK_VIEWS = 4

# What is read from a network, given its intermediates and the classes of the images:
# `[B, features]`.
LAST_LAYERS: Mapping[str, Mapping[str, Callable[[Mapping[str, Any], jax.Array], jax.Array]]] = {
    "capsules": {"pose": lambda intermediates, labels: pose_of(intermediates, labels)},
    "dynamic": {"pose": lambda intermediates, labels: pose_of(intermediates, labels)},
    "cnn": {
        "hidden units": lambda intermediates, labels: intermediates["hidden"],
        "logits": lambda intermediates, labels: intermediates["classes"],
    },
}


@dataclasses.dataclass(frozen=True)
class EquivarianceCommand(SeedExperiment):
    """Read the viewpoint from the last layers of capsules and of a CNN."""

    experiment = "equivariance"
    networks: tuple[str, ...] = ("capsules", "dynamic", "cnn")
    """Which: names of `LAST_LAYERS`."""
    num_views: int = 100
    """Random views of each of the 50 toys."""

    def __post_init__(self):
        check_positive(self, "num_views")
        check_rendered(self.study)
        check_networks(self.networks, LAST_LAYERS)

    def quick_fields(self) -> dict[str, Any]:
        return {"num_views": min(self.num_views, QUICK_VIEWS)}

    def own_settings(self, seed: int) -> dict[str, Any]:
        return {"networks": self.networks, "num_views": self.num_views}

    def runs(self, seed: int) -> dict[Path, TrainConfig]:
        return self.study.networks(self.networks, seed)


class Snapshots(NamedTuple):
    """Rendered toys.

    Attributes:
        images: uint8 `[N, size, size, 2]`.
        labels: the categories, int32 `[N]`.
        instances: int32 `[N]`.
        views: with fields `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    views: View


def pose_of(intermediates: Mapping[str, Any], labels: jax.Array) -> jax.Array:
    """The poses of these classes' capsules, `[B, entries]`."""
    poses = class_poses(intermediates)
    return jnp.take_along_axis(poses, labels[:, None, None], axis=1)[:, 0]


def random_views(key: jax.Array, number: int) -> View:
    """Views with all of `RANGES` at once, each uniform."""
    keys = jax.random.split(key, len(RANGES))
    drawn = {
        name: jax.random.uniform(k, (number,), minval=low, maxval=high)
        for k, (name, (low, high)) in zip(keys, RANGES.items(), strict=True)
    }
    return View(**drawn)


def sweep_views() -> View:
    """Views that differ in one field at a time from the middle of all ranges, field by field,
    `[6 * SWEEP_STEPS]`.
    """
    middle = {name: (low + high) / 2 for name, (low, high) in RANGES.items()}
    rows = [
        middle | {name: value}
        for name, ends in RANGES.items()
        for value in np.linspace(*ends, SWEEP_STEPS)
    ]
    return View(**{name: jnp.array([row[name] for row in rows], jnp.float32) for name in RANGES})


@functools.cache
def take_snapshots(num_views: int) -> Snapshots:
    """Random views of all toys, each lit at random; the same every time."""
    toys = list(
        product(
            range(len(CATEGORIES)),
            sorted(instance for split in ToyNorb.SPLITS.values() for instance in split),
        )
    )

    def take(category: int, instance: int) -> tuple[np.ndarray, View]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), category), instance)
        view_key, light_key = jax.random.split(key)
        views = random_views(view_key, num_views)
        lightings = jax.random.randint(light_key, (num_views,), 0, len(LIGHTINGS))
        return np.asarray(
            snapshots(toy(category, instance), views, lightings, size=ToyNorb.SIZE)
        ), jax.device_get(views)

    found = of_each_toy(take, toys)
    images = np.concatenate([pairs for pairs, _ in found]).transpose(0, 2, 3, 1)
    labels, instances = (
        np.repeat(np.array(column, np.int32), num_views) for column in zip(*toys, strict=True)
    )
    return Snapshots(
        images,
        labels,
        instances,
        jax.tree.map(lambda *fields: np.concatenate(fields), *(view for _, view in found)),
    )


@functools.cache
def take_sweep() -> np.ndarray:
    """The images of `sweep_views` of one toy, uint8 `[N, size, size, 2]`."""
    views = sweep_views()
    images = snapshots(toy(*SWEPT), views, jnp.zeros(len(views.roll), jnp.int32), size=ToyNorb.SIZE)
    return np.asarray(images).transpose(0, 2, 3, 1)


def read_network(
    name: str, network: TrainedNetwork, images: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """What each of its `LAST_LAYERS` gives for uint8 images `[N, H, W, C]`, by name,
    `[N, features]`.
    """

    def reader(read: Callable) -> np.ndarray:
        def features(given: tuple[Any, Any], examples: tuple[jax.Array, jax.Array]) -> jax.Array:
            view = evaluation_view(network.config.images, examples[0])
            return read(
                network_intermediates(network.config, network.model, given[0], view, given[1]),
                examples[1],
            )

        per_device = min(EXAMPLES_PER_DEVICE, len(images))
        on_devices = map_chunks(features, device_mesh(jax.devices()), per_device)
        return on_devices((network.params, np.int32(network.step)), (images, labels))

    return {layer: reader(read) for layer, read in LAST_LAYERS[name].items()}


def targets(views: View) -> dict[str, np.ndarray]:
    """What is to be predicted, `[N, 1]`; of the azimuth its cosine and sine, `[N, 2]`."""
    named = {name: field[:, None] for name, field in views._asdict().items()}
    angle = np.radians(named["azimuth"])
    return named | {"azimuth": np.concatenate([np.cos(angle), np.sin(angle)], axis=1)}


def known_toys(taken: Snapshots) -> np.ndarray:
    """Which snapshots show toys of the training split, `[N]`."""
    return np.isin(taken.instances, ToyNorb.SPLITS["train"])


def principal_components(features: np.ndarray, known: np.ndarray, number: int) -> np.ndarray:
    """Features along the directions in which those of the known examples vary most,
    `[N, number]`.
    """
    centered = features.astype(np.float64) - features[known].mean(0)
    _, _, directions = np.linalg.svd(centered[known], full_matrices=False)
    return centered @ directions[:number].T


def explained(
    features: np.ndarray, taken: Snapshots, components: int | None = None
) -> dict[str, float]:
    """R^2 of each target on the toys of the test split, the mean over the categories, each of which
    has a linear map of its own: of the features, or of so many principal components that they have
    in this category.
    """
    known, wanted = known_toys(taken), targets(taken.views)

    def of_category(category: int) -> dict[str, float]:
        of = taken.labels == category
        read = (
            features
            if components is None
            else principal_components(features, of & known, components)
        )

        def readings(chosen: np.ndarray) -> Readings:
            return Readings(
                read[chosen],
                {name: values[chosen] for name, values in wanted.items()},
                taken.instances[chosen],
            )

        return r_squared(readings(of & known), readings(of & ~known))

    found = list(map(of_category, range(len(CATEGORIES))))
    return {name: float(np.mean([of[name] for of in found])) for name in wanted}


def check(command: EquivarianceCommand, missing: Sequence[int]) -> None:
    """Raise UsageError unless the networks are trained on all that the map is fitted on."""
    check_trained_on_all_toys(command.study, command.networks, missing[0])


def measure(command: EquivarianceCommand, seed: int) -> Record:
    """What the networks of a seed know; what they say along a sweep is saved beside the record."""
    taken, shown = take_snapshots(command.num_views), take_sweep()
    images = np.concatenate([taken.images, shown])
    labels = np.concatenate([taken.labels, np.full(len(shown), SWEPT[0], np.int32)])
    layers, sweeps = (
        {},
        {
            "images": shown,
            **{
                f"view_{name}": np.asarray(field) for name, field in sweep_views()._asdict().items()
            },
        },
    )
    for name in tqdm(command.networks, desc=f"reading seed {seed}", unit=" networks"):
        network = load_network(command.study, name, seed)
        for layer, of_both in read_network(name, network, images, labels).items():
            features, sweeps[f"{name}: {layer}"] = np.split(of_both, [len(taken.images)])
            layers[f"{name}: {layer}"] = {
                "features": features.shape[1],
                "r_squared": explained(features, taken),
            }
            # As many numbers as a pose has, for a fair comparison.
            if features.shape[1] > POSE_ENTRIES:
                layers[f"{name}: {layer}, components"] = {
                    "features": POSE_ENTRIES,
                    "r_squared": explained(features, taken, POSE_ENTRIES),
                }
    save_arrays(command.file(seed).with_suffix(".npz"), sweeps)
    return {"layers": layers}


def run(command: EquivarianceCommand, typed: str) -> None:
    """Train, read the viewpoint, and print the table."""
    print(equivariance_table(run_seeds(command, typed, check, measure)).markdown())


main = entry_point("experiments.equivariance", EquivarianceCommand, run)

if __name__ == "__main__":
    sys.exit(main())
