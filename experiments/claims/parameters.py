"""The claim about the number of parameters: its section of the report, and its picture."""

import statistics
from collections.abc import Collection, Mapping, Sequence

from matplotlib.figure import Figure

from experiments.claims.intervals import percent
from experiments.claims.sections import Picture, Section, by_seed, compared, sources
from experiments.claims.style import COLORS, NAMES
from experiments.plots.style import plain
from experiments.runtime.records import Record
from experiments.runtime.tables import Table

SAME_SIZE = {
    "capsules": "cnn-68k",
    "capsules-32-8-8-8": "cnn-25k",
    "capsules-32-32-32-32": "cnn-310k",
}


def section(dataset: str, runs: Sequence[Record]) -> Section:
    """Accuracy against size.

    Args:
        dataset: its name.
        runs: result.json of each, and `network`, its name.
    """
    named = {
        name: [run for run in runs if run["network"] == name]
        for name in sorted({run["network"] for run in runs})
    }
    ordered = sorted(named, key=lambda name: named[name][0]["num_parameters"])
    rows = [
        (
            name,
            f"{named[name][0]['num_parameters']:,}",
            percent([run["test_error"] for run in named[name]]),
            str(len(named[name])),
            str(named[name][0]["steps"]),
            f"{statistics.median(run['train_seconds'] for run in named[name]):.0f} s",
        )
        for name in ordered
    ]
    tables = [
        Table(
            "Networks, the smallest first",
            ("network", "parameters", "test error %", "seeds", "steps", "time of one"),
            rows,
        )
    ]
    if pairs := rivals(named):
        errors = {name: by_seed(named[name], lambda run: run["test_error"]) for name in named}
        verdicts = [
            (f"{name} is more accurate than {other}", *compared(errors[other], errors[name]))
            for name, other in pairs
        ]
        tables.append(
            Table("By how much, in points of error", ("claim", "difference", "verdict"), verdicts)
        )
    return Section(
        f"Parameters and accuracy: {dataset}",
        "Capsules reach the accuracy of a CNN with far fewer parameters. Paper, smallNORB: a CNN "
        "of 4.2M parameters has an error of 5.2%, capsules of 310K 1.8%, of 68K 2.2%.",
        tables,
        [
            Picture(
                f"{dataset}-parameters",
                "Error against parameters and against training time; each dot is a seed, lines "
                "join the means of a family.",
                sizes(dataset, named),
            )
        ],
        sources(runs, "train_seconds"),
    )


def rivals(names: Collection[str]) -> list[tuple[str, str]]:
    """Which of these networks are compared: capsules with the paper's CNN and with one of their
    size.
    """
    return [
        (name, other)
        for name in SAME_SIZE
        for other in ("cnn", SAME_SIZE[name])
        if name in names and other in names
    ]


def sizes(dataset: str, runs: Mapping[str, Sequence[Record]]) -> Figure:
    """Error against parameters, and against training time.

    Args:
        dataset: its name.
        runs: by network's name, those of each seed.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(f"{plain(dataset)}: test error")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, field, label in zip(
        panels,
        ("num_parameters", "train_seconds"),
        ("parameters", "training time (s)"),
        strict=True,
    ):
        for family, color in COLORS.items():
            means = []
            for of_network in runs.values():
                if of_network[0]["model"] != family:
                    continue
                at, errors = ([run[name] for run in of_network] for name in (field, "test_error"))
                axes.plot(
                    at, [100 * error for error in errors], "o", color=color, alpha=0.4, markersize=4
                )
                means.append((statistics.mean(at), 100 * statistics.mean(errors)))
            if means:
                axes.plot(
                    *zip(*sorted(means), strict=True), marker="D", color=color, label=NAMES[family]
                )
        axes.set(xlabel=label, ylim=(0, None))
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    panels[0].set(ylabel="test error (%)", xscale="log")
    panels[1].set(xlim=(0, None))
    return figure
