"""How fast is the routing, and how much memory does it take? `python -m experiments.benchmark`, on an otherwise idle machine.

In one process it measures, side by side, the textbook formulation (experiments/textbook.py), `implementation="dense"` and
`"streamed"`, the last as a plain call on one device and with the batch divided among all devices (on a CPU: one per core).
It measures one layer, forward and with its gradient, and a training step of a whole network; then the parts of the streamed
routing against the multiply-adds that they cannot do without, at the machine's own rate; and how cost grows with each size. At last
the class capsules of dynamic routing, with votes in memory and without, and the strided convolution below them; and what a run
costs beside its steps.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

import emcaps
from emcaps import em, layout
from emcaps.dynamic_capsnet import StridedConv
from emcaps.votes import StreamedVotes, VoteTerms
from experiments import run_figures, textbook
from experiments.benchmark_loop import benchmark_loop
from experiments.command_line import exit_code, parse
from experiments.configs import check_positive
from experiments.hardware import choose_devices, split_cpu
from experiments.parallel import REPLICATED, SHARDED, device_mesh
from experiments.run_directory import check_folder
from experiments.timing import Measurement, fit_exponent, measure, multiply_adds, small_numbers

Part = Literal["layer", "step", "kernels", "sweeps", "dynamic", "loop"]
PARTS: tuple[Part, ...] = ("layer", "step", "kernels", "sweeps", "dynamic", "loop")


# The procedure that textbook.py implements.
PAPER_ROUTING, _ = emcaps.PRESETS["paper"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of convolutional capsules."""

    batch: int = 16
    """Examples."""
    size: int = 14
    """Height and width of the children's map."""
    kernel: int = 3
    """Kernel size."""
    stride: int = 2
    """Stride."""
    children: int = 8
    """Child capsule types."""
    parents: int = 16
    """Parent capsule types."""
    iterations: int = 3
    """Routing iterations."""

    def __post_init__(self):
        check_positive(self, *(field.name for field in dataclasses.fields(self)))
        if self.kernel > self.size:
            raise ValueError(f"kernel must be at most size, {self.size}; got {self.kernel}")

    @property
    def positions(self) -> int:
        """Parent positions."""
        return ((self.size - self.kernel) // self.stride + 1) ** 2

    @property
    def pairs(self) -> int:
        """(child, parent) pairs that the layer routes."""
        return self.batch * self.positions * self.kernel**2 * self.children * self.parents


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure."""

    layer: Layer = dataclasses.field(default_factory=Layer)
    parts: tuple[Part, ...] = PARTS
    """Which measurements to make."""
    repeats: int = 7
    """Runs of each function; the median counts."""
    output: Path = Path("runs/benchmark")
    """Folder for benchmark.json and benchmark.png."""

    def __post_init__(self):
        check_positive(self, "repeats")
        if not self.parts:
            raise ValueError(f"parts must be one or more of {', '.join(PARTS)}; got none")


def layer_arguments(layer: Layer) -> tuple[jax.Array, ...]:
    """Random poses, activations, transforms, beta_u and beta_a."""
    keys = jax.random.split(jax.random.key(0), 5)
    children = (layer.batch, layer.size, layer.size, layer.children)
    transforms = (layer.kernel, layer.kernel, layer.children, layer.parents, 4, 4)
    return (
        jax.random.normal(keys[0], (*children, 4, 4)),
        jax.random.uniform(keys[1], children),
        jnp.eye(4) + 0.3 * jax.random.normal(keys[2], transforms),
        jax.random.normal(keys[3], (layer.parents,)),
        jax.random.normal(keys[4], (layer.parents,)),
    )


def routings(layer: Layer) -> dict[str, Callable]:
    """The three formulations, each from a layer's arguments to `(poses, activations)`."""
    static = {"stride": layer.stride, "num_iterations": layer.iterations}

    def ours(implementation: str, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        return emcaps.conv_em_routing(*arguments, **static, implementation=implementation)[:2]

    return {
        "textbook": functools.partial(textbook.conv_em_routing, **static),
        "dense": functools.partial(ours, "dense"),
        "streamed": functools.partial(ours, "streamed"),
    }


def with_gradient(routing: Callable) -> Callable:
    """The gradient for all arguments of a loss on what `routing` returns."""

    def loss(*arguments: jax.Array) -> jax.Array:
        return sum(((array**2).sum() for array in routing(*arguments)), jnp.zeros(()))

    return jax.grad(loss, argnums=tuple(range(5)))


def on_all_devices(function: Callable) -> Callable:
    """A layer function with the batch divided among the devices; gradients of what they share are summed."""
    in_specs = (SHARDED, SHARDED, REPLICATED, REPLICATED, REPLICATED)

    def local(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        poses, activations, *shared = function(*arguments)
        return poses, activations, *(jax.lax.psum(array, "data") for array in shared)

    def specs(number: int) -> tuple:
        return in_specs[:number]

    def mapped(*arguments: jax.Array) -> Any:
        number = len(jax.eval_shape(function, *arguments))
        return jax.shard_map(local, mesh=device_mesh(jax.devices()), in_specs=in_specs, out_specs=specs(number), check_vma=False)(
            *arguments
        )

    return mapped


def place_on_all_devices(arguments: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """A layer's arguments where `on_all_devices` wants them."""
    mesh = device_mesh(jax.devices())
    specs = (SHARDED, SHARDED, REPLICATED, REPLICATED, REPLICATED)
    return tuple(jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arguments, specs, strict=True))


def benchmark_layer(layer: Layer, repeats: int) -> dict[str, dict[str, Measurement]]:
    """One layer, forward and with the gradient, each formulation on one device, streamed on all of them as well."""
    arguments = layer_arguments(layer)
    results = {}
    for direction, transform in (("forward", lambda routing: routing), ("gradient", with_gradient)):
        contenders = {name: (transform(routing), arguments) for name, routing in routings(layer).items()}
        streamed = contenders["streamed"][0]
        contenders["streamed, all devices"] = (on_all_devices(streamed), place_on_all_devices(arguments))
        results[direction] = measure(contenders, repeats)
    return results


def benchmark_step(batch: int, repeats: int, iterations: int) -> dict[str, Measurement]:
    """A gradient step of a network of widths 32/8/16/16 on 32x32x2 images, five classes, the paper's procedure."""
    images = jax.random.uniform(jax.random.key(1), (batch, 32, 32, 2))
    labels = jnp.arange(batch) % 5

    def model(implementation: str) -> emcaps.CapsNet:
        routing = dataclasses.replace(PAPER_ROUTING, num_iterations=iterations, implementation=implementation)
        return emcaps.CapsNet(5, 32, 8, (16, 16), routing)

    params = model("streamed").init(jax.random.key(0), images[:1])["params"]

    def step(network: Callable, params: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return emcaps.spread_loss(network(params, images), labels, 0.5).mean()

        return jax.tree.map(lambda weight, slope: weight - 1e-3 * slope, params, jax.grad(loss)(params))

    def ours(implementation: str, params: Any, images: jax.Array) -> jax.Array:
        return model(implementation).apply({"params": params}, images)[0].activations  # pyright: ignore[reportIndexIssue]

    networks = {
        "textbook": functools.partial(textbook.class_activations, model("dense")),
        "dense": functools.partial(ours, "dense"),
        "streamed": functools.partial(ours, "streamed"),
    }
    contenders: dict[str, tuple[Callable, tuple]] = {
        name: (functools.partial(step, network), (params, images, labels)) for name, network in networks.items()
    }

    def sharded_step(params: Any, images: jax.Array, labels: jax.Array) -> Any:
        def local(params: Any, batch: tuple[jax.Array, jax.Array]) -> Any:
            return jax.lax.pmean(step(networks["streamed"], params, *batch), "data")

        mesh = device_mesh(jax.devices())
        mapped = jax.shard_map(local, mesh=mesh, in_specs=(REPLICATED, SHARDED), out_specs=REPLICATED, check_vma=False)
        return mapped(params, (images, labels))

    mesh = device_mesh(jax.devices())
    placed = (
        jax.device_put(params, NamedSharding(mesh, REPLICATED)),
        *(jax.device_put(array, NamedSharding(mesh, SHARDED)) for array in (images, labels)),
    )
    contenders["streamed, all devices"] = (sharded_step, placed)
    return measure(contenders, repeats)


def benchmark_kernels(layer: Layer, repeats: int) -> dict[str, dict[str, float]]:
    """The parts of a streamed routing on one device, for one block of the batch, in ns per pair beside their multiply-adds.

    A vote costs 64 multiply-adds; each operator 32 more; the gradient of the votes, over 2T - 1 terms, 16 for each term and
    128 for its two products. The whole has 2T - 1 operators forward, as many back, and one gradient of the votes.
    """
    block = max(1, layout.BLOCK_COLUMNS // layer.positions)
    small = dataclasses.replace(layer, batch=block)
    poses, activations, transforms, beta_u, beta_a = layer_arguments(small)
    field = emcaps.ReceptiveField((small.size, small.size), (small.kernel, small.kernel), small.stride)
    num_children, columns = small.kernel**2 * small.children, small.positions * block
    votes = StreamedVotes(
        field.gather(poses.transpose(3, 4, 5, 1, 2, 0)).reshape(num_children, 4, 4, columns),
        transforms.transpose(0, 1, 2, 4, 5, 3).reshape(num_children, 4, 4, small.parents),
    )
    weights = jax.random.uniform(jax.random.key(2), (num_children, small.parents, columns))
    coefficients = jax.random.normal(jax.random.key(3), (4, 4, small.parents, columns))
    operators = num_terms = 2 * small.iterations - 1

    def terms(number: int, scale: jax.Array | None) -> VoteTerms:
        forms = jnp.stack([coefficients] * number)
        return VoteTerms(jnp.stack([weights] * number), scale, forms, forms + 1)

    groups = terms(small.iterations, weights[:, 0]), terms(small.iterations - 1, None)
    gradient_cost = 64 + 16 * num_terms + 128
    chain, chain_cost = multiply_adds()
    static = {"stride": small.stride, "num_iterations": small.iterations}
    whole = functools.partial(emcaps.conv_em_routing, **static)
    arguments = (poses, activations, transforms, beta_u, beta_a)
    contenders = {
        "moments": (lambda v, w, c: v.moments(w, c, w[:, 0]), (votes, weights, coefficients)),
        "scores": (lambda v, q, c: v.scores(q[0, 0], q, c), (votes, coefficients, coefficients)),
        "vote gradient": (lambda v, g, c: v.gradient(g, c), (votes, groups, coefficients)),
        "softmax over parents": (lambda w: em.compete(w, em.Geometry(field, small.iterations)), (weights,)),
        "whole forward": (lambda *a: whole(*a)[:2], arguments),
        "whole with gradient": (with_gradient(lambda *a: whole(*a)[:2]), arguments),
        "multiply-adds": (chain, (small_numbers(1 << 13),)),
    }
    results = measure(contenders, 3 * repeats)
    rate = chain_cost / results["multiply-adds"].seconds
    floors = {
        "moments": 96,
        "scores": 96,
        "vote gradient": gradient_cost,
        "softmax over parents": 0,
        "whole forward": 96 * operators,
        "whole with gradient": 2 * 96 * operators + gradient_cost,
    }
    rows = {}
    for name, cost in floors.items():
        nanoseconds = 1e9 * results[name].seconds / small.pairs
        floor = 1e9 * cost / rate
        rows[name] = {"ns_per_pair": nanoseconds, "floor_ns": floor, "times_floor": nanoseconds / floor if cost else 0.0}
    rows["multiply-adds"] = {"per_second": rate}
    return rows


def benchmark_sweeps(layer: Layer, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of a streamed layer with its gradient, on one device, while one size at a time grows."""
    sizes = {
        "batch": [8, 16, 32, 64, 128, 256],
        "children": [2, 4, 8, 16, 32],
        "parents": [4, 8, 16, 32, 64],
        "size": [6, 10, 14, 18, 22],
        "iterations": [1, 2, 3, 4, 5],
    }
    sweeps = {}
    for name, values in sizes.items():
        contenders, amounts = {}, []
        for value in values:
            grown = dataclasses.replace(layer, **{name: value})
            contenders[str(value)] = (with_gradient(routings(grown)["streamed"]), layer_arguments(grown))
            amounts.append(grown.positions if name == "size" else value)
        results = measure(contenders, repeats)
        seconds = [results[str(value)].seconds for value in values]
        sweeps["positions" if name == "size" else name] = {"sizes": amounts, "seconds": seconds}
    return sweeps


def benchmark_dynamic(batch: int, repeats: int) -> dict[str, dict[str, Measurement]]:
    """The two expensive layers of the network of dynamic routing at the paper's widths, on one device, with their gradients."""
    keys = jax.random.split(jax.random.key(0), 4)
    children = 0.2 * jax.random.normal(keys[0], (batch, 1152, 8))
    transforms = 0.1 * jax.random.normal(keys[1], (1152, 10, 8, 16))

    def stored(children: jax.Array, transforms: jax.Array) -> jax.Array:
        return emcaps.dynamic_routing(jnp.einsum("bnd,njde->bnje", children, transforms)).poses

    def not_stored(children: jax.Array, transforms: jax.Array) -> jax.Array:
        return emcaps.class_dynamic_routing(children, transforms).poses

    features = jax.random.normal(keys[2], (batch, 20, 20, 256))
    ours, flax = StridedConv(256, 9, 2), nn.Conv(256, (9, 9), 2, padding="VALID")
    params = flax.init(keys[3], features)

    def gradient(function: Callable) -> Callable:
        return jax.grad(lambda *arguments: (function(*arguments) ** 2).sum(), argnums=(0, 1))

    routed = {"votes in memory": stored, "votes not stored": not_stored}
    convolved = {"flax.linen.Conv": flax.apply, "StridedConv": ours.apply}
    return {
        "class capsules, forward": measure({name: (f, (children, transforms)) for name, f in routed.items()}, repeats),
        "class capsules, gradient": measure({name: (gradient(f), (children, transforms)) for name, f in routed.items()}, repeats),
        "9x9 convolution, stride 2, gradient": measure(
            {n: (gradient(f), (params, features)) for n, f in convolved.items()}, repeats
        ),
    }


def report_side_by_side(title: str, results: dict[str, Measurement], pairs: int, unit: str) -> None:
    """A table of one measurement of `measure`, with ratios to the first of it."""
    first = next(iter(results))
    reference = results[first].seconds
    print(f"\n{title}\n{'':24}{unit:>14}{'x first':>12}{'scratch MB':>12}{'compile s':>11}")
    for name, result in results.items():
        amount = 1e9 * result.seconds / pairs if pairs > 1 else 1e3 * result.seconds
        speedup = f"{reference / result.seconds:.1f}"
        print(f"{name:24}{amount:14.1f}{speedup:>12}{result.scratch_bytes / 1e6:12.1f}{result.compile_seconds:11.1f}")


def run(config: BenchmarkConfig) -> None:
    """Measure the parts asked for, print them, and write benchmark.json and benchmark.png.

    Raises:
        UsageError: there can be no such folder, or the devices cannot share the batch; nothing has been measured.
    """
    layer = config.layer
    check_folder(config.output)
    if {"layer", "step"} & set(config.parts):
        choose_devices(layer.batch, len(jax.devices()))
    record: dict[str, Any] = {
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "devices": len(jax.devices()),
        "jax_version": jax.__version__,
    }
    if "layer" in config.parts:
        results = benchmark_layer(layer, config.repeats)
        for direction, measurements in results.items():
            report_side_by_side(f"One layer, {direction}", measurements, layer.pairs, "ns per pair")
        record["layer"] = {d: {n: m._asdict() for n, m in ms.items()} for d, ms in results.items()}
    if "step" in config.parts:
        measurements = benchmark_step(layer.batch, config.repeats, layer.iterations)
        report_side_by_side("Training step, 32/8/16/16, 32x32x2", measurements, 1, "ms")
        record["step"] = {name: measurement._asdict() for name, measurement in measurements.items()}
    if "kernels" in config.parts:
        record["kernels"] = rows = benchmark_kernels(layer, config.repeats)
        rate = rows["multiply-adds"]["per_second"]
        print(f"\nParts of streamed routing, one device; floor at {rate / 1e9:.1f} billion multiply-adds a second")
        print(f"{'':24}{'ns per pair':>14}{'floor':>8}{'x floor':>9}")
        for name, row in rows.items():
            if name != "multiply-adds":
                print(f"{name:24}{row['ns_per_pair']:14.1f}{row['floor_ns']:8.1f}{row['times_floor']:9.1f}")
    if "sweeps" in config.parts:
        sweeps = benchmark_sweeps(layer, max(3, config.repeats // 2))
        record["sweeps"] = {}
        print("\nStreamed with gradient, one device: how cost grows")
        for name, sweep in sweeps.items():
            exponent = fit_exponent(sweep["sizes"], sweep["seconds"])
            record["sweeps"][name] = {**sweep, "exponent": exponent}
            costs = "  ".join(f"{n}: {1e3 * s:.1f} ms" for n, s in zip(sweep["sizes"], sweep["seconds"], strict=True))
            per_unit = [second / size for second, size in zip(sweep["seconds"], sweep["sizes"], strict=True)]
            print(f"{name:12} exponent {exponent:5.2f}   cost per unit, last to first {per_unit[-1] / per_unit[0]:5.2f}   {costs}")
    if "dynamic" in config.parts:
        results = benchmark_dynamic(layer.batch, config.repeats)
        for title, measurements in results.items():
            report_side_by_side(f"Dynamic routing: {title}", measurements, 1, "ms")
        record["dynamic"] = {title: {n: m._asdict() for n, m in ms.items()} for title, ms in results.items()}
    if "loop" in config.parts:
        record["loop"] = milliseconds = benchmark_loop(max(3, config.repeats // 2))
        bare, loop = (float(np.median(milliseconds[name])) for name in ("bare", "loop"))
        print("\nTraining, default recipe, 28x28 images, batch 64, a checkpoint every 50 steps, ms a step")
        print(f"bare step {bare:.1f}, loop {loop:.1f}: {loop / bare - 1:+.1%}")
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "benchmark.json").write_text(json.dumps(record, indent=2) + "\n")
    if {"layer", "sweeps"} <= set(config.parts):
        run_figures.benchmark(record).savefig(config.output / "benchmark.png", dpi=120)
    print(f"\nwritten to {config.output}")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(BenchmarkConfig, "python -m experiments.benchmark", arguments)
    split_cpu()
    return exit_code(lambda _: run(config), "experiments.benchmark", arguments)


if __name__ == "__main__":
    sys.exit(main())
