"""The pictures of a run: pure functions from arrays and records to matplotlib figures, which the
caller saves.

How much is drawn does not grow with the number of classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.plots.activations import sheet
from experiments.plots.images import draw_image, shown_image
from experiments.plots.style import PREDICTED, TEST, TRAIN, TRUE, plain

MOST_ROWS = 20  # classes of which samples are drawn


def learning_curves(
    records: Sequence[dict[str, Any]], title: str, loss_name: str, scored: str = "test"
) -> Figure:
    """Loss and error against the training step.

    Args:
        records: of metrics.jsonl: `step`, `split` (train or test), `loss`, `accuracy`.
        title: of the figure.
        loss_name: of which loss.
        scored: what the images are called that are not trained on.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(plain(title))
    loss, error = figure.subplots(1, 2)
    for split, label, style in (
        ("train", "train", {"color": TRAIN, "linewidth": 1}),
        ("test", scored, {"color": TEST, "marker": "o"}),
    ):
        chosen = [record for record in records if record["split"] == split]
        steps = [record["step"] for record in chosen]
        loss.plot(steps, [record["loss"] for record in chosen], label=label, **style)
        errors = [100 * (1 - record["accuracy"]) for record in chosen]
        error.plot(steps, errors, label=label, **style)
    loss.set(xlabel="training step", ylabel=loss_name, title="Loss", ylim=(0, None))
    error.set(
        xlabel="training step", ylabel="error (%)", title="Error", yscale="symlog", ylim=(0, 100)
    )
    error.set_yticks(
        [0, 1, 2, 5, 10, 20, 50, 100], labels=["0", "1", "2", "5", "10", "20", "50", "100"]
    )
    for axes in (loss, error):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def temperatures(records: Sequence[dict[str, Any]], title: str) -> Figure:
    """What the layers have learned for temperatures, against the training step.

    Args:
        records: of metrics.jsonl; those with the split `temperatures` have, by name and layer,
            numbers above 0.
        title: of the figure.
    """
    learned = [record for record in records if record["split"] == "temperatures"]
    names = [name for name in learned[0] if isinstance(learned[0][name], dict)]
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    figure.suptitle(plain(title), wrap=True)
    for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        for layer in learned[0][name]:
            axes.plot(
                [record["step"] for record in learned],
                [record[name][layer] for record in learned],
                label=layer,
            )
        axes.set_yscale("log", subs=[2, 5])
        axes.yaxis.set_major_formatter("{x:g}")  # numbers, not powers of ten
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set(xlabel="training step", title=name.replace("_", " ").capitalize())
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return figure


def samples(
    images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], columns: int = 6
) -> Figure:
    """Images of each class, a class a row, from all over the data set; of many classes, of the
    first `MOST_ROWS`.

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
        row[0].text(
            -0.1,
            0.5,
            plain(class_names[j]),
            transform=row[0].transAxes,
            ha="right",
            va="center",
            fontsize=9,
        )
    return figure


def misclassified(
    images: np.ndarray,
    labels: np.ndarray,
    activations: np.ndarray,
    class_names: Sequence[str],
    rows: int = 4,
    columns: int = 5,
    scored: str = "test",
) -> Figure:
    """The wrongly classified images that the network was surest of, each beside its class
    activations.

    Args:
        images: uint8 `[N, H, W, C]`; see `shown_image`.
        labels: `[N]`.
        activations: `[N, num_classes]`.
        class_names: `[num_classes]`.
        rows: of the sheet, at most.
        columns: of the sheet.
        scored: what the images are called.
    """
    predictions = activations.argmax(-1)
    wrong = np.flatnonzero(predictions != labels)
    excess = activations[wrong, predictions[wrong]] - activations[wrong, labels[wrong]]
    shown = wrong[np.argsort(-excess, kind="stable")][: rows * columns]

    pairs = [(int(labels[index]), int(predictions[index])) for index in shown]
    choice = f"the {len(shown)} surest" if len(shown) < len(wrong) else "all of them"
    return sheet(
        f"{len(wrong)} of {len(labels)} {scored} images are misclassified; here {choice}, with the "
        "class activations\n"
        "true class green, predicted class red"
        if len(wrong)
        else f"None of {len(labels)} {scored} images is misclassified",
        images[shown],
        [f"{class_names[true]} → {class_names[predicted]}" for true, predicted in pairs],
        activations[shown],
        class_names,
        [{true: TRUE, predicted: PREDICTED} for true, predicted in pairs],
        columns,
    )
