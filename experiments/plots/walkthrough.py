"""Pictures of one image's way through a network, as wide as a page of text: the network itself,
primary capsules, a vote, assignments, votes that gather, a pose that moves.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

import emcaps
from experiments.analysis.convergence import Convergence
from experiments.plots.capsules import draw_convergence
from experiments.plots.images import draw_image
from experiments.plots.style import NEUTRAL, PREDICTED, TRAIN, TRUE, plain

WIDTH = 7.5  # inches
SHEETS = 16  # types of a layer that are drawn, at most
POSES = {"cmap": "RdBu_r"}  # of matrices, in which 0 is white
SHARES = {"cmap": "Greys", "vmin": 0, "vmax": 1}


def architecture(model: emcaps.CapsNet, image_shape: Sequence[int]) -> Figure:
    """The layers of a network for images `(H, W, C)`: maps to scale, and under each its size and
    the number of its parameters.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    (_, intermediates), variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    height, width, channels = image_shape
    layers = [("image", (height, width, channels), f"{channels} channels", "")]
    kernels = [*model.layer_geometry(), None]
    for name, kernel in zip(("conv", "primary", *model.layer_names()), kernels, strict=True):
        found = intermediates[name]
        *_, rows, columns, types = (found if name == "conv" else found.activations).shape
        what = f"{types} channels" if name == "conv" else f"{types} capsules"
        sees = "all places" if kernel is None else f"{kernel[0]}x{kernel[0]}, stride {kernel[1]}"
        number = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"][name]))
        layers.append((name, (rows, columns, types), what, f"{sees}\n{number:,} parameters"))

    figure = Figure(figsize=(WIDTH, 1.95))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(-1.0, 0.95), aspect="equal")
    axes.axis("off")
    step, side = WIDTH / len(layers), 0.8 / max(height, width)
    for index, (name, (rows, columns, types), what, cost) in enumerate(layers):
        middle = (index + 0.5) * step
        draw_sheets(axes, middle, side * columns, side * rows, min(types, SHEETS))
        axes.text(middle, -0.28, name, ha="center", va="top", fontsize=9, weight="bold")
        axes.text(
            middle,
            -0.45,
            f"{rows}x{columns}, {what}\n{cost}",
            ha="center",
            va="top",
            fontsize=8,
            linespacing=1.4,
        )
        if index:
            axes.annotate(
                "",
                (middle - 0.42 * step, 0.4),
                (middle - 0.62 * step, 0.4),
                arrowprops={"arrowstyle": "->", "color": "0.4"},
            )
    return figure


def draw_sheets(axes: Axes, middle: float, width: float, height: float, number: int) -> None:
    """A map of so many types, as sheets behind each other, around (middle, 0.4)."""
    reach = 0.02 * (number - 1)
    for sheet in reversed(range(number)):
        away = 0.02 * sheet - reach / 2
        corner = middle - width / 2 + away, 0.4 - height / 2 + away
        axes.add_patch(Rectangle(corner, width, height, facecolor="white", edgecolor=TRAIN, lw=0.8))


def primary_capsules(
    image: np.ndarray, capsules: emcaps.Capsules, place: tuple[int, int]
) -> Figure:
    """What the primary capsules say of an image, a type a column: above, how active they are all
    over it; below, the poses at one place.

    Args:
        image: uint8 `[H, W, C]`, of which the first channel is shown.
        capsules: of this image: poses `[1, H, W, I, 4, 4]`, activations `[1, H, W, I]`.
        place: row and column of the map.
    """
    activations, poses = capsules.activations[0], capsules.poses[0][place]
    number = activations.shape[-1]
    figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[2, number])[0]
    picture = left.subplots()
    draw_image(picture, image[..., :1])
    picture.set_title("image", fontsize=8)
    reach = float(np.abs(poses).max())
    for kind, (above, below) in enumerate(right.subplots(2, number, squeeze=False).T):
        above.imshow(activations[..., kind], cmap="gray", vmin=0, vmax=1)
        above.add_patch(
            Rectangle((place[1] - 0.5, place[0] - 0.5), 1, 1, fill=False, color=PREDICTED)
        )
        above.set_title(f"type {kind + 1}", fontsize=8)
        below.imshow(poses[kind], vmin=-reach, vmax=reach, **POSES)
        for axes in (above, below):
            axes.set(xticks=[], yticks=[])
        if kind == 0:
            above.set_ylabel("activation", fontsize=8)
            below.set_ylabel("pose in the\nred square", fontsize=8)
    return figure


def product(matrices: Mapping[str, jax.typing.ArrayLike], signs: str = "@=") -> Figure:
    """Matrices `[4, 4]` with their numbers, by name, and the signs between them."""
    arrays = {name: np.asarray(matrix) for name, matrix in matrices.items()}
    figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    ratios = [4, *[size for _ in signs for size in (0.5, 4)]]
    panels = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    reach = max(float(np.abs(matrix).max()) for matrix in arrays.values())
    for axes, (name, matrix) in zip(panels[::2], arrays.items(), strict=True):
        axes.imshow(matrix, vmin=-reach, vmax=reach, alpha=0.6, **POSES)
        for (row, column), value in np.ndenumerate(matrix):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.set_title(name, fontsize=9)
    for axes, sign in zip(panels[1::2], signs, strict=True):
        axes.axis("off")
        axes.text(0.5, 0.5, sign, ha="center", va="center", fontsize=14, transform=axes.transAxes)
    return figure


def assignments(
    by_iteration: np.ndarray, entropies: Sequence[float], class_names: Sequence[str], label: int
) -> Figure:
    """How the children of the class capsules divide themselves in each iteration: a child a
    column, ordered by where it goes in the end.

    Args:
        by_iteration: in [0, 1], `[T, N, J]`.
        entropies: the mean of the children's, in nats, `[T]`.
        class_names: `[J]`.
        label: the image's class.
    """
    num_iterations, number, num_classes = by_iteration.shape
    last = by_iteration[-1]
    order = np.lexsort((-last.max(-1), last.argmax(-1)))
    figure = Figure(figsize=(WIDTH, 1.45 * num_iterations + 0.3), layout="constrained")
    panels = figure.subplots(num_iterations, 1, sharex=True, squeeze=False)[:, 0]
    for iteration, (axes, shares) in enumerate(zip(panels, by_iteration, strict=True)):
        axes.imshow(shares[order].T, aspect="auto", interpolation="nearest", **SHARES)
        axes.set_title(
            f"in iteration {iteration + 1}: entropy {entropies[iteration]:.2f}",
            fontsize=9,
            loc="left",
        )
        axes.set_yticks(range(num_classes), labels=list(map(plain, class_names)), fontsize=8)
        axes.get_yticklabels()[label].set_color(TRUE)
        axes.set_xticks([])
    panels[-1].set_xlabel(f"the {number} capsules below", fontsize=8)
    bar = figure.colorbar(panels[0].images[0], ax=list(panels), pad=0.01, ticks=[0, 0.5, 1])
    bar.set_label("share of a capsule", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def gathered_votes(
    measured: Convergence, image: np.ndarray, label: int, class_names: Sequence[str]
) -> Figure:
    """As `capsules.convergence`, of one image, uint8 `[H, W, C]`, of which the first channel is
    shown; `measured` is of this image alone.
    """
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    of_image = Convergence(*(array[:, 0] for array in measured))
    draw_convergence(figure, of_image, image[..., :1], label, class_names)
    figure.supxlabel("distance of a vote to the mean", fontsize=8)
    return figure


def activations_of_the_moved(
    images: np.ndarray, amounts: np.ndarray, activations: np.ndarray, what: str, label: int
) -> Figure:
    """What class capsules say of an object while something of it moves.

    Args:
        images: uint8 `[n, H, W, C]`, of which the first channel is shown.
        amounts: by how much, increasing, `[n]`.
        activations: of all classes, `[n, J]`.
        what: the name of the amounts.
        label: the object's class.
    """
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.8])[:, 0]
    draw_strip(above, images, amounts)
    draw_against(below.subplots(), amounts, activations, what, label)
    return figure


def pose_of_the_moved(
    images: np.ndarray,
    amounts: np.ndarray,
    activations: np.ndarray,
    poses: np.ndarray,
    what: str,
    label: int,
    marked: Mapping[tuple[int, int], str],
) -> Figure:
    """What class capsules say of an object while something of it moves, and how the entries of its
    own pose change meanwhile, from the middle amount.

    Args:
        images, amounts, activations, what, label: as of `activations_of_the_moved`.
        poses: of the object's class, `[n, 4, 4]`.
        marked: names of the entries that are in color, by row and column.
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 2.4])[:, 0]
    draw_strip(above, images, amounts)
    left, right = below.subplots(1, 2, squeeze=False)[0]
    draw_against(left, amounts, activations, what, label)
    changes = poses - poses[len(poses) // 2]
    for entry in np.ndindex(*changes.shape[1:]):
        style = {"label": marked[entry], "zorder": 3} if entry in marked else {"color": NEUTRAL}
        right.plot(amounts, changes[:, *entry], **style)
    right.set_title("change of the pose's 16 entries", fontsize=9)
    right.set_xlabel(what, fontsize=9)
    right.tick_params(labelsize=8)
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    return figure


def draw_strip(block: SubFigure, images: np.ndarray, amounts: np.ndarray, most: int = 5) -> None:
    """Some of the images `[n, H, W, C]`, with their amounts."""
    shown = np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)
    for axes, index in zip(block.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        draw_image(axes, images[index][..., :1])
        axes.set_title(f"{amounts[index]:g}", fontsize=9)


def draw_against(
    axes: Axes, amounts: np.ndarray, activations: np.ndarray, what: str, label: int
) -> None:
    """Activations `[n, J]` of all classes against the amounts."""
    for j, of_class in enumerate(activations.T):
        axes.plot(amounts, of_class, color=TRUE if j == label else NEUTRAL)
    axes.set(ylim=(0, 1))
    axes.set_xlabel(what, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_title("activations: its class green, others gray", fontsize=9)
    axes.grid(alpha=0.3)
