"""In notebooks, in threads, without the platform that was asked for, and on systems other than this
one.
"""

import ast
import asyncio
import errno
import importlib
import runpy
import shlex
import sys
import threading
from pathlib import Path

import jax
import pytest
import tiny_run

from experiments import evaluate, train
from experiments.data import loading
from experiments.devices import hardware
from experiments.learning.configs import to_json
from experiments.plots import pictures
from experiments.runs import directory, loop
from experiments.runtime import locks
from experiments.runtime.errors import UsageError

# Modules of the standard library that not all systems have.
POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}


@pytest.fixture
def used_jax(monkeypatch):
    """JAX has been used, and nothing in the environment says how many devices the CPU is: a
    notebook.
    """
    jax.devices()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)


@pytest.fixture
def quick_runs(monkeypatch):
    monkeypatch.setattr(pictures, "draw_figures", lambda *_: None)
    tiny_run.share_programs(monkeypatch)


@pytest.mark.usefixtures("used_jax", "quick_runs")
def test_commands_work_one_after_the_other_in_a_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load", lambda *_: tiny_run.dataset())

    async def cells():  # a notebook runs its cells within an event loop
        workdir = ["--workdir", str(tmp_path / "run")]
        return [train.main([*tiny_run.FLAGS, *workdir]), evaluate.main(workdir)]

    assert asyncio.run(cells()) == [0, 0]
    assert "reproduced exactly" in capsys.readouterr().out


@pytest.mark.usefixtures("used_jax")
def test_a_notebook_keeps_the_devices_that_it_has_and_is_told_so():
    assert hardware.start_jax() == jax.devices()
    with pytest.raises(UsageError, match=r"there are 2 devices .*; 3 were requested"):
        hardware.start_jax(3)


@pytest.mark.usefixtures("used_jax", "quick_runs")
def test_training_works_in_a_thread_and_without_locks_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(directory, "lock", lambda _: False)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(
            loop.train(tiny_run.CONFIG, tiny_run.dataset(), tmp_path / "run")
        )
    )
    thread.start()
    thread.join()
    assert [result["steps"] for result in results] == [6]
    assert (tmp_path / "run" / "result.json").exists()
    assert (
        "there are no locks here: let no other process train in this folder"
        in capsys.readouterr().out
    )


@pytest.mark.usefixtures("quick_runs")
def test_a_run_that_fails_before_it_has_saved_anything_leaves_no_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for folder, left in (
        (tmp_path / "new" / "run", [tmp_path / "mine"]),
        (tmp_path / "mine", [tmp_path / "mine"]),
    ):
        with monkeypatch.context() as patch:
            tiny_run.at_step(patch, 1, tiny_run.crash)
            with pytest.raises(RuntimeError, match="crash"):
                loop.train(tiny_run.CONFIG, tiny_run.dataset(), folder)
        assert list(tmp_path.iterdir()) == left
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_run_that_had_begun_before_keeps_its_folder(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(to_json(tiny_run.CONFIG))
    monkeypatch.setattr(loop, "make_programs", lambda *_: tiny_run.crash())
    with pytest.raises(RuntimeError, match="crash"):
        loop.train(tiny_run.CONFIG, tiny_run.dataset(), tmp_path)
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError("Unable to initialize backend 'tpu': no libtpu")]
)
@pytest.mark.parametrize(
    "module, words", [("train", "--dataset mnist"), ("figures", "--workdir run"), ("verify", "")]
)
def test_a_platform_that_is_not_there_costs_one_line(
    error, module, words, tmp_path, monkeypatch, capsys
):
    def devices(platform=None):
        raise error

    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run", "config.json").write_text(to_json(tiny_run.CONFIG))
    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(jax, "process_index", lambda: devices())
    assert importlib.import_module(f"experiments.{module}").main(shlex.split(words)) == 2
    line = capsys.readouterr().err
    assert (
        line.startswith("error: with JAX_PLATFORMS=cpu, JAX finds no device here")
        and line.count("\n") == 1
    )
    assert str(error) in line


def test_a_cpu_to_compare_with_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(UsageError, match="JAX finds no nosuch device here"):
        hardware.all_devices("nosuch")


def test_nothing_is_imported_that_only_some_systems_have():
    for path in Path(locks.__file__).parents[1].rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not POSIX.intersection(names), path


def test_text_is_written_and_read_in_the_same_encoding_on_all_systems():
    for path in Path(locks.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("read_text", "write_text")
            ):
                assert "encoding" in [keyword.arg for keyword in node.keywords], (
                    f"{path}:{node.lineno}"
                )


def test_a_system_without_locks_has_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    without = runpy.run_path(locks.__file__)["lock"]
    with open(tmp_path / "file", "w") as first, open(tmp_path / "file", "w") as second:
        assert not without(first) and not without(second)
        assert locks.lock(first)
        with pytest.raises(BlockingIOError):
            locks.lock(second)


@pytest.mark.parametrize(
    "number, passed_over", [(errno.ENOLCK, True), (errno.ENOSYS, True), (errno.EIO, False)]
)
def test_a_file_system_without_locks_is_one(number, passed_over, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with open(tmp_path / "file", "w") as file:
        if passed_over:
            assert not locks.lock(file)
        else:
            with pytest.raises(OSError, match="no locks"):
                locks.lock(file)
