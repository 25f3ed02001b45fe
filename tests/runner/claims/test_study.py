"""The networks of the claims' experiments, what their runs are called, and that nothing is measured
twice.
"""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
import tiny_run

from experiments import adversarial, equivariance, jumble, parameters, toys, viewpoints
from experiments.claims.experiment import measured_once
from experiments.claims.networks import NETWORKS
from experiments.claims.study import QUICK_STEPS, Study
from experiments.data import loading
from experiments.learning.configs import TrainConfig
from experiments.learning.network import make_model
from experiments.learning.step import init_state
from experiments.plots import pictures
from experiments.runs import trained
from experiments.runtime.errors import RunnerError, UsageError


def test_each_network_of_capsules_has_a_cnn_of_its_size():
    """The paper counts 68K, 310K and 4.2M parameters for smallNORB.

    Of ours one is a temperature.
    """
    sizes = {}
    for name in NETWORKS:
        config = Study().network(name, 0)
        init = functools.partial(init_state, config, make_model(config.model, 5))
        state = jax.eval_shape(init, jnp.zeros((1, 32, 32, 2)), jax.random.key(0))
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sizes == {
        "capsules": 68_619,
        "capsules-32-8-8-8": 25_099,
        "capsules-32-32-32-32": 316_651,
        "capsules-decoder": 2_734_603,
        "dynamic": 669_952,
        "dynamic-once": 669_952,
        "dynamic-decoder": 3_335_936,
        "dynamic-once-decoder": 3_335_936,
        "cnn": 4_253_349,
        "cnn-25k": 24_229,
        "cnn-68k": 67_057,
        "cnn-310k": 315_429,
    }


def test_a_network_is_trained_as_the_flags_say():
    config = Study(dataset="mnist", steps=7, flags="--max-shift 1 --batch-size 5").network(
        "cnn-25k", 3
    )
    assert (config.dataset, config.seed, config.steps, config.eval_every) == ("mnist", 3, 7, 7)
    assert (config.images.max_shift, config.batch_size, config.model.cnn_channels) == (
        1,
        5,
        (8, 16),
    )
    assert Study().network("capsules", 0).steps == TrainConfig().steps


def test_flags_of_capsules_are_for_capsules():
    study = Study(flags="--batch-size 5", capsule_flags="--conv-channels 7 --num-iterations 3")
    runs = study.networks(["capsules", "cnn"], 0)
    capsules, cnn = runs.values()
    assert (capsules.batch_size, cnn.batch_size) == (5, 5)
    assert (capsules.model.conv_channels, capsules.model.routing.num_iterations) == (7, 3)
    assert cnn == Study(flags="--batch-size 5").network("cnn", 0)
    with pytest.raises(UsageError, match="there are none among dynamic, cnn"):
        study.networks(["dynamic", "cnn"], 0)


def test_a_quick_study_is_short_and_has_a_folder_of_its_own(tmp_path):
    study = Study(quick=True, seeds=(4, 5), runs=tmp_path, dataset="a/b.npz").shortened()
    assert (study.seeds, study.steps, study.folder) == ((4,), QUICK_STEPS, tmp_path / "quick" / "b")
    assert Study(runs=tmp_path).folder == tmp_path / "toynorb"


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_different(seeds):
    with pytest.raises(ValueError, match="seeds must be one or more different numbers"):
        Study(seeds=seeds)


def test_nothing_is_measured_twice_or_overwritten(tmp_path, capsys):
    path, settings = tmp_path / "new" / "seed-0.json", {"experiment": "some", "values": (1, 2)}
    first = measured_once(path, settings, "the command", lambda: {"found": 5})
    assert first == json.loads(path.read_text())
    assert list(first) == ["experiment", "values", "found", "seconds", "command"]
    assert measured_once(path, settings, "another", pytest.fail) == first
    assert capsys.readouterr().out == f"{path} is finished\n"
    with pytest.raises(
        RunnerError, match=r"other settings \(values: \[1, 2\] there, \[1, 3\] here\)"
    ):
        measured_once(path, settings | {"values": (1, 3)}, "another", pytest.fail)
    assert json.loads(path.read_text()) == first


def test_networks_of_several_sizes_are_trained_once(tmp_path, monkeypatch, capsys):
    for name in ("capsules", "cnn"):
        monkeypatch.setitem(NETWORKS, name, tiny_run.cnn(3))
    tiny_run.share_programs(monkeypatch)
    monkeypatch.setattr(loading, "load", lambda name, data_dir: tiny_run.dataset())
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    words = [
        "--networks",
        "cnn",
        "capsules",
        "--dataset",
        "mnist",
        "--runs",
        str(tmp_path),
        "--quick",
    ]
    words += ["--flags=--batch-size 8 --max-shift 1"]
    assert parameters.main(words) == 0
    assert {path.parent.name for path in tmp_path.glob("quick/mnist/*/result.json")} == {
        "capsules-0",
        "cnn-0",
    }
    first = capsys.readouterr().out
    monkeypatch.setattr(trained, "train", pytest.fail)
    assert parameters.main(words) == 0
    again = capsys.readouterr().out
    assert again.startswith(
        f"{tmp_path}/quick/mnist/cnn-0 is finished\n{tmp_path}/quick/mnist/capsules-0 is finished\n"
    )
    assert again.endswith(first[first.index("network  ") :])


@pytest.mark.parametrize("command", [adversarial, equivariance, jumble, toys, viewpoints])
def test_quick_is_short_in_all_commands(command, tmp_path, monkeypatch, capsys):
    def check(given, missing):
        raise UsageError(
            f"{given.study.seeds}, {given.study.steps} steps, {given.file(0)}, {missing}"
        )

    monkeypatch.setattr(command, "check", check)
    assert command.main(["--quick", "--runs", str(tmp_path)]) == 2
    assert f"(0,), {QUICK_STEPS} steps, {tmp_path}/quick/" in capsys.readouterr().err


def test_unknown_networks_are_refused(capsys):
    with pytest.raises(SystemExit):
        parameters.main(["--networks", "cnn", "nosuch"])
    assert capsys.readouterr().err.endswith("cnn-310k, each once; got cnn, nosuch\n")
