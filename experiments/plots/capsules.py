"""Pictures of what a network does with an image: poses decoded, assignments, votes that gather; the
caller saves them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from experiments.analysis.assignment_flow import Flow
from experiments.analysis.convergence import Convergence
from experiments.plots.activations import MOST_CLASSES, likeliest
from experiments.plots.images import draw_image, draw_pixels
from experiments.plots.style import NEUTRAL, PREDICTED, TRUE, plain


def reconstructions(
    image: np.ndarray,
    decoded: np.ndarray,
    amounts: Sequence[float],
    entry_names: Sequence[str],
    unit: str = "",
) -> Figure:
    """What one entry of a capsule's pose means: images decoded while it moves, an entry a row.

    Args:
        image: in [0, 1], `[H, W, C]`, the original.
        decoded: in [0, 1], `[entries, len(amounts), H, W, C]`.
        amounts: added to the entry, increasing.
        entry_names: `[entries]`.
        unit: of the amounts, as the title has it.
    """
    rows = -(-len(decoded) // 2)
    figure = Figure(figsize=(13, 0.55 * rows + 1.1), layout="constrained")
    figure.suptitle(
        "Images decoded from a class capsule's pose while one of its entries moves from "
        f"{amounts[0]:+g} to {amounts[-1]:+g}{unit}"
    )
    side, *halves = figure.subfigures(
        1, 3, squeeze=False, width_ratios=[1.2, len(amounts), len(amounts)]
    )[0]
    pictures = {"image": image, "decoded": decoded[0, len(amounts) // 2]}
    for axes, (name, picture) in zip(
        side.subplots(len(pictures), 1, squeeze=False)[:, 0], pictures.items(), strict=True
    ):
        draw_pixels(axes, picture)
        axes.set_title(name, fontsize=9)
    for half, start in zip(halves, (0, rows), strict=True):
        for (row, column), axes in np.ndenumerate(half.subplots(rows, len(amounts), squeeze=False)):
            axes.axis("off")
            if start + row < len(decoded):
                draw_pixels(axes, decoded[start + row, column])
                if column == 0:
                    name = entry_names[start + row]
                    axes.text(
                        -0.1,
                        0.5,
                        name,
                        transform=axes.transAxes,
                        ha="right",
                        va="center",
                        fontsize=7,
                    )
    return figure


def assignment_flow(
    image: np.ndarray,
    flow: Mapping[str, Flow],
    activations: np.ndarray,
    class_names: Sequence[str],
    label: int,
    columns: int = 4,
) -> Figure:
    """Which class each place of each layer is assigned to, drawn over the image.

    Args:
        image: `[H, W, C]`, of which the first channel is shown.
        flow: by layer, from the image up, a `Flow` of one image; see analysis/assignment_flow.py.
        activations: of the classes, `[J]`.
        class_names: `[J]`.
        label: the image's class.
        columns: classes that are shown, at most: those with the highest activations.
    """
    shown = np.argsort(-activations, kind="stable")[:columns]
    predicted = int(activations.argmax())
    figure = Figure(figsize=(2.3 * (len(shown) + 1), 2.35 * len(flow) + 0.9), layout="constrained")
    figure.suptitle(
        "Where the data goes: what each place has found (left), and the share of it that is "
        "assigned to a class\n"
        "red: more than an even share, blue: less"
    )
    for line, (layer, found) in zip(
        figure.subplots(len(flow), len(shown) + 1, squeeze=False), flow.items(), strict=True
    ):
        totals = found.to_class.sum(-1)
        # 1 is even; no share where no parent looks
        shares = len(activations) * found.to_class / np.where(totals > 0, totals, np.nan)[..., None]
        reach = max(np.nanmax(np.abs(shares[..., shown] - 1)), 1e-3)
        line[0].set_ylabel(f"{layer}\nfull color: even share ± {reach:.0%}", fontsize=9)
        overlay(line[0], image, found, totals, cmap="inferno", vmin=0)
        for axes, j in zip(line[1:], shown, strict=True):
            overlay(
                axes, image, found, shares[..., j], cmap="coolwarm", vmin=1 - reach, vmax=1 + reach
            )
        if layer == next(iter(flow)):
            for axes, j in zip(line[1:], shown, strict=True):
                color = TRUE if j == label else PREDICTED if j == predicted else "black"
                axes.set_title(
                    f"to {plain(class_names[int(j)])} (activation {activations[j]:.2f})",
                    fontsize=7,
                    color=color,
                )
            line[0].set_title("activations", fontsize=7)
    return figure


def overlay(axes: Axes, image: np.ndarray, places: Flow, values: np.ndarray, **colors: Any) -> None:
    """Values `[H, W]` of a map's places over an image `[height, width, C]`."""
    axes.imshow(image[..., 0], cmap="gray", extent=(0, 1, 1, 0))
    (left, right), (top, bottom) = outer_edges(places.columns), outer_edges(places.rows)
    axes.imshow(values, extent=(left, right, bottom, top), alpha=0.65, **colors)
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])


def outer_edges(centers: np.ndarray) -> tuple[float, float]:
    """Where a map begins and ends in an image of length 1, given its places; a single place is all
    of the image.
    """
    reach = (centers[1] - centers[0]) / 2 if len(centers) > 1 else 0.5
    return float(centers[0] - reach), float(centers[-1] + reach)


def convergence(
    measured: Convergence,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """For each image, histograms of the votes' distances to the mean of a class after each
    iteration: the paper's figure 2.

    The classes are those with the highest activations after the last iteration, at most
    `MOST_CLASSES`, and the image's own.

    Filled as in the paper: a vote counts by its assignment, here in units of an even share, 1 / J.
    The outline counts each once.

    Args:
        measured: of B images, after T iterations.
        images: uint8 `[B, H, W, C]`.
        labels: `[B]`.
        class_names: `[J]`.
        title: of the figure.
    """
    num_iterations, num_images, _, num_classes = measured.distances.shape
    height = num_images * (0.75 * num_iterations + 0.5) + 0.9
    figure = Figure(
        figsize=(max(11, 2.2 + 1.15 * min(num_classes, MOST_CLASSES)), height), layout="constrained"
    )
    figure.suptitle(
        f"{plain(title)}: how far the votes are from the mean of each class capsule\n"
        "weighted by assignment (filled), each counted once (outline); number: activation; true "
        "class green, predicted class red"
    )
    figure.supxlabel("distance of the vote to the mean")
    for index, block in enumerate(figure.subfigures(num_images, 1, squeeze=False)[:, 0]):
        of_image = Convergence(*(array[:, index] for array in measured))
        draw_convergence(block, of_image, images[index], int(labels[index]), class_names)
    return figure


def draw_convergence(
    block: Figure | SubFigure,
    measured: Convergence,
    image: np.ndarray,
    label: int,
    class_names: Sequence[str],
) -> None:
    """One image `[H, W, C]`, and beside it a row of histograms for each iteration; `measured` has
    no axis of images.
    """
    num_iterations, _, num_classes = measured.distances.shape
    predicted, shown = (
        int(measured.activations[-1].argmax()),
        likeliest(measured.activations[-1], label),
    )
    left, right = block.subfigures(1, 2, squeeze=False, width_ratios=[1.6, len(shown)])[0]
    picture = left.subplots()
    draw_image(picture, image)
    picture.set_title(plain(f"{class_names[label]} → {class_names[predicted]}"), fontsize=9)

    bins = np.linspace(0, measured.distances.max(), 25)
    panels = right.subplots(num_iterations, len(shown), sharex=True, sharey=True, squeeze=False)
    for (iteration, place), axes in np.ndenumerate(panels):
        j = shown[place]
        distances, assignments = (
            measured.distances[iteration, :, j],
            measured.assignments[iteration, :, j],
        )
        color = TRUE if j == label else PREDICTED if j == predicted else NEUTRAL
        axes.hist(distances, bins, weights=num_classes * assignments, color=color)
        axes.hist(distances, bins, histtype="step", color="black", linewidth=0.5)
        axes.annotate(
            f"{measured.activations[iteration, j]:.2f}",
            (1, 1),
            xycoords="axes fraction",
            fontsize=7,
            ha="right",
            va="top",
        )
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    for j, axes in zip(shown, panels[0], strict=True):
        axes.set_title(plain(class_names[j]), fontsize=8)
    for iteration, axes in enumerate(panels[:, 0], start=1):
        axes.set_ylabel(f"iteration {iteration}", fontsize=7)
