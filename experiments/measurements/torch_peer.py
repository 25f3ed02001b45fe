"""One process of the benchmark: the textbook's formulation in PyTorch, on a GPU if there is one,
after a look at its values.

`python -m experiments.benchmark --parts torch` calls its `main`, with JAX on the CPU. Of
the GPU's memory the process that calls it has reserved none, and holds what measuring the ceilings
took; PyTorch has the rest.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from experiments.measurements import textbook_torch
from experiments.measurements.accelerator import Workload, append, workloads
from experiments.measurements.layer import layer_arguments, routings
from experiments.measurements.timing import SAMPLE_SECONDS
from experiments.measurements.training_step import LEARNING_RATE, MARGIN, step_arguments
from experiments.runtime.command_line import parse
from experiments.runtime.errors import first_line

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHECKED = 2  # examples whose values are compared with ours


@dataclasses.dataclass(frozen=True)
class TorchCommand:
    """Measure the textbook's formulation in PyTorch."""

    mode: Literal["eager", "compile"]
    networks: tuple[str, ...]
    batches: tuple[int, ...]
    output: Path
    """A file to which a line is added for each workload."""
    repeats: int = 7


def tensors(tree: Any, grad: bool = True) -> Any:
    """JAX arrays as tensors on the device; those of real numbers are to be differentiated."""

    def tensor(array: Any) -> Any:
        array = np.asarray(array)
        found = torch.as_tensor(
            array.astype(np.int64) if array.dtype.kind == "i" else array.copy(), device=DEVICE
        )
        return found.requires_grad_(grad and found.is_floating_point())

    return jax.tree.map(tensor, tree)


class Contender(NamedTuple):
    """A workload in PyTorch.

    Attributes:
        call: makes one, by the loss or the routing that it is given, plain or compiled. Returns
            tensors.
        function: this loss or routing.
        off: how far its values are from ours for a few examples, relative to the largest.
    """

    call: Callable[[Callable], Sequence[Any]]
    function: Callable
    off: float


def training_step(load: Workload) -> Contender:
    """A training step; it returns the gradient."""
    arguments = step_arguments(load.widths, load.batch)
    params, images, labels = (
        tensors(arguments[0]),
        tensors(arguments[1], grad=False),
        tensors(arguments[2]),
    )
    leaves = jax.tree.leaves(params)
    model = load.widths.model()
    offsets = tensors(textbook_torch.class_offsets(model, arguments[1].shape[1:3]), grad=False)
    iterations = model.layer_routing()[0].num_iterations

    def loss(params: Any, images: Any, labels: Any) -> Any:
        activations = textbook_torch.class_activations(params, images, offsets, iterations)
        return textbook_torch.spread_loss(activations, labels, MARGIN).mean()

    def step(loss: Callable) -> Sequence[Any]:
        gradients = torch.autograd.grad(loss(params, images, labels), leaves)
        with torch.no_grad():
            torch._foreach_add(leaves, gradients, alpha=-LEARNING_RATE)
        return gradients

    with torch.no_grad():
        theirs = textbook_torch.class_activations(params, images[:CHECKED], offsets, iterations)
    ours: Any = jax.jit(lambda *given: model.apply(*given)[0].activations)  # pyright: ignore[reportIndexIssue]
    return Contender(
        step, loss, off(theirs, ours({"params": arguments[0]}, arguments[1][:CHECKED]))
    )


def first_layer(load: Workload) -> Contender:
    """The first routing layer; it returns what the routing gives, or the gradient."""
    layer = load.widths.first_layer(load.batch)
    arrays = layer_arguments(layer)
    differentiated = load.task == "layer, gradient"
    given = tensors(arrays, grad=differentiated)
    routing = functools.partial(
        textbook_torch.conv_em_routing, stride=layer.stride, num_iterations=layer.iterations
    )

    def forward(*arguments: Any) -> tuple[Any, Any]:
        return routing(*arguments)

    def call(forward: Callable) -> Sequence[Any]:
        poses, activations = forward(*given)
        return (
            torch.autograd.grad((poses**2).sum() + (activations**2).sum(), given)
            if differentiated
            else (poses, activations)
        )

    with torch.no_grad():
        theirs, _ = routing(given[0][:CHECKED], given[1][:CHECKED], *given[2:])
    few = dataclasses.replace(layer, batch=CHECKED)
    ours, _ = jax.jit(routings(few)["streamed"])(
        arrays[0][:CHECKED], arrays[1][:CHECKED], *arrays[2:]
    )
    return Contender(call, forward, off(theirs, ours))


def off(theirs: Any, ours: Any) -> float:
    """The largest difference, relative to the largest of ours."""
    expected = np.asarray(ours)
    return float(np.abs(theirs.detach().cpu().numpy() - expected).max() / np.abs(expected).max())


def sample(call: Callable[[], Any], calls: int) -> float:
    """Seconds of so many calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(load: Workload, command: TorchCommand) -> dict[str, Any]:
    """Seconds of a call, and the most memory that was in use beside the arguments.

    Samples are as long as those of `timing.time_in_turns`, but of one function after the other. Its
    `scratch_bytes` leave out results, which PyTorch's peak has in it.
    """
    contender = training_step(load) if load.task == "step" else first_layer(load)
    difference, function = contender.off, contender.function
    if command.mode == "compile":
        function = torch.compile(function, dynamic=False)
    call = functools.partial(contender.call, function)
    compile_seconds = sample(call, 1)
    if command.mode == "compile":
        pairs = zip(call(), contender.call(contender.function), strict=True)
        difference = max(difference, *(off(found, plain.detach().cpu()) for found, plain in pairs))
    sample(call, 2)
    before = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    calls = 1
    while sample(call, calls) < SAMPLE_SECONDS:
        calls *= 2
    samples = [sample(call, calls) / calls for _ in range(command.repeats)]
    peak = torch.cuda.max_memory_allocated() - before if DEVICE == "cuda" else 0
    return {
        "seconds": statistics.median(samples),
        "fastest": min(samples),
        "compile_seconds": compile_seconds,
        "scratch_bytes": peak,
        "off": difference,
    }


def main() -> None:
    command = parse(TorchCommand, "experiments.measurements.torch_peer")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for load in workloads(command.networks, command.batches):
        place = {"network": str(load.widths), "batch": load.batch, "task": load.task}
        try:
            found = measure(load, command)
        except RuntimeError as error:  # out of memory, most likely
            found = {"missing": first_line(error)[:200]}
        append([{**place, **found}], command.output)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
