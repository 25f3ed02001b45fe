"""Images beside the activations that a network has for them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plots.images import draw_image, shown_image
from experiments.plots.style import NEUTRAL, TRAIN, plain

MOST_CLASSES = 10  # beside one image
MOST_IMAGES = 40  # of a sheet of predictions
LONGEST_NAME = 28  # of an image; of longer ones the end
COLUMNS = 5  # of a sheet


def likeliest(activations: np.ndarray, label: int, most: int = MOST_CLASSES) -> list[int]:
    """The classes to show of an image, in order: those with the highest activations
    `[num_classes]`, and its own.
    """
    chosen = np.argsort(-activations, kind="stable")[:most]
    if label not in chosen:
        chosen[-1] = label
    return np.sort(chosen).tolist()


def predictions(
    images: np.ndarray,
    names: Sequence[str],
    classes: np.ndarray,
    activations: np.ndarray,
    class_names: Sequence[str],
) -> Figure:
    """Images, each with its name and its predicted class, beside the class activations.

    Args:
        images: uint8 `[N, H, W, C]`, of which the first `MOST_IMAGES` are shown.
        names: `[N]`.
        classes: `[N]`, as predicted.
        activations: `[N, num_classes]`.
        class_names: `[num_classes]`.
    """
    found = classes[:MOST_IMAGES]
    number = f"{len(images)} image{'' if len(images) == 1 else 's'}"
    chosen = f"{len(found)} of " if len(found) < len(images) else ""
    return sheet(
        f"{chosen}{number} as the classifier sees them, with the class activations",
        images[:MOST_IMAGES],
        [
            f"{name[-LONGEST_NAME:]}\n{class_names[j]}"
            for name, j in zip(names, found, strict=False)
        ],
        activations[:MOST_IMAGES],
        class_names,
        [{int(j): TRAIN} for j in found],
        columns=min(COLUMNS, len(images)),
    )


def sheet(
    title: str,
    images: np.ndarray,
    captions: Sequence[str],
    activations: np.ndarray,
    class_names: Sequence[str],
    colors: Sequence[Mapping[int, str]],
    columns: int = COLUMNS,
) -> Figure:
    """Images in a grid, each beside its class activations.

    Args:
        title: of the figure.
        images: uint8 `[N, H, W, C]`; see `shown_image`. There may be none.
        captions: `[N]`.
        activations: `[N, num_classes]`.
        class_names: `[num_classes]`.
        colors: `[N]`, the colors of classes that stand out, first that of the image's own class.
        columns: of the grid.
    """
    height, width = shown_image(np.empty(images.shape[1:], np.uint8)).shape[:2]
    aspect, rows = width / height, max(1, -(-len(images) // columns))
    figure = Figure(
        figsize=((1.4 + 1.5 * aspect) * columns, 1.75 * rows + 0.7), layout="constrained"
    )
    figure.suptitle(title, wrap=True)
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=[aspect, 1.2] * columns)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(place, columns)
        picture = figure.add_subplot(grid[row, 2 * column])
        draw_image(picture, image)
        longest = max(map(len, caption.splitlines()))
        picture.set_title(plain(caption), fontsize=9 if longest < 26 else 7, loc="left")
        draw_activations(
            figure.add_subplot(grid[row, 2 * column + 1]),
            activations[place],
            class_names,
            colors[place],
        )
    return figure


def draw_activations(
    axes: Axes, activations: np.ndarray, class_names: Sequence[str], colors: Mapping[int, str]
) -> None:
    """One bar for each of the likeliest classes, with an axis from 0 to 1."""
    own, *_ = colors
    shown = likeliest(activations, own)
    axes.barh(range(len(shown)), activations[shown], color=[colors.get(j, NEUTRAL) for j in shown])
    axes.set_yticks(range(len(shown)), labels=[plain(class_names[j]) for j in shown], fontsize=6)
    axes.set_xticks([0, 0.5, 1], labels=["0", "0.5", "1"], fontsize=6)
    axes.set(xlim=(0, 1))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
