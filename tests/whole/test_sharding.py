"""A batch divided in each of JAX's own ways: values and gradients of one device, each device busy
with its own examples.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from routing_cases import ROUTES, assert_results_close, settings
from test_parent_axis import four_types

import emcaps
from emcaps import TRAINABLE, CapsNet, ConvCaps, RoutingOptions
from emcaps.dynamic import Decoder, DynamicCapsNet
from emcaps.sharding import for_each_shard
from experiments.compiled.collectives import collectives

SLOW = pytest.mark.slow
WHOLE, BATCH = PartitionSpec(), PartitionSpec(("a", "b"))
BF16 = jnp.bfloat16


def two_devices(kind, shape=(2, 1)):
    return jax.make_mesh(shape, ("a", "b"), axis_types=(kind,) * 2, devices=jax.devices()[:2])


def place(tree, mesh, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))


def by_the_types(function, mesh):
    return function


def by_shard_map(function, mesh):
    return jax.shard_map(function, mesh=mesh, in_specs=(BATCH, WHOLE), out_specs=BATCH)


def by_vmap(function, mesh):
    """One example at a time."""

    def one(example, shared):
        return jax.tree.map(
            lambda array: array[0],
            function(jax.tree.map(lambda array: array[None], example), shared),
        )

    return jax.vmap(one, (0, None))


def by_vmap_in_shard_map(function, mesh):
    return by_shard_map(by_vmap(function, mesh), mesh)


WAYS = {
    "explicit": (AxisType.Explicit, by_the_types),
    "automatic": (AxisType.Auto, by_the_types),
    "shard_map": (AxisType.Auto, by_shard_map),
}
VMAP_WAYS = {
    "explicit vmap": (AxisType.Explicit, by_vmap),
    "automatic vmap": (AxisType.Auto, by_vmap),
    "shard_map vmap": (AxisType.Auto, by_vmap_in_shard_map),
}


def loss(result):
    return (result.poses.astype(jnp.float32) ** 2).sum() + jnp.sin(
        3 * result.activations.astype(jnp.float32)
    ).sum()


def values_and_gradients(function, batched, shared):
    """The result of `function(batched, shared)`, and the gradients of a loss of it for both."""

    def with_result(*given):
        result = function(*given)
        return loss(result), result

    gradients, result = jax.grad(with_result, (0, 1), has_aux=True)(batched, shared)
    return result, gradients


def on_one_device(function, batched, shared):
    return jax.jit(functools.partial(values_and_gradients, function))(batched, shared)


def check_division(way, function, batched, shared, expected, tolerance, sums=1):
    """As on one device, the result divided as the batch is, and so many all-reduces."""
    kind, divide = (WAYS | VMAP_WAYS)[way]
    mesh = two_devices(kind)
    run = jax.jit(functools.partial(values_and_gradients, divide(function, mesh)))
    given = place(batched, mesh, BATCH), place(shared, mesh, WHOLE)
    compiled = run.lower(*given).compile()
    result, gradients = compiled(*given)
    for ours, theirs in zip(
        jax.tree.leaves((result, gradients)), jax.tree.leaves(expected), strict=True
    ):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        np.testing.assert_allclose(ours, theirs, atol=tolerance * max(np.abs(theirs).max(), 1))
    for array in jax.tree.leaves((result, gradients[0])):
        assert array.addressable_shards[0].data.shape[0] == array.shape[0] // 2
    found = collectives(compiled.as_text())
    assert {one.kind for one in found} == {"all-reduce"}
    assert sum(one.times for one in found) == sums


def by_batch(name, dtype=np.float32, **keywords):
    """A route as a function of what has examples and what they share, and its arguments."""
    route = ROUTES[name]
    arrays = route.arrays(dtype=dtype)

    def function(batched, shared):
        return route.function(*batched, *shared, **(settings(dtype=dtype) | keywords))

    return function, arrays[:2], arrays[2:]


@functools.cache
def route_on_one_device(name, dtype):
    return jax.device_get(on_one_device(*by_batch(name, dtype)))


def check_route(way, name, dtype, tolerance, sums=1):
    expected = route_on_one_device(name, dtype)
    check_division(way, *by_batch(name, dtype), expected, tolerance, sums)


@pytest.mark.parametrize(
    "name, way",
    [
        ("conv-streamed", "explicit"),
        ("conv-streamed", "automatic"),
        pytest.param("em", "explicit", marks=SLOW),
        pytest.param("conv-streamed", "shard_map", marks=SLOW),
        pytest.param("conv-dense", "explicit", marks=SLOW),
        pytest.param("conv-dense", "shard_map", marks=SLOW),
        pytest.param("em", "shard_map", marks=SLOW),
        *(pytest.param("class", way, marks=SLOW) for way in WAYS),
    ],
)
def test_each_device_routes_its_own_examples(name, way, x64):
    check_route(way, name, np.float64, 1e-9)


@pytest.mark.parametrize(
    "name, way, sums",
    [
        ("conv-streamed", "explicit vmap", 1),
        # In each iteration the costs' gradient is summed.
        pytest.param("em", "explicit vmap", 3, marks=SLOW),
        pytest.param("em", "shard_map vmap", 1, marks=SLOW),
        *(
            pytest.param("conv-streamed", way, 1, marks=SLOW)
            for way in ("automatic vmap", "shard_map vmap")
        ),
        *(
            pytest.param("conv-dense", way, 4, marks=SLOW)
            for way in ("explicit vmap", "automatic vmap")
        ),
        pytest.param("conv-dense", "shard_map vmap", 1, marks=SLOW),
        *(pytest.param("class", way, 1, marks=SLOW) for way in VMAP_WAYS),
    ],
)
def test_examples_routed_alone_stay_where_they_are(name, way, sums, x64):
    check_route(way, name, np.float64, 1e-9, sums)


@pytest.mark.slow
def test_automatic_axes_sum_the_gradient_of_costs_once(x64):
    """Besides, all devices ask in each of the three iterations whether any has lost digits."""
    check_route("automatic", "em", np.float64, 1e-9, sums=4)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_low_precision_is_divided_as_well(way):
    check_route(way, "conv-streamed", BF16, 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "model, tolerance, sums_of_automatic",
    [
        (CapsNet(3, 4, 2, (4, 2), TRAINABLE), 1e-4, 1),
        (CapsNet(3, 4, 2, (4, 2), TRAINABLE, dtype=BF16), 2e-2, 1),
        # The partitioner sums for each of three parents, in each of five uses.
        (DynamicCapsNet(3, 8, 2, 4, 4), 1e-4, 1 + 3 * 5),
    ],
    ids=["em", "bf16", "dynamic"],
)
def test_networks_are_divided(model, tolerance, sums_of_automatic, way):
    images = np.random.default_rng(0).uniform(size=(4, 19, 19, 1)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images[:1])
    sums = sums_of_automatic if way == "automatic" else 1
    given = (lambda images, params: model.apply(params, images)[0], images, params)
    check_division(way, *given, on_one_device(*given), tolerance, sums)


def test_what_examples_share_may_be_sharded_too():
    mesh = two_devices(AxisType.Explicit)
    function, batched, shared = by_batch("conv-streamed")
    transforms, *rest = shared
    divided = place(np.concatenate([transforms] * 2, 2), mesh, PartitionSpec(None, None, "a"))
    poses, activations = (np.concatenate([array] * 2, 3) for array in batched)
    result = jax.jit(function)(
        (place(poses, mesh, BATCH), place(activations, mesh, BATCH)), (divided, *rest)
    )
    expected = function((poses, activations), (np.asarray(divided), *rest))
    assert_results_close(result, expected, 1e-4)


def test_calls_outside_of_jit_are_traced_once():
    traced = []

    def double(batched, shared):
        traced.append(1)
        return 2 * batched + shared

    mesh = two_devices(AxisType.Explicit)
    batched = place(np.arange(4.0, dtype=np.float32), mesh, BATCH)
    for _ in range(2):
        result = for_each_shard(double, batched, jnp.float32(1))
        np.testing.assert_array_equal(result, [1, 3, 5, 7])
    assert len(traced) == 1


@pytest.mark.parametrize(
    "specs, message",
    [
        ((PartitionSpec(None, None, "a"), WHOLE), "along the batch only"),
        ((PartitionSpec("a"), PartitionSpec("b")), "sharded alike"),
    ],
)
def test_another_sharding_of_the_children_is_refused(specs, message):
    mesh = two_devices(AxisType.Explicit, (2, 1))
    function, batched, shared = by_batch("conv-streamed")
    batched = tuple(place(array, mesh, spec) for array, spec in zip(batched, specs, strict=True))
    with pytest.raises(ValueError, match=message):
        function(batched, shared)


def test_losses_and_decoder_take_a_sharded_batch():
    mesh = two_devices(AxisType.Explicit)
    random = np.random.default_rng(0)
    activations, poses = (
        random.uniform(size=(4, 3)).astype(np.float32),
        random.normal(size=(4, 3, 4, 4)).astype(np.float32),
    )
    labels, decoder = np.array([0, 1, 2, 0]), Decoder((4, 4, 1), (2,))
    params = jax.jit(decoder.init)(jax.random.key(0), poses, labels)

    @jax.jit
    def function(activations, poses, labels):
        images = decoder.apply(params, poses, labels)
        losses = emcaps.spread_loss(activations, labels, 0.5) + emcaps.margin_loss(
            activations, labels
        )
        # As targets.
        losses += emcaps.spread_loss(activations, activations, 0.5) + emcaps.margin_loss(
            activations, activations
        )
        return losses + emcaps.dynamic.reconstruction_loss(
            emcaps.pretrained.prepare_images(images, standardize=True), images
        )

    given = activations, poses, labels
    np.testing.assert_allclose(function(*place(given, mesh, BATCH)), function(*given), rtol=1e-5)


@pytest.mark.slow
def test_a_classifier_takes_sharded_images():
    classifier = emcaps.pretrained.load_classifier("mnist")
    images = np.random.default_rng(0).uniform(size=(4, *classifier.image_shape)).astype(np.float32)
    found = classifier.predict(place(images, two_devices(AxisType.Explicit), BATCH))
    for ours, theirs in zip(found, classifier.predict(images), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        assert len(ours.sharding.device_set) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv-streamed", "conv-dense", "em"])
def test_gradients_of_divided_types_come_summed_where_jax_tracks_what_varies(name, x64):
    """With `check_vma`, the default, no device has to add anything."""
    route, arrays = ROUTES[name], four_types(ROUTES[name])
    places, given = range(len(arrays)), settings(dtype=np.float64) | {"normalize_costs": True}
    expected = jax.jit(jax.grad(lambda *arrays: loss(route.function(*arrays, **given)), places))(
        *arrays
    )
    specs = tuple(
        WHOLE if axis is None else PartitionSpec(*[None] * axis, "a") for axis in route.parent_axes
    )
    here = jax.grad(lambda *shares: loss(route.function(*shares, **given, parent_axis="a")), places)
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    found = jax.jit(jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=specs))(*arrays)
    for gradient, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_a_layer_of_divided_types_is_the_same_on_all_devices_and_so_is_its_gradient(x64):
    random = np.random.default_rng(0)
    children = emcaps.Capsules(
        random.normal(size=(1, 4, 3, 2, 4, 4)), random.uniform(size=(1, 4, 3, 2))
    )
    params = jax.jit(ConvCaps(4).init)(jax.random.key(0), children)["params"]
    whole = jax.jit(jax.grad(lambda params: loss(ConvCaps(4).apply({"params": params}, children))))(
        params
    )
    specs = emcaps.partition_specs({"conv_caps_1": params}, "a")["conv_caps_1"]
    divided = jax.grad(
        lambda params, children: loss(
            ConvCaps(4, parent_axis="a").apply({"params": params}, children)
        )
    )
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    found = jax.jit(jax.shard_map(divided, mesh=mesh, in_specs=(specs, WHOLE), out_specs=specs))(
        params, children
    )
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, whole[name], rtol=1e-9, atol=1e-11)


def check_export(function, batched, shared):
    """What is exported for a batch of any size gives what the function gives."""
    (size,) = jax.export.symbolic_shape("size")
    shapes = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype), batched
    )
    exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(
        shapes, shared
    )
    for number in (1, 7, 64):
        given = jax.tree.map(lambda array: np.resize(array, (number, *array.shape[1:])), batched)  # noqa: B023
        for ours, theirs in zip(
            jax.tree.leaves(exported.call(given, shared)),
            jax.tree.leaves(function(given, shared)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(np.abs(theirs).max(), 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv-streamed", "conv-dense", "class", "em"])
def test_a_program_for_any_batch_can_be_exported(name):
    check_export(*by_batch(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [CapsNet(3, 4, 2, (4, 2), TRAINABLE), DynamicCapsNet(3, 8, 2, 4, 4)],
    ids=["em", "dynamic"],
)
def test_networks_for_any_batch_can_be_exported(model):
    images = np.random.default_rng(0).uniform(size=(3, 19, 19, 1)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)
    check_export(lambda images, params: model.apply(params, images), images, params)


def everything(dtype):
    """Each public function and module, with arguments that it can be differentiated by; routing and
    `CapsNet` in this dtype.
    """
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    labels = np.array([0, 2], np.uint8)
    for name, route in ROUTES.items():
        yield name, functools.partial(route.function, damping=0.1), route.arrays(dtype=dtype)
    yield "dynamic_routing", emcaps.dynamic.dynamic_routing, (normal(2, 5, 4, 3),)
    yield (
        "class_dynamic_routing",
        emcaps.dynamic.class_dynamic_routing,
        (normal(2, 5, 4), normal(5, 3, 4, 2)),
    )
    yield "squash", emcaps.dynamic.squash, (normal(2, 3),)
    margin = lambda step: emcaps.margin_schedule(step, 10)  # noqa: E731
    yield (
        "spread_loss",
        lambda a: emcaps.spread_loss(a, labels, margin(jnp.int32(3))),
        (normal(2, 3).astype(BF16),),
    )
    targets = np.float32([[0.7, 0.3, 0], [1, 1, 0]])
    yield (
        "spread_loss of targets",
        lambda a: emcaps.spread_loss(a, targets, 0.5),
        (normal(2, 3).astype(BF16),),
    )
    yield (
        "margin_loss of targets",
        lambda a: emcaps.margin_loss(a, targets),
        (normal(2, 3).astype(BF16),),
    )
    yield "margin_loss", lambda a: emcaps.margin_loss(a, labels), (normal(2, 3),)
    yield (
        "reconstruction_loss",
        emcaps.dynamic.reconstruction_loss,
        (normal(2, 4, 4, 1), normal(2, 4, 4, 1)),
    )
    yield "View", emcaps.pretrained.View(2, True, 4), (np.abs(normal(2, 8, 8, 1)),)
    field = emcaps.ReceptiveField((5, 4), (3, 2), 1)
    yield (
        "ReceptiveField",
        lambda x: (field.scatter_sum(field.gather(x)), field.scatter_max(field.gather(x))),
        (normal(2, 5, 4, 3),),
    )
    options = RoutingOptions(damping=0.1)
    models = {
        "CapsNet": CapsNet(3, 4, 2, (4,), options, dtype=dtype),
        "DynamicCapsNet": DynamicCapsNet(3, 8, 2, 4, 4),
    }
    for name, model in models.items():
        images = normal(2, 17, 17, 1)
        params = jax.eval_shape(model.init, jax.random.key(0), images)
        yield f"{name}.init", functools.partial(model.init, jax.random.key(0)), (images,)
        yield name, model.apply, (params, images)
    intermediates = lambda params, images: models["CapsNet"].apply(params, images)[1]  # noqa: E731
    params = jax.eval_shape(models["CapsNet"].init, jax.random.key(0), images)
    yield (
        "diagnostics",
        lambda *given: emcaps.diagnostics.diagnose_layers(intermediates(*given)),
        (params, images),
    )
    decoder = Decoder((3, 3, 1), (4,))
    decode = lambda poses: decoder.init_with_output(jax.random.key(0), poses, labels)  # noqa: E731
    yield "Decoder", decode, (normal(2, 3, 4, 4),)


@pytest.mark.parametrize(
    "dtype", [pytest.param(np.float32, marks=SLOW), BF16], ids=["float32", "bfloat16"]
)
def test_nothing_is_promoted_implicitly(dtype):
    """Neither ranks nor dtypes. Tracing is enough to find out."""
    for name, function, given in everything(dtype):

        def total(*given):
            leaves = jax.tree.leaves(function(*given))  # noqa: B023
            floating = (leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
            return sum(leaf.astype(jnp.float32).sum() for leaf in floating)

        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            try:
                jax.eval_shape(jax.grad(total, range(len(given))), *given)
            except (TypeError, ValueError) as error:
                raise AssertionError(f"{name}: {error}") from error


def test_an_example_routed_alone_is_divided_no_more(x64):
    """`vmap` of what is divided over devices is the routing as it is."""
    function, batched, shared = by_batch("conv-streamed", np.float64)
    one = lambda batched: loss(function(jax.tree.map(lambda array: array[None], batched), shared))  # noqa: E731
    _, (whole, _) = route_on_one_device("conv-streamed", np.float64)
    for ours, theirs in zip(jax.jit(jax.vmap(jax.grad(one)))(batched), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
