"""What a run does when its loss or gradient is not finite: where it stops, what it names, and what
it saves.
"""

import dataclasses
import functools
import json
from collections import OrderedDict

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from experiments import train
from experiments.data import loading
from experiments.data.batches import Batch, TrainingBatches
from experiments.data.preprocessing import evaluation_view
from experiments.devices.parallel import Execution, ParallelStep, parallelize
from experiments.learning.network import make_model, network_intermediates
from experiments.learning.step import Metrics, TrainState, make_train_step
from experiments.runs import divergence, loop, steps
from experiments.runs.divergence import Guard, NonfiniteError

FAILS_AT = 5  # between the checkpoints of steps 3 and 6, and not the first step after one


def training_batches():
    """Those of a run on the tiny data set, with seed 0."""
    data = tiny_run.dataset()
    return TrainingBatches(
        data.train_images,
        data.train_labels,
        jax.random.split(jax.random.key(0))[1],
        8,
        tiny_run.CONFIG.images,
    )


def scale(tree, factors):
    """The layers of a tree multiplied by these factors, by name."""
    return {
        layer: jax.tree.map(functools.partial(jnp.multiply, factors.get(layer, 1)), part)
        for layer, part in tree.items()
    }


def scaled_gradient(function, factors):
    """The same values, and a gradient multiplied by factors."""

    def scaled(*given):
        values, gradient = function(*given)
        return values, scale(gradient, factors)

    return scaled


def saved_batch(folder):
    with np.load(folder / "batch.npz") as file:
        return Batch(file["images"], file["labels"], file.get("dropout_keys"))


def parameters_overflow(config, model):
    """A training step; the one before FAILS_AT leaves parameters that are finite, and too large for
    finite primary capsules.
    """
    step = make_train_step(config, model)

    def broken_step(state, batch, average):
        state, metrics = step(state, batch, average)
        factor = jnp.where(state.step == FAILS_AT - 1, 1e25, 1)
        return state._replace(
            params=scale(state.params, {"conv": factor, "primary": factor})
        ), metrics

    return broken_step


def gradient_breaks(config, model):
    """A training step; that of FAILS_AT has a gradient that is not finite in two layers."""
    step = make_train_step(config, model)

    def broken_step(state, batch, average):
        factor = jnp.where(state.step == FAILS_AT - 1, jnp.nan, 1)
        return step(
            state,
            batch,
            lambda function: average(
                scaled_gradient(function, {"conv": factor, "conv_caps_1": factor})
            ),
        )

    return broken_step


@pytest.fixture(scope="module")
def places():
    """The function from parameter and gradient factors by layer, and labels, to all places that are
    not finite, in order.
    """
    model = make_model(tiny_run.MODEL, 3)
    examined_step = divergence.examined(
        make_train_step(tiny_run.CONFIG, model),
        functools.partial(network_intermediates, tiny_run.CONFIG, model),
    )

    @jax.jit
    def fractions(state, batch, factors):
        return examined_step(state, batch, functools.partial(scaled_gradient, factors=factors))[1]

    def find(params=(), gradient=(), label=None):
        state, layers = tiny_run.initial_state(), tiny_run.initial_state().params
        params, gradient = (
            {layer: np.float32(dict(f).get(layer, 1)) for layer in layers}
            for f in (params, gradient)
        )
        labels = np.arange(8, dtype=np.int32) % 3 if label is None else np.full(8, label, np.int32)
        batch = Batch(
            evaluation_view(tiny_run.CONFIG.images, tiny_run.dataset().train_images[:8]), labels
        )
        found = fractions(state._replace(params=scale(state.params, params)), batch, gradient)
        return [place for place, fraction in found.items() if fraction > 0]

    return find


def test_a_sound_step_has_no_such_place(places):
    assert places() == []


@pytest.mark.parametrize(
    "broken, first",
    [
        ({"params": {"conv": np.inf}}, ("conv", "parameters before the step")),
        ({"params": {"class_caps": np.nan}}, ("class_caps", "parameters before the step")),
        ({"params": {"conv": 1e25, "primary": 1e25, "conv_caps_1": np.nan}}, ("primary", "poses")),
        ({"params": {"conv_caps_1": 1e37}}, ("conv_caps_1", "activations")),
        # The loss of a label that is no class is NaN.
        ({"label": 99}, ("loss", "mean over the batch")),
        ({"gradient": {"conv": np.nan, "primary": np.inf}}, ("primary", "gradient")),
        ({"gradient": {"conv": np.nan, "class_caps": np.nan}}, ("class_caps", "gradient")),
        (
            {"gradient": {"conv": 1e30, "conv_caps_1": 1e30}},
            ("conv_caps_1", "norm of the gradient"),
        ),
    ],
)
def test_the_first_place_is_found(places, broken, first):
    assert places(**broken)[0] == first


@pytest.mark.slow
@pytest.mark.parametrize(
    "make_step, mode, layer, what",
    [
        (parameters_overflow, "jit", "primary", "poses"),
        (gradient_breaks, "pmap", "conv_caps_1", "gradient"),
    ],
)
def test_a_run_stops_names_the_place_and_saves_what_led_to_it(
    make_step, mode, layer, what, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "load", lambda *args: tiny_run.dataset())
    monkeypatch.setattr(steps, "make_train_step", make_step)
    command = [
        *tiny_run.FLAGS,
        "--eval-every",
        "3",
        "--parallel",
        mode,
        "--workdir",
        str(tmp_path),
    ]
    assert train.main(command) == 1
    folder = tmp_path / "nonfinite"
    message = capsys.readouterr().err
    assert f"error: training diverged at step {FAILS_AT}: " in message
    assert f"first value that is not finite is in {layer} ({what})" in message
    assert f"are in {folder}." in message

    report = json.loads((folder / "report.json").read_text())
    assert (report["step"], report["layer"], report["what"]) == (FAILS_AT, layer, what)
    assert report["gradient_norm"] in ("nan", "inf")
    assert report["nonfinite"][0] == {
        "layer": layer,
        "what": what,
        "fraction": pytest.approx(report["nonfinite"][0]["fraction"]),
    }
    chex.assert_trees_all_equal(
        saved_batch(folder), jax.device_get(training_batches()(FAILS_AT - 1))
    )

    on_devices = parallelize(
        make_step(tiny_run.CONFIG, make_model(tiny_run.MODEL, 3)),
        Execution(jax.devices()[:2], mode),
    )
    state = on_devices.replicate(tiny_run.newest_state(tmp_path / "checkpoints"))
    assert state.step == 3
    state, metrics = on_devices.step(state, on_devices.shard(training_batches()(3)))
    assert np.isfinite(metrics).all()
    saved = tiny_run.newest_state(folder / "state")
    assert saved.step == FAILS_AT - 1
    chex.assert_trees_all_equal(jax.device_get(saved), jax.device_get(state))
    _, metrics = on_devices.step(on_devices.replicate(saved), on_devices.shard(saved_batch(folder)))
    assert not np.isfinite(metrics.gradient_norm)

    (folder / "notes.txt").write_text("of the user")
    assert train.main(command) == 1
    assert f"are in {folder}, in place of those of step {FAILS_AT}." in capsys.readouterr().err
    assert json.loads((folder / "report.json").read_text()) == report
    chex.assert_trees_all_equal(
        jax.device_get(tiny_run.newest_state(folder / "state")), jax.device_get(state)
    )
    assert (folder / "notes.txt").exists()


@pytest.mark.slow
def test_parameters_that_break_just_before_an_evaluation_are_found_by_it(tmp_path):
    config = dataclasses.replace(tiny_run.CONFIG, steps=4, eval_every=1, learning_rate=1e30)
    with pytest.raises(
        NonfiniteError, match=r"diverged at step 1: test_loss nan; .* in primary \(poses\)"
    ):
        loop.train(config, tiny_run.dataset(), tmp_path)
    assert tiny_run.newest_state(tmp_path / "nonfinite" / "state").step == 1
    seen = evaluation_view(config.images, jnp.asarray(tiny_run.dataset().test_images[:8]))
    np.testing.assert_array_equal(saved_batch(tmp_path / "nonfinite").images, seen)
    assert not (tmp_path / "result.json").exists()


def test_examples_from_the_first_that_is_not_finite():
    activations = np.zeros((5, 3))
    activations[3, 1] = activations[4, 0] = np.inf
    np.testing.assert_array_equal(divergence.from_first_nonfinite(activations, 3), [3, 4, 0])
    np.testing.assert_array_equal(
        divergence.from_first_nonfinite(activations[:4], 6), [3, 0, 1, 2, 3, 0]
    )


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_the_first_step_that_is_not_finite(name):
    good = Metrics(*np.float32([1, 0.5, 2]))
    bad = good._replace(**{name: np.float32(np.inf)})
    assert divergence.first_nonfinite([good, good]) is None
    assert divergence.first_nonfinite([good, bad, good, bad]) == 1


def counting_guard(folder):
    """A guard of a run whose state counts its steps, and of whose steps none is found to be not
    finite.
    """

    def step(state, batch):
        return state._replace(step=state.step + 1, params=[*state.params, int(batch.labels)]), None

    examine = ParallelStep(
        lambda *args: (None, OrderedDict({("conv", "features"): 0.0})), lambda x: x, lambda x: x
    )
    batch = Batch(jnp.zeros((1, 2, 2, 1)), jnp.int32(0))
    return Guard(folder, lambda number: batch._replace(labels=jnp.int32(number)), step, examine)


def metrics(*losses):
    return [Metrics(jnp.float32(loss), jnp.float32(0.5), jnp.float32(1)) for loss in losses]


def test_a_step_that_is_finite_when_it_is_repeated_is_still_an_error(tmp_path):
    guard, before = counting_guard(tmp_path / "nonfinite"), TrainState(jnp.int32(17), [], ())
    guard.check_steps(before, metrics(1, 2, 3))
    assert not (tmp_path / "nonfinite").exists()
    with pytest.raises(
        NonfiniteError, match="at step 20: loss inf, gradient_norm 1; no such value was found"
    ):
        guard.check_steps(before, metrics(1, 2, np.inf, np.nan))
    report = divergence.read_report(tmp_path / "nonfinite")
    assert report == {
        "step": 20,
        "layer": None,
        "what": None,
        "loss": "inf",
        "gradient_norm": 1,
        "nonfinite": [],
    }
    assert saved_batch(tmp_path / "nonfinite").labels == 19


def test_what_happened_is_told_even_if_it_cannot_be_saved(tmp_path):
    (tmp_path / "nonfinite").write_text("a file, not a folder")
    with pytest.raises(
        NonfiniteError, match=r"at step 1: loss nan.* could not be saved .*Not a directory"
    ):
        counting_guard(tmp_path / "nonfinite").check_steps(
            TrainState(jnp.int32(0), [], ()), metrics(np.nan)
        )


def test_what_happened_is_told_even_if_an_earlier_report_is_damaged(tmp_path):
    (tmp_path / "nonfinite").mkdir()
    (tmp_path / "nonfinite" / "report.json").write_text('{"step":')
    with pytest.raises(NonfiniteError, match=r"at step 1: loss nan.* are in .*nonfinite\. To try"):
        counting_guard(tmp_path / "nonfinite").check_steps(
            TrainState(jnp.int32(0), [], ()), metrics(np.nan)
        )
    assert (divergence.read_report(tmp_path / "nonfinite") or {})["step"] == 1
