"""Pictures: drawn from arrays alone, for any number of examples, without pyplot."""

import dataclasses
import gc
import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from matplotlib.figure import Figure

import emcaps
from experiments import figures
from experiments.analysis import decoded_poses
from experiments.analysis.assignment_flow import Flow
from experiments.analysis.convergence import Convergence
from experiments.data import loading
from experiments.learning.configs import to_json
from experiments.plots import capsules, runs, walkthrough
from experiments.plots.style import TRUE
from experiments.runs.checkpoints import Checkpoints


def render(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=30)
    return buffer.getvalue()


@pytest.mark.parametrize("steps", [(), (20,), (20, 40, 60)])
def test_learning_curves(steps):
    records = [
        {"step": step, "split": split, "loss": 1 / step, "accuracy": 1 - 1 / step}
        for step in steps
        for split in ("train", "test")
    ]
    figure = runs.learning_curves(records, "a title", "some loss")
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
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, channels), np.uint8
    )
    labels = np.arange(40) % 2  # and none of the third class
    figure = runs.samples(images, labels, ["cat", "dog", "owl"], columns=5)
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
    names = ["cat", "dog", "owl"]
    figure = runs.misclassified(images, labels, activations, names, scored="held-out")
    assert figure.get_suptitle().startswith(f"{num_wrong or 'None'} of 40 held-out images")
    pictures, bars = figure.axes[::2], figure.axes[1::2]
    assert len(pictures) == len(bars) == shown
    if shown:
        assert pictures[0].get_title(loc="left") == "cat → owl"
        widths = [bar.get_window_extent().width for bar in bars[0].patches]
        np.testing.assert_allclose(
            np.divide(widths, bars[0].bbox.width), activations[num_wrong - 1]
        )
    if num_wrong in (0, 5):
        render(figure)


@pytest.mark.parametrize("num_images, num_iterations, num_classes", [(1, 1, 2), (2, 2, 3)])
def test_convergence_has_a_histogram_for_each_image_iteration_and_class(
    num_images, num_iterations, num_classes
):
    random, num_children = np.random.default_rng(0), 30
    measured = Convergence(
        random.uniform(0.1, 2, (num_iterations, num_images, num_children, num_classes)),
        random.dirichlet(np.ones(num_classes), (num_iterations, num_images, num_children)),
        random.uniform(size=(num_iterations, num_images, num_classes)),
    )
    images = random.integers(0, 256, (num_images, 8, 8, 1), dtype=np.uint8)
    figure = capsules.convergence(
        measured, images, np.zeros(num_images, int), list("abcde")[:num_classes], "a title"
    )
    render(figure)
    for index, block in enumerate(figure.subfigs):
        picture, panels = (part.axes for part in block.subfigs)
        predicted = "abcde"[measured.activations[-1, index].argmax()]
        assert [axes.get_title() for axes in picture] == [f"a → {predicted}"]
        for (iteration, j), axes in zip(
            np.ndindex(num_iterations, num_classes), panels, strict=True
        ):
            filled, (outline,) = axes.containers[0], axes.patches[len(axes.containers[0]) :]
            heights = [bar.get_height() for bar in filled]
            np.testing.assert_allclose(
                sum(heights), num_classes * measured.assignments[iteration, index, :, j].sum()
            )
            counted_once = outline.get_xy()[1:-1:2, 1]
            assert counted_once.sum() == num_children
            assert axes.texts[0].get_text() == f"{measured.activations[iteration, index, j]:.2f}"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The folder of a run that has a checkpoint of step 6."""
    monkeypatch.setattr(loading, "load", lambda *args: tiny_run.dataset())
    (tmp_path / "config.json").write_text(to_json(tiny_run.CONFIG))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(6, tiny_run.initial_state())
    return tmp_path


@pytest.mark.slow
def test_the_command_draws_into_the_folder_of_the_run_and_keeps_nothing(trained, capsys):
    arrays_before = len(jax.live_arrays())
    assert figures.main(["--workdir", str(trained), "--images", "3", "36"]) == 0
    paths = [trained / "figures" / f"{name}.png" for name in ("convergence", "assignments")]
    assert capsys.readouterr().out == f"wrote {paths[0]}, {paths[1]}\n"
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    gc.collect()
    assert not any(isinstance(found, Figure) for found in gc.get_objects())
    assert len(jax.live_arrays()) <= arrays_before


@pytest.mark.parametrize(
    "flags, message",
    [(["--images", "3", "37"], "from 0 to 36; got [3, 37]"), (["--step", "5"], "none of step 5")],
)
def test_the_command_says_what_it_cannot_draw(trained, capsys, flags, message):
    assert figures.main(["--workdir", str(trained), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (trained / "figures").exists()


def test_pyplot_is_not_involved():
    data = tiny_run.dataset()
    runs.samples(data.test_images, data.test_labels, data.class_names).savefig(io.BytesIO())
    assert "matplotlib.pyplot" not in sys.modules


def test_reconstructions_move_one_entry_at_a_time(monkeypatch):
    """The decoder is given the winner's pose, with one entry changed, and all others as
    they were.
    """
    config = dataclasses.replace(
        tiny_run.CONFIG, model=dataclasses.replace(tiny_run.MODEL, reconstruction=True)
    )
    poses = np.random.default_rng(0).normal(size=(1, 3, 5)).astype(np.float32)
    given = {}

    def decode(params, poses, chosen, shape):
        given.update(poses=np.asarray(poses), chosen=np.asarray(chosen))
        return np.tile(np.asarray(poses)[:, 1, :1, None, None], (1, *shape))

    monkeypatch.setattr(decoded_poses, "network_intermediates", lambda *_: {})
    monkeypatch.setattr(decoded_poses, "class_poses", lambda _: jnp.asarray(poses))
    monkeypatch.setattr(decoded_poses, "class_logits", lambda _: jnp.array([[0.0, 2.0, 1.0]]))
    monkeypatch.setattr(decoded_poses, "decode", decode)
    image = tiny_run.dataset().test_images[:1]
    view, decoded = decoded_poses.decode_moved(config, None, None, 0, image)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(view, image[0] / 255, rtol=1e-6)
    assert decoded.shape == (5, 11, *tiny_run.IMAGE_SHAPE) and (given["chosen"] == 1).all()
    moved = given["poses"].reshape(5, 11, 3, 5) - poses
    for entry, amount in np.ndindex(5, 11):
        expected = np.zeros((3, 5))
        expected[1, entry] = decoded_poses.AMOUNTS[amount]
        np.testing.assert_allclose(moved[entry, amount], expected, atol=1e-6)


def test_a_row_of_reconstructions_is_an_entry():
    decoded = np.linspace(0, 1, 5 * 3 * 16).reshape(5, 3, 4, 4, 1)
    figure = capsules.reconstructions(decoded[0, 0], decoded, [-0.25, 0.0, 0.25], list("abcde"))
    render(figure)
    _, left, right = figure.subfigs
    assert [axes.texts[0].get_text() for axes in left.axes[::3]] == ["a", "b", "c"]
    np.testing.assert_array_equal(
        np.asarray(right.axes[4].images[0].get_array()), np.round(255 * decoded[4, 1, :, :, 0])
    )
    assert not right.axes[6].images  # there is no sixth entry


def test_assignments_are_drawn_where_they_are_for_the_likeliest_classes():
    to_class = np.random.default_rng(0).uniform(size=(3, 4, 5))
    to_class[2, 3] = 0  # no parent looks there
    flow = {"primary": Flow(to_class, np.array([0.2, 0.4, 0.6]), np.array([0.2, 0.4, 0.6, 0.8]))}
    activations = np.array([0.1, 0.9, 0.3, 0.2, 0.05])
    figure = capsules.assignment_flow(
        np.zeros((8, 8, 1)), flow, activations, list("abcde"), 2, columns=3
    )
    render(figure)
    totals, *classes = figure.axes
    named = {"b": "0.90", "c": "0.30", "d": "0.20"}
    assert [axes.get_title() for axes in classes] == [
        f"to {name} (activation {value})" for name, value in named.items()
    ]
    np.testing.assert_allclose(np.asarray(totals.images[1].get_array()), to_class.sum(-1))
    shown = np.ma.filled(classes[0].images[1].get_array(), np.nan)
    np.testing.assert_allclose(
        shown, 5 * to_class[..., 1] / np.where(to_class.sum(-1) > 0, to_class.sum(-1), np.nan)
    )
    np.testing.assert_allclose(classes[0].images[1].get_extent(), [0.1, 0.9, 0.7, 0.1])


def test_a_network_is_drawn_with_the_sizes_of_its_layers():
    model = emcaps.CapsNet(3, conv_channels=6, primary_capsules=2, conv_capsules=(4,))
    figure = walkthrough.architecture(model, (17, 13, 2))
    render(figure)
    texts = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert texts == [
        *("image", "17x13, 2 channels\n"),
        *("conv", "7x5, 6 channels\n5x5, stride 2\n306 parameters"),
        *("primary", "7x5, 2 capsules\n1x1, stride 1\n204 parameters"),
        *("conv_caps_1", "3x2, 4 capsules\n3x3, stride 2\n1,160 parameters"),
        *("class_caps", "1x1, 3 capsules\nall places\n199 parameters"),
    ]
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 17, 13, 2)))["params"]
    assert 306 + 204 + 1160 + 199 == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_children_are_ordered_by_the_class_that_they_go_to():
    last = np.random.default_rng(0).dirichlet(np.full(3, 0.3), 20)
    figure = walkthrough.assignments(
        np.stack([np.full_like(last, 1 / 3), last]), [1.1, 0.4], list("abc"), label=1
    )
    render(figure)
    even, shown = (np.asarray(axes.images[0].get_array()) for axes in figure.axes[:2])
    assert (even == 1 / 3).all() and (np.diff(shown.argmax(0)) >= 0).all()
    np.testing.assert_array_equal(np.sort(shown.max(0)), np.sort(last.max(-1)))
    assert figure.axes[1].get_title(loc="left") == "in iteration 2: entropy 0.40"


def test_entries_of_a_pose_are_drawn_by_how_they_change():
    poses = np.random.default_rng(0).normal(size=(5, 4, 4))
    activations = np.linspace(0, 1, 15).reshape(5, 3)
    figure = walkthrough.pose_of_the_moved(
        np.zeros((5, 8, 8, 2), np.uint8),
        np.arange(-2, 3),
        activations,
        poses,
        "pixels",
        label=2,
        marked={(0, 3): "an entry"},
    )
    render(figure)
    *images, left, right = figure.axes
    assert [axes.get_title() for axes in images] == ["-2", "-1", "0", "1", "2"]
    assert [line.get_color() == TRUE for line in left.lines] == [False, False, True]
    np.testing.assert_array_equal(
        [line.get_ydata() for line in right.lines], (poses - poses[2]).reshape(5, 16).T
    )
    assert [line.get_label() == "an entry" for line in right.lines] == [i == 3 for i in range(16)]
