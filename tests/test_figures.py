"""Pictures: drawn from arrays alone, for any number of examples, without pyplot."""

import io
import sys

import numpy as np
import pytest
import tiny

from experiments import datasets, figures, run_figures
from experiments.checkpoints import Checkpoints
from experiments.configs import to_json
from experiments.convergence import Convergence


def render(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=30)
    return buffer.getvalue()


@pytest.mark.parametrize("steps", [(), (20,), (20, 40, 60)])
def test_learning_curves(steps):
    records = [
        {"step": step, "split": split, "loss": 1 / step, "accuracy": 1 - 1 / step} for step in steps for split in ("train", "test")
    ]
    figure = run_figures.learning_curves(records, "a title", "some loss")
    loss, error = figure.axes
    assert (loss.get_xlabel(), loss.get_ylabel(), error.get_ylabel()) == (
        "training step",
        "some loss",
        "error (%)",
    )
    for line in error.lines:
        np.testing.assert_allclose(np.asarray(line.get_ydata()), [100 / step for step in steps])
    render(figure)


@pytest.mark.parametrize("channels, width", [(1, 8), (2, 16), (3, 8)])
def test_samples_are_spread_over_each_class(channels, width):
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, channels), np.uint8)
    labels = np.arange(40) % 2  # and none of the third class
    figure = run_figures.samples(images, labels, ["cat", "dog", "owl"], columns=5)
    render(figure)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert {picture.shape[:2] for picture in shown} == {(8, width)}
    assert [int(picture.flat[0]) for picture in shown] == [0, 8, 18, 28, 38, 1, 9, 19, 29, 39]


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("num_wrong, shown", [(0, 0), (1, 1), (5, 5), (30, 20)])
def test_misclassified_shows_the_surest_mistakes(channels, num_wrong, shown):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 8, 8, channels), dtype=np.uint8)
    labels = np.zeros(40, int)
    activations = np.tile([0.5, 0.1, 0.2], (40, 1))
    activations[:num_wrong, 2] = np.linspace(0.6, 0.9, num_wrong)
    figure = run_figures.misclassified(images, labels, activations, ["cat", "dog", "owl"])
    assert figure.get_suptitle().startswith(f"{num_wrong or 'None'} of 40 test images")
    pictures, bars = figure.axes[::2], figure.axes[1::2]
    assert len(pictures) == len(bars) == shown
    if shown:
        assert pictures[0].get_title(loc="left") == "cat → owl"
        widths = [bar.get_window_extent().width for bar in bars[0].patches]
        np.testing.assert_allclose(np.divide(widths, bars[0].bbox.width), activations[num_wrong - 1])
    if num_wrong in (0, 5):
        render(figure)


@pytest.mark.parametrize("num_images, num_iterations, num_classes", [(1, 1, 2), (2, 3, 5)])
def test_convergence_has_a_histogram_for_each_image_iteration_and_class(num_images, num_iterations, num_classes):
    random, num_children = np.random.default_rng(0), 30
    measured = Convergence(
        random.uniform(0.1, 2, (num_iterations, num_images, num_children, num_classes)),
        random.dirichlet(np.ones(num_classes), (num_iterations, num_images, num_children)),
        random.uniform(size=(num_iterations, num_images, num_classes)),
    )
    images = random.integers(0, 256, (num_images, 8, 8, 1), dtype=np.uint8)
    figure = run_figures.convergence(measured, images, np.zeros(num_images, int), list("abcde")[:num_classes], "a title")
    render(figure)
    for index, block in enumerate(figure.subfigs):
        picture, panels = (part.axes for part in block.subfigs)
        predicted = "abcde"[measured.activations[-1, index].argmax()]
        assert [axes.get_title() for axes in picture] == [f"a → {predicted}"]
        for (iteration, j), axes in zip(np.ndindex(num_iterations, num_classes), panels, strict=True):
            filled, (outline,) = axes.containers[0], axes.patches[len(axes.containers[0]) :]
            heights = [bar.get_height() for bar in filled]
            np.testing.assert_allclose(sum(heights), num_classes * measured.assignments[iteration, index, :, j].sum())
            counted_once = outline.get_xy()[1:-1:2, 1]
            assert counted_once.sum() == num_children
            assert axes.texts[0].get_text() == f"{measured.activations[iteration, index, j]:.2f}"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The folder of a run that has a checkpoint of step 6."""
    monkeypatch.setattr(datasets, "load", lambda *args: tiny.dataset())
    (tmp_path / "config.json").write_text(to_json(tiny.CONFIG))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(6, tiny.initial_state())
    return tmp_path


def test_the_command_draws_into_the_folder_of_the_run(trained, capsys):
    assert figures.main(["--workdir", str(trained), "--images", "3", "36"]) == 0
    paths = [trained / "figures" / f"{name}.png" for name in ("convergence", "assignments")]
    assert capsys.readouterr().out == f"wrote {paths[0]}, {paths[1]}\n"
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.parametrize(
    "flags, message", [(["--images", "3", "37"], "from 0 to 36; got [3, 37]"), (["--step", "5"], "none of step 5")]
)
def test_the_command_says_what_it_cannot_draw(trained, capsys, flags, message):
    assert figures.main(["--workdir", str(trained), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (trained / "figures").exists()


def test_pyplot_is_not_involved():
    assert "matplotlib.pyplot" not in sys.modules
