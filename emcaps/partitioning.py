"""Routing over automatic axes of a mesh, where only the compiler knows how the batch is sharded.

Left to itself, the partitioner divides a program operation by operation, and gathers the batch
where it is merged with positions. Here it is told instead that examples have nothing to do with
each other (`jax.experimental.custom_partitioning`): each device runs the whole of the routing on
its own examples, and the gradient of what all share is summed once. On one device, and inside of
`jax.shard_map`, the program is what it would be without this file.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from emcaps.streamed_gradient import first_order_only


def divide_examples(function: Callable[[Any, Any], Any], batched: Any, shared: Any) -> Any:
    """`function(batched, shared)`, the examples divided over devices as the compiler sees fit.
    First order, reverse mode only.

    Args:
        function: hashable. Each array of its result has the examples first; they have nothing to do
            with each other.
        batched: a tree of arrays with the examples first.
        shared: a tree of arrays that all examples share.
    """
    types = jax.sharding.get_abstract_mesh().axis_types
    if any(kind != AxisType.Auto for kind in types):
        return function(batched, shared)
    return jax.jit(_divide, static_argnums=0)(function, batched, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divide(function, batched, shared):
    def on_shard(axes, batched, shared):
        return function(batched, shared)

    return _partitioned(function, on_shard, (True, False), True)(batched, shared)


def _forward(function, batched, shared):
    kept = []  # the shapes of what is kept, and how to read them

    def on_one(batched, shared):
        result, transpose = jax.vjp(function, batched, shared)
        intermediates, structure = jax.tree.flatten(transpose)
        kept[:] = [
            [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in intermediates],
            structure,
        ]
        return result, intermediates

    def on_shard(axes, batched, shared):
        # The partitioner could not tell whose examples these intermediates are of. So a device of
        # several keeps nothing and routes again in the backward pass. What stands for it is no
        # number that could be used unseen.
        return function(batched, shared), [
            jnp.full(array.shape, _useless(array.dtype), array.dtype) for array in kept[0]
        ]

    batched, shared = first_order_only((batched, shared))
    result, intermediates = _partitioned(on_one, on_shard, (True, False), (True, False))(
        batched, shared
    )
    return result, (jax.tree.unflatten(kept[1], intermediates), batched, shared)


def _useless(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).max) if jnp.issubdtype(dtype, jnp.floating) else 0


def _backward(function, residuals, result_gradients):
    (transpose, batched, shared), result_gradients = first_order_only((residuals, result_gradients))
    intermediates, structure = jax.tree.flatten(transpose)

    def on_one(intermediates, batched, shared, result_gradients):
        return jax.tree.unflatten(structure, intermediates)(result_gradients)

    def on_shard(axes, intermediates, batched, shared, result_gradients):
        to_batched, to_shared = jax.vjp(function, batched, shared)[1](result_gradients)
        return to_batched, lax.psum(to_shared, axes) if axes else to_shared

    divided = _partitioned(on_one, on_shard, (False, True, False, True), (True, False))
    return divided(intermediates, batched, shared, result_gradients)


_divide.defvjp(_forward, _backward)


def _partitioned(
    on_one: Callable, on_shard: Callable, divided: Any, divided_results: Any
) -> Callable:
    """`on_one(*arguments)`, for which each of several devices runs `on_shard(axes, *arguments)`.

    Args:
        on_one: for one device.
        on_shard: for one of several, over those axes of the mesh that its arguments are divided
            over.
        divided: which of the arguments, trees of arrays, are divided, along their first axes. Of
            the others each device has all.
        divided_results: which of the results.
    """
    flags = []
    x64, precision = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]

    def on_one_of_several(*given):
        # The compiler asks from another thread.
        with jax.enable_x64(x64), jax.default_matmul_precision(precision):
            return on_shard(*given)

    def describe(*arguments):
        results = on_one(*arguments)
        given = zip((divided, divided_results), (arguments, results), strict=True)
        flags[:] = [jax.tree.leaves(jax.tree.broadcast(*pair)) for pair in given]
        return results

    def partition(mesh, arguments, results):
        batch = next(
            array for array, yes in zip(jax.tree.leaves(arguments), flags[0], strict=True) if yes
        )
        (axes,) = batch.sharding.spec[:1] or (None,)
        axes = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
        if batch.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
            axes = ()  # the compiler would fill up the last device with examples that do not exist
        place = {
            True: NamedSharding(mesh, PartitionSpec(axes)),
            False: NamedSharding(mesh, PartitionSpec()),
        }
        places = [
            jax.tree.unflatten(jax.tree.structure(tree), [place[yes] for yes in divided])
            for tree, divided in zip((results, arguments), reversed(flags), strict=True)
        ]
        return mesh, functools.partial(on_one_of_several, axes), *places

    def rule(mesh, arguments, results):
        """Axis 0 of all that is divided is one factor; every other axis is one by itself, and whole
        on each device.
        """
        names = map("f{}".format, itertools.count())
        operands, outputs = (
            tuple(
                ArrayMapping(
                    *(
                        "examples" if yes and axis == 0 else next(names)
                        for axis in range(array.rank)
                    )
                )
                for array, yes in zip(arrays, divided, strict=True)
            )
            for arrays, divided in zip((arguments, results), flags, strict=True)
        )
        whole = tuple(
            name for mapping in operands + outputs for name in mapping if name != "examples"
        )
        return SdyShardingRule(operands, outputs, need_replication_factors=whole)

    several = custom_partitioning(describe)
    several.def_partition(partition, sharding_rule=rule)
    mapped = jax.custom_batching.custom_vmap(several)

    @mapped.def_vmap
    def map_one(axis_size, in_batched, *arguments):
        in_axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched)
        results = jax.vmap(on_one, in_axes, axis_size=axis_size)(*arguments)
        return results, jax.tree.map(lambda _: True, results)

    return mapped
