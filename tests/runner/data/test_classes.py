"""Classes that cannot be trained are refused; those that cannot be tested are named, at the start
and in the result.
"""

import types

import numpy as np
import pytest
import tiny_run

from experiments import evaluate
from experiments.data import loading
from experiments.data.classes import check_classes, class_errors, named, untested
from experiments.data.dataset import Dataset, with_values
from experiments.export import first_of_each_class
from experiments.learning import scoring
from experiments.plots import pictures
from experiments.runs import loop, summary
from experiments.runtime.errors import UsageError

LABELS = {
    "train": np.array([0, 1, 2, 2, 1, 0, 2, 1], np.int32),
    "test": np.array([2, 0, 2], np.int32),
}


def dataset(train=LABELS["train"], test=LABELS["test"], names=("top", "middle", "bottom")):
    """Black images with these labels."""
    images = np.zeros((100, *tiny_run.IMAGE_SHAPE), np.uint8)
    return Dataset(
        "some",
        names,
        images[: len(train)],
        np.asarray(train),
        images[: len(test)],
        np.asarray(test),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [0, 2, 2, 0]}, "some has no image of middle to train on"),
        ({"train": [1] * 8}, "some has no image of top, bottom to train on"),
        (
            {"train": [0] * 8, "test": [0], "names": ("top",)},
            "some has one class, top: there is nothing to tell apart",
        ),
        ({"names": ("top", "middle", "top")}, "must have different names; 2 are called top"),
        (
            {"names": ("top", "middle")},
            r"labels of some must lie in \[0, 1\], for as many classes; got 2",
        ),
        ({"test": [0, -1]}, r"labels of some must lie in \[0, 2\], for as many classes; got -1"),
    ],
)
def test_classes_that_cannot_be_trained_are_refused_before_anything_is_written(
    changes, message, tmp_path
):
    check_classes(dataset())
    with pytest.raises(UsageError, match=message):
        loop.train(tiny_run.CONFIG, dataset(**changes), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_class_that_training_images_are_lost_of_by_a_choice_of_them_is_refused(tmp_path):
    """As by `--factor`, `--holdout-instances` or the split of a file."""
    factors = {"azimuth": np.array([0, 1, 0, 0, 1, 0, 1, 1], np.int32)}
    whole = dataset()._replace(
        train_factors=factors, test_factors={"azimuth": np.zeros(3, np.int32)}
    )
    check_classes(whole)
    with pytest.raises(UsageError, match="has no image of middle to train on"):
        check_classes(with_values(whole, "azimuth", [0]))
    split = np.where(LABELS["train"] == 0, "test", "train")
    np.savez(
        tmp_path / "some.npz",
        image=np.zeros((8, 13, 13), np.uint8),
        label=LABELS["train"],
        split=split,
    )
    with pytest.raises(UsageError, match="has no image of 0 to train on"):
        check_classes(loading.load_npz(tmp_path / "some.npz"))


def test_many_names_are_cut_short():
    assert named(["a", "b"]) == "a, b"
    assert named([str(number) for number in range(100)]) == "0, 1, 2, 3, 4 and 95 more"


def test_the_error_of_each_class_is_of_its_own_images():
    labels, predictions = np.array([0, 0, 2, 2, 2, 2]), np.array([0, 1, 2, 2, 0, 2])
    assert class_errors(predictions, labels, ("a", "b", "c")) == {"a": 0.5, "b": None, "c": 0.25}


UNTESTED = "there is no test image of middle: nothing will be known of its errors"


def test_a_class_without_test_images_is_named_at_the_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        loop, "make_programs", lambda *_: types.SimpleNamespace(begin=lambda seed: tiny_run.crash())
    )
    with pytest.raises(RuntimeError, match="crash"):
        loop.train(tiny_run.CONFIG, dataset(), tmp_path / "run")
    assert UNTESTED in capsys.readouterr().out


def test_a_class_without_test_images_is_named_in_the_result():
    scores = scoring.Scores(np.zeros((3, 3)), 0.0, np.array([2, 1, 0]), 1, 3)
    records = [{"split": "test", "accuracy": 1 / 3}, {"split": "train", "images_per_second": 1.0}]
    result = summary.summarize(
        tiny_run.CONFIG, dataset(), tiny_run.initial_state(), scores, records
    )
    assert result["class_errors"] == {"top": 1.0, "middle": None, "bottom": 0.5}
    assert result["untested_classes"] == ["middle"]
    assert (
        "untested_classes    middle" in (shown := summary.table([result]))
        and "class_errors" not in shown
    )
    everywhere = dataset(test=[0, 1, 2])
    assert "untested_classes" not in summary.summarize(
        tiny_run.CONFIG, everywhere, tiny_run.initial_state(), scores, records
    )


@pytest.mark.slow
def test_a_class_without_test_images_is_named_when_a_run_is_trained_and_when_it_is_scored(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    monkeypatch.setattr(loading, "load", lambda *_: dataset())
    result = loop.train(tiny_run.CONFIG, dataset(), tmp_path / "run")
    found = result["class_errors"]
    assert 3 * result["test_error"] == pytest.approx(found["top"] + 2 * found["bottom"])
    assert evaluate.main(["--workdir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count(UNTESTED) == 2


def test_where_all_are_tested_nothing_is_said():
    assert untested(dataset(test=[0, 1, 2]), "test") == ""


def test_examples_are_of_the_classes_that_there_are():
    images, labels = first_of_each_class(dataset())
    assert labels.tolist() == [0, 2] and len(images) == 2
