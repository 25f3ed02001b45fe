"""Calls with one wrong argument, drawn at random from the contracts of all public functions: each
is refused by name.

Every draw takes a call that is right, and breaks one argument of it: another type, dtype, rank,
size, value. The error must be raised by emcaps itself, on entry, and say which argument it is
and what came.
"""

import collections
import functools
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import emcaps

CALLS = 2000
SEED = 0


class Wrong(NamedTuple):
    """A wrong value for an argument.

    Attributes:
        value: it.
        named: what the message may name.
        traceable: whether it is an array that is wrong by its shape or dtype, which is known when
            tracing.
    """

    value: Any
    named: tuple[str, ...]
    traceable: bool = False


class Array(NamedTuple):
    """An argument that is an array.

    Attributes:
        value: a right one.
        free: axes whose size nothing but this array decides; they must only not be empty.
        ranks: by how many axes the rank may not change: an array with batch axes may have more of
            them.
        values: wrong ones, to be put at some place.
        dtypes: wrong ones.
        absent: whether None is right.
    """

    value: np.ndarray
    free: tuple[int, ...] = ()
    ranks: tuple[int, ...] = (-1, 1)
    values: tuple[float, ...] = (np.nan, np.inf, -np.inf)
    dtypes: tuple[str, ...] = ("int32", "uint8", "bool", "complex64")
    absent: bool = False

    def wrong(self, draw, name, arrays):
        value = self.value
        kinds = ["type", "dtype", "rank", "size", *["value"] * bool(self.values)]
        kind = draw(st.sampled_from(kinds))
        if kind == "type":
            others = ["array", 3.5, [0.5, 0.5], {"array": 1}, object(), *[None] * (not self.absent)]
            return Wrong(draw(st.sampled_from(others)), (name,))
        if kind == "dtype":
            return Wrong(np.ones(value.shape, draw(st.sampled_from(self.dtypes))), (name,), True)
        if kind == "value":
            value = value.copy()
            value.flat[draw(st.integers(0, value.size - 1))] = draw(st.sampled_from(self.values))
            return Wrong(value, (name,))
        if kind == "rank" and self.ranks:
            axis = draw(st.integers(0, value.ndim - 1))
            changed = (
                value.take(0, axis)
                if draw(st.sampled_from(self.ranks)) < 0
                else np.expand_dims(value, axis)
            )
            return Wrong(changed, arrays, True)
        axis = draw(st.integers(0, value.ndim - 1))
        size = (
            0
            if axis in self.free
            else draw(st.integers(0, 9).filter(lambda size: size != value.shape[axis]))
        )
        return Wrong(
            np.full((*value.shape[:axis], size, *value.shape[axis + 1 :]), 0.5, value.dtype),
            arrays,
            True,
        )


class Other(NamedTuple):
    """An argument that is not an array: some of the values that it must not have."""

    values: tuple[Any, ...]

    def wrong(self, draw, name, arrays):
        return Wrong(draw(st.sampled_from(self.values)), (name,))


class Call(NamedTuple):
    """A right call: a function, and its arguments by name.

    Those that are not arrays have a default, or are in `given`.
    """

    function: Any
    arguments: dict[str, Array | Other]
    given: dict[str, Any] = {}  # noqa: RUF012


def floats(*shape, low=0.1, high=0.9):
    return np.linspace(low, high, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def module(kind, *names):
    """A function that makes a module of `kind`, with the attributes among its keywords, and calls
    it with the rest.
    """

    def call(**arguments):
        inputs = [arguments.pop(name) for name in names]
        return jax.eval_shape(lambda: kind(**arguments).init(jax.random.key(0), *inputs))

    return call


def child_module(kind):
    """Likewise, for a module that is called with capsules, which are given in two parts."""

    def call(poses, activations, **arguments):
        children = emcaps.Capsules(poses, activations)
        return jax.eval_shape(lambda: kind(**arguments).init(jax.random.key(0), children))

    return call


OUTSIDE = (np.nan, np.inf, -np.inf, -0.001, 1.001, -3.0)
INT = Other((0, -1, 2.0, "3", None, True, (1,), np.array([1, 2]), 1j))
SIZES = Other(((2, 0), (2.0, 2), 3, "ab", None, (True, 2), (-1, 1)))
FLAG = Other((0, 1, None, "yes", "", np.ones(2), 1.0))
AXIS = Other(("nowhere", "", 3, ("types",), b"types"))
POSITIVE = Other((0.0, -1e-3, -np.inf, np.nan, np.inf, "1", None, True, 1j, np.ones(2), [1.0]))
MASS = Other(tuple(value for value in POSITIVE.values if value is not None))
NUMBER = Other((np.nan, np.inf, "1", None, 1j, np.ones(2), [1.0], False))
NOT_NEGATIVE = Other((-1e-6, np.nan, np.inf, "1", 1j, np.ones(2), [1.0], True))
RATE = Other((*NOT_NEGATIVE.values, None, np.ones(())))
DAMPING = Other((1.0, 1.5, -0.1, np.nan, "0.1", None, True, np.ones(1), 1j))
CHOICE = Other(("none", "", "ALL", None, 3, ("all",), ["all"], {}))
DTYPE = Other(("int32", "complex64", np.uint8, bool, "float31", 3.5))
PARAM_DTYPE = Other((*DTYPE.values, None))
UNIT = functools.partial(Array, values=OUTSIDE)
LABELS = functools.partial(Array, values=(-1, 3, 99), dtypes=("float32", "bool", "complex64"))

SCHEDULE = Other(
    (
        *(np.full(shape, 0.5, np.float32) for shape in ((2,), (4,), (3, 1), (0,))),
        *(np.ones(3, dtype) for dtype in ("int32", "uint8", "bool", "complex64")),
        *(np.array([0.5, wrong, 0.5], np.float32) for wrong in (*OUTSIDE[:4], -1e-9)),
        *(-1e-6, np.nan, np.inf, "array", 1j, [0.5, 0.5, 0.5], {"array": 1}, True),
    )
)
NO_OPTIONS = Other((None, "paper", 3, emcaps.NearIdentity(), {"num_iterations": 3}))
OPTIONS = {
    "num_iterations": INT,
    "inverse_temperature": SCHEDULE,
    "inverse_temperature_rate": RATE,
    "assignment_temperature": POSITIVE,
    "assignment_temperature_rate": RATE,
    "normalize_costs": FLAG,
    "mass_scale": MASS,
    "parent_mass": MASS,
    "field_mass": MASS,
    "min_variance": POSITIVE,
    "mass_epsilon": POSITIVE,
    "competition": CHOICE,
    "initial_assignments": CHOICE,
    "damping": DAMPING,
    "assignment_gradient": FLAG,
    "implementation": CHOICE,
    "remat": FLAG,
}
# In the float32 of a call 1e-60 is 0.
ROUTING_CALL = {
    **OPTIONS,
    **{
        name: Other((*OPTIONS[name].values, 1e-60))
        for name in ("assignment_temperature", "mass_scale", "min_variance", "mass_epsilon")
    },
    "parent_axis": AXIS,
    "options": NO_OPTIONS,
}
BETAS = {"beta_u": Array(floats(3)), "beta_a": Array(floats(3))}
MAP = {"poses": Array(floats(2, 5, 4, 2, 4, 4)), "activations": UNIT(floats(2, 5, 4, 2))}
# A module's inputs are looked at while tracing, so not for their values.
CHILDREN = {name: array._replace(values=()) for name, array in MAP.items()}
NO_ROUTING = ("paper", 3, (), emcaps.NearIdentity())
ROUTING = Other((None, *NO_ROUTING))
INIT = dict.fromkeys(
    ("transform_init", "beta_u_init", "beta_a_init"),
    Other((None, "paper", 0.1, emcaps.RoutingOptions())),
)
IMAGES = Array(floats(2, 20, 20, 1), (0, 1, 2, 3), values=())
LAYER = emcaps.ReceptiveField((5, 4), (3, 2), 1)


def receptive_field(method):
    return lambda **arrays: getattr(LAYER, method)(**arrays)


CALLS_BY_NAME = {
    "em_routing": Call(
        emcaps.em_routing,
        {"votes": Array(floats(5, 3, 16)), "activations": UNIT(floats(5)), **BETAS, **ROUTING_CALL},
    ),
    "conv_em_routing": Call(
        emcaps.conv_em_routing,
        {
            **MAP,
            "transforms": Array(floats(3, 2, 2, 3, 4, 4), (0, 1)),
            **BETAS,
            "stride": INT,
            **ROUTING_CALL,
        },
    ),
    "class_em_routing": Call(
        emcaps.class_em_routing,
        {
            **MAP,
            "transforms": Array(floats(2, 3, 4, 4)),
            **BETAS,
            "coordinates": Array(floats(5, 4, 2), absent=True),
            **ROUTING_CALL,
        },
    ),
    "inverse_temperature_schedule": Call(
        emcaps.inverse_temperature_schedule,
        {"num_iterations": INT, "final": NOT_NEGATIVE},
        {"num_iterations": 3},
    ),
    "dynamic_routing": Call(
        emcaps.dynamic.dynamic_routing,
        {"votes": Array(floats(5, 3, 4), (0, 1, 2), ranks=(-1,)), "num_iterations": INT},
    ),
    "class_dynamic_routing": Call(
        emcaps.dynamic.class_dynamic_routing,
        {
            "children": Array(floats(5, 4), ranks=(-1,)),
            "transforms": Array(floats(5, 3, 4, 6), (1, 3)),
            "num_iterations": INT,
        },
    ),
    "squash": Call(emcaps.dynamic.squash, {"vectors": Array(floats(4), (0,), ranks=(-1,))}),
    "spread_loss": Call(
        emcaps.spread_loss,
        {
            "activations": Array(floats(4, 3), (1,), values=()),
            "labels": LABELS(np.array([0, 1, 2, 0])),
            "margin": NUMBER,
        },
        {"margin": 0.5},
    ),
    "spread_loss.targets": Call(
        emcaps.spread_loss,
        {
            "activations": Array(floats(4, 3), values=()),
            "labels": UNIT(floats(4, 3)),
            "margin": NUMBER,
        },
        {"margin": 0.5},
    ),
    "margin_loss": Call(
        emcaps.margin_loss,
        {
            "activations": Array(floats(4, 3), (1,), values=()),
            "labels": LABELS(np.array([0, 1, 2, 0])),
        },
    ),
    "margin_schedule": Call(
        emcaps.margin_schedule,
        {"step": NOT_NEGATIVE, "transition_steps": INT, "start": NUMBER, "end": NUMBER},
        {"step": 3, "transition_steps": 10},
    ),
    "reconstruction_loss": Call(
        emcaps.dynamic.reconstruction_loss,
        {
            "images": Array(floats(2, 3, 4, 1), values=()),
            "reconstructed": Array(floats(2, 3, 4, 1), values=()),
        },
    ),
    "receptive_field_centers": Call(
        emcaps.receptive_field_centers,
        {
            "image_size": INT,
            "layers": Other((((5, 0),), ((3, 2), (1,)), ((9, 1),), ((2.0, 1),), (3,), ("ab",))),
        },
        {"image_size": 8, "layers": ((3, 2), (3, 1))},
    ),
    "ReceptiveField": Call(
        emcaps.ReceptiveField,
        {"map_size": SIZES, "kernel_size": Other((*SIZES.values, (6, 1), (1, 5))), "stride": INT},
        {"map_size": (5, 4), "kernel_size": (3, 2)},
    ),
    "ReceptiveField.gather": Call(
        receptive_field("gather"),
        {"children": Array(floats(5, 4, 2), (2,), ranks=(-1,), values=())},
    ),
    **{
        f"ReceptiveField.{name}": Call(
            receptive_field(name),
            {"seen": Array(floats(3, 2, 3, 3, 2), (4,), ranks=(-1,), values=())},
        )
        for name in ("scatter_sum", "scatter_max")
    },
    "RoutingOptions": Call(emcaps.RoutingOptions, OPTIONS, {"num_iterations": 3}),
    "NearIdentity": Call(emcaps.NearIdentity, {"scale": NUMBER, "stddev": NOT_NEGATIVE}),
    "partition_specs": Call(
        emcaps.partition_specs,
        {"parent_axis": Other((None, 3, ("types",), b"types"))},
        {"tree": {}, "parent_axis": "types"},
    ),
    "CapsNet": Call(
        module(emcaps.CapsNet, "images"),
        {
            "images": IMAGES,
            **dict.fromkeys(("num_classes", "conv_channels", "primary_capsules"), INT),
            "conv_capsules": SIZES,
            "routing": Other((*NO_ROUTING, (emcaps.RoutingOptions(),) * 2)),
            **INIT,
            "add_coordinates": FLAG,
            "dtype": DTYPE,
            "param_dtype": PARAM_DTYPE,
            **dict.fromkeys(("conv_kernel", "conv_stride"), INT),
            **dict.fromkeys(
                ("capsule_kernels", "capsule_strides"),
                Other((3, "3", (3,), (3, 0), (3, 1.5), (1, 1, 1))),
            ),
            "parent_axis": AXIS,
        },
        {"num_classes": 3},
    ),
    "PrimaryCaps": Call(
        module(emcaps.PrimaryCaps, "features"),
        {"features": IMAGES, "num_capsules": INT, "dtype": DTYPE, "param_dtype": PARAM_DTYPE},
        {"num_capsules": 2},
    ),
    "ConvCaps": Call(
        child_module(emcaps.ConvCaps),
        {
            **CHILDREN,
            **dict.fromkeys(("num_capsules", "kernel", "stride"), INT),
            "routing": ROUTING,
            **INIT,
            "dtype": DTYPE,
            "param_dtype": PARAM_DTYPE,
            "parent_axis": AXIS,
        },
        {"num_capsules": 3},
    ),
    "ClassCaps": Call(
        child_module(emcaps.ClassCaps),
        {
            **CHILDREN,
            "num_classes": INT,
            "routing": ROUTING,
            **INIT,
            "add_coordinates": FLAG,
            "param_dtype": PARAM_DTYPE,
        },
        {"num_classes": 3},
    ),
    "DynamicCapsNet": Call(
        module(emcaps.dynamic.DynamicCapsNet, "images"),
        {
            "images": IMAGES,
            **dict.fromkeys(
                (
                    "num_classes",
                    "conv_channels",
                    "primary_capsules",
                    "primary_size",
                    "class_size",
                    "num_iterations",
                ),
                INT,
            ),
        },
        {"num_classes": 3},
    ),
    "PrimaryVectorCaps": Call(
        module(emcaps.dynamic.PrimaryVectorCaps, "features"),
        {"features": IMAGES, **dict.fromkeys(("num_capsules", "size", "kernel", "stride"), INT)},
    ),
    "VectorClassCaps": Call(
        module(emcaps.dynamic.VectorClassCaps, "children"),
        {
            "children": Array(floats(2, 5, 4), (0, 1, 2), values=()),
            **dict.fromkeys(("num_classes", "size", "num_iterations"), INT),
        },
        {"num_classes": 3},
    ),
    "Decoder": Call(
        module(emcaps.dynamic.Decoder, "poses", "chosen"),
        {
            "poses": Array(floats(2, 3, 4), (1, 2), ranks=(-1,), values=()),
            "chosen": Array(np.array([0, 1]), values=(), dtypes=("float32", "bool")),
            "image_shape": Other((*SIZES.values, (4, 4), (4, 4, 0))),
            "hidden_units": SIZES,
        },
        {"image_shape": (4, 4, 1)},
    ),
}

NETWORK = emcaps.CapsNet(3, 4, 2, (2,))
OF_NETWORK = {
    "model": Other((None, "CapsNet", emcaps.dynamic.DynamicCapsNet(3))),
    "variables": Other(
        (None, 3, {}, {"params": {}}, {"params": {"conv": {"kernel": np.zeros((5, 5, 1, 4))}}})
    ),
    "images": IMAGES,
}
NETWORK_CALL = {
    "model": NETWORK,
    "variables": jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(NETWORK.init, jax.random.key(0), IMAGES.value),
    ),
}
CALLS_BY_NAME |= {
    "diagnose": Call(
        lambda **fields: emcaps.diagnostics.diagnose(emcaps.RoutingResult(**fields)),
        {
            **dict.fromkeys(("poses", "variances"), Array(floats(2, 3, 3, 2, 4, 4), values=())),
            **dict.fromkeys(
                ("activations", "activation_logits"), Array(floats(2, 3, 3, 2), values=())
            ),
            "assignments": Array(floats(2, 3, 3, 3, 3, 2, 2), (3, 4, 5), values=()),
        },
    ),
    "diagnose_layers": Call(
        emcaps.diagnostics.diagnose_layers,
        {"intermediates": Other((None, 3, [1], "class_caps"))},
        {"intermediates": {}},
    ),
    "diagnose_iterations": Call(emcaps.diagnostics.diagnose_iterations, OF_NETWORK, NETWORK_CALL),
    "results_by_iteration": Call(
        emcaps.diagnostics.results_by_iteration,
        {**OF_NETWORK, "layer": Other(("conv", "primary", "conv_caps_2", None, 3))},
        {**NETWORK_CALL, "layer": "class_caps"},
    ),
}
drawn = collections.Counter()


@st.composite
def malformed(draw):
    """A call of a function by its name, with one wrong argument: the name of that, what is wrong,
    and whether to trace it.
    """
    function = draw(st.sampled_from(sorted(CALLS_BY_NAME)))
    _, arguments, _ = CALLS_BY_NAME[function]
    name = draw(st.sampled_from(sorted(arguments)))
    arrays = tuple(argument for argument in arguments if isinstance(arguments[argument], Array))
    wrong = arguments[name].wrong(draw, name, arrays)
    return function, name, wrong, draw(st.booleans()) and wrong.traceable


def right_arguments(call):
    arrays = {
        name: argument.value
        for name, argument in call.arguments.items()
        if isinstance(argument, Array)
    }
    return arrays | call.given


@pytest.mark.parametrize("function", CALLS_BY_NAME)
def test_right_calls_are_taken(function):
    call = CALLS_BY_NAME[function]

    def traced():
        call.function(**right_arguments(call))

    jax.eval_shape(traced)


@seed(SEED)
@settings(max_examples=CALLS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(malformed())
def refuse(drawn_call):
    function, name, wrong, traced = drawn_call
    call = CALLS_BY_NAME[function]
    arguments = right_arguments(call) | {name: wrong.value}
    drawn[function] += 1
    with pytest.raises((TypeError, ValueError)) as refusal:
        if traced:
            jax.eval_shape(
                lambda value: (call.function(**arguments | {name: value}), None)[1], wrong.value
            )
        else:
            call.function(**arguments)
    raised_in = Path(traceback.extract_tb(refusal.value.__traceback__)[-1].filename)
    assert raised_in.is_relative_to(Path(emcaps.__file__).parent), (
        f"{function}: {refusal.value!r} comes from {raised_in}"
    )
    message = str(refusal.value)
    assert any(name in message for name in wrong.named) and "got" in message, (
        f"{function}, {name}: {message}"
    )


def test_each_of_many_malformed_calls_is_refused_by_name():
    drawn.clear()
    refuse()
    assert drawn.total() >= CALLS
    assert drawn.keys() == CALLS_BY_NAME.keys()


def test_every_public_function_and_module_is_drawn_from():
    modules = emcaps, emcaps.dynamic, emcaps.diagnostics
    public = {name for module in modules for name in module.__all__} - {
        "dynamic",
        "diagnostics",
        "pretrained",
    }
    records = {
        "Capsules",
        "RoutingResult",
        "RoutingDiagnostics",
        "DynamicRoutingResult",
        "RECONSTRUCTION_WEIGHT",
    }
    records |= {"PAPER", "TRAINABLE"}
    # Those of emcaps.pretrained have tests of their own, test_classifier*.py.
    assert {name.split(".")[0] for name in CALLS_BY_NAME} | records == public
