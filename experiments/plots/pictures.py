"""The pictures of a run: which there are, and how they are written.

What cannot be drawn costs a line, not the run.
"""

import io
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import emcaps
from experiments.analysis.assignment_flow import Flow, follow
from experiments.analysis.convergence import measure_convergence
from experiments.analysis.decoded_poses import AMOUNTS, decode_moved
from experiments.data.dataset import Dataset
from experiments.data.preprocessing import evaluation_view
from experiments.learning.configs import ModelConfig, TrainConfig
from experiments.learning.network import Network, make_model, network_at, network_intermediates
from experiments.learning.scoring import Scores
from experiments.learning.step import TrainState
from experiments.plots import capsules, runs
from experiments.runtime.errors import RunnerError, first_line
from experiments.runtime.records import Record

Drawings = dict[str, Callable[[], Figure]]  # by the name of the file, without suffix
DPI = 120


def draw(
    folder: Path,
    drawings: Mapping[str, Callable[[], Figure]],
    say: Callable[[str], None],
    dpi: int = DPI,
) -> list[Path]:
    """Write pictures as PNG files. What goes wrong with one is said in a line, and the others are
    drawn.

    Returns:
        The files that were written.
    """
    written = []
    for name, drawing in drawings.items():
        path, buffer = folder / f"{name}.png", io.BytesIO()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                drawing().savefig(buffer, dpi=dpi)
                path.write_bytes(buffer.getvalue())
            except Exception as error:  # whatever it is, the run has its result
                say(f"{path} could not be drawn: {type(error).__name__}: {first_line(error)}")
            else:
                written.append(path)
        for line in summary(str(warning.message) for warning in warned):
            say(f"{path}: {line}")
    return written


def draw_all(
    folder: Path, drawings: Mapping[str, Callable[[], Figure]], dpi: int = DPI
) -> list[Path]:
    """Write the pictures that a command is for; see `draw`.

    Raises RunnerError, at the end, unless all are written.
    """
    written = draw(folder, drawings, lambda line: print(line, file=sys.stderr), dpi)
    if len(written) < len(drawings):
        raise RunnerError(
            f"{len(drawings) - len(written)} of {len(drawings)} pictures could not be drawn"
        )
    return written


def summary(warned: Iterable[str]) -> list[str]:
    """What Matplotlib has warned of, each once, and all characters that no font has in one line."""
    lines = list(dict.fromkeys(warned))
    missing = [match for match in (re.match(r"Glyph (\d+) ", line) for line in lines) if match]
    if not missing:
        return lines
    characters = "".join(chr(int(match[1])) for match in missing)
    boxes = (
        f"drawn as boxes, since Matplotlib's font has none of them: {characters} (font.family in "
        "matplotlibrc names another)"
    )
    return [boxes, *(line for line in lines if not line.startswith("Glyph "))]


def draw_figures(
    folder: Path,
    config: TrainConfig,
    dataset: Dataset,
    state: TrainState,
    scores: Scores,
    records: Sequence[Record],
    say: Callable[[str], None],
) -> None:
    """Write the pictures of a finished run; see `draw`."""
    model = make_model(config.model, len(dataset.class_names))
    params = jax.device_put(state.params, jax.devices()[0])
    chosen = range(min(3, len(dataset.test_labels)))
    routing = routing_drawings(config, model, params, int(state.step), dataset, chosen)
    draw(folder, run_drawings(config, dataset, scores, records) | routing, say)


def run_pictures(config: TrainConfig) -> list[str]:
    """The names of the pictures that there are of a run."""
    learned = config.model.family == "capsules" and any(
        routing.learns() for routing in config.model.layer_routing
    )
    return ["samples", "learning_curves", "misclassified"] + (["temperatures"] if learned else [])


def run_drawings(
    config: TrainConfig, dataset: Dataset, scores: Scores, records: Sequence[Record]
) -> Drawings:
    """The `run_pictures` of a run with these records and, at its end, these scores of the test
    images.
    """
    run = f"{dataset.name}, {_network(config.model)}, seed {config.seed}"
    step = max(record["step"] for record in records)  # it may have been stopped before its end
    title = f"{run}: {config.scored} error {scores.error:.2%} after {step} steps"
    loss_name = (
        "spread loss, at the margin of each step"
        if config.loss == "spread"
        else config.loss.replace("_", " ")
    )
    names = dataset.class_names
    drawings = {
        "samples": lambda: runs.samples(dataset.train_images, dataset.train_labels, names),
        "learning_curves": lambda: runs.learning_curves(records, title, loss_name, config.scored),
        "misclassified": lambda: runs.misclassified(
            dataset.test_images,
            dataset.test_labels,
            scores.activations,
            names,
            scored=config.scored,
        ),
        "temperatures": lambda: runs.temperatures(records, title),
    }
    return {name: drawings[name] for name in run_pictures(config)}


def _network(config: ModelConfig) -> str:
    """What the network is, for a title."""
    if not config.iterations:
        return "CNN"
    number, of_classes = (
        config.iterations["num_iterations"],
        config.iterations.get("class_iterations", 0),
    )
    kind = "dynamic routing, " if config.family == "dynamic" else ""
    classes = f" ({of_classes} in the class capsules)" if of_classes else ""
    return f"{kind}{number} routing iteration{'' if number == 1 else 's'}{classes}"


def routing_drawings(
    config: TrainConfig,
    model: Network,
    params: Any,
    step: int,
    dataset: Dataset,
    chosen: Sequence[int],
) -> Drawings:
    """The pictures that there are of a network after `step` steps, of some test images, counted
    from 0.

    None of a CNN, and none of vector capsules without a decoder.
    """
    images, labels = dataset.test_images[list(chosen)], dataset.test_labels[list(chosen)]
    names = dataset.class_names

    def convergence() -> Figure:
        network: Any = network_at(config, model, step)
        views = evaluation_view(config.images, jnp.asarray(images))
        measured = measure_convergence(network, {"params": params}, views)
        return capsules.convergence(measured, images, labels, names, f"{dataset.name}, step {step}")

    def assignments() -> Figure:
        assert isinstance(model, emcaps.CapsNet)
        view = evaluation_view(config.images, jnp.asarray(images[:1]))
        intermediates = network_intermediates(config, model, params, view, step)
        followed = follow(model, intermediates, view.shape[1:3])
        flows = {
            layer: Flow(flow.to_class[0], flow.rows, flow.columns)
            for layer, flow in followed.items()
        }
        activations = np.asarray(intermediates["class_caps"].activations).reshape(-1)
        return capsules.assignment_flow(
            np.asarray(view[0]), flows, activations, names, int(labels[0])
        )

    def reconstructions() -> Figure:
        view, decoded = decode_moved(config, model, params, step, images[:1])
        matrices = isinstance(model, emcaps.CapsNet)
        entries = [
            f"{1 + i // 4},{1 + i % 4}" if matrices else str(1 + i) for i in range(len(decoded))
        ]
        return capsules.reconstructions(view, decoded, AMOUNTS.tolist(), entries)

    drawings: Drawings = {}
    if isinstance(model, emcaps.CapsNet):
        drawings |= {"convergence": convergence, "assignments": assignments}
    if config.model.reconstruction:
        drawings["reconstructions"] = reconstructions
    return drawings
