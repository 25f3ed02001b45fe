"""Data are known by their contents: a file that was moved is the same, and another one in its place
is not.
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from experiments import evaluate, figures, train
from experiments.ablation import AblationConfig
from experiments.claims.study import Study
from experiments.evaluate import EvaluateCommand
from experiments.export import ExportCommand
from experiments.plots import pictures
from experiments.runs import flags, trained
from experiments.runs.directory import read_config, read_result
from experiments.runs.flags import TrainCommand
from experiments.runs.run_data import difference, fingerprint, load_data, remembered
from experiments.runtime.command_line import parse
from experiments.runtime.errors import UsageError


def write(path, data):
    split = np.array(["train"] * len(data.train_labels) + ["test"] * len(data.test_labels))
    images = np.concatenate([data.train_images, data.test_images])
    np.savez(
        path, image=images, label=np.concatenate([data.train_labels, data.test_labels]), split=split
    )


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A folder with a run that has stopped after step 4, its file, which has another name now, a
    file of other data, and one that differs only in what is tested.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    tiny_run.share_programs(monkeypatch)
    write("data.npz", tiny_run.dataset())
    with monkeypatch.context() as patch:
        tiny_run.at_step(patch, 5, tiny_run.crash)
        with pytest.raises(RuntimeError, match="crash"):
            train.main([*tiny_run.FLAGS, "--dataset", "data.npz", "--workdir", "run"])
    Path("elsewhere").mkdir()
    Path("data.npz").rename("elsewhere/moved.npz")
    other = tiny_run.dataset()
    other.train_images[0, 0, 0, 0] ^= 1
    write("other.npz", other)
    retested = tiny_run.dataset()
    retested.test_images[0, 0, 0, 0] ^= 1
    write("retested.npz", retested)
    return tmp_path


@pytest.mark.usefixtures("begun")
def test_a_run_goes_on_with_a_file_that_was_moved(capsys):
    assert train.main([*tiny_run.FLAGS, "--dataset", "other.npz", "--workdir", "run"]) == 2
    assert "another config (dataset: data.npz there, other.npz here)" in capsys.readouterr().err
    assert train.main([*tiny_run.FLAGS, "--dataset", "data.npz", "--workdir", "run"]) == 2
    assert capsys.readouterr().err == "error: there is no file data.npz\n"
    shutil.copy("retested.npz", "data.npz")
    assert train.main([*tiny_run.FLAGS, "--dataset", "data.npz", "--workdir", "run"]) == 2
    assert "on other test images or classes than there are now" in capsys.readouterr().err
    Path("data.npz").unlink()
    moved = ["--dataset", "elsewhere/moved.npz"]
    assert train.main([*tiny_run.FLAGS, *moved, "--workdir", "run"]) == 0
    assert read_config(Path("run")).dataset == "data.npz"
    assert (read_result(Path("run")) or {})["steps"] == 6
    assert "going on after step 4" in capsys.readouterr().out

    assert evaluate.main(["--workdir", "run", *moved]) == 0
    assert "reproduced exactly" in capsys.readouterr().out
    for command in (evaluate, figures):
        assert command.main(["--workdir", "run", "--dataset", "other.npz"]) == 2
        assert "on other training images than there are now in other.npz" in capsys.readouterr().err
        assert command.main(["--workdir", "run", "--dataset", "retested.npz"]) == 2
        assert "on other test images or classes than there are now in" in capsys.readouterr().err
    assert evaluate.main(["--workdir", "run", "--dataset", "mnist"]) == 2
    assert "dataset is where the .npz file of a run is now; got mnist" in capsys.readouterr().err

    # what is finished is known by its data as well, in the studies too
    words = [*tiny_run.FLAGS, *moved]
    config = parse(TrainCommand, "train", words, flags.default_command(words)).config
    assert trained.trained(config, Path("run"), None, "")["steps"] == 6
    for other in ("other.npz", "retested.npz"):
        words = [*tiny_run.FLAGS, "--dataset", other]
        config = parse(TrainCommand, "train", words, flags.default_command(words)).config
        with pytest.raises(
            UsageError,
            match=rf"a finished run of another config \(dataset: data.npz there, {other} here\)",
        ):
            trained.trained(config, Path("run"), None, "")


def test_labels_and_names_are_part_of_data_and_runs_of_before_say_nothing_of_what_is_tested():
    config = dataclasses.replace(tiny_run.CONFIG, dataset="data.npz")
    data = tiny_run.dataset()
    known = fingerprint(config, data)
    assert known == fingerprint(config, tiny_run.dataset())
    tested_labels = data.test_labels.copy()
    tested_labels[0] ^= 1
    for other in (
        data._replace(test_labels=tested_labels),
        data._replace(class_names=("top", "middle", "base")),
    ):
        here = fingerprint(config, other)
        assert difference(known, here) == "test images or classes"
        assert not difference(remembered({"data": known.data}), here)
        assert not difference(known, fingerprint(tiny_run.CONFIG, other))
    assert difference(known, known._replace(data=0)) == "training images"


@pytest.mark.parametrize(
    "command, flags, paths",
    [
        (
            TrainCommand,
            "--dataset=~/a.npz --workdir=~/run --data-dir=~/tfds",
            ["config.dataset", "workdir", "data_dir"],
        ),
        (EvaluateCommand, "--workdir=~/run --dataset=~/a.npz", ["workdir", "dataset"]),
        (ExportCommand, "--workdir=~/run --out=~/net.safetensors", ["workdir", "out"]),
        (Study, "--runs=~/runs", ["runs"]),
        (AblationConfig, "--output=~/out", ["output"]),
    ],
)
def test_the_home_folder_may_be_written_short(command, flags, paths, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parsed = parse(command, "program", flags.split())
    for path in paths:
        found = parsed
        for name in path.split("."):
            found = getattr(found, name)
        assert Path(found).is_relative_to(tmp_path), path


def test_a_data_set_is_found_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.npz", tiny_run.dataset())
    words = ["--dataset=~/a.npz"]
    command = parse(TrainCommand, "program", words, flags.default_command(words))
    assert len(load_data(command.config, None).train_labels) == 20
