"""Several processes on this host: `pytest -m slow tests/whole/test_hosts.py`.

What they compute; what happens when one is gone.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from experiments.runs.directory import read_records
from experiments.verification.step_equality import Division, arrays_of, differences

pytestmark = pytest.mark.slow
FLAGS = (
    "--batch-size 8 --eval-every 10 --conv-channels 4 --primary-capsules 2 --conv-capsules 4 "
    "--num-iterations 1"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small data set in a file."""
    file = tmp_path_factory.mktemp("data") / "data.npz"
    tiny_run.write_npz(file)
    return file


def start(data, workdir, *flags, number=2):
    """The processes of one run, of one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [
        sys.executable,
        "-m",
        "experiments.train",
        "--dataset",
        data,
        "--workdir",
        workdir,
        *FLAGS,
        *flags,
    ]
    command += [
        "--devices",
        number,
        "--coordinator",
        f"127.0.0.1:{port}",
        "--num-processes",
        number,
        "--process-id",
    ]
    return [
        subprocess.Popen(
            list(map(str, [*command, index])),
            env=environment,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(number)
    ]


def ends(processes):
    """Exit code and standard error of each."""
    return [
        (errors, process.returncode)
        for process in processes
        for _, errors in [process.communicate(timeout=300)]
    ]


def wait_for(path, processes):
    while not path.exists():
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "division", [Division(2, processes=2), Division(4, model_axis=2, processes=2)], ids=str
)
def test_two_processes_take_the_steps_of_one(division):
    reference = arrays_of(Division(1), "float64")
    assert max(differences(arrays_of(division, "float64"), reference).values()) < 1e-10


def test_a_run_of_two_processes_is_preempted_goes_on_and_is_the_run_of_one_process_with_two_devices(
    data, tmp_path
):
    processes = start(data, tmp_path / "two", "--steps", "400")
    wait_for(tmp_path / "two" / "metrics.jsonl", processes)
    processes[1].send_signal(signal.SIGTERM)  # one is told, and all stop
    for errors, code in ends(processes):
        assert code == 0, errors
        assert "to go on:\n  python -m experiments.train" in errors
    assert not (tmp_path / "two" / "result.json").exists()
    for errors, code in ends(start(data, tmp_path / "two", "--steps", "400")):
        assert code == 0, errors
    (one,) = start(data, tmp_path / "one", "--steps", "400", number=1)
    assert ends([one])[0][1] == 0
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert (result["processes"], result["devices"], result["test_examples"]) == (2, 2, 37)
    first, other = (
        tiny_run.deterministic(read_records(tmp_path / name)) for name in ("two", "one")
    )
    assert [(record["step"], record["split"]) for record in first] == [
        (record["step"], record["split"]) for record in other
    ]
    early = [
        (a["loss"], b["loss"])
        for a, b in zip(first, other, strict=True)
        if a["step"] == 10 and "loss" in a
    ]
    np.testing.assert_allclose(*zip(*early, strict=True), rtol=1e-3)


@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_process_is_gone_the_other_says_so_and_the_run_goes_on_from_what_was_saved(
    data, tmp_path, lost
):
    steps = ["--steps", "300"]
    processes = start(data, tmp_path / "run", *steps)
    wait_for(tmp_path / "run" / "checkpoints" / "20", processes)
    processes[lost].kill()
    found = ends(processes)
    errors, code = found[1 - lost]
    assert code != 0
    # The second is JAX's own.
    assert "another process is gone" in errors or "another task died" in errors
    for errors, code in ends(start(data, tmp_path / "run", *steps)):
        assert code == 0, errors
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 300
