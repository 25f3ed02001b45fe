"""Pictures of poses and parts: pure functions from arrays and records to matplotlib figures, which the caller saves."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.assignments import Flow
from experiments.claim_figures import COLORS, NAMES
from experiments.intervals import confidence_interval
from experiments.run_directory import Record
from experiments.run_figures import NEUTRAL, PREDICTED, TRUE, draw_image, plain
from experiments.toynorb.scene import View

COORDINATES = {3: (PREDICTED, "row 1, column 4: down"), 7: (TRUE, "row 2, column 4: right")}  # of a pose, row by row
UNITS = {"elevation": "degrees", "azimuth": "degrees", "roll": "degrees", "zoom": "times", "right": "widths", "down": "heights"}


def family(name: str) -> str:
    """Of a network or of a layer, by its name."""
    return name.partition(":")[0].partition("-")[0]


def jumble_values(records: Sequence[Record], network: str, field: str) -> list[list[float]]:
    """What the records of experiments.jumble say of a network at each amount, the numbers of all seeds."""

    def at(amount: float) -> list[float]:
        rows = (row for record in records for row in record["rows"])
        return [row[field] for row in rows if (row["network"], row["amount"]) == (network, amount)]

    return [at(amount) for amount in records[0]["amounts"]]


def r_squared_values(records: Sequence[Record], layer: str) -> dict[str, list[float]]:
    """What the records of experiments.equivariance say of a layer, by target, the numbers of all seeds."""
    of_seeds = [record["layers"][layer]["r_squared"] for record in records]
    return {name: [of_seed[name] for of_seed in of_seeds] for name in of_seeds[0]}


def jumble_curves(dataset: str, records: Sequence[Record], examples: Any) -> Figure:
    """What networks say of objects whose parts go to each other's places, and examples.

    Args:
        dataset: its name.
        records: of each seed.
        examples: arrays beside one of them: `images` `[amounts, n, H, W, C]`, `labels`, `class_names`, and of each network
            `NAME_activations` `[amounts, n]`; or None.
    """
    amounts, networks = records[0]["amounts"], records[0]["networks"]
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(f"{plain(dataset)}: objects whose parts are in the wrong places, seeds: {len(records)}")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.1, 1.3])[0]
    if examples is not None:
        shown = examples["images"][:, :3]
        for (row, column), axes in np.ndenumerate(left.subplots(shown.shape[1], len(amounts), squeeze=False)):
            draw_image(axes, shown[column, row])
            said = "\n".join(f"{NAMES[family(name)]} {examples[f'{name}_activations'][column, row]:.2f}" for name in networks)
            axes.set_title(said, fontsize=6, pad=2)
    place = "how far parts are moved" if amounts[0] == 0 else "pieces on each side"
    fields = {"true_activation": "activation of the object's class", "accuracy": "accuracy"}
    for axes, (field, label) in zip(right.subplots(1, 2, sharey=True, squeeze=False)[0], fields.items(), strict=True):
        for name in networks:
            found = jumble_values(records, name, field)
            color = COLORS[family(name)]
            axes.plot([statistics.mean(values) for values in found], color=color, label=NAMES.get(name, name))
            for index, values in enumerate(found):
                axes.plot([index] * len(values), values, "o", color=color, alpha=0.4, markersize=3)
        axes.set_xticks(range(len(amounts)), labels=[f"{amount:g}" for amount in amounts])
        axes.set(xlabel=place, title=label, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def equivariance_bars(dataset: str, records: Sequence[Record]) -> Figure:
    """R^2 of what each layer says of each target, means and 95% intervals over the records."""
    layers = list(records[0]["layers"])
    names = list(records[0]["layers"][layers[0]]["r_squared"])
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(layers)
    for index, layer in enumerate(layers):
        found = list(r_squared_values(records, layer).values())
        at = np.arange(len(names)) + (index - (len(layers) - 1) / 2) * width
        reach = [confidence_interval(values) if len(values) > 1 else 0 for values in found]
        label = f"{layer} ({records[0]['layers'][layer]['features']} numbers)"
        alpha = {"logits": 0.3, "components": 0.6}.get(layer.rpartition(" ")[2], 1)
        means = [statistics.mean(values) for values in found]
        axes.bar(at, means, width, yerr=reach, color=COLORS[family(layer)], alpha=alpha, label=label, error_kw={"linewidth": 1})
    axes.set_xticks(range(len(names)), labels=names)
    axes.set(ylabel="R² on unseen toys", ylim=(None, 1), title=f"{plain(dataset)}: what a linear map reads from the last layer")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    return figure


def pose_sweeps(sweeps: Mapping[str, np.ndarray], layer: str) -> Figure:
    """How the numbers of a layer move while one toy is seen in other ways, one at a time.

    Args:
        sweeps: as experiments.equivariance saves them: `images` `[6 * n, H, W, 2]`, `view_FIELD` of each of `View`, and layers.
        layer: of 16 numbers, a pose matrix row by row.
    """
    number = len(sweeps["images"]) // len(View._fields)
    figure = Figure(figsize=(13, 6), layout="constrained")
    figure.suptitle(
        "The class capsule's pose of one toy as it is seen in other ways; entries that coordinates are added to in color"
    )
    for index, (block, field) in enumerate(zip(figure.subfigures(2, 3, squeeze=False).flat, View._fields, strict=True)):
        chosen = slice(index * number, (index + 1) * number)
        at, values = sweeps[f"view_{field}"][chosen], sweeps[layer][chosen]
        grid = block.add_gridspec(2, 5, height_ratios=[1, 2.6])
        for place, step in enumerate(np.linspace(0, number - 1, 5).astype(int)):
            axes = block.add_subplot(grid[0, place])
            draw_image(axes, sweeps["images"][chosen][step, :, :, :1])
        axes = block.add_subplot(grid[1, :])
        for entry in range(values.shape[1]):
            color, label = COORDINATES.get(entry, (NEUTRAL, None))
            axes.plot(at, values[:, entry] - values[number // 2, entry], color=color, label=label, zorder=3 if label else 2)
        axes.set(xlabel=f"{field} ({UNITS[field]})", ylabel="change of an entry" if index % 3 == 0 else None)
        axes.grid(alpha=0.3)
        if index == 0:
            axes.legend(fontsize=7)
    return figure


def reconstructions(image: np.ndarray, decoded: np.ndarray, amounts: Sequence[float], entry_names: Sequence[str]) -> Figure:
    """What one entry of a capsule's pose means: images decoded while it moves, an entry a row.

    Args:
        image: in [0, 1], `[H, W, C]`, the original.
        decoded: in [0, 1], `[entries, len(amounts), H, W, C]`.
        amounts: added to the entry, increasing.
        entry_names: `[entries]`.
    """
    rows = -(-len(decoded) // 2)
    figure = Figure(figsize=(13, 0.55 * rows + 1.1), layout="constrained")
    figure.suptitle(
        f"Images decoded from a class capsule's pose while one of its entries moves from {amounts[0]:+g} to {amounts[-1]:+g}"
    )
    side, *halves = figure.subfigures(1, 3, squeeze=False, width_ratios=[1.2, len(amounts), len(amounts)])[0]
    pictures = {"image": image, "decoded": decoded[0, len(amounts) // 2]}
    for axes, (name, picture) in zip(side.subplots(len(pictures), 1, squeeze=False)[:, 0], pictures.items(), strict=True):
        draw_pixels(axes, picture)
        axes.set_title(name, fontsize=9)
    for half, start in zip(halves, (0, rows), strict=True):
        for (row, column), axes in np.ndenumerate(half.subplots(rows, len(amounts), squeeze=False)):
            axes.axis("off")
            if start + row < len(decoded):
                draw_pixels(axes, decoded[start + row, column])
                if column == 0:
                    name = entry_names[start + row]
                    axes.text(-0.1, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=7)
    return figure


def draw_pixels(axes: Axes, image: np.ndarray) -> None:
    """An image `[H, W, C]` in [0, 1]."""
    draw_image(axes, np.round(255 * image).astype(np.uint8))


def assignment_flow(
    image: np.ndarray, flow: Mapping[str, Flow], activations: np.ndarray, class_names: Sequence[str], label: int, columns: int = 4
) -> Figure:
    """Which class each place of each layer is assigned to, drawn over the image.

    Args:
        image: `[H, W, C]`, of which the first channel is shown.
        flow: by layer, from the image up, a `Flow` of one image; see assignments.py.
        activations: of the classes, `[J]`.
        class_names: `[J]`.
        label: the image's class.
        columns: classes that are shown, at most: those with the highest activations.
    """
    shown = np.argsort(-activations, kind="stable")[:columns]
    predicted = int(activations.argmax())
    figure = Figure(figsize=(2.3 * (len(shown) + 1), 2.35 * len(flow) + 0.9), layout="constrained")
    figure.suptitle(
        "Where the data goes: what each place has found (left), and the share of it that is assigned to a class\n"
        "red: more than an even share, blue: less"
    )
    for line, (layer, found) in zip(figure.subplots(len(flow), len(shown) + 1, squeeze=False), flow.items(), strict=True):
        totals = found.to_class.sum(-1)
        # 1 is even; no share where no parent looks
        shares = len(activations) * found.to_class / np.where(totals > 0, totals, np.nan)[..., None]
        reach = max(np.nanmax(np.abs(shares[..., shown] - 1)), 1e-3)
        line[0].set_ylabel(f"{layer}\nfull color: even share ± {reach:.0%}", fontsize=9)
        overlay(line[0], image, found, totals, cmap="inferno", vmin=0)
        for axes, j in zip(line[1:], shown, strict=True):
            overlay(axes, image, found, shares[..., j], cmap="coolwarm", vmin=1 - reach, vmax=1 + reach)
        if layer == next(iter(flow)):
            for axes, j in zip(line[1:], shown, strict=True):
                color = TRUE if j == label else PREDICTED if j == predicted else "black"
                axes.set_title(f"to {plain(class_names[int(j)])} (activation {activations[j]:.2f})", fontsize=7, color=color)
            line[0].set_title("activations", fontsize=7)
    return figure


def overlay(axes: Axes, image: np.ndarray, places: Flow, values: np.ndarray, **colors: Any) -> None:
    """Values `[H, W]` of a map's places over an image `[height, width, C]`."""
    axes.imshow(image[..., 0], cmap="gray", extent=(0, 1, 1, 0))
    (left, right), (top, bottom) = outer_edges(places.columns), outer_edges(places.rows)
    axes.imshow(values, extent=(left, right, bottom, top), alpha=0.65, **colors)
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])


def outer_edges(centers: np.ndarray) -> tuple[float, float]:
    """Where a map begins and ends in an image of length 1, given its places; a single place is all of the image."""
    reach = (centers[1] - centers[0]) / 2 if len(centers) > 1 else 0.5
    return float(centers[0] - reach), float(centers[-1] + reach)
