"""How fast is a training step of a whole network, and the two expensive layers of dynamic
routing's.

`python -m experiments.benchmark --parts step dynamic`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

import emcaps
from emcaps.dynamic.capsnet import StridedConv
from emcaps.implementations import IMPLEMENTATIONS
from experiments.devices.parallel import REPLICATED, SHARDED, device_mesh
from experiments.measurements import textbook
from experiments.measurements.layer import Layer, distinct_implementations
from experiments.measurements.timing import Measurement, measure

IMAGE_SHAPE, NUM_CLASSES = (32, 32, 2), 5  # those of the paper's smallNORB
MARGIN, LEARNING_RATE = 0.5, 1e-3


class Widths(NamedTuple):
    """Of a network; see `CapsNet`."""

    conv_channels: int
    primary_capsules: int
    conv_capsules: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `64/8/16/16`. Raises ValueError if it is not so written."""
        numbers = [int(part) if part.isdecimal() else 0 for part in text.split("/")]
        if len(numbers) < 3 or 0 in numbers:
            raise ValueError(f"widths must be written as 64/8/16/16; got {text}")
        return cls(numbers[0], numbers[1], tuple(numbers[2:]))

    def __str__(self) -> str:
        return "/".join(map(str, (self.conv_channels, self.primary_capsules, *self.conv_capsules)))

    def model(self, implementation: str = "streamed", iterations: int = 3) -> emcaps.CapsNet:
        """The network with the paper's procedure, which textbook.py implements, for
        five classes.
        """
        routing = dataclasses.replace(
            emcaps.PAPER, num_iterations=iterations, implementation=implementation
        )
        return emcaps.CapsNet(
            NUM_CLASSES, self.conv_channels, self.primary_capsules, self.conv_capsules, routing
        )

    def first_layer(self, batch: int) -> Layer:
        """The first routing layer."""
        size = (IMAGE_SHAPE[0] - 5) // 2 + 1
        return Layer(
            batch=batch, size=size, children=self.primary_capsules, parents=self.conv_capsules[0]
        )

    def pairs(self, batch: int) -> int:
        """(child, parent) pairs that all layers route."""
        layer = self.first_layer(batch)
        total, size = layer.pairs, math.isqrt(layer.positions)
        for children, parents in itertools.pairwise(self.conv_capsules):
            layer = Layer(batch=batch, size=size, stride=1, children=children, parents=parents)
            total, size = total + layer.pairs, size - 2
        return total + batch * size**2 * self.conv_capsules[-1] * NUM_CLASSES


def step_arguments(widths: Widths, batch: int) -> tuple[Any, jax.Array, jax.Array]:
    """Parameters, images and labels."""
    images = jax.random.uniform(jax.random.key(1), (batch, *IMAGE_SHAPE))
    return initial_params(widths), images, jnp.arange(batch) % NUM_CLASSES


@functools.cache
def initial_params(widths: Widths) -> Any:
    """The network's parameters before training."""
    return jax.jit(widths.model().init)(jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE)))["params"]


def steps(widths: Widths, iterations: int = 3) -> dict[str, Callable]:
    """Gradient steps with the textbook's formulation and emcaps' implementations, from
    `step_arguments` to new parameters.
    """

    def step(network: Callable, params: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return emcaps.spread_loss(network(params, images), labels, MARGIN).mean()

        return jax.tree.map(
            lambda weight, slope: weight - LEARNING_RATE * slope, params, jax.grad(loss)(params)
        )

    def ours(implementation: str, params: Any, images: jax.Array) -> jax.Array:
        model = widths.model(implementation, iterations)
        return model.apply({"params": params}, images)[0].activations  # pyright: ignore[reportIndexIssue]

    networks = {
        "textbook": functools.partial(
            textbook.class_activations, widths.model("dense", iterations)
        ),
        **{name: functools.partial(ours, name) for name in IMPLEMENTATIONS},
    }
    return {name: functools.partial(step, network) for name, network in networks.items()}


def benchmark_step(batch: int, repeats: int, iterations: int) -> dict[str, Measurement]:
    """A gradient step of a network of widths 32/8/16/16 on 32x32x2 images, five classes, the
    paper's procedure.
    """
    widths = Widths(32, 8, (16, 16))
    arguments, functions = step_arguments(widths, batch), steps(widths, iterations)
    contenders: dict[str, tuple[Callable, tuple]] = {
        name: (functions[name], arguments) for name in ("textbook", *distinct_implementations())
    }

    def shared_step(*arguments: Any) -> Any:
        return jax.lax.pmean(functions["streamed"](*arguments), "data")

    mesh, specs = device_mesh(jax.devices()), (REPLICATED, SHARDED, SHARDED)
    placed = jax.device_put(arguments, tuple(NamedSharding(mesh, spec) for spec in specs))
    on_all_devices = jax.shard_map(
        shared_step, mesh=mesh, in_specs=specs, out_specs=REPLICATED, check_vma=False
    )
    contenders["streamed, all devices"] = (on_all_devices, placed)
    return measure(contenders, repeats)


def benchmark_dynamic(batch: int, repeats: int) -> dict[str, dict[str, Measurement]]:
    """The two expensive layers of the network of dynamic routing at the paper's widths, on one
    device, with their gradients.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    children = 0.2 * jax.random.normal(keys[0], (batch, 1152, 8))
    transforms = 0.1 * jax.random.normal(keys[1], (1152, 10, 8, 16))

    def stored(children: jax.Array, transforms: jax.Array) -> jax.Array:
        return emcaps.dynamic.dynamic_routing(
            jnp.einsum("bnd,njde->bnje", children, transforms)
        ).poses

    def not_stored(children: jax.Array, transforms: jax.Array) -> jax.Array:
        return emcaps.dynamic.class_dynamic_routing(children, transforms).poses

    features = jax.random.normal(keys[2], (batch, 20, 20, 256))
    ours, flax = StridedConv(256, 9, 2), nn.Conv(256, (9, 9), 2, padding="VALID")
    params = flax.init(keys[3], features)

    def gradient(function: Callable) -> Callable:
        return jax.grad(lambda *arguments: (function(*arguments) ** 2).sum(), argnums=(0, 1))

    routed = {"votes in memory": stored, "votes not stored": not_stored}
    convolved = {"flax.linen.Conv": flax.apply, "StridedConv": ours.apply}
    return {
        "class capsules, forward": measure(
            {name: (f, (children, transforms)) for name, f in routed.items()}, repeats
        ),
        "class capsules, gradient": measure(
            {name: (gradient(f), (children, transforms)) for name, f in routed.items()}, repeats
        ),
        "9x9 convolution, stride 2, gradient": measure(
            {n: (gradient(f), (params, features)) for n, f in convolved.items()}, repeats
        ),
    }
