"""One process of the benchmark: the textbook's formulation in PyTorch, on a GPU if there is one, after a look at its values.

`python -m experiments.benchmark --parts torch` starts it, with JAX on the CPU, so that PyTorch has the GPU's memory.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from experiments import textbook_torch
from experiments.benchmark_accelerator import Workload, append, workloads
from experiments.benchmark_layer import layer_arguments, routings
from experiments.benchmark_networks import LEARNING_RATE, MARGIN, step_arguments
from experiments.command_line import parse
from experiments.errors import first_line
from experiments.timing import SAMPLE_SECONDS

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
        found = torch.as_tensor(array.astype(np.int64) if array.dtype.kind == "i" else array.copy(), device=DEVICE)
        return found.requires_grad_(grad and found.is_floating_point())

    return jax.tree.map(tensor, tree)


def runner(load: Workload, mode: str) -> tuple[Callable[[], Any], float]:
    """A call of the workload, and how far its values are from ours for a few examples, relative to the largest."""
    compiled: Callable = torch.compile(dynamic=False) if mode == "compile" else lambda function: function
    if load.task == "step":
        arguments = step_arguments(load.widths, load.batch)
        params, images, labels = tensors(arguments[0]), tensors(arguments[1], grad=False), tensors(arguments[2])
        leaves = jax.tree.leaves(params)
        model = load.widths.model()
        offsets = tensors(textbook_torch.class_offsets(model, arguments[1].shape[1:3]), grad=False)
        iterations = model.layer_routing()[0].num_iterations

        @compiled
        def loss(params: Any, images: Any, labels: Any) -> Any:
            activations = textbook_torch.class_activations(params, images, offsets, iterations)
            return textbook_torch.spread_loss(activations, labels, MARGIN).mean()

        def step() -> Any:
            gradients = torch.autograd.grad(loss(params, images, labels), leaves)
            with torch.no_grad():
                return torch._foreach_add(leaves, gradients, alpha=-LEARNING_RATE)

        with torch.no_grad():
            theirs = textbook_torch.class_activations(params, images[:CHECKED], offsets, iterations)
        ours = jax.jit(lambda *given: model.apply(*given)[0].activations)({"params": arguments[0]}, arguments[1][:CHECKED])
        return step, off(theirs, ours)

    layer = load.widths.first_layer(load.batch)
    arrays = layer_arguments(layer)
    given = tensors(arrays, grad=load.task == "layer, gradient")
    static = {"stride": layer.stride, "num_iterations": layer.iterations}
    with torch.no_grad():
        theirs, _ = textbook_torch.conv_em_routing(given[0][:CHECKED], given[1][:CHECKED], *given[2:], **static)
    few = dataclasses.replace(layer, batch=CHECKED)
    ours, _ = jax.jit(routings(few)["streamed"])(arrays[0][:CHECKED], arrays[1][:CHECKED], *arrays[2:])

    @compiled
    def forward(*arguments: Any) -> tuple[Any, Any]:
        return textbook_torch.conv_em_routing(*arguments, **static)

    def gradient() -> Any:
        poses, activations = forward(*given)
        return torch.autograd.grad((poses**2).sum() + (activations**2).sum(), given)

    return gradient if load.task == "layer, gradient" else lambda: forward(*given), off(theirs, ours)


def off(theirs: Any, ours: Any) -> float:
    """The largest difference, relative to the largest of ours."""
    expected = np.asarray(ours)
    return float(np.abs(theirs.cpu().numpy() - expected).max() / np.abs(expected).max())


def sample(call: Callable[[], Any], calls: int) -> float:
    """Seconds of so many calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(load: Workload, command: TorchCommand) -> dict[str, Any]:
    """Seconds of a call, as `timing.time_in_turns` takes them, and the most memory that was in use beside the arguments."""
    call, difference = runner(load, command.mode)
    compile_seconds = sample(call, 1)
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
    command = parse(TorchCommand, "python -m experiments.benchmark_torch")
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


if __name__ == "__main__":
    sys.exit(main())
