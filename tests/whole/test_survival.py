"""Runs that are killed at random moments, and go on as if nothing had happened:
`pytest -m slow tests/whole/test_survival.py`.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import pytest
import tiny_run

from experiments.runs.directory import read_records

pytestmark = pytest.mark.slow

STEPS = 600
FLAGS = (
    f"--steps {STEPS} --eval-every 15 --batch-size 8 --devices 1 --conv-channels 4 "
    "--primary-capsules 2 --conv-capsules 3"
)


def start(folder):
    command = [
        sys.executable,
        "-m",
        "experiments.train",
        "--dataset",
        str(folder.parent / "data.npz"),
        *FLAGS.split(),
    ]
    command += ["--num-iterations", "1", "--workdir", str(folder)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(folder):
    process = start(folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def wait_for(path, process):
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run that nobody has disturbed, and how many seconds it trained."""
    folder = tmp_path_factory.mktemp("survival") / "uninterrupted"
    tiny_run.write_npz(folder.parent / "data.npz")
    finish(folder)
    seconds = [record["seconds"] for record in read_records(folder)]
    return folder, seconds[-1] - seconds[0]


def outcome(folder):
    """The last state of a finished run, bit for bit, all its records, and its result, without what
    a clock has measured.
    """
    state = jax.device_get(tiny_run.newest_state(folder / "checkpoints"))
    assert state.step == STEPS
    result = json.loads((folder / "result.json").read_text())
    measured = {
        name: result[name] for name in ("test_error", "test_loss", "best_test_accuracy", "steps")
    }
    return state, tiny_run.deterministic(read_records(folder)), measured


def interrupt(folder, number, after):
    """Start a run, send it a signal so many seconds after its first record, and wait
    for its end.
    """
    process = start(folder)
    wait_for(folder / "metrics.jsonl", process)
    time.sleep(after)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


@pytest.mark.parametrize("seed", range(30))
def test_a_run_that_was_killed_ends_as_one_that_was_not(uninterrupted, seed):
    calm, seconds = uninterrupted
    folder = calm.with_name(f"killed-{seed}")
    code, _ = interrupt(folder, signal.SIGKILL, random.Random(seed).uniform(0, seconds))
    assert code == -signal.SIGKILL
    finish(folder)
    chex.assert_trees_all_equal(outcome(folder), outcome(calm))


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_was_preempted_saves_says_how_to_go_on_and_ends_as_one_that_was_not(
    uninterrupted, seed
):
    calm, seconds = uninterrupted
    folder = calm.with_name(f"preempted-{seed}")
    code, errors = interrupt(
        folder, signal.SIGTERM, random.Random(100 + seed).uniform(0, 0.8 * seconds)
    )
    assert code == 0
    assert f"saved in {folder}; to go on:\n  python -m experiments.train --dataset" in errors
    assert not (folder / "result.json").exists()
    finish(folder)
    chex.assert_trees_all_equal(outcome(folder), outcome(calm))
