"""One step function on several devices: by `jax.jit` and `jax.shard_map`, or by `jax.pmap`.

The step takes `(state, batch, reduce)` and sees its device's share of the batch; `reduce` averages a tree over the devices.
Sharding is by shard_map and not left to the compiler, because the routing merges the batch with the positions into one axis,
which automatic partitioning would gather onto every device.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.errors import RunnerError

Mode = Literal["jit", "pmap"]
Devices = Sequence[Any]  # of jax.Device, which type checkers do not take for a type
REPLICATED, SHARDED = PartitionSpec(), PartitionSpec("data")


class ParallelStep(NamedTuple):
    """A step on several devices.

    Attributes:
        step: from `(state, batch)` to the new state and metrics, the same on all devices; the old state is given up.
        replicate: puts a state on all devices.
        shard: divides a batch, whose arrays have the examples on axis 0, among the devices.
    """

    step: Any  # what jax.jit and jax.pmap return: callable, with .lower()
    replicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]


def parallelize(step: Callable, mode: Mode, devices: Devices) -> ParallelStep:
    """Let the devices share each batch of `step(state, batch, reduce)`."""
    mesh = data_mesh(devices)
    replicate = functools.partial(jax.device_put, device=NamedSharding(mesh, REPLICATED))
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, SHARDED))
    local_step = functools.partial(step, reduce=functools.partial(jax.lax.pmean, axis_name="data"))
    if mode == "pmap":

        def place_by_device(batch: Any) -> Any:
            return place(jax.tree.map(lambda array: array.reshape(len(devices), -1, *array.shape[1:]), batch))

        mapped = jax.pmap(local_step, "data", in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=0)
        return ParallelStep(mapped, replicate, place_by_device)

    # With check_vma the gradient of replicated parameters would come already summed, and pmean would not divide it.
    sharded = jax.shard_map(local_step, mesh=mesh, in_specs=(REPLICATED, SHARDED), out_specs=REPLICATED, check_vma=False)
    return ParallelStep(jax.jit(sharded, donate_argnums=0), replicate, place)


def map_examples(function: Callable, devices: Devices) -> Callable:
    """`function(replicated, examples)`, one result per example, with the examples divided among the devices."""
    mesh = data_mesh(devices)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(REPLICATED, SHARDED), out_specs=SHARDED, check_vma=False))


def map_chunks(function: Callable, devices: Devices, per_device: int) -> Callable[[Any, Any], np.ndarray]:
    """As `map_examples`, for any number of examples, in NumPy arrays: so many at a time on each device, padded with zeros."""
    mapped = map_examples(function, devices)
    chunk = per_device * len(devices)

    def piece(array: np.ndarray, start: int) -> np.ndarray:
        given = array[start : start + chunk]
        return np.concatenate([given, np.zeros((chunk - len(given), *array.shape[1:]), array.dtype)])

    def in_chunks(replicated: Any, examples: Any) -> np.ndarray:
        number = len(jax.tree.leaves(examples)[0])
        pieces = [jax.tree.map(functools.partial(piece, start=start), examples) for start in range(0, number, chunk)]
        return np.concatenate([np.asarray(mapped(replicated, given)) for given in pieces])[:number]

    return in_chunks


def data_mesh(devices: Devices) -> Mesh:
    """The devices in a row, its axis named `data`."""
    return Mesh(np.array(devices), ("data",))


def choose_devices(batch_size: int, requested: int | None = None) -> Devices:
    """The devices for a batch: as many as requested, or else as many as there are and divide it.

    Raises:
        RunnerError: there are not as many as requested, or they cannot share the batch evenly.
    """
    available = jax.devices()
    if requested is None:
        return available[: max(n for n in range(1, len(available) + 1) if batch_size % n == 0)]
    if not 1 <= requested <= len(available):
        raise RunnerError(f"there are {len(available)} devices ({describe(available)}); {requested} were requested")
    if batch_size % requested:
        below = batch_size - batch_size % requested
        nearest = f"{below} and {below + requested}" if below else f"{requested}"
        raise RunnerError(f"a batch of {batch_size} cannot be divided among {requested} devices; the nearest that can: {nearest}")
    return available[:requested]


def split_cpu(count: int | None = None) -> None:
    """Show the CPU to JAX as `count` devices, by default one per core, since a routing kernel runs on one core.

    To be called before JAX is used. Settings that the user has made in the environment stay.
    """
    by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not by_flag and "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", count or cores or 1)


def describe(devices: Devices) -> str:
    """For example `2 x cpu`."""
    return f"{len(devices)} x {devices[0].device_kind}"
