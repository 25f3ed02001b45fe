"""The pictures of a run: pure functions from arrays and records to matplotlib figures, which the caller saves.

How much is drawn does not grow with the number of classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogFormatter

from experiments.convergence import Convergence

TRAIN, TEST, NEUTRAL = "tab:blue", "tab:orange", "0.75"
TRUE, PREDICTED = "tab:green", "tab:red"
MOST_ROWS = 20  # classes of which samples are drawn
MOST_CLASSES = 10  # beside one image


def plain(text: str) -> str:
    """A text that Matplotlib does not take for a formula, whatever dollars there are in it."""
    return text.replace("$", r"\$")


def likeliest(activations: np.ndarray, label: int, most: int = MOST_CLASSES) -> list[int]:
    """The classes to show of an image, in order: those with the highest activations `[num_classes]`, and its own."""
    chosen = np.argsort(-activations, kind="stable")[:most]
    if label not in chosen:
        chosen[-1] = label
    return np.sort(chosen).tolist()


def learning_curves(records: Sequence[dict[str, Any]], title: str, loss_name: str) -> Figure:
    """Loss and error against the training step.

    Args:
        records: of metrics.jsonl: `step`, `split` (train or test), `loss`, `accuracy`.
        title: of the figure.
        loss_name: of which loss.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(plain(title))
    loss, error = figure.subplots(1, 2)
    for split, style in (("train", {"color": TRAIN, "linewidth": 1}), ("test", {"color": TEST, "marker": "o"})):
        chosen = [record for record in records if record["split"] == split]
        steps = [record["step"] for record in chosen]
        loss.plot(steps, [record["loss"] for record in chosen], label=split, **style)
        errors = [100 * (1 - record["accuracy"]) for record in chosen]
        error.plot(steps, errors, label=split, **style)
    loss.set(xlabel="training step", ylabel=loss_name, title="Loss", ylim=(0, None))
    error.set(xlabel="training step", ylabel="error (%)", title="Error", yscale="symlog", ylim=(0, 100))
    error.set_yticks([0, 1, 2, 5, 10, 20, 50, 100], labels=["0", "1", "2", "5", "10", "20", "50", "100"])
    for axes in (loss, error):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def temperatures(records: Sequence[dict[str, Any]], title: str) -> Figure:
    """What the layers have learned for temperatures, against the training step.

    Args:
        records: of metrics.jsonl; those with the split `temperatures` have, by name and layer, numbers above 0.
        title: of the figure.
    """
    learned = [record for record in records if record["split"] == "temperatures"]
    names = [name for name in learned[0] if isinstance(learned[0][name], dict)]
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    figure.suptitle(plain(title))
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        for layer in learned[0][name]:
            axes.semilogy([record["step"] for record in learned], [record[name][layer] for record in learned], label=layer)
        axes.yaxis.set_major_formatter(LogFormatter())  # numbers, not powers of ten
        axes.yaxis.set_minor_formatter(LogFormatter())
        axes.set(xlabel="training step", title=name.replace("_", " ").capitalize())
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return figure


def samples(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], columns: int = 6) -> Figure:
    """Images of each class, a class a row, from all over the data set; of many classes, of the first `MOST_ROWS`.

    Args:
        images: uint8 `[N, H, W, C]`.
        labels: `[N]`.
        class_names: `[num_classes]`.
        columns: images of a class, at most.
    """
    aspect = shown_image(images[0]).shape[1] / images.shape[1]
    rows = min(len(class_names), MOST_ROWS)
    figure = Figure(figsize=(1.1 * aspect * columns + 1, 1.15 * rows + 0.5), layout="constrained")
    pairs = ", both of each pair" if images.shape[-1] == 2 else ""
    chosen = f"; {rows} of {len(class_names)} classes" if rows < len(class_names) else ""
    figure.suptitle(f"{len(labels)} training images{pairs}{chosen}")
    for j, row in enumerate(figure.subplots(rows, columns, squeeze=False)):
        of_class = np.flatnonzero(labels == j)
        places = np.linspace(0, len(of_class) - 1, min(columns, len(of_class))).astype(int)
        for axes in row:
            axes.axis("off")
        for axes, index in zip(row, of_class[places], strict=False):  # a class may have fewer
            draw_image(axes, images[index])
        row[0].text(-0.1, 0.5, plain(class_names[j]), transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    return figure


def misclassified(
    images: np.ndarray, labels: np.ndarray, activations: np.ndarray, class_names: Sequence[str], rows: int = 4, columns: int = 5
) -> Figure:
    """The wrongly classified images that the network was surest of, each beside its class activations.

    Args:
        images: uint8 `[N, H, W, C]`; see `shown_image`.
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
    aspect = shown_image(images[0]).shape[1] / images.shape[1]
    figure = Figure(figsize=((1.4 + 1.5 * aspect) * columns, 1.75 * rows + 0.7), layout="constrained")
    choice = f"the {len(shown)} surest" if len(shown) < len(wrong) else "all of them"
    figure.suptitle(
        f"{len(wrong)} of {len(labels)} test images are misclassified; here {choice}, with the class activations\n"
        "true class green, predicted class red"
        if len(wrong)
        else f"None of {len(labels)} test images is misclassified"
    )
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=[aspect, 1.2] * columns)
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        true, predicted = int(labels[index]), int(predictions[index])
        picture = figure.add_subplot(grid[row, 2 * column])
        draw_image(picture, images[index])
        title = f"{class_names[true]} → {class_names[predicted]}"
        picture.set_title(plain(title), fontsize=9 if len(title) < 26 else 7, loc="left")
        draw_activations(figure.add_subplot(grid[row, 2 * column + 1]), activations[index], class_names, true, predicted)
    return figure


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """One image `[H, W, C]`, uint8; see `shown_image`."""
    axes.imshow(shown_image(image), cmap="gray", vmin=0, vmax=255)
    axes.axis("off")


def shown_image(image: np.ndarray) -> np.ndarray:
    """What is drawn of an image `[H, W, C]`: a stereo pair side by side, three channels as colours, of others the first."""
    channels = image.shape[-1]
    if channels == 2:
        return np.concatenate([image[..., 0], image[..., 1]], axis=1)
    return image if channels == 3 else image[..., 0]


def draw_activations(axes: Axes, activations: np.ndarray, class_names: Sequence[str], true: int, predicted: int) -> None:
    """One bar for each of the likeliest classes, with an axis from 0 to 1."""
    shown = likeliest(activations, true)
    colors = [TRUE if j == true else PREDICTED if j == predicted else NEUTRAL for j in shown]
    axes.barh(range(len(shown)), activations[shown], color=colors)
    axes.set_yticks(range(len(shown)), labels=[plain(class_names[j]) for j in shown], fontsize=6)
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


def convergence(measured: Convergence, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """For each image, histograms of the votes' distances to the mean of a class after each iteration: the paper's figure 2.

    The classes are those with the highest activations after the last iteration, at most `MOST_CLASSES`, and the image's own.

    Filled as in the paper: a vote counts by its assignment, here in units of an even share, 1 / J. The outline counts each once.

    Args:
        measured: of B images, after T iterations.
        images: uint8 `[B, H, W, C]`.
        labels: `[B]`.
        class_names: `[J]`.
        title: of the figure.
    """
    num_iterations, num_images, _, num_classes = measured.distances.shape
    height = num_images * (0.75 * num_iterations + 0.5) + 0.9
    figure = Figure(figsize=(max(11, 2.2 + 1.15 * min(num_classes, MOST_CLASSES)), height), layout="constrained")
    figure.suptitle(
        f"{plain(title)}: how far the votes are from the mean of each class capsule\n"
        "weighted by assignment (filled), each counted once (outline); number: activation; true class green, predicted class red"
    )
    figure.supxlabel("distance of the vote to the mean")
    for index, block in enumerate(figure.subfigures(num_images, 1, squeeze=False)[:, 0]):
        of_image = Convergence(*(array[:, index] for array in measured))
        draw_convergence(block, of_image, images[index], int(labels[index]), class_names)
    return figure


def draw_convergence(block: SubFigure, measured: Convergence, image: np.ndarray, label: int, class_names: Sequence[str]) -> None:
    """One image `[H, W, C]`, and beside it a row of histograms for each iteration; `measured` has no axis of images."""
    num_iterations, _, num_classes = measured.distances.shape
    predicted, shown = int(measured.activations[-1].argmax()), likeliest(measured.activations[-1], label)
    left, right = block.subfigures(1, 2, squeeze=False, width_ratios=[1.6, len(shown)])[0]
    picture = left.subplots()
    draw_image(picture, image)
    picture.set_title(plain(f"{class_names[label]} → {class_names[predicted]}"), fontsize=9)

    bins = np.linspace(0, measured.distances.max(), 25)
    panels = right.subplots(num_iterations, len(shown), sharex=True, sharey=True, squeeze=False)
    for (iteration, place), axes in np.ndenumerate(panels):
        j = shown[place]
        distances, assignments = measured.distances[iteration, :, j], measured.assignments[iteration, :, j]
        color = TRUE if j == label else PREDICTED if j == predicted else NEUTRAL
        axes.hist(distances, bins, weights=num_classes * assignments, color=color)
        axes.hist(distances, bins, histtype="step", color="black", linewidth=0.5)
        axes.annotate(
            f"{measured.activations[iteration, j]:.2f}", (1, 1), xycoords="axes fraction", fontsize=7, ha="right", va="top"
        )
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    for j, axes in zip(shown, panels[0], strict=True):
        axes.set_title(plain(class_names[j]), fontsize=8)
    for iteration, axes in enumerate(panels[:, 0], start=1):
        axes.set_ylabel(f"iteration {iteration}", fontsize=7)
