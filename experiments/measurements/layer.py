"""How fast is one layer: formulations side by side, the parts of one against their multiply-adds,
and how its cost grows.

`python -m experiments.benchmark --parts layer kernels sweeps`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

import emcaps
from emcaps import competition, implementations
from emcaps.implementations import IMPLEMENTATIONS
from emcaps.procedure import Procedure
from emcaps.votes import StreamedVotes, VoteTerms
from experiments.devices.parallel import REPLICATED, SHARDED, device_mesh
from experiments.measurements import textbook
from experiments.measurements.timing import Measurement, measure, multiply_adds, small_numbers
from experiments.runtime.fields import check_positive

# How devices share a layer's arguments; of its results, the poses and activations are shared as
# those, and so are gradients.
ARGUMENT_SPECS = (SHARDED, SHARDED, REPLICATED, REPLICATED, REPLICATED)
# What a size of a layer grows to, the others being as they are.
SWEEPS = {
    "batch": (8, 16, 32, 64, 128, 256),
    "children": (2, 4, 8, 16, 32),
    "parents": (4, 8, 16, 32, 64),
    "size": (6, 10, 14, 18, 22),
    "iterations": (1, 2, 3, 4, 5),
}


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


class Costs(NamedTuple):
    """Multiply-adds that routing cannot do without, for a pair of child and parent.

    Attributes:
        operator: of moments or scores.
        vote_gradient: of the votes' gradient.
        forward: of the whole routing.
        gradient: of the whole routing with its gradient.
    """

    operator: int
    vote_gradient: int
    forward: int
    gradient: int


def costs(iterations: int) -> Costs:
    """A vote costs 64 multiply-adds, and each operator 32 more; the gradient of the votes 16 for
    each of its 2T - 1 terms and 128 for its two products. The whole has 2T - 1 operators forward,
    as many back, and one gradient of the votes.
    """
    operators = terms = 2 * iterations - 1
    operator, vote_gradient = 64 + 32, 64 + 16 * terms + 128
    return Costs(
        operator, vote_gradient, operators * operator, 2 * operators * operator + vote_gradient
    )


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
    """The textbook's formulation and emcaps' implementations, each from a layer's arguments to
    `(poses, activations)`.
    """
    static = {"stride": layer.stride, "num_iterations": layer.iterations}

    def ours(implementation: str, *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
        return emcaps.conv_em_routing(*arguments, **static, implementation=implementation)[:2]

    return {
        "textbook": functools.partial(textbook.conv_em_routing, **static),
        **{name: functools.partial(ours, name) for name in IMPLEMENTATIONS},
    }


def distinct_implementations() -> list[str]:
    """Those that are programs of their own on the first device, what is most used first."""
    same_as_streamed = "kernels" if jax.devices()[0].platform == "cpu" else "fused"
    return sorted(set(IMPLEMENTATIONS) - {same_as_streamed}, reverse=True)


def with_gradient(routing: Callable) -> Callable:
    """The gradient for all arguments of a loss on what `routing` returns."""

    def loss(*arguments: jax.Array) -> jax.Array:
        return sum(((array**2).sum() for array in routing(*arguments)), jnp.zeros(()))

    return jax.grad(loss, argnums=tuple(range(5)))


def on_all_devices(function: Callable) -> Callable:
    """A layer function with the batch divided among the devices; gradients of what they share are
    summed.
    """

    def local(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        poses, activations, *shared = function(*arguments)
        return poses, activations, *(jax.lax.psum(array, "data") for array in shared)

    def mapped(*arguments: jax.Array) -> Any:
        out_specs = ARGUMENT_SPECS[: len(jax.eval_shape(function, *arguments))]
        mesh = device_mesh(jax.devices())
        return jax.shard_map(
            local, mesh=mesh, in_specs=ARGUMENT_SPECS, out_specs=out_specs, check_vma=False
        )(*arguments)

    return mapped


def place_on_all_devices(arguments: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """A layer's arguments where `on_all_devices` wants them."""
    mesh = device_mesh(jax.devices())
    return jax.device_put(arguments, tuple(NamedSharding(mesh, spec) for spec in ARGUMENT_SPECS))


def benchmark_layer(layer: Layer, repeats: int) -> dict[str, dict[str, Measurement]]:
    """One layer, forward and with the gradient, each formulation that is a program of its own on
    one device, streamed on all of them as well.
    """
    arguments = layer_arguments(layer)
    results = {}
    for direction, transform in (("forward", lambda routing: routing), ("gradient", with_gradient)):
        functions = routings(layer)
        contenders = {
            name: (transform(functions[name]), arguments)
            for name in ("textbook", *distinct_implementations())
        }
        streamed = contenders["streamed"][0]
        contenders["streamed, all devices"] = (
            on_all_devices(streamed),
            place_on_all_devices(arguments),
        )
        results[direction] = measure(contenders, repeats)
    return results


def benchmark_kernels(layer: Layer, repeats: int) -> dict[str, dict[str, float]]:
    """The parts of a streamed routing on one device, for one block of the batch, in ns per pair
    beside their `costs`.
    """
    block = max(1, implementations.CHUNKED_COLUMNS // layer.positions)
    small = dataclasses.replace(layer, batch=block)
    arguments = layer_arguments(small)
    poses, _, transforms, *_ = arguments
    field = emcaps.ReceptiveField(
        (small.size, small.size), (small.kernel, small.kernel), small.stride
    )
    num_children, columns = small.kernel**2 * small.children, small.positions * block
    votes = StreamedVotes(
        field.gather(poses.transpose(3, 4, 5, 1, 2, 0)).reshape(num_children, 4, 4, columns),
        transforms.transpose(0, 1, 2, 4, 5, 3).reshape(num_children, 4, 4, small.parents),
    )
    weights = jax.random.uniform(jax.random.key(2), (num_children, small.parents, columns))
    coefficients = jax.random.normal(jax.random.key(3), (4, 4, small.parents, columns))

    def terms(number: int, scale: jax.Array | None) -> VoteTerms:
        forms = jnp.stack([coefficients] * number)
        return VoteTerms(jnp.stack([weights] * number), scale, forms, forms + 1)

    groups = terms(small.iterations, weights[:, 0]), terms(small.iterations - 1, None)
    needed = costs(small.iterations)
    procedure = Procedure(
        field, small.iterations, False, "all", "reachable", damping=0.0, assignment_gradient=True
    )
    chain, chain_cost = multiply_adds()
    whole = routings(small)["streamed"]
    contenders = {
        "moments": (lambda v, w, c: v.moments(w, c, w[:, 0]), (votes, weights, coefficients)),
        "scores": (lambda v, q, c: v.scores(q[0, 0], q, c), (votes, coefficients, coefficients)),
        "vote gradient": (lambda v, g, c: v.gradient(g, c), (votes, groups, coefficients)),
        "softmax over parents": (lambda w: competition.compete(w, procedure), (weights,)),
        "whole forward": (whole, arguments),
        "whole with gradient": (with_gradient(whole), arguments),
        "multiply-adds": (chain, (small_numbers(1 << 13),)),
    }
    results = measure(contenders, 3 * repeats)
    rate = chain_cost / results["multiply-adds"].seconds
    floors = {
        "moments": needed.operator,
        "scores": needed.operator,
        "vote gradient": needed.vote_gradient,
        "softmax over parents": 0,
        "whole forward": needed.forward,
        "whole with gradient": needed.gradient,
    }
    rows = {}
    for name, cost in floors.items():
        nanoseconds = 1e9 * results[name].seconds / small.pairs
        floor = 1e9 * cost / rate
        rows[name] = {
            "ns_per_pair": nanoseconds,
            "floor_ns": floor,
            "times_floor": nanoseconds / floor if cost else 0.0,
        }
    rows["multiply-adds"] = {"per_second": rate}
    return rows


def benchmark_sweeps(layer: Layer, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of a streamed layer with its gradient, on one device, while one size at a
    time grows.
    """
    sweeps = {}
    for name, values in SWEEPS.items():
        contenders, amounts = {}, []
        for value in values:
            grown = dataclasses.replace(layer, **{name: value})
            contenders[str(value)] = (
                with_gradient(routings(grown)["streamed"]),
                layer_arguments(grown),
            )
            amounts.append(grown.positions if name == "size" else value)
        results = measure(contenders, repeats)
        seconds = [results[str(value)].seconds for value in values]
        sweeps["positions" if name == "size" else name] = {"sizes": amounts, "seconds": seconds}
    return sweeps
