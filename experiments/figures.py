"""The pictures of a run: pure functions from arrays and records to matplotlib figures, which the caller saves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TRAIN, TEST, NEUTRAL = "tab:blue", "tab:orange", "0.75"
TRUE, PREDICTED = "tab:green", "tab:red"


def learning_curves(records: Sequence[dict[str, Any]], title: str) -> Figure:
    """Loss and error against the training step.

    Args:
        records: of metrics.jsonl: `step`, `split` (train or test), `loss`, `accuracy`.
        title: of the figure.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    loss, error = figure.subplots(1, 2)
    for split, style in (("train", {"color": TRAIN, "linewidth": 1}), ("test", {"color": TEST, "marker": "o"})):
        chosen = [record for record in records if record["split"] == split]
        steps = [record["step"] for record in chosen]
        loss.plot(steps, [record["loss"] for record in chosen], label=split, **style)
        errors = [100 * (1 - record["accuracy"]) for record in chosen]
        error.plot(steps, errors, label=split, **style)
    loss.set(xlabel="training step", ylabel="spread loss", title="Loss, at the margin of each step", ylim=(0, None))
    error.set(xlabel="training step", ylabel="error (%)", title="Error", yscale="symlog", ylim=(0, 100))
    error.set_yticks([0, 1, 2, 5, 10, 20, 50, 100], labels=["0", "1", "2", "5", "10", "20", "50", "100"])
    for axes in (loss, error):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def misclassified(
    images: np.ndarray, labels: np.ndarray, activations: np.ndarray, class_names: Sequence[str], rows: int = 4, columns: int = 5
) -> Figure:
    """The wrongly classified images that the network was surest of, each beside its class activations.

    Args:
        images: uint8 `[N, H, W, C]`; with 1 or 3 channels as they are, of others the first.
        labels: `[N]`.
        activations: `[N, num_classes]`.
        class_names: `[num_classes]`.
        rows: of the sheet, at most.
        columns: of the sheet.
    """
    predictions = activations.argmax(-1)
    wrong = np.flatnonzero(predictions != labels)
    excess = activations[wrong, predictions[wrong]] - activations[wrong, labels[wrong]]
    shown = wrong[np.argsort(-excess, kind="stable")][: rows * columns]

    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(2.9 * columns, 1.75 * rows + 0.7), layout="constrained")
    choice = f"the {len(shown)} surest" if len(shown) < len(wrong) else "all of them"
    figure.suptitle(
        f"{len(wrong)} of {len(labels)} test images are misclassified; here {choice}, with the class activations\n"
        "true class green, predicted class red"
        if len(wrong)
        else f"None of {len(labels)} test images is misclassified"
    )
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=[1, 1.2] * columns)
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        true, predicted = int(labels[index]), int(predictions[index])
        picture = figure.add_subplot(grid[row, 2 * column])
        draw_image(picture, images[index])
        picture.set_title(f"{class_names[true]} → {class_names[predicted]}", fontsize=9)
        draw_activations(figure.add_subplot(grid[row, 2 * column + 1]), activations[index], class_names, true, predicted)
    return figure


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """One image `[H, W, C]`, uint8."""
    if image.shape[-1] != 3:
        image = image[..., 0]
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.axis("off")


def draw_activations(axes: Axes, activations: np.ndarray, class_names: Sequence[str], true: int, predicted: int) -> None:
    """One bar a class, with an axis from 0 to 1."""
    colors = [TRUE if j == true else PREDICTED if j == predicted else NEUTRAL for j in range(len(activations))]
    axes.barh(range(len(activations)), activations, color=colors)
    axes.set_yticks(range(len(activations)), labels=class_names, fontsize=6)
    axes.set_xticks([0, 0.5, 1], labels=["0", "0.5", "1"], fontsize=6)
    axes.set(xlim=(0, 1))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def benchmark(record: dict[str, Any]) -> Figure:
    """What a routing costs, and how the cost grows.

    Args:
        record: benchmark.json, with its parts `layer` and `sweeps`.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle("EM routing of one layer: textbook formulation, votes in memory, votes streamed")
    bars, growth = figure.subplots(1, 2)
    directions = record["layer"]
    names = list(directions["forward"])
    for offset, (direction, color) in zip((-0.2, 0.2), (("forward", TRAIN), ("gradient", TEST)), strict=True):
        reference = directions[direction]["textbook"]["seconds"]
        speedups = [reference / directions[direction][name]["seconds"] for name in names]
        places = [place + offset for place in range(len(names))]
        drawn = bars.barh(places, speedups, 0.4, color=color, label="forward" if direction == "forward" else "with gradient")
        bars.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
    bars.set_yticks(range(len(names)), labels=names)
    bars.invert_yaxis()
    bars.margins(x=0.12)
    bars.set(xlabel="times as fast as the textbook", title="Speed")
    bars.legend(loc="upper right")
    for name, sweep in record["sweeps"].items():
        relative = [size / sweep["sizes"][0] for size in sweep["sizes"]]
        label = f"{name}: exponent {sweep['exponent']:.2f}"
        growth.loglog(relative, [second / sweep["seconds"][0] for second in sweep["seconds"]], marker="o", label=label)
    growth.plot([1, 32], [1, 32], color=NEUTRAL, linestyle="--", label="linear")
    growth.set(xlabel="size, relative to the smallest", ylabel="time, relative to the smallest", title="Streamed, with gradient")
    growth.grid(alpha=0.3, which="both")
    growth.legend(fontsize=8)
    return figure
