"""What poses are for, as sections of a report: parts in the wrong places, and what a pose knows of the viewpoint; see claims.py."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments import pose_figures
from experiments.intervals import percent
from experiments.run_directory import Record
from experiments.sections import Picture, Section, Table, by_seed, compared, sources

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
            rows.append((network, what, *map(percent, pose_figures.jumble_values(records, network, field))))
    caption = "Pieces on each side of the image; or how far features are on their way to each other's places. Means, %"
    return Table(caption, ("network", "", *map("{:g}".format, amounts)), rows)


def sureness(record: Record, network: str, amount: float) -> float:
    """What is left of a network's activation for the object's class, of 1."""
    at = {row["amount"]: row["true_activation"] for row in record["rows"] if row["network"] == network}
    return at[amount] / at[record["amounts"][0]]


def jumble(dataset: str, records: Sequence[Record], examples: Any) -> Section:
    """Parts in the wrong places, on a data set; `examples` are the arrays beside one of the records, or None."""
    networks, last = records[0]["networks"], records[0]["amounts"][-1]
    verdicts = []
    for network in networks:
        if not network.startswith("cnn") and "cnn" in networks:
            left = [by_seed(records, lambda record, name=name: sureness(record, name, last)) for name in ("cnn", network)]
            means = [percent(list(of_seeds.values())) for of_seeds in left]
            claim = f"parts in the wrong places cost {network} more of their activation than the CNN"
            verdicts.append((claim, means[1], means[0], *compared(*left)))
    columns = ("claim", "left, %", "left of the CNN's, %", "difference", "verdict")
    tables = [jumble_table(records)]
    if verdicts:
        tables.append(Table("Activation of the object's class at the most jumbled", columns, verdicts))
    return Section(
        f"Parts in the wrong places: {dataset}",
        "Capsules see that parts do not fit together, where a CNN stays sure of an object all of whose parts are there. (The paper "
        "has no number for this.) The networks have seen whole objects only.",
        tables,
        [
            Picture(
                f"{dataset}-jumble",
                "What networks say of the object's class as its parts go to each other's places; lines are means, dots seeds.",
                pose_figures.jumble_curves(dataset, records, examples),
            )
        ],
        sources(records, "seconds"),
    )


def equivariance_table(records: Sequence[Record]) -> Table:
    """How much of the viewpoint a linear map reads from each network's last layer."""
    rows = []
    for layer, first in records[0]["layers"].items():
        values = pose_figures.r_squared_values(records, layer).values()
        rows.append((layer, str(first["features"]), *map(percent, values)))
    names = next(iter(records[0]["layers"].values()))["r_squared"]
    return Table("R^2 in %, on toys that neither network nor map has met", ("layer", "numbers", *names), rows)


def equivariance(dataset: str, records: Sequence[Record], sweeps: Any) -> Section:
    """What a pose knows of the viewpoint; `sweeps` are the arrays beside one of the records, or None."""
    layers, pose = records[0]["layers"], "capsules: pose"
    verdicts = []
    if pose in layers:

        def mean(layer: str) -> dict[int, float]:
            return by_seed(records, lambda record: statistics.mean(record["layers"][layer]["r_squared"].values()))

        verdicts = [
            (f"the class capsule's pose knows more of how an object is seen than {layer}", *compared(mean(pose), mean(layer)))
            for layer in layers
            if layer != pose
        ]
    tables = [equivariance_table(records)]
    if verdicts:
        tables.append(Table("By how much, mean over all six", ("claim", "difference", "verdict"), verdicts))
    pictures = [
        Picture(
            f"{dataset}-equivariance",
            "How much of the viewpoint a linear map reads from each network's last layer; bars are means, lines 95% intervals.",
            pose_figures.equivariance_bars(dataset, records),
        )
    ]
    if sweeps is not None and pose in sweeps:
        caption = "The 16 entries of the class capsule's pose while one toy, not trained on, is seen in other ways."
        pictures.append(Picture(f"{dataset}-poses", caption, pose_figures.pose_sweeps(sweeps, pose)))
    return Section(
        f"What a pose knows: {dataset}",
        "A capsule's pose moves with the object, so that a linear map can read from it how the object is seen. (There is no number "
        "for this in the paper.) All of elevation, azimuth, roll, zoom and place differ at once.",
        tables,
        pictures,
        sources(records, "seconds"),
    )
