"""The claim about viewpoints: its section of the report, and its picture.

The experiment itself is the command, `experiments/viewpoints.py`.
"""

import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.intervals import percent
from experiments.claims.sections import Picture, Section, by_seed, compared, sources
from experiments.claims.style import COLORS, NAMES, PAIR
from experiments.plots.style import NEUTRAL, plain
from experiments.runtime.records import Record
from experiments.runtime.tables import Table

# Of the NORB sets' labels: at 0, and of each step.
DEGREES = {"azimuth": (0, 20), "elevation": (30, 5)}
NORB = ("smallnorb", "toynorb", "toynorb96")
PAPERS_VIEWS = {  # errors in percent on smallNORB: the paper's table 2
    "azimuth": (
        "paper: 20.0% for the CNN and 13.5% for capsules from new views, both 3.7% from familiar "
        "ones"
    ),
    "elevation": (
        "paper: 17.8% for the CNN and 12.3% for capsules from new views, both 4.3% from familiar "
        "ones"
    ),
    "affine": (
        "Sabour et al. 2017, of dynamic routing: 34% for a CNN and 21% for capsules, both 0.8% "
        "on shifted digits"
    ),
}


def section(dataset: str, factor: str, records: Sequence[Record]) -> Section:
    """Familiar and new views, for a data set and a factor."""

    def errors(part: str, name: str, kind: str) -> dict[int, float]:
        return by_seed(records, lambda record: record[part][name][f"{kind}_error"])

    rows = []
    for part, when in (("networks", "matched"), ("unmatched", "at the end")):
        for name in PAIR:
            found = [errors(part, name, kind) for kind in ("familiar", "new")]
            steps = ", ".join(str(record[part][name]["steps"]) for record in records)
            size = f"{records[0][part][name]['num_parameters']:,}"
            rows.append(
                (when, name, size, *(percent(list(values.values())) for values in found), steps)
            )
    header = (
        "when",
        "network",
        "parameters",
        "familiar error %",
        "new error %",
        "steps of each seed",
    )
    gap = max(
        abs(a["familiar_error"] - b["familiar_error"])
        for a, b in (record["networks"].values() for record in records)
    )
    new = [errors("networks", name, "new") for name in PAIR]
    difference, found = compared(new[1], new[0])
    if not all(record["matched"] for record in records):
        found = "not matched"
    ratio = statistics.mean(new[0].values()) / statistics.mean(new[1].values())
    claim = (
        f"new {factor}: capsules make fewer errors than the CNN that is as good on familiar views"
    )
    verdicts = [(claim, difference, f"{ratio:.2f}", found, f"{100 * gap:.2f}", str(len(records)))]
    columns = (
        "claim",
        "difference",
        "ratio of errors",
        "verdict",
        "largest familiar gap",
        "seeds",
    )
    return Section(
        f"{'affNIST' if dataset == 'affnist' else f'New views ({factor})'}: {dataset}",
        "Capsules generalize better to what they have not been trained on, by about 30% "
        f"({PAPERS_VIEWS.get(factor, 'smallNORB')}). The network that is better at its end was "
        "stopped where it was as good on familiar views as the other at its end.",
        [
            Table("Errors on unseen objects", header, rows),
            Table("By how much, in points of error, networks matched", columns, verdicts),
        ],
        [
            Picture(
                f"{dataset}-{factor}",
                f"Error against {factor}, networks matched on the familiar views, which are "
                "shaded; thin lines are seeds.",
                views(dataset, factor, records),
            )
        ],
        sources(records, "seconds"),
    )


def views(dataset: str, factor: str, records: Sequence[Record]) -> Figure:
    """Error against the value of a factor, of matched networks; the values that were trained on are
    shaded.
    """
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    start, width = DEGREES.get(factor, (0, 1)) if dataset in NORB else (0, 1)
    familiar = records[0]["train_values"]
    values = sorted(map(int, records[0]["networks"]["capsules"]["errors_by_value"]))
    turn = 360 // width if factor == "azimuth" else None
    ordered = sorted(values) if turn is None else around(values, familiar, turn)
    at = list(range(len(ordered)))
    for name in PAIR:
        color = COLORS[name]
        of_seeds = np.array(
            [
                [100 * record["networks"][name]["errors_by_value"][str(v)] for v in ordered]
                for record in records
            ]
        )
        axes.plot(at, of_seeds.T, color=color, alpha=0.3, linewidth=1)
        axes.plot(at, of_seeds.mean(0), color=color, marker="o", label=NAMES[name])
    for place, value in enumerate(ordered):
        if value in familiar:
            axes.axvspan(place - 0.5, place + 0.5, color=NEUTRAL, alpha=0.4, linewidth=0)
    axes.set_xticks(at, labels=[str(start + width * value) for value in ordered], fontsize=8)
    in_degrees = factor == "azimuth" or (dataset in NORB and factor in DEGREES)
    unit = " (degrees)" if in_degrees else ""
    axes.set(
        xlabel=f"{plain(factor)}{unit}; trained on: shaded",
        ylabel="error on unseen objects (%)",
        ylim=(0, None),
    )
    axes.set_title(
        f"{plain(dataset)}: new and familiar views, networks matched on the familiar ones, seeds: "
        f"{len(records)}"
    )
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    return figure


def around(values: Sequence[int], familiar: Sequence[int], turn: int) -> list[int]:
    """Values on a circle of this circumference, in such an order that the familiar ones are in the
    middle.
    """
    middle = np.angle(np.exp(2j * np.pi * np.array(familiar) / turn).mean()) * turn / (2 * np.pi)
    return sorted(values, key=lambda value: (value - middle + turn / 2) % turn)
