"""The study of toys that are new to everybody: its table, its section of the report, and its
picture.

The experiment itself is the command, `experiments/toys.py`.
"""

import itertools
import statistics
from collections.abc import Sequence

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
        both = ([mean_error(record, network, which) for record in records] for which in first)
        rows.append((network, *map(percent, both), *map(percent, by_category)))
    numbers = (f"{sum(map(len, toys.values()))} {which}" for which, toys in first.items())
    return Table(
        "Errors in %: of the test toys, of the new toys, and of these by category",
        ("network", *numbers, *categories),
        rows,
    )


def mean_error(record: Record, network: str, which: str) -> float:
    """A network's error on the toys that were `tested`, or on the `new` ones."""
    of_categories = record["errors"][network][which].values()
    return statistics.mean(itertools.chain.from_iterable(of_categories))


def by_toy(records: Sequence[Record], network: str) -> dict[str, list[float]]:
    """A network's error on each new toy, means over the seeds, by category."""
    of_seeds = [record["errors"][network]["new"] for record in records]
    return {
        name: np.mean([toys[name] for toys in of_seeds], axis=0).tolist() for name in of_seeds[0]
    }


def section(dataset: str, records: Sequence[Record]) -> Section:
    """What networks make of toys that nothing was trained, chosen or tested on."""
    tables, pictures = [toys_table(records)], []
    networks = records[0]["errors"]
    if pairs := rivals(networks):
        of_toys = {
            name: dict(enumerate(itertools.chain.from_iterable(by_toy(records, name).values())))
            for name in networks
        }
        of_seeds = {
            name: by_seed(records, lambda record, name=name: mean_error(record, name, "new"))
            for name in networks
        }
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
        pictures.append(
            Picture(
                f"{dataset}-toys",
                "Errors on each new toy, means over the seeds; a toy below the line is easier for "
                "the capsules.",
                toy_by_toy(dataset, records, pairs),
            )
        )
    return Section(
        f"New toys: {dataset}",
        "Which toys are tested is a matter of chance, as seeds are: whatever network is the better "
        "one on the test toys should be so on others of the same kinds. (The paper has one test "
        "set, of 25 toys.)",
        tables,
        pictures,
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
        across, up = (by_toy(records, name) for name in (other, network))
        for category in up:
            axes.plot(
                100 * np.array(across[category]),
                100 * np.array(up[category]),
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
