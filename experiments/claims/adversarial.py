"""The claim about adversarial attacks: its section of the report, and its pictures.

The experiment itself is the command, `experiments/adversarial.py`.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims.intervals import percent
from experiments.claims.sections import Picture, Section, compared, sources
from experiments.claims.style import COLORS, NAMES, PAIR
from experiments.plots.images import draw_pixels
from experiments.plots.style import PREDICTED, TRUE, plain
from experiments.runtime.records import Record
from experiments.runtime.tables import Table

MASKED = 0.05  # of images without any gradient: more, and an attack says nothing


def section(dataset: str, records: Sequence[Record], examples: Any) -> Section:
    """Adversarial attacks on a data set.

    Args:
        dataset: its name.
        records: of each seed.
        examples: the arrays beside one of the records, or None.
    """
    epsilons = records[0]["epsilons"]
    tables = [
        white_box(records, epsilons, False),
        white_box(records, epsilons, True),
        black_box(records, epsilons),
        gradients(records),
    ]
    pictures = [
        Picture(
            f"{dataset}-attacks",
            "Accuracy against the largest change of a pixel; lines are means, dots seeds, dotted "
            "is chance.",
            attack_curves(dataset, records),
        )
    ]
    if examples is not None:
        caption = (
            "Images made by BIM on the logits of each network, with the class that it sees (red: "
            "wrong)."
        )
        pictures.append(
            Picture(f"{dataset}-examples", caption, adversarial_examples(examples, PAIR))
        )
    return Section(
        f"Adversarial attacks: {dataset}",
        "Capsules are far less vulnerable to white-box attacks: against FGSM the paper's CNN falls "
        "below chance (20%) at a change of 0.2 where capsules never do; images made for a CNN fool "
        "capsules no less than another CNN.",
        tables,
        pictures,
        sources(records, "seconds"),
    )


def white_box(records: Sequence[Record], epsilons: Sequence[float], targeted: bool) -> Table:
    """Accuracy under each attack, or the success of those that want a certain class; a verdict for
    each epsilon.

    There is none on an objective of which some network has no gradient for many images: that only
    looks like robustness.
    """
    field, measured = ("success", "targeted_gradients") if targeted else ("accuracy", "gradients")

    def found(kind: tuple[str, str], network: str, epsilon: float) -> dict[int, float]:
        place = (network, *kind, targeted, epsilon)
        names = ("network", "objective", "attack", "targeted", "epsilon")
        return {
            record["seed"]: row[field]
            for record in records
            for row in record["white_box"]
            if tuple(row[name] for name in names) == place
        }

    rows = []
    kinds = dict.fromkeys(
        (row["objective"], row["attack"])
        for row in records[0]["white_box"]
        if row["targeted"] == targeted
    )
    for kind in kinds:
        for network in PAIR:
            rows.append(
                (
                    *kind,
                    network,
                    *(
                        percent(list(found(kind, network, epsilon).values()))
                        for epsilon in epsilons
                    ),
                )
            )
        verdicts = []
        for epsilon in epsilons:
            capsules, cnn = (found(kind, network, epsilon) for network in PAIR)
            verdicts.append(compared(cnn, capsules)[1] if targeted else compared(capsules, cnn)[1])
        blind = [
            record["networks"][network][measured][kind[0]]["blind_share"]
            for record in records
            for network in PAIR
        ]
        rows.append(
            (
                *kind,
                "claim",
                *(["gradients masked"] * len(epsilons) if max(blind) > MASKED else verdicts),
            )
        )
    what = (
        "Targeted: how many are taken for the class wanted, %"
        if targeted
        else "Untargeted: accuracy, %"
    )
    return Table(what, ("objective", "attack", "network", *map("{:g}".format, epsilons)), rows)


def black_box(records: Sequence[Record], epsilons: Sequence[float]) -> Table:
    """Accuracy on images that were made for another network."""
    rows = []
    alone = all(record["victim_seed"] == record["seed"] for record in records)
    whose = "the same seed" if alone else "another seed"
    for source in PAIR:
        for victim in PAIR:
            chosen = [
                row
                for record in records
                for row in record["black_box"]
                if (row["source"], row["victim"]) == (source, victim)
            ]
            if chosen:
                accuracies = [
                    [row["accuracy"] for row in chosen if row["epsilon"] == epsilon]
                    for epsilon in epsilons
                ]
                rows.append((source, f"{victim} of {whose}", *map(percent, accuracies)))
    return Table(
        "Black box (BIM on logits): accuracy, %",
        ("made for", "tried on", *map("{:g}".format, epsilons)),
        rows,
    )


def gradients(records: Sequence[Record]) -> Table:
    """Whether there are gradients to follow."""
    rows = []
    kinds = (("gradients", "the true class"), ("targeted_gradients", "the class wanted"))
    for network, (measured, label) in itertools.product(PAIR, kinds):
        for objective in records[0]["networks"][network][measured]:
            found = [record["networks"][network][measured][objective] for record in records]
            shares = (
                percent([statistic[name] for statistic in found])
                for name in ("zero_share", "blind_share")
            )
            rows.append(
                (
                    network,
                    f"{objective}, of {label}",
                    *shares,
                    f"{statistics.mean(statistic['mean_size'] for statistic in found):.2g}",
                )
            )
    header = (
        "network",
        "objective",
        "exactly zero %",
        "images without any gradient %",
        "mean size",
    )
    return Table("Gradients of the objective by pixels, before any attack", header, rows)


def attack_curves(dataset: str, records: Sequence[Record]) -> Figure:
    """Accuracy against epsilon: untargeted white-box attacks, an objective a row, and images made
    for another network.
    """
    objectives = list(dict.fromkeys(row["objective"] for row in records[0]["white_box"]))
    attacks = list(dict.fromkeys(row["attack"] for row in records[0]["white_box"]))
    figure = Figure(
        figsize=(3 * (len(attacks) + 1), 2.8 * len(objectives) + 0.5), layout="constrained"
    )
    figure.suptitle(
        f"{plain(dataset)}: accuracy against the largest change of a pixel (of 1), seeds: "
        f"{len(records)}"
    )
    panels = figure.subplots(len(objectives), len(attacks) + 1, sharey=True, squeeze=False)
    epsilons = records[0]["epsilons"]
    for row, objective in zip(panels, objectives, strict=True):
        for axes, attack in zip(row, attacks, strict=False):
            for network in PAIR:
                color = COLORS[network]
                chosen = {
                    "network": network,
                    "objective": objective,
                    "attack": attack,
                    "targeted": False,
                }
                draw_accuracy(axes, records, "white_box", chosen, color, NAMES[network])
            axes.set_title(f"{attack.upper()} on {objective}", fontsize=9)
        row[0].set_ylabel("accuracy (%)")
    axes = panels[0, -1]
    for source, style in (("cnn", "-"), ("capsules", "--")):
        for victim in PAIR:
            color = COLORS[victim]
            label = f"{NAMES[victim]}, made for {NAMES[source]}"
            draw_accuracy(
                axes,
                records,
                "black_box",
                {"source": source, "victim": victim},
                color,
                label,
                style,
            )
    axes.set_title("black box: BIM for another network", fontsize=9)
    for axes in panels[1:, -1]:
        axes.axis("off")
    for axes in (*panels[:, :-1].flat, panels[0, -1]):
        axes.axhline(100 / records[0]["num_classes"], color="black", linestyle=":", linewidth=1)
        axes.set_xticks(
            range(len(epsilons)), labels=[f"{epsilon:g}" for epsilon in epsilons], fontsize=7
        )
        axes.grid(alpha=0.3)
        axes.set(ylim=(0, 101))
        axes.legend(fontsize=6)
    figure.supxlabel("largest change of a pixel", fontsize=9)
    return figure


def draw_accuracy(
    axes: Axes,
    records: Sequence[Record],
    part: str,
    chosen: Mapping[str, Any],
    color: str,
    label: str,
    style: str = "-",
) -> None:
    """The mean over seeds as a line, and a dot for each; of those rows of a part of the records
    that are as `chosen`.
    """
    found: list[list[float]] = [[] for _ in records[0]["epsilons"]]
    for record in records:
        for row in record[part]:
            if all(row[name] == value for name, value in chosen.items()):
                found[record["epsilons"].index(row["epsilon"])].append(100 * row["accuracy"])
    if all(found):
        axes.plot([statistics.mean(values) for values in found], style, color=color, label=label)
        for place, values in enumerate(found):
            axes.plot([place] * len(values), values, "o", color=color, alpha=0.4, markersize=3)


def adversarial_examples(arrays: Mapping[str, np.ndarray], networks: Sequence[str]) -> Figure:
    """Originals, and below them what was made of them to fool each network, at two sizes of change.

    Args:
        arrays: as experiments.adversarial saves them.
        networks: which.
    """
    epsilons = arrays["epsilons"]
    shown = (len(epsilons) // 2, len(epsilons) - 1)
    rows = [("original", arrays["images"], arrays["labels"])]
    for index in shown:
        for name in networks:
            label = f"{NAMES[name]}\n{epsilons[index]:g}"
            rows.append(
                (label, arrays[f"{name}_images"][index], arrays[f"{name}_predictions"][index])
            )
    number, height, width, channels = arrays["images"].shape
    aspect = width / height * (2 if channels == 2 else 1)
    figure = Figure(
        figsize=(1.3 * aspect * number + 0.9, 1.5 * len(rows) + 0.4), layout="constrained"
    )
    figure.suptitle(
        "Adversarial images and what the network that they were made for takes them for"
    )
    for line, (label, images, classes) in zip(
        figure.subplots(len(rows), number, squeeze=False), rows, strict=True
    ):
        for axes, image, true, found in zip(line, images, arrays["labels"], classes, strict=True):
            draw_pixels(axes, image)
            color = TRUE if found == true else PREDICTED
            axes.set_title(plain(str(arrays["class_names"][found])), fontsize=8, color=color)
        line[0].text(
            -0.08, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8
        )
    return figure
