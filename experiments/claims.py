"""The paper's claims as sections of a report: pure functions from the records of experiments to tables, verdicts and pictures.

A verdict compares capsules with the CNN seed by seed; see intervals.py. The paper's numbers are of smallNORB, which is other data.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from experiments import claim_figures
from experiments.intervals import percent, verdict
from experiments.run_directory import Record

NETWORKS = ("capsules", "cnn")  # of viewpoints and attacks
MASKED = 0.05  # of images without any gradient: more, and an attack says nothing
SAME_SIZE = {"capsules": "cnn-25k", "capsules-64-8-16-16": "cnn-68k", "capsules-32-32-32-32": "cnn-310k"}
PAPERS_VIEWS = {  # errors in per cent on smallNORB: the paper's table 2
    "azimuth": "paper: 20.0% for the CNN and 13.5% for capsules from new views, both 3.7% from familiar ones",
    "elevation": "paper: 17.8% for the CNN and 12.3% for capsules from new views, both 4.3% from familiar ones",
    "affine": "Sabour et al. 2017, of dynamic routing: 34% for a CNN and 21% for capsules, both 0.8% on shifted digits",
}


class Table(NamedTuple):
    """Cells of text.

    Attributes:
        caption: what it shows.
        header: of the columns.
        rows: each as long as the header.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A figure.

    Attributes:
        name: of its file, without suffix.
        caption: what to see in it.
        figure: to be saved.
    """

    name: str
    caption: str
    figure: Figure


class Section(NamedTuple):
    """What was found about a claim.

    Attributes:
        heading: of the section.
        claim: the paper's, in a sentence or two, with its numbers.
        tables: in order.
        pictures: in order.
        sources: each command that was used, and the time behind its numbers.
    """

    heading: str
    claim: str
    tables: Sequence[Table]
    pictures: Sequence[Picture]
    sources: Sequence[str]


def by_seed(records: Iterable[Record], value: Callable[[Record], float]) -> dict[int, float]:
    """A number of each record, by its seed."""
    return {record["seed"]: value(record) for record in records}


def compared(better: dict[int, float], worse: dict[int, float]) -> tuple[str, str]:
    """By how much the first numbers exceed the second, and whether they do, over the seeds that both have."""
    differences = [better[seed] - worse[seed] for seed in better if seed in worse]
    return (percent(differences), verdict(differences)) if differences else ("", "undecided")


def sources(records: Sequence[Record], seconds: str) -> list[str]:
    """The commands behind records, and how long they took, by the name of that field."""
    totals: dict[str, float] = {}
    for record in records:
        totals[record["command"]] = totals.get(record["command"], 0) + record[seconds]
    return [f"`{command}`: {total / 60:.0f} minutes" for command, total in totals.items()]


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


def attacks(dataset: str, records: Sequence[Record], examples: Any) -> Section:
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
            "Accuracy against the largest change of a pixel; lines are means, dots seeds, dotted is chance.",
            claim_figures.attack_curves(dataset, records, 1 / num_classes(examples)),
        )
    ]
    if examples is not None:
        caption = "Images made by BIM on the logits of each network, with the class that it sees (red: wrong)."
        pictures.append(Picture(f"{dataset}-examples", caption, claim_figures.adversarial_examples(examples, NETWORKS)))
    return Section(
        f"Adversarial attacks: {dataset}",
        "Capsules are far less vulnerable to white-box attacks: against FGSM the paper's CNN falls below chance (20%) at a change "
        "of 0.2 where capsules never do; images made for a CNN fool capsules no less than another CNN.",
        tables,
        pictures,
        sources(records, "seconds"),
    )


def num_classes(examples: Any) -> int:
    """Of the pictures' data set; 10 where there are none."""
    return 10 if examples is None else len(examples["class_names"])


def white_box(records: Sequence[Record], epsilons: Sequence[float], targeted: bool) -> Table:
    """Accuracy under each attack, or the success of those that want a certain class; a verdict for each epsilon.

    There is none on an objective of which some network has no gradient for many images: that only looks like robustness.
    """
    field = "success" if targeted else "accuracy"

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
    kinds = dict.fromkeys((row["objective"], row["attack"]) for row in records[0]["white_box"] if row["targeted"] == targeted)
    for kind in kinds:
        for network in NETWORKS:
            rows.append((*kind, network, *(percent(list(found(kind, network, epsilon).values())) for epsilon in epsilons)))
        verdicts = []
        for epsilon in epsilons:
            capsules, cnn = (found(kind, network, epsilon) for network in NETWORKS)
            verdicts.append(compared(cnn, capsules)[1] if targeted else compared(capsules, cnn)[1])
        blind = [record["networks"][network]["gradients"][kind[0]]["blind_share"] for record in records for network in NETWORKS]
        rows.append((*kind, "claim", *(["gradients masked"] * len(epsilons) if max(blind) > MASKED else verdicts)))
    what = "Targeted: how many are taken for the class wanted, %" if targeted else "Untargeted: accuracy, %"
    return Table(what, ("objective", "attack", "network", *map("{:g}".format, epsilons)), rows)


def black_box(records: Sequence[Record], epsilons: Sequence[float]) -> Table:
    """Accuracy on images that were made for another network."""
    rows = []
    for source in NETWORKS:
        for victim in NETWORKS:
            chosen = [
                row for record in records for row in record["black_box"] if (row["source"], row["victim"]) == (source, victim)
            ]
            if chosen:
                accuracies = [[row["accuracy"] for row in chosen if row["epsilon"] == epsilon] for epsilon in epsilons]
                rows.append((source, f"another seed's {victim}", *map(percent, accuracies)))
    return Table("Black box (BIM on logits): accuracy, %", ("made for", "tried on", *map("{:g}".format, epsilons)), rows)


def gradients(records: Sequence[Record]) -> Table:
    """Whether there are gradients to follow."""
    rows = []
    for network in NETWORKS:
        for objective in records[0]["networks"][network]["gradients"]:
            found = [record["networks"][network]["gradients"][objective] for record in records]
            shares = (percent([statistic[name] for statistic in found]) for name in ("zero_share", "blind_share"))
            rows.append((network, objective, *shares, f"{statistics.mean(statistic['mean_size'] for statistic in found):.2g}"))
    header = ("network", "objective", "exactly zero %", "images without any gradient %", "mean size")
    return Table("Gradients of the objective by pixels, before any attack", header, rows)
