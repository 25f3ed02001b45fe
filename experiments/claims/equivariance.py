"""The study of what poses know of the viewpoint: its table, its section of the report, and its
pictures.

The experiment itself is the command, `experiments/equivariance.py`.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.intervals import confidence_interval, percent
from experiments.claims.sections import Picture, Section, by_seed, compared, sources
from experiments.claims.style import COLORS, family
from experiments.plots.images import draw_image
from experiments.plots.style import NEUTRAL, PREDICTED, TRUE, plain
from experiments.runtime.records import Record
from experiments.runtime.tables import Table
from experiments.toynorb.scene import View

# Of a pose, row by row.
COORDINATES = {3: (PREDICTED, "row 1, column 4: down"), 7: (TRUE, "row 2, column 4: right")}
UNITS = {
    "elevation": "degrees",
    "azimuth": "degrees",
    "roll": "degrees",
    "zoom": "times",
    "right": "widths",
    "down": "heights",
}


def equivariance_table(records: Sequence[Record]) -> Table:
    """How much of the viewpoint a linear map reads from each network's last layer."""
    rows = []
    for layer, first in records[0]["layers"].items():
        values = r_squared_values(records, layer).values()
        rows.append((layer, str(first["features"]), *map(percent, values)))
    names = next(iter(records[0]["layers"].values()))["r_squared"]
    return Table(
        "R^2 in %, on toys that neither network nor map has met", ("layer", "numbers", *names), rows
    )


def section(dataset: str, records: Sequence[Record], sweeps: Any) -> Section:
    """What a pose knows of the viewpoint; `sweeps` are the arrays beside one of the records, or
    None.
    """
    layers, pose = records[0]["layers"], "capsules: pose"
    verdicts = []
    if pose in layers:

        def mean(layer: str) -> dict[int, float]:
            return by_seed(
                records,
                lambda record: statistics.mean(record["layers"][layer]["r_squared"].values()),
            )

        verdicts = [
            (
                f"the class capsule's pose knows more of how an object is seen than {layer}",
                *compared(mean(pose), mean(layer)),
            )
            for layer in layers
            if layer != pose
        ]
    tables = [equivariance_table(records)]
    if verdicts:
        tables.append(
            Table("By how much, mean over all six", ("claim", "difference", "verdict"), verdicts)
        )
    pictures = [
        Picture(
            f"{dataset}-equivariance",
            "How much of the viewpoint a linear map reads from each network's last layer; bars are "
            "means, lines 95% intervals.",
            equivariance_bars(dataset, records),
        )
    ]
    if sweeps is not None and pose in sweeps:
        caption = (
            "The 16 entries of the class capsule's pose while one toy, not trained on, is seen "
            "in other ways."
        )
        pictures.append(Picture(f"{dataset}-poses", caption, pose_sweeps(sweeps, pose)))
    return Section(
        f"What a pose knows: {dataset}",
        "A capsule's pose moves with the object, so that a linear map can read from it how the "
        "object is seen. (There is no number for this in the paper.) All of elevation, azimuth, "
        "roll, zoom and place differ at once.",
        tables,
        pictures,
        sources(records, "seconds"),
    )


def r_squared_values(records: Sequence[Record], layer: str) -> dict[str, list[float]]:
    """What the records of experiments.equivariance say of a layer, by target, the numbers of all
    seeds.
    """
    of_seeds = [record["layers"][layer]["r_squared"] for record in records]
    return {name: [of_seed[name] for of_seed in of_seeds] for name in of_seeds[0]}


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
        axes.bar(
            at,
            means,
            width,
            yerr=reach,
            color=COLORS[family(layer)],
            alpha=alpha,
            label=label,
            error_kw={"linewidth": 1},
        )
    axes.set_xticks(range(len(names)), labels=names)
    axes.set(
        ylabel="R² on unseen toys",
        ylim=(None, 1),
        title=f"{plain(dataset)}: what a linear map reads from the last layer",
    )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    return figure


def pose_sweeps(sweeps: Mapping[str, np.ndarray], layer: str) -> Figure:
    """How the numbers of a layer move while one toy is seen in other ways, one at a time.

    Args:
        sweeps: as experiments.equivariance saves them: `images` `[6 * n, H, W, 2]`, `view_FIELD` of
            each of `View`, and layers.
        layer: of 16 numbers, a pose matrix row by row.
    """
    number = len(sweeps["images"]) // len(View._fields)
    figure = Figure(figsize=(13, 6), layout="constrained")
    figure.suptitle(
        "The class capsule's pose of one toy as it is seen in other ways; entries that coordinates "
        "are added to in color"
    )
    for index, (block, field) in enumerate(
        zip(figure.subfigures(2, 3, squeeze=False).flat, View._fields, strict=True)
    ):
        chosen = slice(index * number, (index + 1) * number)
        at, values = sweeps[f"view_{field}"][chosen], sweeps[layer][chosen]
        grid = block.add_gridspec(2, 5, height_ratios=[1, 2.6])
        for place, step in enumerate(np.linspace(0, number - 1, 5).astype(int)):
            axes = block.add_subplot(grid[0, place])
            draw_image(axes, sweeps["images"][chosen][step, :, :, :1])
        axes = block.add_subplot(grid[1, :])
        for entry in range(values.shape[1]):
            color, label = COORDINATES.get(entry, (NEUTRAL, None))
            axes.plot(
                at,
                values[:, entry] - values[number // 2, entry],
                color=color,
                label=label,
                zorder=3 if label else 2,
            )
        axes.set(
            xlabel=f"{field} ({UNITS[field]})",
            ylabel="change of an entry" if index % 3 == 0 else None,
        )
        axes.grid(alpha=0.3)
        if index == 0:
            axes.legend(fontsize=7)
    return figure
