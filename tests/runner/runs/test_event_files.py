"""Event files of TensorBoard hold what metrics.jsonl does, also after a run has gone on."""

import sys

import pytest
import tiny_run
from read_events import assert_same_events

from experiments import train
from experiments.runs.directory import RunDirectory
from experiments.runs.event_files import scalars
from experiments.runtime import processes


def records(*steps):
    """A record of training and one of temperatures, of each step."""
    for step in steps:
        seconds = {"seconds": 0.7 * step}
        yield {"step": step, "split": "train", "loss": 1 / (1 + step), "accuracy": 0.3} | seconds
        temperatures = {"assignment_temperature": {"class_caps": 0.1 * step}}
        yield {"step": step, "split": "temperatures"} | temperatures | seconds


def test_scalars_are_named_by_split_and_layer():
    train, temperatures = records(2)
    assert scalars(train) == {"train/loss": 1 / 3, "train/accuracy": 0.3}
    assert scalars(temperatures) == {"temperatures/assignment_temperature/class_caps": 0.2}


def test_a_run_that_goes_on_has_each_of_its_steps_once(tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        with RunDirectory(tmp_path, tiny_run.CONFIG, tensorboard=True) as run:
            run.rewind(0)
            for record in records(1, 2, 3):
                run.append(record)
            assert_same_events(tmp_path)  # before it ends
            tiny_run.crash()
    with RunDirectory(tmp_path, tiny_run.CONFIG) as run:  # without the flag
        run.rewind(2)
        for record in records(3, 4):
            run.append(record)
    assert_same_events(tmp_path)
    with RunDirectory(tmp_path, tiny_run.CONFIG, tensorboard=True) as run:
        run.rewind(3)
        assert_same_events(tmp_path)
        for record in records(4, 5):
            run.append(record)
    assert_same_events(tmp_path)


def test_a_run_that_fails_before_anything_is_saved_leaves_none(tmp_path):
    with pytest.raises(RuntimeError, match="crash"):
        with RunDirectory(tmp_path / "run", tiny_run.CONFIG, tensorboard=True) as run:
            run.rewind(0)
            tiny_run.crash()
    assert not list(tmp_path.iterdir())


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    with RunDirectory(tmp_path, tiny_run.CONFIG, tensorboard=True) as run:
        run.rewind(0)
        for record in records(1):
            run.append(record)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_costs_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    command = ["--tensorboard", "--dataset", "nosuch.npz", "--workdir", str(tmp_path / "run")]
    assert train.main(command) == 2
    printed = capsys.readouterr()
    assert printed.err == (
        "error: --tensorboard needs the package tensorboardX: pip install tensorboardX\n"
    )
    assert printed.out == "" and not list(tmp_path.iterdir())
