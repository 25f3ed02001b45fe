"""Wrong arguments are refused on entry, by name."""

import dataclasses
import functools
import inspect

import jax
import numpy as np
import pytest
import routing_cases

from emcaps import PAPER, RoutingOptions
from emcaps.options import RoutingChanges

ROUTES = {
    "em": routing_cases.EM_ROUTE,
    "conv": routing_cases.CONV_ROUTE,
    "class": routing_cases.CLASS_ROUTE,
}
each_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


def assert_refused(route, name, value, error):
    """The function raises `error`, and says which argument is the wrong one."""
    arguments = dict(zip(route.shapes, route.arrays(), strict=True))
    with pytest.raises(error, match=rf"\b{name}\b"):
        route.function(**{**arguments, name: value})


@each_route
def test_right_arguments_are_taken(route):
    arrays = route.arrays()
    in_jax = [jax.numpy.asarray(x) for x in arrays]
    jax.eval_shape(lambda: route.function(*arrays))
    jax.eval_shape(lambda: route.function(*in_jax, num_iterations=1))


@each_route
def test_what_is_not_given_is_as_the_paper_has_it(route):
    parameters = inspect.signature(
        getattr(route.function, "func", route.function)
    ).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    others = {"stride": 1, "coordinates": None, "parent_axis": None}
    assert defaults == {"options": PAPER} | {
        name: value for name, value in others.items() if name in defaults
    }


def test_the_papers_options_are_its_procedure():
    numbers = {
        "num_iterations": 3,
        "inverse_temperature": None,
        "min_variance": 5e-4,
        "mass_epsilon": 1e-7,
    }
    masses = {"mass_scale": None, "parent_mass": None, "field_mass": None}
    procedure = {
        "assignment_temperature": 1.0,
        "normalize_costs": False,
        "damping": 0.0,
        "assignment_gradient": True,
    }
    rates = {"assignment_temperature_rate": 0.0, "inverse_temperature_rate": 0.0}
    forms = {
        "competition": "all",
        "initial_assignments": "reachable",
        "implementation": "streamed",
        "remat": False,
    }
    assert dataclasses.asdict(PAPER) == numbers | masses | procedure | rates | forms


def test_keywords_are_the_fields_that_they_change():
    assert list(RoutingChanges.__annotations__) == [
        field.name for field in dataclasses.fields(RoutingOptions)
    ]


def program(route, **keywords):
    """What would be compiled for a call, in which all constants are."""
    called = jax.jit(lambda *arrays: route.function(*arrays, **keywords))
    return called.lower(*route.arrays()).as_text()


@each_route
def test_keywords_change_fields_of_the_options(route):
    options = dict(num_iterations=2, damping=0.1, inverse_temperature=0.5, normalize_costs=True)
    changed = program(route, options=RoutingOptions(num_iterations=5), **options)
    assert changed == program(route, options=RoutingOptions(**options))
    assert changed != program(route, options=RoutingOptions(**options | {"damping": 0.2}))


# Options are resolved by the same code for all of them.
@routing_cases.quick(ROUTES, "em")
def test_a_number_is_the_inverse_temperature_of_all_iterations(route):
    expected = route.function(*route.arrays(), inverse_temperature=np.full(3, 0.5, np.float32))
    jax.tree.map(
        np.testing.assert_array_equal,
        route.function(*route.arrays(), inverse_temperature=0.5),
        expected,
    )


@routing_cases.quick(ROUTES, "em", "conv")
@pytest.mark.parametrize(
    "options",
    [{"inverse_temperature": 1}, {"damping": np.float64(0.5)}, {"min_variance": np.float64(0.5)}],
    ids=str,
)
def test_what_is_computed_in_is_not_decided_by_an_options_dtype(route, options, x64):
    """The programs of the routing with its gradient are the same."""
    arrays = route.arrays()
    plain = {name: float(value) for name, value in options.items()}

    def lowered(given):
        def total(*arrays):
            result = route.function(*arrays, **given)
            return sum(field.sum() for field in result), result

        program = jax.jit(jax.grad(total, has_aux=True)).lower(*arrays)
        return program.as_text(), program.out_info[1].poses.dtype

    ours, expected = lowered(options), lowered(plain)
    assert ours == expected
    assert ours[1] == np.float32


def test_a_constant_may_be_as_small_as_what_is_computed_in_can_be(x64):
    route = ROUTES["conv"]
    arrays = [jax.ShapeDtypeStruct(shape, np.float64) for shape in route.shapes.values()]
    arrays[1] = jax.ShapeDtypeStruct(arrays[1].shape, np.float32)  # activations
    result = jax.eval_shape(functools.partial(route.function, min_variance=1e-40), *arrays)
    assert result.activation_logits.dtype == np.float64


@pytest.mark.parametrize(
    ("mass", "scale"),
    [
        ({"parent_mass": 16.0}, 16 * (3 * 3 * 3) / (5 * 4 * 2)),
        ({"field_mass": 9.0}, 9 * 3 / (3 * 2 * 2)),
    ],
)
def test_a_layers_mass_is_a_scale(mass, scale):
    route = ROUTES["conv"]
    assert program(route, **mass) == program(route, mass_scale=scale)
    assert program(route, **mass) != program(route, mass_scale=2 * scale)


def test_the_shape_that_is_asked_for_is_named():
    votes, activations, beta_u, beta_a = routing_cases.EM_ROUTE.arrays()
    with pytest.raises(
        ValueError,
        match=r"activations must have shape \[1, 2, 5\], that of votes .*; got shape \[2, 5\]",
    ):
        ROUTES["em"].function(votes[None], activations, beta_u, beta_a)


EACH_ARRAY = [(kind, name) for kind, route in ROUTES.items() for name in route.shapes]


@pytest.mark.parametrize(("kind", "name"), EACH_ARRAY)
def test_integer_arrays_are_refused(kind, name):
    assert_refused(ROUTES[kind], name, np.zeros(ROUTES[kind].shapes[name], np.int32), TypeError)


@pytest.mark.parametrize(("kind", "name"), EACH_ARRAY)
def test_things_that_are_not_arrays_are_refused(kind, name):
    for value in (None, "poses", [0.5]):
        assert_refused(ROUTES[kind], name, value, TypeError)


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("em", "votes", (3, 16)),
        ("em", "votes", (2, 5, 3, 4, 4)),
        ("em", "votes", (2, 5, 3, 15)),
        ("em", "activations", ()),
        ("em", "activations", (2, 6)),
        ("em", "activations", (3, 5)),
        ("em", "activations", (5,)),
        ("em", "activations", (2, 5, 1)),
        ("em", "beta_u", ()),
        ("em", "beta_u", (4,)),
        ("em", "beta_u", (3, 1)),
        ("em", "beta_a", ()),
        ("em", "beta_a", (4,)),
        ("em", "beta_a", (1, 3)),
        ("conv", "poses", (5, 4, 2, 4, 4)),
        ("conv", "poses", (2, 5, 4, 2, 16)),
        ("conv", "poses", (2, 5, 4, 2, 4, 3)),
        ("conv", "activations", (2, 5, 4)),
        ("conv", "activations", (2, 5, 4, 2, 1)),
        ("conv", "activations", (2, 4, 5, 2)),
        ("conv", "activations", (1, 5, 4, 2)),
        ("conv", "activations", (2, 5, 4, 3)),
        ("conv", "transforms", (2, 3, 4, 4)),
        ("conv", "transforms", (3, 2, 2, 3, 16)),
        ("conv", "transforms", (3, 2, 2, 3, 4, 3)),
        ("conv", "transforms", (3, 2, 1, 3, 4, 4)),
        ("conv", "transforms", (6, 2, 2, 3, 4, 4)),
        ("conv", "transforms", (3, 5, 2, 3, 4, 4)),
        ("conv", "transforms", (0, 2, 2, 3, 4, 4)),
        ("conv", "beta_u", (1,)),
        ("conv", "beta_u", (2,)),
        ("conv", "beta_a", (1,)),
        ("conv", "beta_a", (4,)),
        ("class", "poses", (2, 2, 3, 2, 16)),
        ("class", "activations", (2, 3, 2, 2)),
        ("class", "transforms", (2, 3, 2, 3, 4, 4)),
        ("class", "transforms", (1, 3, 4, 4)),
        ("class", "transforms", (2, 3, 4, 5)),
        ("class", "beta_u", (2,)),
        ("class", "beta_a", (4,)),
        ("class", "coordinates", (3, 2, 2)),
        ("class", "coordinates", (2, 3)),
        ("class", "coordinates", (2, 3, 3)),
    ],
)
def test_wrong_shapes_are_refused(kind, name, shape):
    value = np.full(shape, 0.5, np.float32)
    assert_refused(ROUTES[kind], name, value, ValueError)

    def traced(value):
        assert_refused(ROUTES[kind], name, value, ValueError)

    jax.eval_shape(traced, value)


@each_route
@pytest.mark.parametrize("wrong", [-1e-3, 1.001, np.nan, np.inf])
def test_known_activations_outside_of_0_to_1_are_refused(route, wrong):
    activations = np.full(route.shapes["activations"], 0.5, np.float32)
    activations[0, 1] = wrong
    assert_refused(route, "activations", activations, ValueError)
    assert_refused(route, "activations", jax.numpy.asarray(activations), ValueError)


@each_route
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("num_iterations", 0, ValueError),
        ("num_iterations", -1, ValueError),
        ("num_iterations", 2.0, TypeError),
        ("num_iterations", "3", TypeError),
        ("num_iterations", None, TypeError),
        ("inverse_temperature", np.ones(2, np.float32), ValueError),
        ("inverse_temperature", np.ones(4, np.float32), ValueError),
        ("inverse_temperature", np.ones((3, 1), np.float32), ValueError),
        ("inverse_temperature", np.ones(3, np.int32), TypeError),
        ("inverse_temperature", -0.01, ValueError),
        ("min_variance", 0.0, ValueError),
        ("min_variance", -1e-3, ValueError),
        ("min_variance", np.nan, ValueError),
        ("min_variance", np.ones(3, np.float32), ValueError),
        ("mass_epsilon", 0.0, ValueError),
        ("mass_epsilon", -1e-9, ValueError),
        ("mass_scale", -1.0, ValueError),
        ("mass_scale", np.nan, ValueError),
        ("assignment_temperature", 0.0, ValueError),
        ("assignment_temperature", -1.0, ValueError),
        ("damping", 1.0, ValueError),
        ("damping", -0.1, ValueError),
        ("damping", np.nan, ValueError),
        ("damping", "0.1", TypeError),
    ],
)
def test_wrong_constants_are_refused(route, name, value, error):
    assert_refused(route, name, value, error)


@each_route
def test_num_iterations_cannot_be_traced(route):
    """It decides the structure of the program."""

    def routed(num_iterations):
        return route.function(*route.arrays(), num_iterations=num_iterations)

    with pytest.raises(TypeError, match="num_iterations"):
        jax.jit(routed)(3)


@pytest.mark.parametrize(
    ("stride", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), ((1, 1), TypeError)]
)
def test_wrong_strides_are_refused(stride, error):
    assert_refused(routing_cases.CONV_ROUTE, "stride", stride, error)


@each_route
@pytest.mark.parametrize("unknown", ["fast", "", None])
def test_unknown_implementations_are_refused_and_the_known_ones_listed(route, unknown):
    with pytest.raises((TypeError, ValueError), match="implementation") as refusal:
        route.function(*route.arrays(), implementation=unknown)
    for known in routing_cases.IMPLEMENTATIONS:
        assert known in str(refusal.value)


@each_route
@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("competition", "'all', 'types', 'positions'"),
        ("initial_assignments", "'reachable', 'types'"),
    ],
)
def test_unknown_forms_are_refused_and_the_known_ones_listed(route, name, known):
    with pytest.raises(ValueError, match=f"^{name} must be one of {known}; got 'none'"):
        route.function(*route.arrays(), **{name: "none"})


def test_damping_cannot_be_traced():
    with pytest.raises(TypeError, match="damping must be a number known when tracing"):
        jax.jit(
            lambda damping: routing_cases.EM_ROUTE.function(
                *routing_cases.EM_ROUTE.arrays(), damping=damping
            )
        )(0.1)


def test_unknown_keywords_are_refused():
    for route in ROUTES.values():
        with pytest.raises(TypeError, match="temperature_of_assignment"):
            route.function(*route.arrays(), temperature_of_assignment=1.0)
