"""How fast is a training step of a whole network, and the two expensive layers of dynamic routing's.

`python -m experiments.benchmark --parts step dynamic`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

import emcaps
from emcaps.dynamic_capsnet import StridedConv
from experiments import textbook
from experiments.parallel import REPLICATED, SHARDED, device_mesh
from experiments.timing import Measurement, measure

# The procedure that textbook.py implements.
PAPER_ROUTING, _ = emcaps.PRESETS["paper"]


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

    def shared_step(*arguments: Any) -> Any:
        return jax.lax.pmean(step(networks["streamed"], *arguments), "data")

    mesh, specs = device_mesh(jax.devices()), (REPLICATED, SHARDED, SHARDED)
    placed = jax.device_put((params, images, labels), tuple(NamedSharding(mesh, spec) for spec in specs))
    on_all_devices = jax.shard_map(shared_step, mesh=mesh, in_specs=specs, out_specs=REPLICATED, check_vma=False)
    contenders["streamed, all devices"] = (on_all_devices, placed)
    return measure(contenders, repeats)


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
