"""Images in pieces: what cutting keeps, and the experiment on a tiny problem."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from experiments import jumble, report
from experiments.claims import experiment, study
from experiments.claims import jumble as claim
from experiments.claims.networks import NETWORKS
from experiments.data import line_drawings, loading
from experiments.data.stratified import sample
from experiments.devices.parallel import device_mesh
from experiments.jumble import JumbleCommand, cut_and_jumbled, jumbled_images
from experiments.learning.network import make_model
from experiments.learning.scoring import make_evaluator
from experiments.learning.step import init_state

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 12, 8, 2)).astype(np.uint8)


def squares(image, pieces):
    """The pieces of an image, row by row."""
    height, width = image.shape[0] // pieces, image.shape[1] // pieces
    return [
        image[row * height : (row + 1) * height, column * width : (column + 1) * width].tobytes()
        for row in range(pieces)
        for column in range(pieces)
    ]


@pytest.mark.parametrize("pieces", [2, 4])
def test_every_piece_takes_the_place_of_another(pieces):
    jumbled = np.asarray(cut_and_jumbled(jax.random.key(0), IMAGES, pieces))
    assert jumbled.dtype == np.uint8
    for image, after in zip(IMAGES, jumbled, strict=True):
        whole, moved = squares(image, pieces), squares(after, pieces)
        assert sorted(whole) == sorted(moved)
        assert all(a != b for a, b in zip(whole, moved, strict=True))
    orders = {
        tuple(squares(a, pieces).index(p) for p in squares(b, pieces))
        for a, b in zip(IMAGES, jumbled, strict=True)
    }
    assert len(orders) > 1


def test_one_piece_is_the_image_and_others_do_not_matter():
    np.testing.assert_array_equal(cut_and_jumbled(jax.random.key(0), IMAGES, 1), IMAGES)
    together = cut_and_jumbled(jax.random.key(1), IMAGES, 4)
    np.testing.assert_array_equal(cut_and_jumbled(jax.random.key(1), IMAGES[:2], 4), together[:2])
    assert (np.asarray(cut_and_jumbled(jax.random.key(2), IMAGES, 4)) != np.asarray(together)).any()


def test_drawings_are_redrawn(monkeypatch):
    monkeypatch.setattr(line_drawings, "SPLITS", {"train": 7, "test": 12})
    command = JumbleCommand(study.Study(dataset="drawings"), num_images=7, moved=(0.5, 1.0))
    dataset = loading.load("drawings")
    assert dataset.class_names == tuple(line_drawings.OBJECTS) and len(dataset.train_images) == 7
    taken = sample(dataset.test_labels, 7)
    found = jumbled_images(command, 0, dataset.test_images, taken)
    assert command.amounts == [0.0, 0.5, 1.0] and len(found) == 3
    np.testing.assert_array_equal(found[0], dataset.test_images[taken])
    np.testing.assert_array_equal(found[2], line_drawings.draw_split("test", 1.0)[0][taken])


@pytest.fixture
def tiny_networks(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_: tiny_run.dataset())
    monkeypatch.setitem(NETWORKS, "capsules", tiny_run.cnn(3, batch_size=8))
    monkeypatch.setitem(NETWORKS, "cnn", tiny_run.cnn(4, batch_size=8))
    monkeypatch.setattr(experiment, "trained", lambda *_: {})


def untrained(asked, name, seed):
    """A network of the study before its first step."""
    config = asked.network(name, seed)
    model = make_model(config.model, 3)
    params = jax.jit(
        lambda key: init_state(config, model, jnp.zeros((1, *tiny_run.IMAGE_SHAPE)), key)
    )(jax.random.key(seed)).params
    return study.TrainedNetwork(config, model, params, 0, {})


@pytest.mark.slow
def test_networks_are_asked_at_each_amount(tiny_networks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jumble, "load_network", untrained)
    words = ["--dataset", "mnist", "--runs", str(tmp_path), "--seeds", "1"]
    words += ["--networks", "capsules", "cnn", "--pieces", "13", "--num-images", "20"]
    assert jumble.main(words) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "mnist" / "jumble" / "seed-1.json").read_text())
    assert [(row["network"], row["amount"]) for row in record["rows"]] == [
        (n, a) for n in ("capsules", "cnn") for a in (1, 13)
    ]
    taken = sample(tiny_run.dataset().test_labels, 20)
    jumbled = np.asarray(
        cut_and_jumbled(jax.random.key(1), tiny_run.dataset().test_images[taken], 13)
    )
    network = untrained(study.Study(dataset="mnist"), "cnn", 1)
    labels = tiny_run.dataset().test_labels[taken]
    scores = make_evaluator(network.config, network.model, device_mesh(jax.devices()))(
        network.params, jumbled, labels, network.step
    )
    row = record["rows"][3]
    assert row["accuracy"] == scores.accuracy
    assert row["highest_activation"] == pytest.approx(scores.activations.max(-1).mean())
    assert row["true_activation"] == pytest.approx(scores.activations[range(20), labels].mean())
    shown = np.load(tmp_path / "mnist" / "jumble" / "seed-1.npz")
    np.testing.assert_array_equal(shown["images"][1][0], jumbled[np.flatnonzero(labels == 0)[0]])
    assert shown["cnn_activations"].shape == (2, 3)
    (section,) = [
        s for s in report.gather(tmp_path) if s.heading.startswith("Parts in the wrong places")
    ]
    table = section.tables[0].markdown()
    assert printed.endswith(f"{table}\n")

    monkeypatch.setattr(
        jumble, "load_network", lambda *_: pytest.fail("a finished seed was repeated")
    )
    assert jumble.main(words) == 0
    assert capsys.readouterr().out.endswith(f"{table}\n")


def records():
    def row(network, amount, sure):
        return {
            "network": network,
            "amount": amount,
            "accuracy": sure / 2,
            "true_activation": sure,
            "highest_activation": sure,
        }

    sure = {("capsules", 1): 0.8, ("capsules", 4): 0.2, ("cnn", 1): 1.0, ("cnn", 4): 0.9}
    return [
        {
            "seed": seed,
            "amounts": [1, 4],
            "networks": ["capsules", "cnn"],
            "seconds": 60.0,
            "command": "a command",
        }
        | {
            "rows": [
                row(*place, value + 0.01 * seed * (place[1] == 4)) for place, value in sure.items()
            ]
        }
        for seed in range(3)
    ]


def test_what_is_left_is_compared():
    section = claim.section("data", records(), None)
    values, verdicts = section.tables
    assert values.rows[0] == (
        "capsules",
        "activation of the object's class",
        "80.0 ± 0.0",
        "21.0 ± 2.5",
    )
    assert verdicts.rows == [
        (
            "parts in the wrong places cost capsules more of their activation than the CNN",
            *("26.2 ± 3.1", "91.0 ± 2.5", "64.8 ± 0.6", "holds"),
        )
    ]
    activation, _ = section.pictures[0].figure.subfigs[1].axes
    lines = {
        line.get_label(): line.get_ydata()
        for line in activation.lines
        if line.get_label() in ("capsules", "CNN")
    }
    np.testing.assert_allclose(lines["capsules"], [0.8, 0.21])
    np.testing.assert_allclose(lines["CNN"], [1.0, 0.91])


def test_examples_are_beside_what_is_said_of_them():
    examples = {
        "images": np.arange(2 * 3 * 16, dtype=np.uint8).reshape(2, 3, 4, 4, 1),
        "class_names": np.array(["a", "b", "c"]),
    }
    examples |= {
        f"{name}_activations": np.arange(6.0).reshape(2, 3) / 10 for name in ("capsules", "cnn")
    }
    figure = claim.jumble_curves("data", records(), examples)
    axes = figure.subfigs[0].axes
    assert len(axes) == 6 and axes[1].get_title() == "capsules 0.30\nCNN 0.30"
    np.testing.assert_array_equal(
        np.asarray(axes[1].images[0].get_array()), examples["images"][1, 0, :, :, 0]
    )
    figure.savefig("/dev/null", format="png", dpi=30)


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (
            "--pieces 2 2",
            2,
            "pieces must be one or more numbers of at least 2, in increasing order; got [2, 2]",
        ),
        ("--moved 0.5 1.5", 2, "moved must be one or more numbers above 0 and up to 1"),
        ("--networks nosuch", 2, "cnn-310k, each once; got nosuch"),
        ("--moved 0.5", 2, "moved is not how mnist is jumbled; got [0.5]"),
        ("--pieces 2", 2, "pieces must divide the images' height and width, 13x13; got 2"),
        ("--flags=--crop=5", 2, "sees a crop of each image"),
        ("--num-images 38", 2, "num_images must be at most the 37 test images; got 38"),
    ],
)
def test_what_cannot_be_jumbled_is_refused(
    flags, code, message, tiny_networks, tmp_path, capsys, monkeypatch
):
    words = [
        "--networks",
        "cnn",
        "--pieces",
        "13",
        "--num-images",
        "20",
        "--runs",
        str(tmp_path),
        *flags.split(),
    ]
    try:
        assert jumble.main(words) == code
    except SystemExit as exit:
        assert exit.code == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_drawings_that_were_held_out_are_not_those_that_are_jumbled(
    tiny_networks, tmp_path, capsys
):
    words = [
        "--dataset",
        "drawings",
        "--networks",
        "cnn",
        "--runs",
        str(tmp_path),
        "--flags=--holdout 10",
    ]
    assert jumble.main(words) == 2
    assert "--flags must not hold others out" in capsys.readouterr().err
