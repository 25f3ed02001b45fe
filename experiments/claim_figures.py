"""The pictures of the claims: pure functions from the records of experiments to matplotlib figures."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.run_directory import Record
from experiments.run_figures import NEUTRAL, PREDICTED, TRUE, draw_image, plain

COLORS = {"capsules": "tab:blue", "cnn": "tab:orange", "dynamic": "tab:green"}  # of families
NAMES = {"capsules": "capsules", "cnn": "CNN", "dynamic": "dynamic routing"}
PAIR = ("capsules", "cnn")  # that viewpoints and attacks are about
DEGREES = {"azimuth": (0, 20), "elevation": (30, 5)}  # of the NORB sets' labels: at 0, and of each step
NORB = ("smallnorb", "toynorb", "toynorb96")


def sizes(dataset: str, runs: Mapping[str, Sequence[Record]]) -> Figure:
    """Error against parameters, and against training time.

    Args:
        dataset: its name.
        runs: by network's name, those of each seed.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(f"{plain(dataset)}: test error")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, field, label in zip(panels, ("num_parameters", "train_seconds"), ("parameters", "training time (s)"), strict=True):
        for family, color in COLORS.items():
            means = []
            for of_network in runs.values():
                if of_network[0]["model"] != family:
                    continue
                at, errors = ([run[name] for run in of_network] for name in (field, "test_error"))
                axes.plot(at, [100 * error for error in errors], "o", color=color, alpha=0.4, markersize=4)
                means.append((statistics.mean(at), 100 * statistics.mean(errors)))
            if means:
                axes.plot(*zip(*sorted(means), strict=True), marker="D", color=color, label=NAMES[family])
        axes.set(xlabel=label, ylim=(0, None))
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    panels[0].set(ylabel="test error (%)", xscale="log")
    panels[1].set(xlim=(0, None))
    return figure


def views(dataset: str, factor: str, records: Sequence[Record]) -> Figure:
    """Error against the value of a factor, of matched networks; the values that were trained on are shaded."""
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
        of_seeds = np.array([[100 * record["networks"][name]["errors_by_value"][str(v)] for v in ordered] for record in records])
        axes.plot(at, of_seeds.T, color=color, alpha=0.3, linewidth=1)
        axes.plot(at, of_seeds.mean(0), color=color, marker="o", label=NAMES[name])
    for place, value in enumerate(ordered):
        if value in familiar:
            axes.axvspan(place - 0.5, place + 0.5, color=NEUTRAL, alpha=0.4, linewidth=0)
    axes.set_xticks(at, labels=[str(start + width * value) for value in ordered], fontsize=8)
    unit = " (degrees)" if dataset in NORB or factor == "azimuth" else ""
    axes.set(xlabel=f"{plain(factor)}{unit}; trained on: shaded", ylabel="error on unseen objects (%)", ylim=(0, None))
    axes.set_title(f"{plain(dataset)}: new and familiar views, networks matched on the familiar ones, seeds: {len(records)}")
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
    return figure


def around(values: Sequence[int], familiar: Sequence[int], turn: int) -> list[int]:
    """Values on a circle of this circumference, in such an order that the familiar ones are in the middle."""
    middle = np.angle(np.exp(2j * np.pi * np.array(familiar) / turn).mean()) * turn / (2 * np.pi)
    return sorted(values, key=lambda value: (value - middle + turn / 2) % turn)


def attack_curves(dataset: str, records: Sequence[Record], chance: float) -> Figure:
    """Accuracy against epsilon: untargeted white-box attacks, an objective a row, and images made for another network."""
    objectives = list(dict.fromkeys(row["objective"] for row in records[0]["white_box"]))
    attacks = list(dict.fromkeys(row["attack"] for row in records[0]["white_box"]))
    figure = Figure(figsize=(3 * (len(attacks) + 1), 2.8 * len(objectives) + 0.5), layout="constrained")
    figure.suptitle(f"{plain(dataset)}: accuracy against the largest change of a pixel (of 1), seeds: {len(records)}")
    panels = figure.subplots(len(objectives), len(attacks) + 1, sharey=True, squeeze=False)
    epsilons = records[0]["epsilons"]
    for row, objective in zip(panels, objectives, strict=True):
        for axes, attack in zip(row, attacks, strict=False):
            for network in PAIR:
                color = COLORS[network]
                chosen = {"network": network, "objective": objective, "attack": attack, "targeted": False}
                draw_accuracy(axes, records, "white_box", chosen, color, NAMES[network])
            axes.set_title(f"{attack.upper()} on {objective}", fontsize=9)
        row[0].set_ylabel("accuracy (%)")
    axes = panels[0, -1]
    for source, style in (("cnn", "-"), ("capsules", "--")):
        for victim in PAIR:
            color = COLORS[victim]
            label = f"{NAMES[victim]}, made for {NAMES[source]}"
            draw_accuracy(axes, records, "black_box", {"source": source, "victim": victim}, color, label, style)
    axes.set_title("black box: BIM for another network", fontsize=9)
    for axes in panels[1:, -1]:
        axes.axis("off")
    for axes in (*panels[:, :-1].flat, panels[0, -1]):
        axes.axhline(100 * chance, color="black", linestyle=":", linewidth=1)
        axes.set_xticks(range(len(epsilons)), labels=[f"{epsilon:g}" for epsilon in epsilons], fontsize=7)
        axes.grid(alpha=0.3)
        axes.set(ylim=(0, 101))
        axes.legend(fontsize=6)
    figure.supxlabel("largest change of a pixel", fontsize=9)
    return figure


def draw_accuracy(
    axes: Axes, records: Sequence[Record], part: str, chosen: Mapping[str, Any], color: str, label: str, style: str = "-"
) -> None:
    """The mean over seeds as a line, and a dot for each; of those rows of a part of the records that are as `chosen`."""
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
            rows.append((label, arrays[f"{name}_images"][index], arrays[f"{name}_predictions"][index]))
    number, height, width, channels = arrays["images"].shape
    aspect = width / height * (2 if channels == 2 else 1)
    figure = Figure(figsize=(1.3 * aspect * number + 0.9, 1.5 * len(rows) + 0.4), layout="constrained")
    figure.suptitle("Adversarial images and what the network that they were made for takes them for")
    for line, (label, images, classes) in zip(figure.subplots(len(rows), number, squeeze=False), rows, strict=True):
        for axes, image, true, found in zip(line, images, arrays["labels"], classes, strict=True):
            draw_image(axes, np.round(255 * image).astype(np.uint8))
            color = TRUE if found == true else PREDICTED
            axes.set_title(plain(str(arrays["class_names"][found])), fontsize=8, color=color)
        line[0].text(-0.08, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    return figure
