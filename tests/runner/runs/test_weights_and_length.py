"""Runs that begin with the weights of others, and finished runs that are made longer."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import emcaps
from experiments import ablation
from experiments.data.dataset import Dataset
from experiments.learning.configs import LATER, TrainConfig, default_config, from_json, to_json
from experiments.learning.step import Metrics, make_optimizer
from experiments.plots import pictures
from experiments.runs import flags, loop
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.directory import (
    RunDirectory,
    check_usable,
    is_finished,
    read_records,
    read_result,
)
from experiments.runs.initial_weights import initial_weights
from experiments.runs.summary import table
from experiments.runtime.command_line import parse
from experiments.runtime.errors import UsageError

# Their steps do not depend on how many there will be.
STEADY = tiny_run.CONFIG
SHORT = dataclasses.replace(STEADY, steps=4)


@pytest.fixture
def quick_runs(monkeypatch):
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    tiny_run.share_programs(monkeypatch)


@pytest.fixture
def run(tmp_path):
    """The folder of a run like `tiny_run.CONFIG`, after step 6."""
    (tmp_path / "config.json").write_text(to_json(tiny_run.CONFIG))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(6, tiny_run.initial_state())
    return tmp_path


@pytest.mark.usefixtures("quick_runs")
@pytest.mark.parametrize(
    "schedule", [pytest.param("exponential", marks=pytest.mark.slow), "schedule_free"]
)
def test_a_finished_run_that_is_made_longer_equals_one_that_was_long_from_the_beginning(
    schedule, tmp_path, monkeypatch
):
    longer, long = tmp_path / "longer", tmp_path / "long"
    short, steady = (dataclasses.replace(config, schedule=schedule) for config in (SHORT, STEADY))
    first = loop.train(short, tiny_run.dataset(), longer)
    with monkeypatch.context() as patch:
        # Step 5, before there is a checkpoint of the longer run.
        tiny_run.at_step(patch, 1, tiny_run.crash)
        with pytest.raises(RuntimeError, match="crash"):
            loop.train(steady, tiny_run.dataset(), longer)
    assert read_result(longer) is None
    result = loop.train(steady, tiny_run.dataset(), longer)
    expected = loop.train(steady, tiny_run.dataset(), long)

    chex.assert_trees_all_equal(
        *(tiny_run.newest_state(folder / "checkpoints", steady) for folder in (longer, long))
    )
    assert tiny_run.deterministic(read_records(longer)) == tiny_run.deterministic(
        read_records(long)
    )
    assert (result["test_error"], result["steps"]) == (expected["test_error"], 6)
    assert table([result]).count("extended_at         4") == 1
    assert result["extended_at"] == [4] and "extended_at" not in expected
    assert json.loads((longer / "result-4.json").read_text()) == first
    with pytest.raises(
        UsageError, match=r"a finished run of another config \(steps: 6 there, 4 here\)"
    ):
        loop.train(short, tiny_run.dataset(), longer)


def test_a_longer_run_has_its_own_schedule_from_where_the_shorter_one_ended():
    cosine = dataclasses.replace(
        tiny_run.CONFIG, schedule="cosine", learning_rate=0.1, clip_norm=None
    )
    short, long = (dataclasses.replace(cosine, steps=steps) for steps in (10, 20))
    # Of which Adam takes steps of the learning rate's size.
    params, gradient = jnp.ones(()), jnp.ones(())
    state = make_optimizer(short).init(params)
    for step in range(20):
        update, state = make_optimizer(short if step < 10 else long).update(gradient, state, params)
        length = 10 if step < 10 else 20
        np.testing.assert_allclose(
            -update, 0.1 * 0.5 * (1 + np.cos(np.pi * step / length)), rtol=1e-4
        )


def test_only_a_finished_run_with_the_same_flags_is_made_longer(tmp_path):
    with RunDirectory(tmp_path, SHORT):
        pass
    with pytest.raises(
        UsageError, match=r"an unfinished run of another config \(steps: 4 there, 6 here\)"
    ):
        check_usable(tmp_path, STEADY)
    with RunDirectory(tmp_path, SHORT) as begun:
        begun.finish({"steps": 4})
    for other in (dataclasses.replace(STEADY, seed=1), dataclasses.replace(STEADY, steps=3)):
        with pytest.raises(UsageError, match="a finished run of another config"):
            check_usable(tmp_path, other)
    with pytest.raises(UsageError, match="never overwritten"):
        check_usable(tmp_path, STEADY, resume=False)
    check_usable(tmp_path, STEADY)
    assert not is_finished(tmp_path, STEADY)
    # Killed just after the first thing that is done.
    (tmp_path / "result.json").rename(tmp_path / "result-4.json")
    check_usable(tmp_path, STEADY)


def test_a_run_that_ended_at_its_target_error_is_not_made_longer(tmp_path):
    short, steady = (dataclasses.replace(config, target_error=0.5) for config in (SHORT, STEADY))
    with RunDirectory(tmp_path, short) as begun:
        begun.finish({"steps": 2})
    with pytest.raises(UsageError, match="ended at its target error after 2 steps"):
        check_usable(tmp_path, steady)
    (tmp_path / "result.json").write_text('{"steps": 4}')  # one that did not reach it
    check_usable(tmp_path, steady)


def steps_that_stand_still(train_step, batches, state, steps):
    """In place of `take_steps`, for a run's own programs: nothing but the number changes."""
    for step in steps:
        state = state._replace(step=jnp.int32(step + 1))
        yield state, Metrics(*jnp.ones(3))


@pytest.mark.usefixtures("quick_runs")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        # Real steps, too small to be seen, whose programs are of no other test.
        pytest.param({"learning_rate": 1e-30}, marks=pytest.mark.slow),
        pytest.param({"learning_rate": 1e-30, "schedule": "cosine"}, marks=pytest.mark.slow),
    ],
    ids=["still", "schedule_free", "cosine"],
)
def test_a_run_begins_with_the_weights_of_another(changes, run, tmp_path_factory, monkeypatch):
    workdir = tmp_path_factory.mktemp("new") / "run"
    config = dataclasses.replace(tiny_run.CONFIG, seed=5, init_from=str(run), **changes)
    if not changes:
        monkeypatch.setattr(loop, "take_steps", steps_that_stand_still)
    with monkeypatch.context() as patch:
        tiny_run.at_step(patch, 5, tiny_run.crash)
        with pytest.raises(RuntimeError, match="crash"):
            loop.train(config, tiny_run.dataset(), workdir)
    (run / "config.json").unlink()  # what goes on does not need it
    result = loop.train(config, tiny_run.dataset(), workdir)
    assert (result["init_from"], result["steps"]) == (f"{run}, step 6", 6)
    state = tiny_run.newest_state(workdir / "checkpoints", config)
    assert state.step == 6
    chex.assert_trees_all_close(
        state.params, tiny_run.initial_state().params, rtol=1e-6, atol=1e-20
    )


def test_a_run_begins_with_the_weights_of_a_classifier():
    classifier = emcaps.pretrained.load_classifier("mnist")
    words = "--dataset mnist --init-from mnist".split()
    config = parse(flags.TrainCommand, "train", words, flags.default_command(words)).config
    images, labels = np.zeros((10, 28, 28, 1), np.uint8), np.arange(10)
    digits = Dataset("mnist", tuple("0123456789"), images, labels, images, labels)
    weights = initial_weights(config, digits)
    assert weights is not None and weights.origin == "mnist"
    chex.assert_trees_all_equal(weights.params, jax.tree.map(np.asarray, classifier.params))
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, conv_channels=32))
    with pytest.raises(
        UsageError,
        match=r"weights of mnist are not .*: conv/bias is float32\[64\] there, float32\[32\] here",
    ):
        initial_weights(wider, digits)


def test_weights_of_another_network_are_refused_by_the_parameters_name(run, tmp_path_factory):
    config, data = dataclasses.replace(tiny_run.CONFIG, init_from=str(run)), tiny_run.dataset()
    workdir = tmp_path_factory.mktemp("new") / "run"
    labels = np.arange(20, dtype=np.int32) % 4
    with pytest.raises(
        UsageError, match=r"class_caps/beta_a is float32\[3\] there, float32\[4\] here"
    ):
        loop.train(
            config, data._replace(class_names=("a", "b", "c", "d"), train_labels=labels), workdir
        )
    decoded = dataclasses.replace(
        config, model=dataclasses.replace(config.model, reconstruction=True)
    )
    with pytest.raises(UsageError, match=r"decoder/\S+ is missing there, float32\[.*\] here"):
        loop.train(decoded, data, workdir)
    assert not workdir.exists()


def test_weights_that_there_are_not_are_named(tmp_path):
    for source, message in (
        ("nosuch", "init_from must be the folder of a run, or a classifier: name must be one of"),
        ("nosuch.safetensors", "No such file"),
        (str(tmp_path), "holds no run"),
    ):
        with pytest.raises(UsageError, match=message):
            initial_weights(
                dataclasses.replace(tiny_run.CONFIG, init_from=source), tiny_run.dataset()
            )
    (tmp_path / "config.json").write_text(to_json(tiny_run.CONFIG))
    with pytest.raises(UsageError, match="has no checkpoints yet"):
        initial_weights(
            dataclasses.replace(tiny_run.CONFIG, init_from=str(tmp_path)), tiny_run.dataset()
        )


def test_nobody_passes_initial_weights_over():
    with pytest.raises(
        ValueError, match="calibrate_betas would replace betas of init_from; got mnist"
    ):
        TrainConfig(calibrate_betas=True, init_from="mnist")
    config = dataclasses.replace(tiny_run.CONFIG, init_from="mnist")
    with pytest.raises(UsageError, match="begin with weights of their own; got --init-from mnist"):
        ablation.check(ablation.AblationConfig(), [config])


def test_runs_of_earlier_versions_are_still_understood():
    config = default_config(["--num-iterations", "2"])
    routing = dataclasses.replace(
        config.model.routing, num_iterations=2, assignment_temperature_rate=0.0
    )
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, routing=routing))
    earlier = json.loads(to_json(config))
    for values in (earlier, earlier["images"], earlier["model"], earlier["model"]["routing"]):
        for name in LATER.keys() & values.keys():
            del values[name]
    assert len(earlier["model"]["routing"]) == 14 and "class_iterations" not in earlier["model"]
    assert from_json(json.dumps(earlier)) == config
    del earlier["seed"]
    with pytest.raises(ValueError, match="wrong: seed"):
        from_json(json.dumps(earlier))
