"""What emcaps gives on meshes and under transformations, beside one device."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import emcaps
from experiments.compiled.collectives import collectives
from experiments.runtime.records import Record

WHOLE, SHARDED = PartitionSpec(), PartitionSpec("data")
BATCH = 8
TOLERANCE = 2e-4  # of the largest value; rounding differs where a program is divided
# Times how far one device is from float32: of many numbers the order of sums matters as much.
LOW_PRECISION_TOLERANCE = 1.5


class Case(NamedTuple):
    """Something of emcaps, as a function of a batch and of what all examples share.

    Attributes:
        name: for the table.
        function: from `(batch, shared)` to arrays with the examples first.
        batch: a tree of arrays with `BATCH` examples first.
        shared: a tree of arrays.
        exact: of a function in low precision, what it is in float32, with which it is compared;
            otherwise None.
    """

    name: str
    function: Callable[[Any, Any], Any]
    batch: Any
    shared: Any
    exact: Callable[[Any, Any], Any] | None = None


class Way(NamedTuple):
    """How devices come to share a batch.

    Attributes:
        divide: from a function, and the mesh, to one that is divided.
        kind: of the mesh's axis; None for a way that takes one device.
    """

    divide: Callable[[Callable, Any], Callable]
    kind: AxisType | None


def _as_it_is(function: Callable, mesh: Any) -> Callable:
    return function


def _by_shard_map(function: Callable, mesh: Any) -> Callable:
    return jax.shard_map(function, mesh=mesh, in_specs=(SHARDED, WHOLE), out_specs=SHARDED)


def _by_pmap(function: Callable, mesh: Any) -> Callable:
    def divided(batch: Any, shared: Any) -> Any:
        by_device = jax.tree.map(
            lambda array: array.reshape(mesh.size, -1, *array.shape[1:]), batch
        )
        # For each array: with nothing shared, one 0 for all is misread.
        axes = jax.tree.map(lambda _: 0, batch), None
        mapped = jax.pmap(function, in_axes=axes, devices=list(mesh.devices.flat))
        return jax.tree.map(
            lambda array: array.reshape(BATCH, *array.shape[2:]), mapped(by_device, shared)
        )

    return divided


def _by_vmap(function: Callable, mesh: Any) -> Callable:
    def one(example: Any, shared: Any) -> Any:
        result = function(jax.tree.map(lambda array: array[None], example), shared)
        return jax.tree.map(lambda array: array[0], result)

    return jax.vmap(one, (0, None))


def _by_vmap_inside(function: Callable, mesh: Any) -> Callable:
    return _by_shard_map(_by_vmap(function, mesh), mesh)


def _exported(function: Callable, mesh: Any) -> Callable:
    """`function` after an export with its gradient, for three platforms and a batch of any size."""

    def run(batch: Any, shared: Any) -> Any:
        (size,) = jax.export.symbolic_shape("size")
        shapes = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype), batch
        )
        exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(
            shapes, shared
        )
        return exported.call(batch, shared)

    return run


WAYS = {
    "explicit": Way(_as_it_is, AxisType.Explicit),
    "automatic": Way(_as_it_is, AxisType.Auto),
    "shard_map": Way(_by_shard_map, AxisType.Auto),
    "pmap": Way(_by_pmap, AxisType.Auto),
    "vmap": Way(_by_vmap, None),
    "explicit-vmap": Way(_by_vmap, AxisType.Explicit),
    "shard_map-vmap": Way(_by_vmap_inside, AxisType.Auto),
    "export": Way(_exported, None),
}


def cases() -> Iterator[Case]:
    """Each public function of arrays, and each module, with small arguments."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    share = lambda *shape: random.uniform(0.1, 0.9, shape).astype(np.float32)  # noqa: E731
    options = {
        "inverse_temperature": np.linspace(0.5, 1, 3, dtype=np.float32),
        "min_variance": 0.1,
        "mass_scale": 0.1,
    }
    betas, transforms = (normal(3), normal(3)), normal(2, 2, 2, 3, 4, 4)
    children = emcaps.Capsules(
        jnp.asarray(normal(BATCH, 4, 3, 2, 4, 4)), jnp.asarray(share(BATCH, 4, 3, 2))
    )
    routed = lambda route: lambda batch, shared: route(*batch, *shared, **options)  # noqa: E731
    yield Case(
        "em_routing", routed(emcaps.em_routing), (normal(BATCH, 5, 3, 16), share(BATCH, 5)), betas
    )
    for implementation in ("streamed", "dense"):
        route = functools.partial(emcaps.conv_em_routing, implementation=implementation)
        yield Case(
            f"conv_em_routing, {implementation}",
            routed(route),
            tuple(children),
            (transforms, *betas),
        )
    yield Case(
        "class_em_routing",
        routed(emcaps.class_em_routing),
        tuple(children),
        (transforms[0, 0], *betas),
    )
    yield Case("diagnose", _diagnose, tuple(children), (transforms, *betas))
    yield Case(
        "dynamic_routing",
        lambda votes, _: emcaps.dynamic.dynamic_routing(votes),
        normal(BATCH, 5, 3, 4),
        (),
    )
    yield Case(
        "class_dynamic_routing",
        emcaps.dynamic.class_dynamic_routing,
        normal(BATCH, 5, 4),
        normal(5, 3, 4, 2),
    )
    yield Case("squash", lambda vectors, _: emcaps.dynamic.squash(vectors), normal(BATCH, 5, 4), ())
    labels = np.arange(BATCH, dtype=np.int32) % 3
    low = emcaps.CapsNet(3, 4, 2, (3,), emcaps.TRAINABLE, dtype=jnp.bfloat16)
    for name, loss in (
        ("spread_loss", functools.partial(emcaps.spread_loss, margin=0.5)),
        ("margin_loss", emcaps.margin_loss),
    ):
        yield Case(name, lambda batch, _, loss=loss: loss(*batch), (share(BATCH, 3), labels), ())
    images = share(BATCH, 20, 20, 1)
    pair = images, images[::-1].copy()
    yield Case(
        "reconstruction_loss", lambda batch, _: emcaps.dynamic.reconstruction_loss(*batch), pair, ()
    )
    yield Case("View", lambda images, _: emcaps.pretrained.View(2, True, 6)(images), images, ())
    yield from (
        _module("PrimaryCaps", emcaps.PrimaryCaps(2), normal(BATCH, 4, 3, 5)),
        _module("ConvCaps", emcaps.ConvCaps(3, routing=emcaps.TRAINABLE), children),
        _module("ClassCaps", emcaps.ClassCaps(3), children),
        _module("CapsNet", emcaps.CapsNet(3, 4, 2, (3, 2), emcaps.TRAINABLE), images),
        _module("CapsNet, bfloat16", low, images, low.clone(dtype=None)),
        _module(
            "PrimaryVectorCaps", emcaps.dynamic.PrimaryVectorCaps(2, 4), normal(BATCH, 10, 10, 3)
        ),
        _module("VectorClassCaps", emcaps.dynamic.VectorClassCaps(3, 4), normal(BATCH, 5, 4)),
        _module("DynamicCapsNet", emcaps.dynamic.DynamicCapsNet(3, 8, 2, 4, 4), images),
        _module(
            "Decoder", emcaps.dynamic.Decoder((4, 4, 1), (5,)), (normal(BATCH, 3, 4, 4), labels)
        ),
    )


def _diagnose(children: Any, shared: Any) -> Any:
    """Of each example by itself: a diagnosis is one of a whole batch, of which there is a device's
    share.
    """

    def one(poses: jax.Array, activations: jax.Array) -> Any:
        routed = emcaps.conv_em_routing(poses[None], activations[None], *shared)
        return emcaps.diagnostics.diagnose(routed)

    return jax.vmap(one)(*children)


def _module(name: str, module: nn.Module, batch: Any, exact: nn.Module | None = None) -> Case:
    """A module as a function of its input and its parameters; `exact` is the same in float32."""

    def given(batch: Any) -> Any:
        return batch if type(batch) is tuple else (batch,)

    def function(module: nn.Module) -> Callable[[Any, Any], Any]:
        return lambda batch, params: module.apply(params, *given(batch))

    params = jax.jit(module.init)(jax.random.key(0), *given(batch))
    return Case(name, function(module), batch, params, exact and function(exact))


def result_and_gradient(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The result, and the gradients of a mean over the examples for all arguments in floating
    point.
    """

    def both(batch: Any, shared: Any) -> Any:
        leaves, structure = jax.tree.flatten((batch, shared))
        floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

        def loss(given: Sequence[Any]) -> Any:
            rest = iter(given)
            filled = [
                next(rest) if yes else leaf for yes, leaf in zip(floating, leaves, strict=True)
            ]
            result = function(*structure.unflatten(filled))
            means = [jnp.sin(leaf.astype(jnp.float32)).mean() for leaf in jax.tree.leaves(result)]
            return sum(means), result

        gradients, result = jax.grad(loss, has_aux=True)(
            [leaf for yes, leaf in zip(floating, leaves, strict=True) if yes]
        )
        return result, gradients

    return both


class Expected(NamedTuple):
    """The result and gradient of a case in one call on one device, and how far from it others may
    be.
    """

    values: Any
    tolerance: float


def expect(case: Case) -> Expected:
    """What a case should come to."""

    def on_one_device(function: Callable[[Any, Any], Any]) -> Any:
        return jax.jit(result_and_gradient(function))(case.batch, case.shared)

    values = on_one_device(case.function)
    if case.exact is None:
        return Expected(values, TOLERANCE)
    exact = on_one_device(case.exact)
    return Expected(exact, LOW_PRECISION_TOLERANCE * _distance(values, exact))


def compare(case: Case, expected: Expected, way: Way, number: int) -> Record:
    """Run a case in one way on so many devices."""
    mesh = jax.make_mesh(
        (number,),
        ("data",),
        axis_types=(way.kind or AxisType.Auto,),
        devices=jax.devices()[:number],
    )
    batch, shared = case.batch, case.shared
    if way.kind is not None:
        batch, shared = (
            jax.device_put(tree, NamedSharding(mesh, spec))
            for tree, spec in ((batch, SHARDED), (shared, WHOLE))
        )
    compiled = (
        jax.jit(result_and_gradient(way.divide(case.function, mesh))).lower(batch, shared).compile()
    )
    found = compiled(batch, shared)
    kinds: dict[str, int] = {}
    for one in collectives(compiled.as_text() or ""):
        kinds[one.kind] = kinds.get(one.kind, 0) + one.times
    off = _distance(found, expected.values)
    part = BATCH // (number if way.kind is not None else 1)
    divided = all(
        array.addressable_shards[0].data.shape[0] == part for array in jax.tree.leaves(found[0])
    )
    right = off <= expected.tolerance and divided and kinds.keys() <= {"all-reduce"}
    return {"difference": off, "divided": divided, "collectives": kinds, "right": right}


def _distance(ours: Any, theirs: Any) -> float:
    """The largest difference in trees of arrays, relative to the largest value of the array, or to
    1 if that is larger; not a number if one is missing.
    """

    def difference(ours: Any, theirs: Any) -> float:
        ours, theirs = (np.asarray(array, np.float64) for array in (ours, theirs))
        return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1))

    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return float(np.max([difference(*pair) for pair in pairs]))
