"""What is drawn of a run costs it nothing: names are text, the number of classes does not matter,
and the result comes first.
"""

import dataclasses
import json

import numpy as np
import pytest
import tiny_run
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text

from emcaps import RoutingOptions
from experiments import figures, report
from experiments.analysis.assignment_flow import Flow
from experiments.analysis.convergence import Convergence
from experiments.claims import adversarial, parameters
from experiments.claims.sections import Picture, Section
from experiments.data import loading
from experiments.learning.configs import ModelConfig
from experiments.learning.scoring import Scores
from experiments.plots import capsules, pictures, runs
from experiments.runs import loop
from experiments.runtime.errors import RunnerError

NAMES = ("a $$", "$x$ and $y$", r"back\$lash")
IMAGES, LABELS = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 3
SCORES = Scores(
    np.zeros((2, 3)), loss=1.0, predictions=np.zeros(2, int), num_correct=1, num_examples=2
)


def converged(num_images, num_classes):
    """Of two iterations, with the highest activations for the last classes."""
    activations = np.tile(np.linspace(0, 1, num_classes), (2, num_images, 1))
    shape = (2, num_images, 5, num_classes)
    return Convergence(np.ones(shape), np.full(shape, 1 / num_classes), activations)


def drawn_by(name):
    """A figure with the names of all classes in it."""
    activations = np.eye(3)[(LABELS + 1) % 3]
    if name == "samples":
        return runs.samples(IMAGES, LABELS, NAMES)
    if name == "misclassified":
        return runs.misclassified(IMAGES, LABELS, activations, NAMES)
    if name == "convergence":
        return capsules.convergence(converged(1, 3), IMAGES, LABELS, NAMES, NAMES[0])
    if name == "assignments":
        flow = {"primary": Flow(np.ones((2, 2, 3)), np.array([0.2, 0.8]), np.array([0.2, 0.8]))}
        return capsules.assignment_flow(np.zeros((8, 8, 1)), flow, activations[0], NAMES, 0)
    arrays = {
        "epsilons": np.array([0.1, 0.2]),
        "images": IMAGES[:3] / 255,
        "labels": LABELS[:3],
        "class_names": np.array(NAMES),
    }
    arrays |= {"cnn_images": np.zeros((2, 3, 8, 8, 1)), "cnn_predictions": np.zeros((2, 3), int)}
    return adversarial.adversarial_examples(arrays, ["cnn"])


@pytest.mark.parametrize(
    "name", ["samples", "misclassified", "convergence", "assignments", "adversarial"]
)
def test_names_are_text(name, tmp_path):
    figure = drawn_by(name)
    assert pictures.draw(tmp_path, {name: lambda: figure}, pytest.fail)
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert not any(map(is_math_text, texts))
    for class_name in NAMES:
        assert any(class_name in text.replace(r"\$", "$") for text in texts)


def test_a_data_set_may_have_any_name(tmp_path):
    record = {"step": 1, "split": "test", "loss": 1.0, "accuracy": 0.5}
    figure = runs.learning_curves([record], "$$", "a loss")
    assert pictures.draw(tmp_path, {"curves": lambda: figure}, pytest.fail)
    run = {"model": "cnn", "num_parameters": 1, "train_seconds": 1.0, "test_error": 0.5}
    assert pictures.draw(
        tmp_path, {"sizes": lambda: parameters.sizes("$$", {"cnn": [run]})}, pytest.fail
    )


@pytest.mark.parametrize(
    "changes, network, num_pictures",
    [
        (dict(class_iterations=2), "1 routing iteration (2 in the class capsules)", 4),
        (dict(class_iterations=None), "1 routing iteration", 3),
        (dict(class_iterations=None, routing=RoutingOptions()), "2 routing iterations", 4),
        (dict(family="cnn"), "CNN", 3),
    ],
)
def test_the_title_says_how_the_network_routes(changes, network, num_pictures):
    given = {"family": "capsules", "class_iterations": ModelConfig.class_iterations} | changes
    config = dataclasses.replace(
        tiny_run.CONFIG, model=ModelConfig(**given), loss="cross_entropy", steps=9, holdout=1
    )
    records = [{"step": 6, "split": "test", "loss": 1.0, "accuracy": 0.5}]
    drawings = pictures.run_drawings(config, tiny_run.dataset(), SCORES, records)
    assert len(drawings) == num_pictures
    title = drawings["learning_curves"]().get_suptitle()
    assert title == f"mnist, {network}, seed 0: held-out error 50.00% after 6 steps"
    curves = drawings["learning_curves"]().axes[0]
    assert [text.get_text() for text in curves.get_legend().get_texts()] == ["train", "held-out"]


def test_a_picture_that_cannot_be_drawn_costs_a_line(tmp_path):
    def other_script():
        figure = Figure(figsize=(1, 1))
        figure.text(0.5, 0.5, "猫 犬")
        return figure

    said = []
    drawings = {
        "wrong": lambda: tiny_run.crash(),
        "boxes": other_script,
        "right": lambda: Figure(figsize=(1, 1)),
    }
    written = pictures.draw(tmp_path, drawings, said.append)
    assert [path.name for path in written] == ["boxes.png", "right.png"] and all(
        path.exists() for path in written
    )
    assert said[0] == f"{tmp_path / 'wrong.png'} could not be drawn: RuntimeError: crash"
    assert (
        said[1].startswith(f"{tmp_path / 'boxes.png'}: drawn as boxes")
        and "猫犬 (" in said[1]
        and len(said) == 2
    )


def test_a_hundred_classes_take_no_longer_to_draw_than_twenty():
    names, labels = [f"class {j}" for j in range(100)], np.arange(200) % 100
    images = np.zeros((200, 4, 4, 1), np.uint8)
    samples = runs.samples(images, labels, names)
    assert len(samples.axes) == 20 * 6 and "20 of 100 classes" in samples.get_suptitle()

    activations = np.tile(np.linspace(0, 1, 100), (200, 1))
    for axes in runs.misclassified(images, labels, activations, names).axes[1::2]:
        assert len(axes.patches) == 10
    sure = runs.misclassified(images[:1], np.array([7]), activations[:1], names).axes[1]
    assert [label.get_text() for label in sure.get_yticklabels()] == [
        "class 7",
        *(f"class {j}" for j in range(91, 100)),
    ]
    np.testing.assert_allclose(
        [bar.get_width() for bar in sure.patches], activations[0][[7, *range(91, 100)]]
    )

    block = capsules.convergence(converged(1, 100), images, labels[7:], names, "a title").subfigs[0]
    titles = [axes.get_title() for axes in block.subfigs[1].axes]
    assert titles == ["class 7", *(f"class {j}" for j in range(91, 100)), *[""] * 10]


def test_the_result_comes_before_the_pictures_which_can_be_drawn_later(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "load", lambda *_: tiny_run.dataset())
    monkeypatch.setattr(pictures, "routing_drawings", lambda *_: {})
    tiny_run.share_programs(monkeypatch)
    with monkeypatch.context() as patch:
        results = []

        def broken(*_):
            results.append((tmp_path / "result.json").read_text())
            return {"samples": tiny_run.crash}

        patch.setattr(pictures, "run_drawings", broken)
        result = loop.train(tiny_run.CONFIG, tiny_run.dataset(), tmp_path)
    assert [json.loads(text) for text in results] == [result]
    assert result["train_seconds"] > result["compile_seconds"] + result["evaluate_seconds"]
    printed = capsys.readouterr()
    assert (
        f"{tmp_path / 'figures' / 'samples.png'} could not be drawn: RuntimeError: crash"
        in printed.out
    )
    assert "drawing" in printed.err
    monkeypatch.setattr(figures, "routing_drawings", lambda *_: {"convergence": tiny_run.crash})
    assert figures.main(["--workdir", str(tmp_path)]) == 1
    assert "error: 1 of 4 pictures could not be drawn" in capsys.readouterr().err
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == [
        "learning_curves",
        "misclassified",
        "samples",
    ]


def test_a_report_has_its_page_whatever_its_pictures_are(tmp_path, capsys):
    wrong, right = Figure(figsize=(1, 1)), Figure(figsize=(1, 1))
    wrong.text(0, 0, "$$")
    section = Section(
        "a claim", "it says", [], [Picture("wrong", "", wrong), Picture("right", "", right)], []
    )
    with pytest.raises(RunnerError, match="1 of 2 pictures could not be drawn"):
        report.write([section], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "report.md",
        "right.png",
    ]
    assert "wrong.png could not be drawn" in capsys.readouterr().err
