"""What attacks have found, as a section of a report; see claims.py."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments import claim_figures
from experiments.intervals import percent
from experiments.run_directory import Record
from experiments.sections import Picture, Section, Table, compared, sources

NETWORKS = ("capsules", "cnn")
MASKED = 0.05  # of images without any gradient: more, and an attack says nothing


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
