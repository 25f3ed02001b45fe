"""The paper's claims as sections of a report: pure functions from the records of experiments to tables, verdicts and pictures.

A verdict compares capsules with the CNN seed by seed; see intervals.py. The paper's numbers are of smallNORB, which is other data.
"""

import statistics
from collections.abc import Sequence

from experiments import claim_figures
from experiments.intervals import percent
from experiments.run_directory import Record
from experiments.sections import Picture, Section, Table, by_seed, compared, sources

NETWORKS = ("capsules", "cnn")  # that viewpoints are about
SAME_SIZE = {"capsules": "cnn-25k", "capsules-64-8-16-16": "cnn-68k", "capsules-32-32-32-32": "cnn-310k"}
PAPERS_VIEWS = {  # errors in per cent on smallNORB: the paper's table 2
    "azimuth": "paper: 20.0% for the CNN and 13.5% for capsules from new views, both 3.7% from familiar ones",
    "elevation": "paper: 17.8% for the CNN and 12.3% for capsules from new views, both 4.3% from familiar ones",
    "affine": "Sabour et al. 2017, of dynamic routing: 34% for a CNN and 21% for capsules, both 0.8% on shifted digits",
}


def parameters(dataset: str, runs: Sequence[Record]) -> Section:
    """Accuracy against size.

    Args:
        dataset: its name.
        runs: result.json of each, and `network`, its name.
    """
    named = {name: [run for run in runs if run["network"] == name] for name in sorted({run["network"] for run in runs})}
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
        Table("Networks, the smallest first", ("network", "parameters", "test error %", "seeds", "steps", "time of one"), rows)
    ]
    pairs = [(name, other) for name in SAME_SIZE for other in ("cnn", SAME_SIZE[name]) if name in named and other in named]
    if pairs:
        errors = {name: by_seed(named[name], lambda run: run["test_error"]) for name in named}
        verdicts = [(f"{name} is more accurate than {other}", *compared(errors[other], errors[name])) for name, other in pairs]
        tables.append(Table("By how much, in points of error", ("claim", "difference", "verdict"), verdicts))
    return Section(
        f"Parameters and accuracy: {dataset}",
        "Capsules reach the accuracy of a CNN with far fewer parameters. Paper, smallNORB: a CNN of 4.2M parameters has an error "
        "of 5.2%, capsules of 310K 1.8%, of 68K 2.2%.",
        tables,
        [
            Picture(
                f"{dataset}-parameters",
                "Error against parameters and against training time; each dot is a seed, lines join the means of a family.",
                claim_figures.sizes(dataset, named),
            )
        ],
        sources(runs, "train_seconds"),
    )


def viewpoints(dataset: str, factor: str, records: Sequence[Record]) -> Section:
    """Familiar and new views, for a data set and a factor."""

    def errors(part: str, name: str, kind: str) -> dict[int, float]:
        return by_seed(records, lambda record: record[part][name][f"{kind}_error"])

    rows = []
    for part, when in (("networks", "matched"), ("unmatched", "at the end")):
        for name in NETWORKS:
            found = [errors(part, name, kind) for kind in ("familiar", "new")]
            steps = ", ".join(str(record[part][name]["steps"]) for record in records)
            size = f"{records[0][part][name]['num_parameters']:,}"
            rows.append((when, name, size, *(percent(list(values.values())) for values in found), steps))
    header = ("when", "network", "parameters", "familiar error %", "new error %", "steps of each seed")
    gap = max(abs(a["familiar_error"] - b["familiar_error"]) for a, b in (record["networks"].values() for record in records))
    new = [errors("networks", name, "new") for name in NETWORKS]
    difference, found = compared(new[1], new[0])
    if not all(record["matched"] for record in records):
        found = "not matched"
    ratio = statistics.mean(new[0].values()) / statistics.mean(new[1].values())
    claim = f"new {factor}: capsules make fewer errors than the CNN that is as good on familiar views"
    verdicts = [(claim, difference, f"{ratio:.2f}", found, f"{100 * gap:.2f}", str(len(records)))]
    columns = ("claim", "difference, points", "ratio of errors", "verdict", "largest familiar gap", "seeds")
    return Section(
        f"{'affNIST' if dataset == 'affnist' else f'New views ({factor})'}: {dataset}",
        "Capsules generalize better to what they have not been trained on, by about 30% "
        f"({PAPERS_VIEWS.get(factor, 'smallNORB')}). The network that is better at its end was stopped where it was as good on "
        "familiar views as the other at its end.",
        [Table("Errors on unseen objects", header, rows), Table("Difference, networks matched", columns, verdicts)],
        [
            Picture(
                f"{dataset}-{factor}",
                f"Error against {factor}, networks matched on the familiar views, which are shaded; thin lines are seeds.",
                claim_figures.views(dataset, factor, records),
            )
        ],
        sources(records, "seconds"),
    )
