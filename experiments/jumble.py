"""Parts in the wrong places: `python -m experiments.jumble` asks networks how sure they are of an
object that is no longer one.

Images are cut into pieces that change places; or, for `--dataset drawings`, the features of a face,
and of other objects, move to each other's places. Capsules are said to see that parts no longer fit
together, where a CNN stays sure because all the parts are there. The networks have seen whole
objects only. Of each seed there is a record, RUNS/DATASET/jumble/seed-SEED.json, and beside it some
images to look at.
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.claims.experiment import SeedExperiment, run_seeds
from experiments.claims.jumble import jumble_table
from experiments.claims.networks import check_networks
from experiments.claims.study import Study, load_network
from experiments.data.dataset import DRAWINGS
from experiments.data.line_drawings import draw_split
from experiments.data.stratified import sample
from experiments.devices.parallel import device_mesh
from experiments.learning.configs import TrainConfig
from experiments.learning.scoring import Scores, make_evaluator
from experiments.runs.run_data import load_data
from experiments.runtime.command_line import entry_point
from experiments.runtime.errors import UsageError
from experiments.runtime.fields import check_positive, default_of
from experiments.runtime.records import Record, save_arrays

SHOWN = 5  # images that are kept to look at, at most: the first of each class
QUICK_IMAGES = 50


@dataclasses.dataclass(frozen=True)
class JumbleCommand(SeedExperiment):
    """Ask networks about objects whose parts have changed places."""

    experiment = "jumble"
    study: Study = dataclasses.field(default_factory=lambda: Study(dataset="mnist"))
    networks: tuple[str, ...] = ("capsules", "dynamic", "cnn")
    """Which: names of `experiments.claims.networks.NETWORKS`."""
    num_images: int = 1000
    """Test images, of each class its share."""
    pieces: tuple[int, ...] = (2, 4, 7)
    """In how many pieces each side of an image is cut; in one, it is whole."""
    moved: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """How far features of drawings are on their way to each other's places; at 0 they are in their
    own.
    """

    def __post_init__(self):
        check_positive(self, "num_images")
        check_networks(self.networks)
        if not self.pieces or list(self.pieces) != sorted({*self.pieces, 1})[1:]:
            raise ValueError(
                "pieces must be one or more numbers of at least 2, in increasing order; got "
                f"{list(self.pieces)}"
            )
        if (
            not self.moved
            or list(self.moved) != sorted({*self.moved, 0.0})[1:]
            or self.moved[-1] > 1
        ):
            raise ValueError(
                "moved must be one or more numbers above 0 and up to 1, in increasing order; got "
                f"{list(self.moved)}"
            )
        idle = "pieces" if self.study.dataset == DRAWINGS else "moved"
        if getattr(self, idle) != default_of(self, idle):
            raise ValueError(
                f"{idle} is not how {self.study.dataset} is jumbled; got "
                f"{list(getattr(self, idle))}"
            )

    def quick_fields(self) -> dict[str, Any]:
        return {"num_images": min(self.num_images, QUICK_IMAGES)}

    @property
    def amounts(self) -> list[float]:
        """By how much things are jumbled; at the first one not at all."""
        return [0.0, *self.moved] if self.study.dataset == DRAWINGS else [1, *self.pieces]

    def own_settings(self, seed: int) -> dict[str, Any]:
        return {"networks": self.networks, "num_images": self.num_images, "amounts": self.amounts}

    def runs(self, seed: int) -> dict[Path, TrainConfig]:
        return self.study.networks(self.networks, seed)


def check_pieces(shape: tuple[int, ...], pieces: int) -> None:
    """Raise ValueError unless images `[B, H, W, C]` of this shape can be cut into
    pieces x pieces.
    """
    height, width = shape[1:3]
    if height % pieces or width % pieces:
        raise ValueError(
            f"pieces must divide the images' height and width, {height}x{width}; got {pieces}"
        )


@functools.partial(jax.jit, static_argnames="pieces")
def cut_and_jumbled(key: jax.Array, images: jax.Array, pieces: int) -> jax.Array:
    """Images cut into pieces x pieces squares, or rectangles, each of which takes the place of
    another; one piece stays as it is.

    Args:
        key: decides who goes where; image i's pieces depend on the key and i, not on the other
            images.
        images: `[B, H, W, C]`.
        pieces: of a side. Static.

    Raises:
        ValueError: height or width cannot be divided by `pieces`.
    """
    batch, height, width, channels = images.shape
    check_pieces(images.shape, pieces)
    blocks = images.reshape(
        batch, pieces, height // pieces, pieces, width // pieces, channels
    ).swapaxes(2, 3)
    blocks = blocks.reshape(batch, pieces**2, height // pieces, width // pieces, channels)

    def permuted(index: jax.Array, blocks: jax.Array) -> jax.Array:
        # Each piece moves to where the next one was.
        around = jax.random.permutation(jax.random.fold_in(key, index), pieces**2)
        return jnp.zeros_like(blocks).at[jnp.roll(around, 1)].set(blocks[around])

    blocks = jax.vmap(permuted)(jnp.arange(batch), blocks).reshape(
        batch, pieces, pieces, height // pieces, width // pieces, channels
    )
    return blocks.swapaxes(2, 3).reshape(images.shape)


def jumbled_images(
    command: JumbleCommand, seed: int, images: np.ndarray, taken: np.ndarray
) -> list[np.ndarray]:
    """The test images that are taken, bool `[N]`, at each of the amounts."""
    if command.study.dataset == DRAWINGS:
        return [draw_split("test", amount)[0][taken] for amount in command.amounts]
    return [
        np.asarray(cut_and_jumbled(jax.random.key(seed), images[taken], int(amount)))
        for amount in command.amounts
    ]


def row(name: str, amount: float, scores: Scores, labels: np.ndarray) -> Record:
    """How sure a network is: means over the images."""
    return {
        "network": name,
        "amount": amount,
        "accuracy": scores.accuracy,
        "true_activation": float(scores.activations[np.arange(len(labels)), labels].mean()),
        "highest_activation": float(scores.activations.max(-1).mean()),
    }


def check(command: JumbleCommand, missing: Sequence[int]) -> None:
    """Raise UsageError unless there are so many images, which can be jumbled, and the networks see
    all of them.
    """
    study = command.study
    configs = {name: study.network(name, missing[0]) for name in command.networks}
    for name, config in configs.items():
        if config.images.crop is not None:
            raise UsageError(
                f"{name} sees a crop of each image, so pieces would go where it does not look; "
                "choose other --flags"
            )
        if study.dataset == DRAWINGS and config.scored != "test":
            raise UsageError(
                "the drawings that are jumbled are those of the test set; --flags must not hold "
                "others out"
            )
    dataset = load_data(configs[command.networks[0]], study.data_dir)
    if command.num_images > len(dataset.test_labels):
        raise UsageError(
            f"num_images must be at most the {len(dataset.test_labels)} test images; got "
            f"{command.num_images}"
        )
    if study.dataset != DRAWINGS:
        try:
            for pieces in command.pieces:
                check_pieces(dataset.test_images.shape, pieces)
        except ValueError as error:
            raise UsageError(str(error)) from error


def measure(command: JumbleCommand, seed: int) -> Record:
    """Score the networks of a seed at each amount; save some images, and what is said of them."""
    study = command.study
    dataset = load_data(study.network(command.networks[0], seed), study.data_dir)
    taken = sample(dataset.test_labels, command.num_images)
    labels, jumbled = (
        dataset.test_labels[taken],
        jumbled_images(command, seed, dataset.test_images, taken),
    )
    kept = np.unique(labels, return_index=True)[1][:SHOWN]
    shown = {
        "images": np.stack([images[kept] for images in jumbled]),
        "labels": labels[kept],
        "amounts": np.array(command.amounts),
    }
    found = []
    with tqdm(
        total=len(command.networks) * len(jumbled), desc=f"seed {seed}", unit=" sets"
    ) as progress:
        for name in command.networks:
            network = load_network(study, name, seed)
            evaluate = make_evaluator(network.config, network.model, device_mesh(jax.devices()))
            activations = []
            for amount, images in zip(command.amounts, jumbled, strict=True):
                scores = evaluate(network.params, images, labels, network.step)
                found.append(row(name, amount, scores, labels))
                activations.append(scores.activations[kept, labels[kept]])
                progress.update()
            shown[f"{name}_activations"] = np.stack(activations)
    save_arrays(
        command.file(seed).with_suffix(".npz"),
        shown | {"class_names": np.array(dataset.class_names)},
    )
    return {"rows": found}


def run(command: JumbleCommand, typed: str) -> None:
    """Train, score the jumbled, and print the table."""
    print(jumble_table(run_seeds(command, typed, check, measure)).markdown())


main = entry_point("experiments.jumble", JumbleCommand, run)

if __name__ == "__main__":
    sys.exit(main())
