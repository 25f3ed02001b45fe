"""Parent types divided over devices: the routing, its gradients and the network are those of one
device that has them all.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from routing_cases import CONV_ROUTE, EM_ROUTE, ROUTES, assert_results_close, settings

import emcaps
from emcaps import TRAINABLE, CapsNet, ConvCaps, RoutingOptions

SLOW = pytest.mark.slow


def four_types(route):
    """The same arguments with a fourth parent type."""
    return tuple(
        array if axis is None else np.concatenate([array, 0.7 * np.take(array, [0], axis)], axis)
        for array, axis in zip(route.arrays(dtype=np.float64), route.parent_axes, strict=True)
    )


def divided(function, in_axes, out_axes):
    """A function on two devices, its arguments and results divided along these axes; None is the
    same on both.
    """
    spec = lambda axis: PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "types")  # noqa: E731
    mesh = Mesh(np.array(jax.devices()[:2]), ("types",))
    in_specs, out_specs = (tuple(map(spec, axes)) for axes in (in_axes, out_axes))
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    )


def assert_divided_is_whole(route, **keywords):
    """The result of two devices with half of the types each is that of one with all."""
    arrays, given = four_types(route), settings(dtype=np.float64) | keywords
    whole = route.function(*arrays, **given)
    here = functools.partial(route.function, **given, parent_axis="types")
    found = divided(
        lambda *shares: tuple(here(*shares)), route.parent_axes, route.result_parent_axes
    )(*arrays)
    assert_results_close(type(whole)(*found), whole, 1e-12)


@pytest.mark.parametrize(
    "competition",
    [pytest.param({}, marks=SLOW), {"normalize_costs": True}],
    ids=["paper", "normalized"],
)
@pytest.mark.parametrize(
    "name",
    [
        "em",
        # Of maps there are results with their gradients, below.
        *(pytest.param(name, marks=SLOW) for name in ("conv-streamed", "conv-dense", "class")),
    ],
)
def test_divided_types_route_as_if_they_were_together(name, competition, x64):
    assert_divided_is_whole(ROUTES[name], **competition)


@pytest.mark.parametrize("name", ["conv-streamed", pytest.param("conv-dense", marks=SLOW)])
def test_gradients_are_of_the_sum_over_the_devices(name, x64):
    """And results are as above."""
    route, arrays = ROUTES[name], four_types(ROUTES[name])
    given = settings(dtype=np.float64) | {"normalize_costs": True}

    def total(*arrays, **keywords):
        result = route.function(*arrays, **given, **keywords)
        return (result.poses**2).sum() + jnp.sin(3 * result.activations).sum(), result

    places = range(len(arrays))
    expected, whole = jax.jit(jax.grad(total, places, has_aux=True))(*arrays)

    def here(*shares):
        of_shares = functools.partial(total, parent_axis="types")
        gradients, result = jax.grad(of_shares, places, has_aux=True)(*shares)
        return *result, *(
            gradient if axis is not None else jax.lax.psum(gradient, "types")
            for gradient, axis in zip(gradients, route.parent_axes, strict=True)
        )

    axes = (*route.result_parent_axes, *route.parent_axes)
    found = divided(here, route.parent_axes, axes)(*arrays)
    assert_results_close(type(whole)(*found[: len(whole)]), whole, 1e-12)
    for gradient, wanted in zip(found[len(whole) :], expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-11)


# Competition is the same code on a map.
@pytest.mark.parametrize("name", ["em", pytest.param("conv-streamed", marks=SLOW)])
def test_without_competition_between_types_only_costs_are_shared(name, x64):
    assert_divided_is_whole(ROUTES[name], normalize_costs=True, competition="positions")


@pytest.mark.parametrize(
    ("name", "mass", "scale"),
    [
        # Parents per child on the map, or types per child that a parent sees.
        ("conv-streamed", {"parent_mass": 16.0}, 16 * (3 * 3 * 4) / (5 * 4 * 2)),
        ("conv-streamed", {"field_mass": 100.0}, 100 * 4 / (3 * 2 * 2)),
        pytest.param("em", {"parent_mass": 16.0}, 16 * 4 / 5, marks=SLOW),
        pytest.param("em", {"field_mass": 100.0}, 100 * 4 / 5, marks=SLOW),
        pytest.param("class", {"parent_mass": 16.0}, 16 * 4 / (2 * 3 * 2), marks=SLOW),
        pytest.param("class", {"field_mass": 100.0}, 100 * 4 / (2 * 3 * 2), marks=SLOW),
    ],
    ids=str,
)
def test_masses_count_the_types_of_all_devices(name, mass, scale):
    """The program is the one with the scale that they have together."""
    route = ROUTES[name]

    def program(**options):
        here = functools.partial(route.function, num_iterations=1, parent_axis="types", **options)
        share = divided(
            lambda *shares: tuple(here(*shares)), route.parent_axes, route.result_parent_axes
        )
        return share.lower(*four_types(route)).as_text()

    assert program(**mass) == program(mass_scale=scale)
    assert program(**mass) != program(mass_scale=scale / 2)


def test_specs_divide_the_convolutional_capsules_and_nothing_else():
    model = CapsNet(3, 4, 2, (4, 2), RoutingOptions(num_iterations=1))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 17, 17, 1)))["params"]
    specs = emcaps.partition_specs({"mean": params, "step": 0}, "types")
    assert specs["mean"]["conv_caps_2"] == {
        "transforms": PartitionSpec(None, None, None, "types"),
        "beta_u": PartitionSpec("types"),
        "beta_a": PartitionSpec("types"),
    }
    rest = [
        spec
        for layer in ("conv", "primary", "class_caps")
        for spec in jax.tree.leaves(specs["mean"][layer])
    ]
    assert {*rest, specs["step"]} == {PartitionSpec()}


def test_a_layer_gives_all_devices_all_of_its_parents(x64):
    layer = ConvCaps(4, routing=dataclasses.replace(TRAINABLE, assignment_temperature_rate=0.0))
    random = np.random.default_rng(0)
    children = emcaps.Capsules(
        random.normal(size=(1, 4, 3, 2, 4, 4)), random.uniform(size=(1, 4, 3, 2))
    )
    shapes = jax.eval_shape(layer.init, jax.random.key(0), children)["params"]
    params = {name: random.normal(size=array.shape) for name, array in shapes.items()}
    here = lambda *shares: tuple(  # noqa: E731
        layer.clone(parent_axis="types").apply(
            {"params": dict(zip(params, shares, strict=True))}, children
        )
    )
    axes = dict(zip(CONV_ROUTE.shapes, CONV_ROUTE.parent_axes, strict=True))
    found = divided(here, [axes[name] for name in params], (None,) * 5)
    whole = jax.jit(layer.apply)({"params": params}, children)
    assert_results_close(type(whole)(*found(*params.values())), whole, 1e-12)


def test_types_that_cannot_be_divided_are_refused():
    layer = ConvCaps(3, parent_axis="types")
    children = emcaps.Capsules(jnp.zeros((1, 3, 3, 2, 4, 4)), jnp.zeros((1, 3, 3, 2)))
    init = divided(
        lambda poses, activations: layer.init(
            jax.random.key(0), emcaps.Capsules(poses, activations)
        ),
        (None, None),
        (),
    )
    with pytest.raises(
        ValueError, match="num_capsules must be divisible by the 2 devices of 'types'; got 3"
    ):
        init(*children)


@pytest.mark.parametrize("axis, error", [("types", ValueError), (3, TypeError)])
def test_an_axis_that_nobody_has_mapped_is_refused(axis, error):
    with pytest.raises(error, match=f"parent_axis must be None or .*; got {axis!r}"):
        emcaps.em_routing(*EM_ROUTE.arrays(), parent_axis=axis)
