"""How long a training step should take on accelerators that nobody here has: computed, not measured.

A step is the longer of its arithmetic and its memory traffic, then the steps of its loops, each of which costs a launch, and then
the all-reduce of the gradients, which nothing hides. Multiply-adds are those that cannot be done without (benchmark_layer.py); the
share of a machine's rate that they reach is the one measured on a CPU. Bytes are those of the loops of `votes.py`, each array read
and written in each step of a loop. The network is the paper's in kind, with the paper's three iterations.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emcaps import CapsNet, ReceptiveField
from emcaps.types import POSE_ENTRIES

ITERATIONS = 3
EXAMPLES = 64  # on each device
DEVICES = (8, 64, 1024)
TIMES_FLOOR = 2.4  # time over that of the multiply-adds alone, `python -m experiments.benchmark --parts kernels`
CHUNK, GRADIENT_CHUNK = 4, 3  # children in a step of a loop


class Accelerator(NamedTuple):
    """Published figures of a kind of device, and two guesses.

    Attributes:
        name: of the device.
        multiply_adds: float32, a second, outside matrix units.
        memory: bytes a second to and from its memory.
        group: how many are joined by fast links.
        fast: bytes a second that a device sends over these.
        slow: bytes a second that it sends beyond its group.
        launch: seconds that a step of a loop takes whatever it does; a guess.
        latency: seconds for a message; a guess.
    """

    name: str
    multiply_adds: float
    memory: float
    group: int
    fast: float
    slow: float
    launch: float
    latency: float


ACCELERATORS = (
    # NVIDIA's data sheet of the H100 SXM: 67 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s both ways, eight in a host; 400 Gb/s beyond.
    Accelerator("H100", 33.5e12, 3.35e12, 8, 450e9, 50e9, 5e-6, 5e-6),
    # Jouppi et al. 2023, TPU v4: 2 cores x 128 lanes x 16 units at 1.05 GHz, multiply and add apart; 1.2 TB/s; a torus of 4096 with
    # six links of 50 GB/s, of which an all-reduce is taken to keep three busy.
    Accelerator("TPU v4", 2.15e12, 1.2e12, 4096, 150e9, 150e9, 1e-6, 1e-6),
)


class Work(NamedTuple):
    """What an example costs, forward and back.

    Attributes:
        parameters: of the network.
        multiply_adds: of its routing, which are nearly all.
        bytes: to and from memory, of its routing.
        loop_steps: whatever the number of examples.
    """

    parameters: int
    multiply_adds: float
    bytes: float
    loop_steps: float


def work(width: int, image_shape: tuple[int, int, int], num_classes: int) -> Work:
    """That of a network whose layers all have this width."""
    model = CapsNet(num_classes, width, width, (width, width))
    init = functools.partial(model.init, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jnp.zeros((1, *image_shape)))))
    size, layers = image_shape[0], []
    for index, (kernel, stride) in enumerate(model.layer_geometry()):
        positions = ReceptiveField((size, size), (kernel, kernel), stride).output_size[0]
        if index >= 2:  # capsules
            layers.append((positions**2, kernel**2 * width, width))
        size = positions
    layers.append((1, size**2 * width, num_classes))
    pairs = sum(math.prod(layer) for layer in layers)
    uses = 2 * ITERATIONS - 1  # of the votes: M-steps and E-steps
    multiply_adds = 96 * uses + (96 + POSE_ENTRIES) * uses + 64 + 128

    entries = 4 * POSE_ENTRIES  # bytes for each parent and column
    moments = (2 * 2 * entries + entries) / CHUNK + 4  # sums of two kinds read and written, a centre; weights
    scores = 2 * entries / CHUNK + 4
    gradient = (2 * entries / GRADIENT_CHUNK + 4) * uses + 2 * entries
    back = ITERATIONS * (scores + entries / CHUNK) + (ITERATIONS - 1) * moments + gradient
    traffic = ITERATIONS * moments + (ITERATIONS - 1) * scores + back
    loop_steps = sum(children * (2 * uses / CHUNK + 1 / GRADIENT_CHUNK) for _, children, _ in layers)
    return Work(parameters, pairs * multiply_adds, pairs * traffic, loop_steps)


def all_reduce_seconds(accelerator: Accelerator, payload: float, devices: int) -> float:
    """In groups by the fast links, each device then a share of it over the slow ones."""
    group = min(devices, accelerator.group)
    groups = devices // group
    fast = 2 * (group - 1) / group * payload / accelerator.fast
    slow = 2 * (groups - 1) / groups * payload / group / accelerator.slow
    return fast + slow + 2 * math.log2(devices) * accelerator.latency


def forecast(name: str, width: int, image_shape: tuple[int, int, int], num_classes: int) -> list[dict[str, Any]]:
    """The parts of a step, in milliseconds, for each kind and number of devices, and the share of it that is not all-reduce."""
    cost, rows = work(width, image_shape, num_classes), []
    for accelerator in ACCELERATORS:
        parts = {
            "arithmetic": EXAMPLES * cost.multiply_adds * TIMES_FLOOR / accelerator.multiply_adds,
            "memory": EXAMPLES * cost.bytes / accelerator.memory,
            "loop steps": cost.loop_steps * accelerator.launch,
        }
        alone = max(parts["arithmetic"], parts["memory"]) + parts["loop steps"]
        for devices in DEVICES:
            told = all_reduce_seconds(accelerator, 4 * cost.parameters, devices)
            row = {"network": name, "parameters": cost.parameters, "accelerator": accelerator.name, "devices": devices}
            milliseconds = {part: 1e3 * seconds for part, seconds in (parts | {"all-reduce": told}).items()}
            limit = max(milliseconds, key=milliseconds.__getitem__)
            step = {"step": 1e3 * (alone + told), "efficiency": alone / (alone + told), "limited_by": limit}
            rows.append(row | milliseconds | step)
    return rows
