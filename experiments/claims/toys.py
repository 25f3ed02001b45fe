"""The study of toys that are new to everybody: its table, its section of the report, and its
picture.

The experiment itself is the command, `experiments/toys.py`.
"""

import statistics
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.claims.intervals import percent
from experiments.claims.parameters import rivals
from experiments.claims.sections import Picture, Section, by_seed, compared, sources
from experiments.plots.style import plain
from experiments.runtime.records import Record
from experiments.runtime.tables import Table

ERRORS = (0, 1, 10, 100)  # in %, marked on the axes


def toys_table(records: Sequence[Record]) -> Table:
    """Each network's errors on the test toys and on the new ones, and on the latter by category;
    means and intervals over the seeds.
    """
    first = next(iter(records[0]["errors"].values()))
    categories = list(first["new"])
    rows = []
    for network in records[0]["errors"]:
        of_new = [record["errors"][network]["new"] for record in records]
        by_category = ([statistics.mean(toys[name]) for toys in of_new] for name in categories)
        both = (list(by_seed(records, mean_error(network, which)).values()) for which in first)
        rows.append((network, *map(percent, both), *map(percent, by_category)))
    numbers = (f"{sum(map(len, toys.values()))} {which}" for which, toys in first.items())
    return Table(
        "Errors in %: of the test toys, of the new toys, and of these by category",
        ("network", *numbers, *categories),
        rows,
    )


def mean_error(network: str, which: str) -> Callable[[Record], float]:
    """The function of a record that gives a network's error on the toys that were `tested`, or on
    the `new` ones.
    """
    return lambda record: statistics.mean(
        error for toys in record["errors"][network][which].values() for error in toys
    )


def by_toy(records: Sequence[Record], network: str, category: str) -> list[float]:
    """A network's error on each new toy of a category, means over the seeds."""
    return np.mean(
        [record["errors"][network]["new"][category] for record in records], axis=0
    ).tolist()


def section(dataset: str, records: Sequence[Record]) -> Section:
    """What networks make of toys that nothing was trained, chosen or tested on."""
    errors = records[0]["errors"]
    categories = next(iter(errors.values()))["new"]
    tables = [toys_table(records)]
    pairs = rivals(errors)
    if pairs:
        of_toys = {
            network: dict(
                enumerate(error for name in categories for error in by_toy(records, network, name))
            )
            for network in errors
        }
        of_seeds = {network: by_seed(records, mean_error(network, "new")) for network in errors}
        for over, found, caption in (
            ("toys", of_toys, "By how much on new toys; intervals over toys, of means over seeds"),
            ("seeds", of_seeds, "The same; intervals over seeds, of means over toys"),
        ):
            rows = [
                (
                    f"{name} is more accurate than {other}, over {over}",
                    *compared(found[other], found[name]),
                )
                for name, other in pairs
            ]
            tables.append(Table(caption, ("claim", "difference", "verdict"), rows))
    return Section(
        f"New toys: {dataset}",
        "Which toys are tested is a matter of chance, as seeds are: whatever network is the better "
        "one on the test toys should be so on others of the same kinds. (The paper has one test "
        "set, of 25 toys.)",
        tables,
        [
            Picture(
                f"{dataset}-toys",
                "Errors on each new toy, means over the seeds; a toy below the line is easier for "
                "the capsules.",
                toy_by_toy(dataset, records, pairs),
            )
        ]
        if pairs
        else [],
        sources(records, "seconds"),
    )


def toy_by_toy(dataset: str, records: Sequence[Record], pairs: Sequence[tuple[str, str]]) -> Figure:
    """Errors of two networks on each new toy, a dot for each, by category; a panel for each pair of
    networks.
    """
    figure = Figure(figsize=(4.2 * len(pairs), 4.4), layout="constrained")
    figure.suptitle(f"{plain(dataset)}: error on each new toy, seeds: {len(records)}")
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (network, other) in zip(panels, pairs, strict=True):
        for category in records[0]["errors"][network]["new"]:
            axes.plot(
                *(100 * np.array(by_toy(records, name, category)) for name in (other, network)),
                "o",
                alpha=0.7,
                markersize=4,
                label=category,
            )
        # Most toys have errors of a few percent, and a few of most of their images.
        for axis in ("x", "y"):
            axes.set(**{f"{axis}scale": "symlog", f"{axis}lim": (-0.1, 110)})
            axes.set(**{f"{axis}ticks": ERRORS, f"{axis}ticklabels": map(str, ERRORS)})
        axes.axline((0, 0), (1, 1), color="black", linewidth=0.8)
        axes.set(xlabel=f"{other} (%)", ylabel=f"{network} (%)", box_aspect=1)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    return figure
