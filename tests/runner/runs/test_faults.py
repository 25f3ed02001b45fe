"""What can go wrong while a run trains or before it goes on: each fault has its message, and loses
nothing that was saved.
"""

import dataclasses
import gc
import json
import shutil
import signal
import subprocess
import time

import chex
import jax
import orbax.checkpoint as ocp
import pytest
import tiny_run

from experiments import train
from experiments.learning.configs import to_json
from experiments.plots import pictures
from experiments.runs import loop
from experiments.runs.checkpoints import Checkpoints, DamagedCheckpoint
from experiments.runs.directory import read_records
from experiments.runtime.errors import RunnerError

pytestmark = [
    # Orbax raises what its tasks have met, and forgets other tasks that have met the same.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

CONFIG = dataclasses.replace(tiny_run.CONFIG, eval_every=2)


@pytest.fixture(autouse=True, scope="module")
def quick_runs():
    """They draw nothing, and have one set of programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_figures", lambda *_: None)
        tiny_run.share_programs(patch)
        yield


@pytest.fixture(autouse=True, scope="module")
def earlier_objects_are_not_looked_through():
    """To collect them, too, after each of these tests would take longer than many of the tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def forgotten_tasks_are_collected():
    """In the test whose they are."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The folder of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    loop.train(CONFIG, tiny_run.dataset(), folder)
    return folder


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """The folder of a run that crashed after the checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("crashed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.at_step(patch, 5, tiny_run.crash)
        with pytest.raises(RuntimeError, match="crash"):
            loop.train(CONFIG, tiny_run.dataset(), folder)
    return folder


@pytest.fixture
def unfinished(crashed, tmp_path):
    """A copy of it."""
    return shutil.copytree(crashed, tmp_path / "run")


def assert_same_run(folder, calm):
    chex.assert_trees_all_equal(
        tiny_run.newest_state(folder / "checkpoints"), tiny_run.newest_state(calm / "checkpoints")
    )
    assert tiny_run.deterministic(read_records(folder)) == tiny_run.deterministic(
        read_records(calm)
    )


def steps(folder):
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps()


def damage(folder, step):
    """Change one byte of the parameters, which Orbax does not notice."""
    file = max(
        (folder / "checkpoints" / str(step) / "state").rglob("*"),
        key=lambda path: path.stat().st_size,
    )
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes, where this process may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(calm, small_disk, monkeypatch):
    folder, ballast = small_disk / "run", small_disk / "ballast"

    def fill():
        while not (folder / "checkpoints" / "2").exists():  # it is being written in the background
            time.sleep(0.01)
        with (
            open(ballast, "wb", buffering=0) as file,
            pytest.raises(OSError, match="No space left"),
        ):
            while True:
                file.write(bytes(4096))

    with monkeypatch.context() as patch:
        tiny_run.at_step(patch, 3, fill)
        with pytest.raises(
            RunnerError, match=rf"(saved in {folder}|{folder}.* cannot be written).*No space left"
        ) as caught:
            loop.train(CONFIG, tiny_run.dataset(), folder)
    assert "the same command goes on" in str(caught.value)
    assert steps(folder) == [2]
    ballast.unlink()
    loop.train(CONFIG, tiny_run.dataset(), folder)
    assert_same_run(folder, calm)


def test_nobody_is_told_that_a_state_was_saved_if_it_was_not(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    def stop():
        monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", refuse)
        signal.raise_signal(signal.SIGTERM)

    tiny_run.at_step(monkeypatch, 1, stop)
    with pytest.raises(RunnerError, match=r"could not be saved in .*No space left on device"):
        loop.train(CONFIG, tiny_run.dataset(), tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunnerError, match="file is not a folder"):
        loop.train(CONFIG, tiny_run.dataset(), tmp_path / "file" / "run")


def test_a_lost_data_file_is_named(unfinished, capsys):
    lost = dataclasses.replace(tiny_run.CONFIG, dataset="lost.npz")
    (unfinished / "config.json").write_text(to_json(lost))
    flags = [*tiny_run.FLAGS, "--dataset", "lost.npz"]
    assert train.main([*flags, "--workdir", str(unfinished)]) == 2
    assert "error: there is no file lost.npz" in capsys.readouterr().err
    assert steps(unfinished) == [2, 4]


def test_a_damaged_checkpoint_is_named_and_passed_over_only_when_asked(unfinished, calm):
    damage(unfinished, 4)
    with pytest.raises(
        RunnerError,
        match=r"checkpoint of step 4 in .* is damaged .*; with --fall-back the run goes on",
    ) as caught:
        loop.train(CONFIG, tiny_run.dataset(), unfinished)
    assert isinstance(caught.value.__cause__, DamagedCheckpoint)
    assert steps(unfinished) == [2, 4]
    loop.train(CONFIG, tiny_run.dataset(), unfinished, fall_back=True)
    assert_same_run(unfinished, calm)
    assert [path.name.split("-")[0] for path in (unfinished / "damaged").iterdir()] == ["4"]


def test_if_all_checkpoints_are_damaged_none_is_moved(unfinished):
    damage(unfinished, 2)
    damage(unfinished, 4)
    with pytest.raises(
        RunnerError,
        match=r"all checkpoints in .* are damaged; to begin anew, choose another --workdir",
    ):
        loop.train(CONFIG, tiny_run.dataset(), unfinished, fall_back=True)
    assert steps(unfinished) == [2, 4]


@pytest.mark.parametrize(
    "what", ["state/d", "state/manifest.ocdbt", "facts/metadata", "state/_METADATA"]
)
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_checkpoint_that_lacks_something_is_damaged_or_whole(unfinished, what, how):
    state, path = (
        tiny_run.newest_state(unfinished / "checkpoints"),
        unfinished / "checkpoints" / "4" / what,
    )
    path = next(path.iterdir()) if path.is_dir() else path
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    with Checkpoints(unfinished / "checkpoints", read_only=True) as checkpoints:
        one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        try:
            chex.assert_trees_all_equal(
                checkpoints.restore(4, tiny_run.initial_state(), one_device), state
            )
        except DamagedCheckpoint as error:
            assert "the checkpoint of step 4 in" in str(error)


def test_where_no_step_is_left_none_is_compiled(calm, tmp_path):
    run = shutil.copytree(calm, tmp_path / "run")
    (run / "result.json").unlink()  # killed just before
    result = loop.train(CONFIG, tiny_run.dataset(), run)
    expected = json.loads((calm / "result.json").read_text())
    assert result["compile_seconds"] == 0 < expected["compile_seconds"]
    assert result["test_error"] == expected["test_error"]
    assert_same_run(run, calm)


def test_a_checkpoint_of_another_config_or_other_data_is_refused(unfinished):
    other = dataclasses.replace(CONFIG, seed=1)
    (unfinished / "config.json").write_text(to_json(other))
    with pytest.raises(RunnerError, match=r"of another config \(seed: 0 there, 1 here\)"):
        loop.train(other, tiny_run.dataset(), unfinished)
    (unfinished / "config.json").write_text(to_json(CONFIG))
    data = tiny_run.dataset()
    data.train_images[0, 0, 0, 0] ^= 1
    with pytest.raises(RunnerError, match="on other training images than there are now"):
        loop.train(CONFIG, data, unfinished, fall_back=True)


def test_an_unfinished_run_may_be_refused(unfinished):
    with pytest.raises(
        RunnerError, match="holds an unfinished run of this config; give --resume to continue it"
    ):
        loop.train(CONFIG, tiny_run.dataset(), unfinished, resume=False)


def test_the_state_of_a_run_is_more_than_its_parameters(unfinished):
    facts = json.loads((unfinished / "checkpoints" / "4" / "facts" / "metadata").read_text())
    assert facts["config"]["seed"] == 0
    assert (facts["epoch"], facts["position"], facts["window"]) == (2, 0, [])


@pytest.mark.slow
def test_devices_may_change_between_two_parts_of_a_run(unfinished, calm):
    one = loop.Execution(jax.devices()[:1])
    loop.train(CONFIG, tiny_run.dataset(), unfinished, execution=one)
    chex.assert_trees_all_close(
        tiny_run.newest_state(unfinished / "checkpoints"),
        tiny_run.newest_state(calm / "checkpoints"),
        rtol=1e-3,
        atol=1e-4,
    )
