"""Pictures: drawn from arrays alone, for any number of examples, without pyplot."""

import io
import sys

import numpy as np
import pytest

from experiments import figures


def render(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=30)
    return buffer.getvalue()


@pytest.mark.parametrize("steps", [(), (20,), (20, 40, 60)])
def test_learning_curves(steps):
    records = [
        {"step": step, "split": split, "loss": 1 / step, "accuracy": 1 - 1 / step} for step in steps for split in ("train", "test")
    ]
    figure = figures.learning_curves(records, "a title")
    loss, error = figure.axes
    assert (loss.get_xlabel(), loss.get_ylabel(), error.get_ylabel()) == (
        "training step",
        "spread loss",
        "error (%)",
    )
    for line in error.lines:
        np.testing.assert_allclose(np.asarray(line.get_ydata()), [100 / step for step in steps])
    render(figure)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("num_wrong, shown", [(0, 0), (1, 1), (5, 5), (30, 20)])
def test_misclassified_shows_the_surest_mistakes(channels, num_wrong, shown):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 8, 8, channels), dtype=np.uint8)
    labels = np.zeros(40, int)
    activations = np.tile([0.5, 0.1, 0.2], (40, 1))
    activations[:num_wrong, 2] = np.linspace(0.6, 0.9, num_wrong)
    figure = figures.misclassified(images, labels, activations, ["cat", "dog", "owl"])
    assert figure.get_suptitle().startswith(f"{num_wrong or 'None'} of 40 test images")
    pictures, bars = figure.axes[::2], figure.axes[1::2]
    assert len(pictures) == len(bars) == shown
    if shown:
        assert pictures[0].get_title() == "cat → owl"
        widths = [bar.get_window_extent().width for bar in bars[0].patches]
        np.testing.assert_allclose(np.divide(widths, bars[0].bbox.width), activations[num_wrong - 1])
    if num_wrong in (0, 5):
        render(figure)


def test_pyplot_is_not_involved():
    assert "matplotlib.pyplot" not in sys.modules
