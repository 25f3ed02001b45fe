"""The adversarial experiment: its record, its pictures, and that nothing is repeated or
overwritten.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_run

from experiments import adversarial
from experiments.adversarial import AdversarialCommand, draw_sample, main
from experiments.claims import experiment, study
from experiments.claims.attack_programs import ATTACKS, OBJECTIVES
from experiments.data import loading
from experiments.data.preprocessing import evaluation_view
from experiments.learning.configs import ModelConfig
from experiments.learning.network import make_model
from experiments.learning.step import init_state

TINY = {
    "capsules": lambda config: dataclasses.replace(config, model=tiny_run.MODEL),
    "cnn": tiny_run.cnn(4),
}
EPSILONS = (0.1, 0.5)


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda name, data_dir: tiny_run.dataset())
    for name, recipe in TINY.items():
        monkeypatch.setitem(study.NETWORKS, name, recipe)


@pytest.fixture(scope="module")
def initial_params():
    """Of the tiny CNN, as a function of a key."""
    config = study.Study(dataset="mnist").network("cnn", 0)
    config = dataclasses.replace(
        config, model=ModelConfig(family="cnn", cnn_channels=(2, 3), cnn_hidden_units=4)
    )
    view = evaluation_view(config.images, tiny_run.dataset().test_images[:1])
    return jax.jit(lambda key: init_state(config, make_model(config.model, 3), view, key).params)


@pytest.fixture
def untrained_cnns(monkeypatch, initial_params):
    """Both networks are CNNs as they are before the first step, of which nothing needs a folder;
    only BIM attacks them.
    """

    def load_network(asked, name, seed):
        config = asked.network("cnn", seed)
        params = initial_params(jax.random.key(seed + len(name)))
        return study.TrainedNetwork(
            config, make_model(config.model, 3), params, 0, {"num_parameters": 1, "test_error": 0.5}
        )

    monkeypatch.setattr(experiment, "trained", lambda *_: {})
    monkeypatch.setattr(adversarial, "load_network", load_network)
    monkeypatch.setattr(adversarial, "ATTACKS", {"bim": ATTACKS["bim"]})


def command(folder, *more):
    words = [
        "--dataset",
        "mnist",
        "--runs",
        str(folder),
        "--steps",
        "2",
        "--flags=--batch-size 8 --max-shift 1",
    ]
    return [*words, "--num-images", "7", "--epsilons", *map(str, EPSILONS), *more]


def check_outputs(folder, seeds, printed):
    for seed, next_seed in zip(seeds, (*seeds[1:], seeds[0]), strict=True):
        file = folder / "mnist" / "adversarial" / f"seed-{seed}.json"
        record = json.loads(file.read_text())
        check_record(record, seed, next_seed)
        check_pictures(np.load(file.with_suffix(".npz")), record, seed)
    for name in TINY:
        assert all(f"| {name} | {attack} |" in printed for attack in adversarial.ATTACKS)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(3,), (3, 5)])
def test_attacks_are_recorded_and_neither_repeated_nor_overwritten(
    seeds, untrained_cnns, tmp_path, monkeypatch, capsys
):
    words = command(tmp_path, "--seeds", *map(str, seeds))
    assert main(words) == 0
    printed = capsys.readouterr().out
    check_outputs(tmp_path, seeds, printed)

    monkeypatch.setattr(experiment, "trained", None)
    monkeypatch.setattr(adversarial, "attack_seed", None)
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(printed)
    assert main([*words, "--epsilons", "0.1"]) == 2
    error = capsys.readouterr().err
    assert (
        "was measured with other settings (epsilons: [0.0, 0.1, 0.5] there, [0.0, 0.1] here)"
        in error
    )


@pytest.mark.slow
def test_networks_are_trained_and_attacked_in_all_ways(tmp_path, capsys):
    assert main(command(tmp_path, "--seeds", "3", "5", "4")) == 0
    check_outputs(tmp_path, (3, 5, 4), capsys.readouterr().out)


def check_record(record, seed, next_seed):
    epsilons = [0.0, *EPSILONS]
    given = {
        "experiment": "adversarial",
        "dataset": "mnist",
        "seed": seed,
        "num_images": 7,
        "epsilons": epsilons,
    }
    assert {name: record[name] for name in given} == given
    assert record["seconds"] > 0 and record["command"].startswith(
        "python -m experiments.adversarial --dataset mnist"
    )
    for name, network in record["networks"].items():
        assert network["num_parameters"] > 0 and 0 <= network["test_error"] <= 1
        assert list(network["gradients"]) == list(OBJECTIVES)
        for found in network["gradients"].values():
            assert 0 <= found["blind_share"] <= found["zero_share"] + 1e-6 <= 1 + 1e-6
        assert network["gradients"]["logits"]["mean_size"] > 0
        clean = [
            row["accuracy"]
            for row in record["white_box"]
            if row["network"] == name and row["epsilon"] == 0
        ]
        assert set(clean) == {network["clean_accuracy"]}

    fields = ("network", "objective", "attack", "targeted", "epsilon")
    rows = {tuple(row[field] for field in fields): row for row in record["white_box"]}
    modes = [
        (attack, targeted)
        for attack, kind in adversarial.ATTACKS.items()
        for targeted in kind.targeted
    ]
    assert len(rows) == len(record["white_box"])
    assert set(rows) == {
        (network, objective, *mode, epsilon)
        for network in TINY
        for objective in OBJECTIVES
        for mode in modes
        for epsilon in epsilons
    }
    for row in rows.values():
        assert (row["success"] is not None) == row["targeted"]
        assert 0 <= row["accuracy"] + (row["success"] or 0) <= 1

    tried = {
        (row["source"], row["victim"], row["victim_seed"], row["epsilon"])
        for row in record["black_box"]
    }
    assert tried == {
        (source, victim, next_seed, epsilon)
        for source in TINY
        for victim in TINY
        for epsilon in epsilons
        if (source, seed) != (victim, next_seed)
    }
    assert len(tried) == len(record["black_box"])


def check_pictures(pictures, record, seed):
    images, labels = draw_sample(tiny_run.dataset(), 7, seed).true[:2]
    assert list(pictures["labels"]) == sorted({*labels})
    for image, label in zip(pictures["images"], pictures["labels"], strict=True):
        np.testing.assert_array_equal(image, images[list(labels).index(label)])
    assert list(pictures["class_names"]) == ["top", "middle", "bottom"]
    np.testing.assert_array_equal(pictures["epsilons"], record["epsilons"])
    for name in TINY:
        changed = pictures[f"{name}_images"]
        assert changed.shape == (3, *pictures["images"].shape) and changed.dtype == np.float32
        assert pictures[f"{name}_predictions"].shape == changed.shape[:2]
        for epsilon, seen in zip(record["epsilons"], changed, strict=True):
            change = np.abs(seen - pictures["images"]).max()
            assert change <= 1.0001 * epsilon and (change > 0) == (epsilon > 0)


def test_a_sample_has_no_image_twice_and_wants_other_classes():
    dataset = tiny_run.dataset()
    true, wanted = draw_sample(dataset, 30, seed=1)
    assert len(np.unique(true.images, axis=0)) == 30
    assert true.images.dtype == np.float32 and 0 <= true.images.min() < true.images.max() <= 1
    for image, label in zip(true.images, true.labels, strict=True):
        (found,) = np.flatnonzero((dataset.test_images == np.round(image * 255)).all((1, 2, 3)))
        assert dataset.test_labels[found] == label
    assert set((wanted.labels - true.labels) % 3) == {1, 2}
    assert (draw_sample(dataset, 30, seed=2).true.labels != true.labels).any()


def test_wrong_commands_are_refused(tmp_path, capsys):
    for epsilons in ((), (0.0, 0.1), (0.2, 0.1), (0.1, 0.1), (-0.1,)):
        with pytest.raises(
            ValueError,
            match="epsilons must be one or more positive numbers, in increasing order; got",
        ):
            AdversarialCommand(epsilons=epsilons)
    with pytest.raises(ValueError, match="num_images must be positive; got 0"):
        AdversarialCommand(num_images=0)


def test_quick_is_one_seed_and_few_images():
    command = AdversarialCommand(study.Study(quick=True)).asked()
    assert (command.num_images, command.study.seeds, command.study.folder.parts[-2:]) == (
        16,
        (0,),
        ("quick", "toynorb"),
    )
    assert [AdversarialCommand().next_seed(seed) for seed in (0, 1, 2)] == [1, 2, 0]
