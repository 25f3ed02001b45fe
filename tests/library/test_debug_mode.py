"""Values that are traced are checked by whoever asks for it:
`jax.experimental.checkify.checkify`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import routing_cases
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from emcaps import CapsNet, RoutingOptions, spread_loss
from emcaps.dynamic import squash


@functools.cache
def in_debug_mode(function):
    return jax.jit(checkify.checkify(function, errors=checkify.user_checks))


def message(function, *arguments):
    """What the debug mode says about a call; None if there is nothing."""
    error, _ = in_debug_mode(function)(*arguments)
    return error.get()


@functools.cache
def routed_once(kind):
    return jax.jit(functools.partial(routing_cases.ROUTES[kind].function, num_iterations=1))


def broken(route, name, value):
    """The arrays of a route, one of them with a wrong value."""
    arrays = dict(zip(route.shapes, route.arrays(), strict=True))
    arrays[name].flat[3 % arrays[name].size] = value
    return list(arrays.values())


def test_a_program_that_is_traced_again_is_the_same():
    """So that it is found in a cache of compiled programs, although checkify numbers checks as they
    are traced.
    """
    route = routing_cases.ROUTES["conv-streamed"]

    def lowered():
        once = functools.partial(route.function, num_iterations=1)
        return jax.jit(once).lower(*route.arrays()).as_text()

    first = lowered()
    jax.jit(lambda pred: checkify.debug_check(pred, "another check")).lower(True)
    assert lowered() == first


@pytest.mark.parametrize(
    ("kind", "name", "value", "expected"),
    [
        ("em", "activations", 1.5, r"activations must lie in [0, 1]; got 1.5"),
        ("em", "votes", np.nan, "votes must be finite; got nan"),
        ("em", "beta_u", np.inf, "beta_u must be finite; got inf"),
        ("class", "transforms", -np.inf, "transforms must be finite; got -inf"),
        # Maps of all kinds are checked by the same code.
        pytest.param(
            "conv-streamed",
            "activations",
            -0.25,
            r"activations must lie in [0, 1]; got -0.25",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_wrong_values_are_named_in_debug_mode_and_pass_otherwise(kind, name, value, expected):
    route, function = routing_cases.ROUTES[kind], routed_once(kind)
    assert message(function, *route.arrays()) is None
    wrong = broken(route, name, value)
    assert expected in message(function, *wrong)
    jax.block_until_ready(function(*wrong))


def test_traced_constants_are_checked_too():
    route = routing_cases.EM_ROUTE
    function = jax.jit(
        lambda epsilon: route.function(*route.arrays(), num_iterations=1, mass_epsilon=epsilon)
    )
    assert message(function, 1e-6) is None
    assert "mass_epsilon must lie in" in message(function, -1.0)


WRONG = np.ones((4, 3), np.float32)
WRONG[2, 1] = np.nan


@pytest.mark.parametrize(
    "function, given, expected",
    [
        (jax.vmap(squash), WRONG, "vectors must be finite; got nan"),
        (jax.vmap(jax.vmap(squash)), WRONG[None, :, None], "vectors must be finite; got nan"),
        (
            jax.jit(jax.vmap(jax.grad(lambda vector: squash(vector)[0]))),
            WRONG,
            "vectors must be finite; got nan",
        ),
        (
            jax.vmap(lambda label: spread_loss(WRONG[:1], label[None], 0.5)),
            np.array([0, 7, 2, 5]),
            "labels must lie in [0, 2]; got 7",
        ),
    ],
    ids=["vmap", "twice", "gradient", "integers"],
)
def test_of_examples_one_at_a_time_the_wrong_value_is_named(function, given, expected):
    assert expected in message(function, given)
    assert message(function, np.zeros_like(given)) is None


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "shard_map"])
def test_of_examples_on_several_devices_the_wrong_value_is_named(kind):
    mesh = jax.make_mesh((2,), ("a",), axis_types=(kind,), devices=jax.devices()[:2])
    function = jax.vmap(squash)
    if kind == AxisType.Auto:
        function = jax.shard_map(
            function, mesh=mesh, in_specs=PartitionSpec("a"), out_specs=PartitionSpec("a")
        )
    given = jax.device_put(WRONG, NamedSharding(mesh, PartitionSpec("a")))
    assert "vectors must be finite; got nan" in message(jax.jit(function), given)
    assert message(jax.jit(function), jnp.zeros_like(given)) is None


@pytest.mark.slow
def test_a_training_step_is_debugged_as_a_whole():
    """Through a network, a loss and a gradient."""
    model = CapsNet(3, 4, 2, (2,), RoutingOptions(num_iterations=1))
    images = jax.random.uniform(jax.random.key(0), (2, 13, 13, 1))
    params = jax.jit(model.init)(jax.random.key(1), images)

    def loss(params, images, labels):
        return spread_loss(model.apply(params, images)[0].activations, labels, 0.5).sum()

    step = jax.jit(jax.grad(loss))
    assert message(step, params, images, jnp.array([0, 2])) is None
    assert "labels must lie in [0, 2]; got 3" in message(step, params, images, jnp.array([0, 3]))
    params["params"]["primary"]["poses"]["kernel"] *= jnp.nan
    assert "poses must be finite; got nan" in message(step, params, images, jnp.array([0, 2]))
