"""Which folders a run accepts."""

import dataclasses

import pytest
import tiny_run

from emcaps import RoutingOptions
from experiments.runs import directory
from experiments.runs.directory import RunDirectory, check_usable, read_config
from experiments.runtime import processes
from experiments.runtime.errors import RunnerError

OTHER = dataclasses.replace(
    tiny_run.CONFIG,
    steps=7,
    model=dataclasses.replace(tiny_run.MODEL, routing=RoutingOptions(num_iterations=3)),
)


def test_an_unfinished_run_of_the_same_config_goes_on(tmp_path):
    with RunDirectory(tmp_path / "a" / "b", tiny_run.CONFIG) as run:
        run.append({"step": 1, "loss": 0.5})
        run.append({"step": 2, "loss": 0.25})
    with RunDirectory(tmp_path / "a" / "b", tiny_run.CONFIG) as run:
        run.rewind(1)
        assert run.records() == [{"step": 1, "loss": 0.5}]
    assert read_config(tmp_path / "a" / "b") == tiny_run.CONFIG


def test_an_unfinished_run_of_another_config_is_refused(tmp_path):
    with RunDirectory(tmp_path, tiny_run.CONFIG):
        pass
    with pytest.raises(
        RunnerError,
        match=r"another config .num_iterations: 1 there, 3 here, steps: 6 there, 7 here",
    ):
        check_usable(tmp_path, OTHER)


@pytest.mark.parametrize(
    "config, message",
    [
        (tiny_run.CONFIG, "holds a finished run, which"),
        (OTHER, "holds a finished run of another config .*steps: 6 there, 7 here"),
    ],
)
def test_a_finished_run_is_refused(config, message, tmp_path):
    with RunDirectory(tmp_path, tiny_run.CONFIG) as run:
        run.finish({"test_error": 0.5})
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(RunnerError, match=message):
        RunDirectory(tmp_path, config)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_a_run_in_progress_is_refused(tmp_path):
    with RunDirectory(tmp_path, tiny_run.CONFIG):
        with pytest.raises(RunnerError, match="in use"):
            RunDirectory(tmp_path, tiny_run.CONFIG).__enter__()


def test_nothing_is_written_before_all_processes_have_looked(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(
        processes, "wait_for_all", lambda _: found.append((tmp_path / "config.json").exists())
    )
    with RunDirectory(tmp_path, tiny_run.CONFIG, resume=False):
        assert found == [False, True]


def test_a_folder_that_cannot_be_opened_has_neither_traces_nor_a_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    run = RunDirectory(tmp_path / "a" / "b", tiny_run.CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(directory, "write_atomically", full)
        with pytest.raises(OSError, match="no space left"):
            run.__enter__()
        assert not (tmp_path / "a").exists()
        (tmp_path / "a" / "b").mkdir(parents=True)  # what was there before stays, unlocked
        again = RunDirectory(tmp_path / "a" / "b", tiny_run.CONFIG)
        with pytest.raises(OSError, match="no space left"):
            again.__enter__()
    assert not list((tmp_path / "a" / "b").iterdir())
    with RunDirectory(tmp_path / "a" / "b", tiny_run.CONFIG):
        pass


@pytest.mark.parametrize("name", ["checkpoints", "compiled", "tensorboard"])
def test_a_folder_of_something_else_is_refused(name, tmp_path):
    (tmp_path / "notes.txt").touch()
    check_usable(tmp_path, tiny_run.CONFIG)
    (tmp_path / name).mkdir()
    with pytest.raises(RunnerError, match="something else"):
        check_usable(tmp_path, tiny_run.CONFIG)
    with pytest.raises(RunnerError, match="not a folder"):
        check_usable(tmp_path / "notes.txt", tiny_run.CONFIG)


def test_a_config_that_this_version_does_not_know_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"sede": 1}')
    with pytest.raises(RunnerError, match="is not the config of a run: TrainConfig has the fields"):
        check_usable(tmp_path, tiny_run.CONFIG)
