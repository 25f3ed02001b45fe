"""What a trained network does with an image: `python -m experiments.figures --workdir RUN` draws it, at any checkpoint.

Of matrix capsules there are `convergence` and `assignments`; of capsules with a decoder, matrices or vectors, `reconstructions`.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import emcaps
from experiments import pose_figures, run_figures
from experiments.assignments import Flow, follow
from experiments.command_line import exit_code, parse
from experiments.configs import TrainConfig
from experiments.convergence import measure_convergence
from experiments.datasets import Dataset
from experiments.errors import UsageError
from experiments.evaluate import restore
from experiments.hardware import start_jax
from experiments.learner import Network, network_at, network_stages
from experiments.reconstructions import AMOUNTS, decode_moved
from experiments.run_directory import read_config
from experiments.views import test_view


@dataclasses.dataclass(frozen=True)
class FiguresCommand:
    """Draw what a run's network does with some images, into the folder figures of the run."""

    workdir: Path
    """The run's folder."""
    images: tuple[int, ...] = (0, 1, 2)
    """Which test images, counted from 0; pictures of a single image are of the first of these."""
    data_dir: Path | None = None
    """TFDS folder; the default is TFDS_DATA_DIR or ~/tensorflow_datasets."""
    step: int | None = None
    """Which checkpoint; the default is the newest."""


def routing_figures(
    config: TrainConfig, model: Network, params: Any, step: int, dataset: Dataset, chosen: Sequence[int]
) -> dict[str, Figure]:
    """The pictures that there are of a network after `step` steps, by name, of some test images, counted from 0.

    None of a CNN, and none of vector capsules without a decoder.
    """
    images, labels = dataset.test_images[list(chosen)], dataset.test_labels[list(chosen)]
    drawn = {}
    if isinstance(model, emcaps.CapsNet):
        network: Any = network_at(config, model, step)
        views = test_view(config.images, jnp.asarray(images))
        measured = measure_convergence(network, {"params": params}, views)
        title = f"{dataset.name}, step {step}"
        drawn["convergence"] = run_figures.convergence(measured, images, labels, dataset.class_names, title)
        stages = network_stages(config, model, params, views[:1], step)
        followed = follow(model, stages, views.shape[1:3])
        flows = {layer: Flow(flow.to_class[0], flow.rows, flow.columns) for layer, flow in followed.items()}
        activations = np.asarray(stages["class_caps"].activations).reshape(-1)
        drawn["assignments"] = pose_figures.assignment_flow(
            np.asarray(views[0]), flows, activations, dataset.class_names, int(labels[0])
        )
    if config.model.reconstruction:
        view, decoded = decode_moved(config, model, params, step, images[:1])
        matrices = isinstance(model, emcaps.CapsNet)
        names = [f"{1 + i // 4},{1 + i % 4}" if matrices else str(1 + i) for i in range(len(decoded))]
        drawn["reconstructions"] = pose_figures.reconstructions(view, decoded, AMOUNTS.tolist(), names)
    return drawn


def run(command: FiguresCommand) -> list[Path]:
    """Draw the pictures and return where they are."""
    config = read_config(command.workdir)
    if config.model.family != "capsules" and not config.model.reconstruction:
        raise UsageError(
            f"{command.workdir} holds a run of a network ({config.model.family}) with neither EM routing nor a decoder to draw"
        )
    step, state, dataset, model = restore(config, command.workdir, command.data_dir, command.step, start_jax()[:1])
    there_are, chosen = len(dataset.test_images), command.images
    if not chosen or not all(0 <= image < there_are for image in chosen):
        raise UsageError(f"images must be one or more numbers from 0 to {there_are - 1}; got {list(chosen)}")
    folder = command.workdir / "figures"
    folder.mkdir(exist_ok=True)
    paths = []
    for name, figure in routing_figures(config, model, state.params, step, dataset, chosen).items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = parse(FiguresCommand, "python -m experiments.figures", arguments)
    return exit_code(lambda _: print(f"wrote {', '.join(map(str, run(command)))}"), "experiments.figures", arguments)


if __name__ == "__main__":
    sys.exit(main())
