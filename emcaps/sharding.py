"""How routing is at home on a mesh: each device routes its own examples, and nobody gathers the
batch.

Of every example the routing is a thing of its own; only the gradient of what all examples share
(transforms, costs) is a sum over devices. JAX knows three ways of dividing a batch, and each is met
where it shows. Inside `jax.shard_map` arrays are already those of a device, and have types that say
over which axes they vary. Over explicit axes of a mesh the sharding is part of an array's type, but
for an axis that `jax.vmap` has taken away. Over automatic axes only the compiler knows it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


class Bound(NamedTuple):
    """`function(batched, shared, **static)` as a function of the two: like `functools.partial`, but
    equal if its parts are.

    Attributes:
        function: of two trees of arrays and keywords.
        static: the keywords, hashable.
    """

    function: Callable[..., Any]
    static: tuple[tuple[str, Any], ...]

    def __call__(self, batched: Any, shared: Any) -> Any:
        return self.function(batched, shared, **dict(self.static))


def vary_alike(tree: Any) -> Any:
    """The arrays of a tree, all with the type of one that varies over all the manual axes over
    which any of them does.

    Loops want the same types going in and coming out. Gradients come back summed over the axes that
    an array did not vary over, as they should. Where JAX does not track these types
    (`check_vma=False`, no `shard_map`) nothing happens.
    """
    arrays = jax.tree.leaves(tree)
    varying = frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays))

    def cast(array: jax.Array) -> jax.Array:
        missing = varying - jax.typeof(array).manual_axis_type.varying
        return lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array

    return jax.tree.map(cast, tree)


def gather_shards(array: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """The shards of all devices of a manual axis, one after the other along `axis`: the same array
    on all of them.

    Where JAX tracks over which axes arrays vary, it is told that this one does not, and a gradient
    goes back to each shard once.
    """
    tracked = axis_name in jax.typeof(array).manual_axis_type.varying
    return lax.all_gather(
        array, axis_name, axis=axis, tiled=True, to="invarying" if tracked else "varying"
    )


def is_sharded(array: Any) -> bool:
    """Whether an array is sharded over an explicit axis of a mesh."""
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)


def leave_to_compiler(function: Callable[[Any, Any], Any], batched: Any, shared: Any) -> Any:
    """`function(batched, shared)`, of which the compiler divides over automatic axes
    what it can.
    """
    return function(batched, shared)


def for_each_shard(
    function: Callable[[Any, Any], Any],
    batched: Any,
    shared: Any,
    batch_axes: int = 1,
    divide: Callable[..., Any] = leave_to_compiler,
) -> Any:
    """`function(batched, shared)`, run by each device on its own part of the batch.

    Args:
        function: hashable. Each array of its result has the batch axes of `batched` first; examples
            have nothing to do with each other.
        batched: a tree of arrays whose first `batch_axes` axes are of the batch. They may be
            sharded over explicit axes of a mesh, those of all arrays alike, and no other axes may.
        shared: a tree of arrays that all examples share. Those that are sharded are gathered.
        batch_axes: how many axes the batch has.
        divide: called as `divide(function, batched, shared)` where no mesh has explicit axes.

    Raises:
        ValueError: an array of `batched` is sharded in another way.
    """
    arrays = jax.tree.leaves((batched, shared))
    meshes = [
        mesh for mesh in (jax.typeof(array).sharding.mesh for array in arrays) if mesh.explicit_axes
    ]
    if not meshes:
        batched, shared = vary_alike((batched, shared))
        return divide(function, batched, shared)
    spec = _batch_spec(batched, batch_axes) if any(map(is_sharded, arrays)) else None
    return _over_explicit_axes(function, meshes[0], spec, batched, shared)


# Jitted, since arrays that are not sharded may be on one device, if nothing is being traced; and
# here, so that it is traced once for all calls.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _over_explicit_axes(
    function: Callable[[Any, Any], Any],
    mesh: jax.sharding.AbstractMesh,
    spec: PartitionSpec | None,
    batched: Any,
    shared: Any,
) -> Any:
    """`for_each_shard` over the explicit axes of a mesh, of a batch that is sharded so; None: of
    arrays whose types do not tell.
    """

    def route(batched: Any, shared: Any) -> Any:
        return function(*vary_alike((batched, shared)))

    whole = PartitionSpec()
    if spec is None:
        # An axis that `vmap` took away may be sharded: the compiler knows, and divides what it does
        # not merge.
        divided = jax.sharding.auto_axes(
            route, axes=mesh.explicit_axes, out_sharding=NamedSharding(mesh, whole)
        )
        return divided(batched, shared)  # pyright: ignore[reportCallIssue]
    batched, shared = jax.reshard(
        (batched, shared), (NamedSharding(mesh, spec), NamedSharding(mesh, whole))
    )
    return jax.shard_map(
        route,
        mesh=mesh,
        in_specs=(spec, whole),
        out_specs=spec,
        axis_names=set(mesh.explicit_axes),
    )(batched, shared)


def _batch_spec(batched: Any, batch_axes: int) -> PartitionSpec:
    """How the batch is sharded.

    Raises ValueError unless all arrays agree, and nothing else is sharded.
    """
    spec: list[Any] = [None] * batch_axes
    for array in jax.tree.leaves(batched):
        given = jax.typeof(array).sharding.spec
        for place, axis in enumerate(given):
            if axis is None:
                continue
            if place >= batch_axes:
                raise ValueError(
                    "what is routed can be sharded along the batch only; got shape "
                    f"{list(array.shape)} with {given} (jax.reshard changes it)"
                )
            if spec[place] not in (None, axis):
                raise ValueError(
                    f"what is routed must be sharded alike along the batch; got {spec[place]!r} "
                    f"and {axis!r}"
                )
            spec[place] = axis
    return PartitionSpec(*spec)
