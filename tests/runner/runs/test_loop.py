"""Training from end to end on a tiny problem: what a run leaves, that it resumes exactly, and how
it fails.
"""

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from read_events import assert_same_events

from experiments import evaluate, figures, train
from experiments.data import loading
from experiments.data.preprocessing import ImageConfig, crop_places
from experiments.devices.parallel import REPLICATED, Execution, device_mesh, place
from experiments.learning import scoring
from experiments.learning.configs import from_json, to_json
from experiments.learning.network import make_model
from experiments.plots import pictures
from experiments.runs import flags, loop, steps
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.directory import read_records
from experiments.runs.restore import restore
from experiments.runs.run_data import Fingerprint
from experiments.runs.summary import table
from experiments.runtime.errors import RunnerError, Stopped


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an uninterrupted run on two devices, whose train step was traced once.

    Between two looks its steps took nothing from the host and gave it nothing: devices only sent
    each other shares of a batch.
    """
    workdir = tmp_path_factory.mktemp("finished") / "run"
    traced_once = lambda *args: chex.assert_max_traces(make_train_step(*args), n=1)  # noqa: E731
    make_train_step = steps.make_train_step
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as guards:

        def forbid_transfers():
            guards.enter_context(jax.transfer_guard("disallow"))
            guards.enter_context(jax.transfer_guard_host_to_device("disallow_explicit"))
            guards.enter_context(jax.transfer_guard_device_to_host("disallow_explicit"))

        tiny_run.at_step(patch, 1, forbid_transfers)
        tiny_run.at_step(patch, 3, guards.close)
        patch.setattr(steps, "make_train_step", traced_once)
        loop.train(
            tiny_run.CONFIG,
            tiny_run.dataset(),
            workdir,
            execution=Execution(jax.devices()[:2]),
            command="the command",
        )
    return workdir


@pytest.fixture
def shared_programs(monkeypatch):
    tiny_run.share_programs(monkeypatch)


def test_a_run_leaves_its_outputs(finished):
    assert from_json((finished / "config.json").read_text()) == tiny_run.CONFIG
    records = read_records(finished)
    assert [(record["step"], record["split"]) for record in records] == [
        (4, "train"),
        (4, "test"),
        (4, "diagnostics"),
        (6, "train"),
        (6, "test"),
        (6, "diagnostics"),
    ]
    for record in records:
        if record["split"] == "diagnostics":
            # One iteration.
            assert record["class_caps"]["assignment_entropy"] == pytest.approx(np.log(3), rel=1e-4)
            continue
        assert np.isfinite([record["loss"], record["accuracy"], record["seconds"]]).all()
    for name in ("samples.png", "learning_curves.png", "misclassified.png", "convergence.png"):
        assert (finished / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_the_result_says_what_was_run_and_reached(finished):
    result = json.loads((finished / "result.json").read_text())
    assert (result["dataset"], result["steps"], result["batch_size"], result["seed"]) == (
        "mnist",
        6,
        8,
        0,
    )
    assert (result["jax_version"], result["devices"], result["command"]) == (
        jax.__version__,
        2,
        "the command",
    )
    assert result["num_parameters"] == sum(
        leaf.size
        for leaf in jax.tree.leaves(tiny_run.newest_state(finished / "checkpoints").params)
    )
    assert result["test_examples"] == 37
    assert result["test_error"] + result["test_accuracy"] == pytest.approx(1)
    assert result["test_accuracy"] == read_records(finished)[-2]["accuracy"]
    assert 0 < result["compile_seconds"] < result["train_seconds"]
    assert "test_error" in table([result])


@pytest.mark.usefixtures("shared_programs")
def test_a_run_that_was_stopped_and_crashed_equals_one_that_was_not(
    finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)

    def run():
        return loop.train(
            tiny_run.CONFIG,
            tiny_run.dataset(),
            tmp_path,
            execution=Execution(jax.devices()[:2]),
            tensorboard=True,
        )

    with monkeypatch.context() as patch:
        tiny_run.at_step(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped, match=f"after step 3 of 6, saved in {tmp_path}"):
            run()
    with monkeypatch.context() as patch:
        tiny_run.at_step(patch, 2, tiny_run.crash)  # step 5, after the checkpoint of step 4
        with pytest.raises(RuntimeError, match="crash"):
            run()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        # What a killed process may leave.
        file.write('{"step": 5, "split": "train", "loss": 0}\n{"step": 6, "spl')
    result = run()

    chex.assert_trees_all_equal(
        tiny_run.newest_state(tmp_path / "checkpoints"),
        tiny_run.newest_state(finished / "checkpoints"),
    )
    resumed, uninterrupted = (
        tiny_run.deterministic(read_records(path)) for path in (tmp_path, finished)
    )
    assert resumed == uninterrupted
    assert_same_events(tmp_path)
    assert result["test_error"] == json.loads((finished / "result.json").read_text())["test_error"]
    seconds = [record["seconds"] for record in read_records(tmp_path)]
    assert seconds == sorted(seconds) and result["train_seconds"] > seconds[-1]


@pytest.mark.usefixtures("shared_programs")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stop_says_how_to_go_on(number, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *args: tiny_run.dataset())
    tiny_run.at_step(monkeypatch, 1, lambda: signal.raise_signal(number))
    command = [*tiny_run.FLAGS, "--workdir", str(tmp_path / "run")]
    assert train.main(command) == code
    assert capsys.readouterr().err.endswith(
        f"to go on:\n  python -m experiments.train {' '.join(command)}\n"
    )


@pytest.mark.parametrize("num_devices", [1, 2])
def test_evaluate_reproduces_the_test_error(finished, num_devices, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *args: tiny_run.dataset())
    assert evaluate.run(evaluate.EvaluateCommand(finished, devices=num_devices), "") == 0
    assert "reproduced exactly" in capsys.readouterr().out


def test_evaluate_says_so_when_the_test_error_differs(finished, monkeypatch, capsys):
    data = tiny_run.dataset()
    other = data._replace(test_labels=(data.test_labels + 1) % 3)
    monkeypatch.setattr(loading, "load", lambda *args: other)
    assert evaluate.main(["--workdir", str(finished)]) == 1
    assert "NOT reproduced" in capsys.readouterr().out


def test_evaluate_names_the_checkpoints_there_are(finished, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *args: tiny_run.dataset())
    assert evaluate.main(["--workdir", str(finished), "--step", "5"]) == 2
    assert "[4, 6]; none of step 5" in capsys.readouterr().err
    assert evaluate.main(["--workdir", str(finished / "nothing")]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert evaluate.main(["--workdir", str(finished), "--crops", "4"]) == 2
    assert "sees whole images, of which there are no 4 crops" in capsys.readouterr().err


def test_a_run_that_goes_on_while_its_data_are_loaded_is_read(finished, tmp_path, monkeypatch):
    newest = tmp_path / "run" / "checkpoints" / "6"
    shutil.copytree(finished, tmp_path / "run")
    newest.rename(tmp_path / "6")

    def load_slowly(*_):
        (tmp_path / "6").rename(newest)
        shutil.rmtree(newest.with_name("4"))
        return tiny_run.dataset()

    monkeypatch.setattr(loading, "load", load_slowly)
    restored = restore(tiny_run.CONFIG, tmp_path / "run", None, None, jax.devices()[:1])
    assert restored.step == 6


def test_evaluate_says_so_when_there_are_no_checkpoints_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *args: tiny_run.dataset())
    (tmp_path / "config.json").write_text(to_json(tiny_run.CONFIG))
    assert evaluate.main(["--workdir", str(tmp_path)]) == 2
    assert "has no checkpoints yet" in capsys.readouterr().err


def test_every_example_is_scored_once_whatever_the_devices_and_the_padding():
    model, data = make_model(tiny_run.MODEL, 3), tiny_run.dataset(num_test=53)

    def evaluator(num_devices):
        """Of the initial parameters, placed as `evaluate` has them."""
        mesh = device_mesh(jax.devices()[:num_devices])
        params = place(tiny_run.initial_state().params, mesh, REPLICATED)
        evaluate = scoring.make_evaluator(tiny_run.CONFIG, model, mesh)
        return lambda images, labels: evaluate(params, images, labels, 6)

    one, two = evaluator(1), evaluator(2)
    scores = one(data.test_images, data.test_labels)
    shared = two(data.test_images, data.test_labels)
    np.testing.assert_allclose(shared.activations, scores.activations, rtol=1e-3)
    backwards = one(data.test_images[::-1], data.test_labels[::-1])
    np.testing.assert_allclose(backwards.activations[::-1], scores.activations, rtol=1e-3)
    assert scores.num_examples == len(scores.activations) == 53
    assert (
        scores.num_correct
        == backwards.num_correct
        == (scores.activations.argmax(-1) == data.test_labels).sum()
    )
    assert scores.error == (53 - scores.num_correct) / 53


@pytest.mark.slow
def test_crops_average_the_activations_of_views():
    config = dataclasses.replace(tiny_run.CONFIG, images=ImageConfig(crop=11))
    model, data, params = (
        make_model(tiny_run.MODEL, 3),
        tiny_run.dataset(num_test=7),
        tiny_run.initial_state().params,
    )
    central, scores = (
        scoring.make_evaluator(config, model, device_mesh(jax.devices()[:1]), crops)
        for crops in (1, 4)
    )
    found = scores(params, data.test_images, data.test_labels, 6)
    expected = []
    for row, column in np.round(2 * crop_places(4)).astype(int):
        crops = (
            jnp.asarray(data.test_images[:, row : row + 11, column : column + 11], jnp.float32)
            / 255
        )
        expected.append(model.apply({"params": params}, crops)[0].activations)
    np.testing.assert_allclose(found.activations, np.mean(expected, 0), rtol=1e-4)
    np.testing.assert_allclose(
        central(params, data.test_images, data.test_labels, 6).activations, expected[0], rtol=1e-4
    )


@pytest.mark.slow
def test_a_run_may_be_by_pmap(finished, tmp_path):
    result = loop.train(
        tiny_run.CONFIG,
        tiny_run.dataset(),
        tmp_path,
        execution=Execution(jax.devices()[:2], "pmap"),
    )
    assert result["test_error"] == json.loads((finished / "result.json").read_text())["test_error"]


@pytest.mark.slow
def test_training_stops_at_a_target_error_and_stays_stopped(tmp_path, monkeypatch):
    errors = iter([0.9, 0.4951, 0.4951, 0.4951, 0.4951])
    make_evaluator = steps.make_evaluator

    def scripted(*args):
        evaluate = make_evaluator(*args)
        return lambda *given: evaluate(*given)._replace(
            num_correct=round(10_000 * (1 - next(errors))), num_examples=10_000
        )

    monkeypatch.setattr(steps, "make_evaluator", scripted)
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    config = dataclasses.replace(tiny_run.CONFIG, eval_every=1, target_error=0.5)
    result = loop.train(config, tiny_run.dataset(), tmp_path / "run")
    assert (result["steps"], result["test_error"]) == (2, 0.4951)
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed just before
    assert loop.train(config, tiny_run.dataset(), tmp_path / "run")["steps"] == 2
    assert [
        record["step"] for record in read_records(tmp_path / "run") if record["split"] == "test"
    ] == [1, 2]


@pytest.mark.slow
def test_divergence_is_an_error_and_keeps_what_was_saved(tmp_path, monkeypatch):
    # The data set will change.
    monkeypatch.setattr(loop, "fingerprint", lambda *_: Fingerprint(0, None))
    monkeypatch.setattr(loop, "check_classes", lambda _: None)  # which would be refused
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    config = dataclasses.replace(tiny_run.CONFIG, eval_every=1)
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.at_step(patch, 2, tiny_run.crash)
        with pytest.raises(RuntimeError, match="crash"):
            loop.train(config, tiny_run.dataset(), tmp_path)
    broken = tiny_run.dataset()
    broken.train_labels[:] = 99  # the loss of a label that is no class is NaN
    with pytest.raises(RunnerError, match=r"diverged at step 2: loss nan"):
        loop.train(config, broken, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    assert [record["step"] for record in read_records(tmp_path)] == [1, 1, 1]
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    "config, message",
    [
        (
            dataclasses.replace(tiny_run.CONFIG, batch_size=22),
            "at most the number of training images, 20; got 22",
        ),
        (
            dataclasses.replace(
                tiny_run.CONFIG, model=dataclasses.replace(tiny_run.MODEL, conv_capsules=(2, 2))
            ),
            "too small",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_images_writes_nothing(config, message, tmp_path):
    with pytest.raises(RunnerError, match=message):
        loop.train(config, tiny_run.dataset(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("shared_programs")
def test_the_command_trains_capsules_and_the_cnn_and_refuses_to_do_it_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loading, "load", lambda *args: tiny_run.dataset())
    words = [*tiny_run.FLAGS, "--baseline"]
    command = [*words, "--workdir", str(tmp_path / "a run")]
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "draw_figures", lambda *_: None)
        tiny_run.at_step(patch, 7, tiny_run.crash)  # the first of the CNN
        with pytest.raises(RuntimeError, match="crash"):
            train.main(command)
    capsules = json.loads((tmp_path / "a run" / "result.json").read_text())
    assert capsules["command"] == (
        f"python -m experiments.train {' '.join(words)} --workdir '{tmp_path / 'a run'}'"
    )
    assert train.main(command) == 0
    cnn = json.loads((tmp_path / "a run-cnn" / "result.json").read_text())
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'a run'} is finished" in printed
    assert [line.split()[1:] for line in printed.splitlines() if line.startswith("model ")] == [
        ["capsules", "cnn"]
    ]
    assert [line.split() for line in printed.splitlines() if line.startswith("test_error ")] == [
        ["test_error", f"{capsules['test_error']:.6g}", f"{cnn['test_error']:.6g}"]
    ]
    assert not (tmp_path / "a run-cnn" / "figures" / "convergence.png").exists()
    assert evaluate.main(["--workdir", str(tmp_path / "a run-cnn")]) == 0
    assert "reproduced exactly" in capsys.readouterr().out
    assert train.main(command) == 2
    assert "holds a finished run, which is never overwritten" in capsys.readouterr().err
    assert figures.main(["--workdir", str(tmp_path / "a run-cnn")]) == 2
    assert (
        "holds a run of a network (cnn) with neither EM routing nor a decoder"
        in capsys.readouterr().err
    )


def test_the_flags_of_the_tiny_run_are_its_config():
    assert flags.config_of(tiny_run.FLAGS) == tiny_run.CONFIG


def test_only_toynorb_has_the_cnn_trained_unasked():
    assert flags.default_command([]).baseline
    assert not flags.default_command(["--dataset", "mnist"]).baseline
    assert not flags.default_command(["--model", "cnn"]).baseline


@pytest.mark.slow
def test_a_wrong_command_gets_one_line_and_writes_nothing(tmp_path):
    command = [sys.executable, "-m", "experiments.train", "--dataset", "nosuch"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: dataset must be one of mnist, ") and done.stderr.endswith(
        "; got 'nosuch'\n"
    )
    assert not list(tmp_path.iterdir())
