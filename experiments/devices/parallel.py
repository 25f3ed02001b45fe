"""One step function on several devices: by `jax.jit` and `jax.shard_map`, or by `jax.pmap`.

Devices stand in a mesh of two axes. Along `data` they share each batch. Along `model` they share
the parent types of the convolutional capsule layers (`emcaps.partition_specs`), for layers that are
too big for one; everything else they all have.

A step takes `(state, batch, average)`. It sees the whole state, and uses the batch only through
`average(function)`: the mean of `function(params, batch, step)`, which sees its device's share of
the batch and of the parameters, over all devices. The shares are divided by shard_map: for a shared
batch explicit or automatic axes would do, but not for divided parent types; one way serves both.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emcaps import partition_specs
from experiments.runtime.processes import fetch

Mode = Literal["jit", "pmap"]
Devices = Sequence[Any]  # of jax.Device, which type checkers do not take for a type
MODEL_AXIS = "model"
REPLICATED, SHARDED = PartitionSpec(), PartitionSpec("data")
# From (params, batch, step) to means over the batch and a gradient.
Function = Callable[[Any, Any, Any], tuple[Any, Any]]


class Execution(NamedTuple):
    """On what a run is computed, and how the work is divided. The result does not depend on it but
    for rounding.

    Attributes:
        devices: of all processes; their number is a multiple of `model_axis`.
        parallel: how the devices share a step.
        model_axis: how many devices share the parent types.
        accumulate: in how many parts, one after the other, a device takes its share of a batch.
    """

    devices: Devices
    parallel: Mode = "jit"
    model_axis: int = 1
    accumulate: int = 1

    @property
    def mesh(self) -> Mesh:
        return device_mesh(self.devices, self.model_axis)

    @property
    def parent_axis(self) -> str | None:
        """The `parent_axis` of a network whose step is so computed."""
        return MODEL_AXIS if self.model_axis > 1 else None


class ParallelStep(NamedTuple):
    """A step on several devices.

    Attributes:
        step: from `(state, batch)` to the new state and metrics, the same on all devices; the old
            state is given up.
        replicate: puts a state on all devices; what they share, each its part.
        shard: divides a batch, whose arrays have the examples on axis 0, among the devices.
    """

    step: Any  # what jax.jit and jax.pmap return: callable, with .lower()
    replicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]


def parallelize(step: Callable, execution: Execution) -> ParallelStep:
    """Let devices share each batch of `step(state, batch, average)`."""
    return (_by_pmap if execution.parallel == "pmap" else _by_jit)(step, execution)


def _by_pmap(step: Callable, execution: Execution) -> ParallelStep:
    # As `pmap` places what it returns: for a state in another place it would compile once more.
    mesh = Mesh(np.array(execution.devices), ("data",))

    def average(function: Function) -> Function:
        accumulated = accumulate(function, execution.accumulate)
        return lambda *given: jax.lax.pmean(accumulated(*given), "data")

    def shard(batch: Any) -> Any:
        by_device = jax.tree.map(
            lambda array: array.reshape(len(execution.devices), -1, *array.shape[1:]), batch
        )
        return place(by_device, mesh, SHARDED)

    mapped = jax.pmap(
        functools.partial(step, average=average),
        "data",
        in_axes=(None, 0),
        out_axes=None,
        devices=execution.devices,
        donate_argnums=0,
    )
    return ParallelStep(mapped, functools.partial(place, mesh=mesh, specs=REPLICATED), shard)


def _by_jit(step: Callable, execution: Execution) -> ParallelStep:
    mesh = execution.mesh

    def average(function: Function) -> Function:
        accumulated = accumulate(function, execution.accumulate)

        def mean(params: Any, batch: Any, step: Any) -> tuple[Any, Any]:
            specs = shares(params, mesh)
            # With check_vma the gradient would come summed over the devices from each part of a
            # share, not once from all of them.
            return jax.shard_map(
                lambda *given: mean_over_devices(*accumulated(*given), specs, execution.model_axis),
                mesh=mesh,
                in_specs=(specs, SHARDED, REPLICATED),
                out_specs=(REPLICATED, specs),
                check_vma=False,
            )(params, batch, step)

        return mean

    def step_of_all(state: Any, batch: Any) -> tuple[Any, Any]:
        state, metrics = step(state, batch, average)
        return jax.lax.with_sharding_constraint(state, shardings(state, mesh)), metrics

    return ParallelStep(
        jax.jit(step_of_all, donate_argnums=0),
        lambda state: place(state, mesh, shares(state, mesh)),
        functools.partial(place, mesh=mesh, specs=SHARDED),
    )


def accumulate(function: Function, parts: int) -> Function:
    """The mean of a function over so many equal parts of the batch, one after the other."""
    if parts == 1:
        return function

    def mean(params: Any, batch: Any, step: Any) -> tuple[Any, Any]:
        divided = jax.tree.map(lambda array: array.reshape(parts, -1, *array.shape[1:]), batch)
        add = lambda total, part: (jax.tree.map(jnp.add, total, function(params, part, step)), None)  # noqa: E731
        shapes = jax.eval_shape(
            function, params, jax.tree.map(lambda array: array[0], divided), step
        )
        total, _ = jax.lax.scan(
            add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), divided
        )
        return jax.tree.map(lambda leaf: leaf / parts, total)

    return mean


def mean_over_devices(means: Any, gradient: Any, specs: Any, model_axis: int) -> tuple[Any, Any]:
    """The means over all devices of values, and of a gradient of which each device has its share
    (see `partition_specs`).
    """
    leaves, structure = jax.tree.flatten(gradient)
    divided = [spec != REPLICATED for spec in structure.flatten_up_to(specs)]
    shared = [leaf for leaf, own in zip(leaves, divided, strict=True) if not own]
    # All at once: one collective.
    means, shared = jax.lax.pmean((means, shared), ("data", MODEL_AXIS))
    own = jax.lax.pmean(
        [leaf / model_axis for leaf, own in zip(leaves, divided, strict=True) if own], "data"
    )
    shared, own = iter(shared), iter(own)
    return means, structure.unflatten([next(own if is_own else shared) for is_own in divided])


def shares(tree: Any, mesh: Mesh) -> Any:
    """How parameters, or a tree with branches like them, are divided among the devices: a tree of
    `PartitionSpec`.
    """
    if mesh.shape[MODEL_AXIS] == 1:
        return jax.tree.map(lambda _: REPLICATED, tree)
    return partition_specs(tree, MODEL_AXIS)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The same as a tree of `NamedSharding`."""
    return jax.tree.map(functools.partial(NamedSharding, mesh), shares(tree, mesh))


def place(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Put arrays, the same in all processes, on the devices; `specs` is a tree like it, or a prefix
    of one.
    """

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    places = jax.tree.map(functools.partial(NamedSharding, mesh), specs)
    if mesh.is_multi_process:
        return jax.tree.map(put, tree, jax.tree.broadcast(places, tree))
    return jax.device_put(tree, places)


def map_examples(function: Callable, mesh: Mesh) -> Callable:
    """`function(given, examples)`, one result per example, with the examples divided among the
    devices.

    What else is given may have parameters in it, of which each device then sees its share.
    """

    def mapped(given: Any, examples: Any) -> Any:
        in_specs = (shares(given, mesh), SHARDED)
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=SHARDED, check_vma=False
        )(given, examples)

    return jax.jit(mapped)


def map_chunks(function: Callable, mesh: Mesh, per_device: int) -> Callable[[Any, Any], np.ndarray]:
    """As `map_examples`, for any number of examples, in NumPy arrays: so many at a time on each
    device, padded with zeros.
    """
    mapped = map_examples(function, mesh)
    chunk = per_device * mesh.shape["data"]

    def piece(array: np.ndarray, start: int) -> np.ndarray:
        given = array[start : start + chunk]
        return np.concatenate(
            [given, np.zeros((chunk - len(given), *array.shape[1:]), array.dtype)]
        )

    def in_chunks(given: Any, examples: Any) -> np.ndarray:
        number = len(jax.tree.leaves(examples)[0])
        results, under_way = [], []
        for start in range(0, number, chunk):
            under_way.append(
                mapped(given, jax.tree.map(functools.partial(piece, start=start), examples))
            )
            if len(under_way) > 1:  # the devices have the next to do while this one is fetched
                results.append(fetch(under_way.pop(0)))
        return np.concatenate(results + [fetch(last) for last in under_way])[:number]

    return in_chunks


def device_mesh(devices: Devices, model_axis: int = 1) -> Mesh:
    """The devices in rows of `model_axis`, the axes named `data` and `model`."""
    return Mesh(np.array(devices).reshape(-1, model_axis), ("data", MODEL_AXIS))
