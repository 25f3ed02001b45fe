"""Training steps on devices that divide the work in different ways, and how far their results are
apart.
"""

import functools
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emcaps import TRAINABLE
from experiments.data.batches import Batch
from experiments.data.preprocessing import ImageConfig
from experiments.devices.parallel import Execution, Mode, parallelize
from experiments.learning.configs import ModelConfig, TrainConfig
from experiments.learning.network import make_model
from experiments.learning.step import init_state, make_train_step
from experiments.runtime import processes
from experiments.runtime.errors import RunnerError

STEPS = 5
BATCH = 32
NUM_CLASSES = 5
TIMEOUT = 600  # seconds for several processes
CONFIG = TrainConfig(
    # E-steps in each layer.
    model=ModelConfig(conv_channels=8, primary_capsules=4, conv_capsules=(8,), routing=TRAINABLE),
    dataset="mnist",
    images=ImageConfig(max_shift=0),
    batch_size=BATCH,
    steps=STEPS,
    warmup_steps=0,
)


class Division(NamedTuple):
    """How the work is divided; see `Hardware`."""

    devices: int
    parallel: Mode = "jit"
    model_axis: int = 1
    accumulate: int = 1
    processes: int = 1

    def __str__(self) -> str:
        parts = [f"{self.processes} processes" if self.processes > 1 else self.parallel]
        parts += [f"{self.devices} device" + "s" * (self.devices > 1)]
        parts += [f"{self.model_axis} share parent types"] * (self.model_axis > 1)
        parts += [f"shares in {self.accumulate} parts"] * (self.accumulate > 1)
        return ", ".join(parts)


# What is compared with one device that takes the batch at once.
DIVISIONS = (
    Division(2),
    Division(4),
    Division(8),
    Division(1, "pmap"),
    Division(2, "pmap"),
    Division(4, "pmap"),
    Division(8, "pmap"),
    Division(1, accumulate=4),
    Division(4, accumulate=2),
    Division(4, "pmap", accumulate=2),
    Division(2, model_axis=2),
    Division(8, model_axis=8),
    Division(8, model_axis=2, accumulate=2),
    Division(2, processes=2),
    Division(4, processes=2),
    Division(4, model_axis=2, processes=2),
)
PRECISIONS = ("float32", "float64")


class Steps(NamedTuple):
    """What some steps gave, in NumPy arrays.

    Attributes:
        losses: of each step.
        gradient: of the first step, a tree.
        params: after the last step, likewise.
        programs: how often the step was traced, and so compiled; once, whatever it is given.
    """

    losses: np.ndarray
    gradient: Any
    params: Any
    programs: np.ndarray


def take_steps(execution: Execution, precision: str, number: int = STEPS) -> Steps:
    """The same steps as on any other devices, so many: parameters, images and labels are those of
    fixed keys.
    """
    with jax.enable_x64(precision == "float64"):
        cast = functools.partial(
            jax.tree.map, lambda leaf: leaf.astype(precision) if leaf.dtype == jnp.float32 else leaf
        )
        # Without a dtype of its own the network computes in that of its parameters.
        network, shared = (
            make_model(CONFIG.model, NUM_CLASSES, axis).clone(dtype=None)
            for axis in (None, execution.parent_axis)
        )
        keys = jax.random.split(jax.random.key(0), number + 1)
        init = jax.jit(functools.partial(init_state, CONFIG, network))
        first = jax.device_get(cast(init(jnp.zeros((1, 13, 13, 1), jnp.float32), keys[number])))

        def batch(step: int) -> Batch:
            return Batch(
                jax.random.uniform(keys[step], (BATCH, 13, 13, 1), precision),
                jnp.arange(BATCH, dtype=jnp.int32) % NUM_CLASSES,
            )

        train_step = make_train_step(CONFIG, shared)

        traced = []

        def step_and_gradient(state: Any, batch: Batch, average: Callable) -> tuple[Any, Any]:
            traced.append(True)
            gradients = []

            def average_and_note(function: Callable) -> Callable:
                def noted(*given: Any) -> tuple[Any, Any]:
                    means, gradient = average(function)(*given)
                    gradients.append(gradient)
                    return means, gradient

                return noted

            state, metrics = train_step(state, batch, average_and_note)
            return state, (metrics.loss, gradients[0])

        on_devices = parallelize(step_and_gradient, execution)
        state, found = on_devices.replicate(first), []
        for step in range(number):
            state, result = on_devices.step(state, on_devices.shard(batch(step)))
            found.append(result)
        losses = np.array([float(loss) for loss, _ in found])
        gradient, params = jax.tree.map(processes.fetch, (found[0][1], state.params))
        return Steps(losses, gradient, params, np.array(len(traced)))


def as_arrays(steps: Steps) -> dict[str, np.ndarray]:
    """By names for an .npz file."""
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(steps)
    }


def differences(
    arrays: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> dict[str, float]:
    """The largest relative difference in the loss, the gradient and the parameters; not a number if
    one is missing.

    Of arrays: relative to the largest entry of the array.
    """
    largest = dict.fromkeys(Steps._fields, 0.0)
    for name, expected in reference.items():
        off = np.abs(arrays[name] - expected)
        part = next(field for field in Steps._fields if name.startswith(f".{field}"))
        relative = (
            (off / np.abs(expected)).max()
            if part == "losses"
            else off.max() / np.abs(expected).max()
        )
        largest[part] = float(np.maximum(largest[part], relative))
    return largest


def arrays_of(division: Division, precision: str) -> dict[str, np.ndarray]:
    """What the steps give, in this process or in several others on this host.

    Raises RunnerError if one of these fails.
    """
    if division.processes == 1:
        devices = jax.devices()[: division.devices]
        execution = Execution(devices, division.parallel, division.model_axis, division.accumulate)
        return as_arrays(take_steps(execution, precision))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "steps.npz")
        words = [
            "--output",
            output,
            "--precision",
            precision,
            "--coordinator",
            address,
            "--num-processes",
            division.processes,
        ]
        words += [
            "--devices",
            division.devices,
            "--model-axis",
            division.model_axis,
            "--accumulate",
            division.accumulate,
        ]
        command = [sys.executable, "-m", "experiments.equality", *map(str, words), "--process-id"]
        # What they print is about their connections. The environment says nothing of this process's
        # simulated devices.
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
        }
        start = functools.partial(subprocess.Popen, stdout=subprocess.DEVNULL, env=environment)
        started = [start([*command, str(number)]) for number in range(division.processes)]
        try:
            if any([process.wait(timeout=TIMEOUT) for process in started]):
                raise RunnerError(f"{division}: a process failed")
        finally:
            for process in started:
                process.kill()
        with np.load(output) as arrays:
            return dict(arrays)
