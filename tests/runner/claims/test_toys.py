"""Toys that are new to everybody: which they are, errors toy by toy, and the experiment on
untrained networks.
"""

import json

import numpy as np
import pytest
import tiny_run

from experiments import report, toys
from experiments.claims import experiment
from experiments.claims import toys as claim
from experiments.claims.networks import NETWORKS
from experiments.data.dataset import Dataset
from experiments.data.toynorb_builders import ToyNorb, ToyNorbTuning
from experiments.toynorb.shapes import CATEGORIES


def test_new_toys_are_of_the_test_toys_kinds_and_none_that_was_used():
    new = toys.new_instances(12)
    used = {
        instance
        for of in (ToyNorb, ToyNorbTuning)
        for split in of.SPLITS.values()
        for instance in split
    }
    assert len(set(new)) == 12 and not used & set(new)
    kinds = [instance % 10 for instance in new]
    assert kinds == [*ToyNorb.SPLITS["test"], *ToyNorb.SPLITS["test"], 0, 1]
    assert toys.new_instances(3) == new[:3]


def test_new_toys_are_seen_from_all_sides_in_all_lightings(monkeypatch):
    seen = []

    def photograph(shape, elevations, azimuths, size):
        seen.append((shape, set(zip(elevations.tolist(), azimuths.tolist(), strict=True))))
        images = np.zeros((len(azimuths), 6, 2, 4, 4), np.uint8)
        images[:, :, 0], images[:, :, 1] = shape[0], shape[1]
        return images

    monkeypatch.setattr(toys, "photograph", photograph)
    monkeypatch.setattr(toys, "toy", lambda category, instance: (category, instance))
    taken = toys.take_new_toys.__wrapped__(2)
    assert {shape for shape, _ in seen} == {(c, i) for c in range(5) for i in (20, 21)}
    assert all(len(views) == 3 * 18 for _, views in seen)
    assert taken.images.shape == (5 * 2 * 3 * 18 * 6, 4, 4, 2)
    np.testing.assert_array_equal(taken.images[:, 0, 0], np.stack(taken[1:], axis=1))


def some_toys(num_toys, images_each):
    labels = np.repeat(np.arange(len(CATEGORIES)), num_toys * images_each)
    instances = np.tile(np.repeat(np.arange(num_toys) + 20, images_each), len(CATEGORIES))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 48, 48, 2)).astype(np.uint8)
    return toys.Toys(images, labels.astype(np.int32), instances.astype(np.int32))


def test_errors_are_those_of_each_toy():
    given = some_toys(2, 4)
    wrong = np.zeros(len(given.labels), bool)
    wrong[[4, 5, 6, 8, 39]] = True
    found = toys.errors_by_toy(wrong, given)
    assert list(found) == list(CATEGORIES)
    assert list(found.values()) == [[0, 0.75], [0.25, 0], [0, 0], [0, 0], [0, 0.25]]


def test_networks_are_scored_once(tmp_path, monkeypatch, capsys):
    for name, size in (("cnn", 4), ("cnn-25k", 3)):
        monkeypatch.setitem(NETWORKS, name, tiny_run.cnn(size))
    tested = some_toys(3, 1)
    dataset = Dataset(
        "toynorb",
        CATEGORIES,
        tested.images,
        tested.labels,
        tested.images,
        tested.labels,
        test_factors={"instance": tested.instances},
    )

    monkeypatch.setattr(experiment, "check_runs", lambda *_: None)
    monkeypatch.setattr(experiment, "trained", lambda *_: {})
    monkeypatch.setattr(toys, "load_data", lambda *_: dataset)
    monkeypatch.setattr(toys, "load_network", tiny_run.untrained_toy_network)
    monkeypatch.setattr(toys, "take_new_toys", lambda number: some_toys(number, 2))
    words = ["--networks", "cnn", "cnn-25k", "--seeds", "3", "--num-toys", "2"]
    words += ["--runs", str(tmp_path)]
    assert toys.main(words) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "toynorb" / "toys" / "seed-3.json").read_text())
    shapes = {
        network: {which: np.shape([*of.values()]) for which, of in both.items()}
        for network, both in record["errors"].items()
    }
    assert shapes == {name: {"tested": (5, 3), "new": (5, 2)} for name in ("cnn", "cnn-25k")}
    of_test_toys = [*record["errors"]["cnn"]["tested"].values()]
    # Of a toy there is one image, which is wrong or right; a CNN says the same of nearly all.
    assert np.isin(of_test_toys, [0, 1]).all() and 0 < np.mean(of_test_toys) < 1
    (section,) = report.gather(tmp_path)
    table = section.tables[0].markdown()
    assert printed.endswith(f"{table}\n") and "| 15 tested | 10 new |" in table

    monkeypatch.setattr(toys, "load_network", lambda *_: pytest.fail("scored again"))
    assert toys.main(words) == 0
    assert capsys.readouterr().out.endswith(f"{table}\n")


def records():
    """Of two new toys of each category both networks do one as well, and capsules do the other
    better.
    """

    def of(first, second):
        return {name: [first, second] for name in CATEGORIES}

    return [
        {
            "seed": seed,
            "seconds": 60.0,
            "command": "a command",
            "errors": {
                "capsules": {"tested": of(0.1, 0.1), "new": of(0.2, 0.02 * seed)},
                "cnn": {"tested": of(0.0, 0.1), "new": of(0.2, 0.5)},
            },
        }
        for seed in range(3)
    ]


def test_networks_are_compared_over_toys_and_over_seeds():
    section = claim.section("toynorb", records())
    errors, over_toys, over_seeds = section.tables
    assert errors.header == ("network", "10 tested", "10 new", *CATEGORIES)
    assert errors.rows[0][:3] == ("capsules", "10.0 ± 0.0", "11.0 ± 2.5")
    assert errors.rows[1][:4] == ("cnn", "5.0 ± 0.0", "35.0 ± 0.0", "35.0 ± 0.0")
    claimed = "capsules is more accurate than cnn"
    # By toy 0 five times and 48 points five times; by seed 25, 24 and 23.
    assert over_toys.rows == [(f"{claimed}, over toys", "24.0 ± 18.1", "holds")]
    assert over_seeds.rows == [(f"{claimed}, over seeds", "24.0 ± 2.5", "holds")]
    (picture,) = section.pictures
    dots = picture.figure.axes[0].lines[:5]
    np.testing.assert_allclose(dots[0].get_xydata(), [[20, 20], [50, 2]])
    picture.figure.savefig("/dev/null", format="png", dpi=30)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--dataset mnist", "dataset must be toynorb, whose toys can be rendered anew; got mnist"),
        ("--networks cnn cnn", "each once; got cnn, cnn"),
        ("--num-toys 0", "num_toys must be positive; got 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        toys.main(flags.split())
    assert message in capsys.readouterr().err


def test_networks_that_have_not_seen_all_toys_are_refused(tmp_path, capsys):
    assert toys.main(["--runs", str(tmp_path), "--flags=--holdout-instances 8"]) == 2
    message = "must be trained on all views of all toys of the training split"
    assert message in capsys.readouterr().err
