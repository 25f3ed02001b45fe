"""The study of parts in the wrong places: its table, its section of the report, and its picture.

The experiment itself is the command, `experiments/jumble.py`.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.intervals import percent
from experiments.claims.sections import Picture, Section, by_seed, compared, sources
from experiments.claims.style import COLORS, NAMES, family
from experiments.plots.images import draw_image
from experiments.plots.style import plain
from experiments.runtime.records import Record
from experiments.runtime.tables import Table

SURENESS = {
    "true_activation": "activation of the object's class",
    "highest_activation": "activation of the class that wins",
    "accuracy": "accuracy",
}


def jumble_table(records: Sequence[Record]) -> Table:
    """How sure each network is of objects whose parts are more and more in the wrong places."""
    amounts = records[0]["amounts"]
    rows = []
    for network in records[0]["networks"]:
        for field, what in SURENESS.items():
            rows.append((network, what, *map(percent, jumble_values(records, network, field))))
    caption = (
        "Pieces on each side of the image; or how far features are on their way to each other's "
        "places. Means, %"
    )
    return Table(caption, ("network", "", *map("{:g}".format, amounts)), rows)


def sureness(record: Record, network: str, amount: float) -> float:
    """What is left of a network's activation for the object's class, of 1."""
    at = {
        row["amount"]: row["true_activation"] for row in record["rows"] if row["network"] == network
    }
    return at[amount] / at[record["amounts"][0]]


def section(dataset: str, records: Sequence[Record], examples: Any) -> Section:
    """Parts in the wrong places, on a data set; `examples` are the arrays beside one of the
    records, or None.
    """
    networks, last = records[0]["networks"], records[0]["amounts"][-1]
    verdicts = []
    for network in networks:
        if not network.startswith("cnn") and "cnn" in networks:
            left = [
                by_seed(records, lambda record, name=name: sureness(record, name, last))
                for name in ("cnn", network)
            ]
            means = [percent(list(of_seeds.values())) for of_seeds in left]
            claim = (
                f"parts in the wrong places cost {network} more of their activation than the CNN"
            )
            verdicts.append((claim, means[1], means[0], *compared(*left)))
    columns = ("claim", "left, %", "left of the CNN's, %", "difference", "verdict")
    tables = [jumble_table(records)]
    if verdicts:
        tables.append(
            Table("Activation of the object's class at the most jumbled", columns, verdicts)
        )
    return Section(
        f"Parts in the wrong places: {dataset}",
        "Capsules see that parts do not fit together, where a CNN stays sure of an object all of "
        "whose parts are there. (The paper has no number for this.) The networks have seen whole "
        "objects only.",
        tables,
        [
            Picture(
                f"{dataset}-jumble",
                "What networks say of the object's class as its parts go to each other's places; "
                "lines are means, dots seeds.",
                jumble_curves(dataset, records, examples),
            )
        ],
        sources(records, "seconds"),
    )


def jumble_values(records: Sequence[Record], network: str, field: str) -> list[list[float]]:
    """What the records of experiments.jumble say of a network at each amount, the numbers of all
    seeds.
    """

    def at(amount: float) -> list[float]:
        rows = (row for record in records for row in record["rows"])
        return [row[field] for row in rows if (row["network"], row["amount"]) == (network, amount)]

    return [at(amount) for amount in records[0]["amounts"]]


def jumble_curves(dataset: str, records: Sequence[Record], examples: Any) -> Figure:
    """What networks say of objects whose parts go to each other's places, and examples.

    Args:
        dataset: its name.
        records: of each seed.
        examples: arrays beside one of them: `images` `[amounts, n, H, W, C]`, `labels`,
            `class_names`, and of each network `NAME_activations` `[amounts, n]`; or None.
    """
    amounts, networks = records[0]["amounts"], records[0]["networks"]
    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(
        f"{plain(dataset)}: objects whose parts are in the wrong places, seeds: {len(records)}"
    )
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.1, 1.3])[0]
    if examples is not None:
        shown = examples["images"][:, :3]
        for (row, column), axes in np.ndenumerate(
            left.subplots(shown.shape[1], len(amounts), squeeze=False)
        ):
            draw_image(axes, shown[column, row])
            said = "\n".join(
                f"{NAMES[family(name)]} {examples[f'{name}_activations'][column, row]:.2f}"
                for name in networks
            )
            axes.set_title(said, fontsize=6, pad=2)
    place = "how far parts are moved" if amounts[0] == 0 else "pieces on each side"
    fields = {"true_activation": "activation of the object's class", "accuracy": "accuracy"}
    for axes, (field, label) in zip(
        right.subplots(1, 2, sharey=True, squeeze=False)[0], fields.items(), strict=True
    ):
        for name in networks:
            found = jumble_values(records, name, field)
            color = COLORS[family(name)]
            axes.plot(
                [statistics.mean(values) for values in found],
                color=color,
                label=NAMES.get(name, name),
            )
            for index, values in enumerate(found):
                axes.plot([index] * len(values), values, "o", color=color, alpha=0.4, markersize=3)
        axes.set_xticks(range(len(amounts)), labels=[f"{amount:g}" for amount in amounts])
        axes.set(xlabel=place, title=label, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
