"""Well-formed calls at the edges, drawn at random: results are finite and what they claim to be,
and so are gradients.

A draw has the number of one of so many shapes, each with its sizes, iterations, dtype and form (all
that a program is compiled for), and values: votes from 1e-6 to 1e6 (in float16 as far as it goes),
activations among which are 0, 1 and the smallest subnormal number, betas up to 1e4 either way,
votes that are all equal.

A gradient may be too large for float16, whose largest number is 65,504: to a child of activation 0
a parent without any other mass owes a gradient of 1 / `mass_epsilon`. It must then be infinite,
which is how float16 says so, and the same in float32 as large.
"""

import functools
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emcaps

DTYPES = ("float32", "bfloat16", "float16")
ROUTES = ("em", "conv", "class")
LARGEST = {"float32": 1e6, "bfloat16": 1e6, "float16": 6e4}
MOST_VOTES = 30_000  # of a call, to bound its time
COMPLETE = dict(first=0, last=35, calls=2100, seed=0)
# Of `em_routing` in float16, of a streamed map, and of dense class capsules in bfloat16.
SHORT = dict(first=15, last=17, calls=100, seed=1)


class Shape(NamedTuple):
    """What a program is compiled for: of `routes[number % 3]`, with sizes from 1 to 40 and 1 to 10
    iterations.
    """

    route: str
    arrays: dict[str, tuple[int, ...]]
    keywords: dict[str, Any]
    dtype: str


def size(rng, most=40):
    """A size from 1 to `most`, small ones as often as large ones."""
    return int(np.clip(np.round(most ** rng.uniform()), 1, most))


def draw_shape(number):
    rng = np.random.default_rng(number)
    while True:
        keywords = {
            "num_iterations": int(rng.integers(1, 11)),
            "normalize_costs": bool(rng.integers(2)),
        }
        route, dtype = ROUTES[number % 3], DTYPES[(number + number // 3) % 3]
        batch, children, parents = size(rng), size(rng), size(rng)
        height, width = size(rng), size(rng)
        if route == "em":
            arrays = {"votes": (batch, children, parents, 16), "activations": (batch, children)}
            votes = batch * children * parents
        else:
            arrays = {
                "poses": (batch, height, width, children, 4, 4),
                "activations": (batch, height, width, children),
            }
            keywords["implementation"] = str(rng.choice(["streamed", "streamed", "dense"]))
            keywords["competition"] = str(rng.choice(["all", "all", "types", "positions"]))
        if route == "class":
            arrays["transforms"] = (children, parents, 4, 4)
            votes = batch * height * width * children * parents
        if route == "conv":
            rows, columns, stride = size(rng, height), size(rng, width), size(rng, 3)
            arrays["transforms"] = (rows, columns, children, parents, 4, 4)
            keywords["stride"] = stride
            positions = ((height - rows) // stride + 1) * ((width - columns) // stride + 1)
            votes = batch * positions * rows * columns * children * parents
        if votes <= MOST_VOTES:
            return Shape(
                route, arrays | {"beta_u": (parents,), "beta_a": (parents,)}, keywords, dtype
            )


@functools.cache
def program(number):
    """The routing of a shape, compiled once: the gradient of a sum over poses, activations and
    logits, and the result.

    For float16 also, in front of them, the gradient by the same arrays in float32.
    """
    shape = draw_shape(number)
    route = {
        "em": emcaps.em_routing,
        "conv": emcaps.conv_em_routing,
        "class": emcaps.class_em_routing,
    }[shape.route]

    def total(arrays):
        result = route(**arrays, **shape.keywords)
        said = (result.poses, result.activations, result.activation_logits)
        return sum(field.astype(jnp.float32).mean() for field in said), result

    def gradients(arrays):
        wide = (
            {name: array.astype(jnp.float32) for name, array in arrays.items()}
            if shape.dtype == "float16"
            else arrays
        )
        return jax.grad(total, has_aux=True)(wide)[0], *jax.grad(total, has_aux=True)(arrays)

    return shape, jax.jit(gradients)


def draw_values(shape, values_seed, magnitude, equal, beta):
    """The arrays of a call.

    All children's votes are the same for one parent if they are `equal`.
    """
    rng = np.random.default_rng(values_seed)
    magnitude = min(magnitude, LARGEST[shape.dtype] / 8)
    subnormal = float(jnp.finfo(shape.dtype).smallest_subnormal)
    arrays = {}
    for name, sizes in shape.arrays.items():
        if name == "activations":
            array = rng.choice([0, 1, subnormal, 0.5, rng.uniform()], sizes)
        elif name in ("votes", "poses"):
            array = magnitude * rng.uniform(-1, 1, sizes)
            if equal:
                array = np.broadcast_to(
                    array[..., :1, :1, :] if name == "votes" else array[:1, :1, :1, :1], sizes
                )
        elif name == "transforms":
            array = np.broadcast_to(np.eye(4), sizes) if equal else rng.uniform(-1, 1, sizes)
        else:
            array = beta * rng.choice([-1, 1, 0.5], sizes)
        arrays[name] = np.asarray(array, jnp.dtype(shape.dtype))
    return arrays


def assert_sound(shape, wide_gradients, gradients, result):
    for name, field in result._asdict().items():
        assert np.isfinite(field).all(), f"{name} is not finite"
    for name, gradient in gradients.items():
        wide = wide_gradients[name]
        assert np.isfinite(wide).all() and not np.isnan(gradient).any(), (
            f"the gradient by {name} is not finite"
        )
        too_large = np.abs(wide) > 0.9 * float(jnp.finfo(gradient.dtype).max)
        assert (np.isfinite(gradient) | too_large).all(), f"the gradient by {name} is not finite"
    activations, assignments = (
        array.astype(np.float64) for array in (result.activations, result.assignments)
    )
    assert activations.min() >= 0 and activations.max() <= 1
    assert result.variances.min() > 0
    assert assignments.min() >= 0
    totals = per_competition(shape, assignments)
    np.testing.assert_allclose(
        totals, 1, atol=4 * assignments.size**0.5 * float(jnp.finfo(shape.dtype).eps)
    )


def per_competition(shape, assignments):
    """The sum of the assignments in each competition that somebody takes part in."""
    if shape.route == "em":
        return assignments.sum(-1)
    competition, stride = shape.keywords["competition"], shape.keywords.get("stride", 1)
    if competition == "types":
        return assignments.sum(-1)
    kernel = assignments.shape[3:5]
    field = emcaps.ReceptiveField(shape.arrays["poses"][1:3], kernel, stride)
    by_patch = assignments if competition == "positions" else assignments.sum(-1, keepdims=True)
    with jax.enable_x64(True):
        totals = np.asarray(scatter_sum(field)(by_patch.transpose(3, 4, 5, 6, 1, 2, 0)))
    return totals[:, :, field.num_parent_positions() > 0]


@functools.cache
def scatter_sum(field):
    return jax.jit(field.scatter_sum)


def route_extremes(first, last, calls, seed):
    """Draw so many calls of the shapes from the first to the last, and check each; the numbers of
    the shapes that were drawn.
    """
    done = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=calls, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        number=st.integers(first, last),
        values_seed=st.integers(0, 2**32 - 1),
        magnitude=st.sampled_from([1e-6, 1.0, 1e6]) | st.floats(-6, 6).map(lambda power: 10**power),
        equal=st.booleans(),
        beta=st.sampled_from([0.0, 1.0, -1e4, 1e4]) | st.floats(-1e4, 1e4),
    )
    def check(number, values_seed, magnitude, equal, beta):
        shape, routed = program(number)
        assert_sound(
            shape, *jax.device_get(routed(draw_values(shape, values_seed, magnitude, equal, beta)))
        )
        done.append(number)

    check()
    return done


def test_extreme_calls_give_what_they_should():
    done = route_extremes(**SHORT)
    assert len(done) >= SHORT["calls"]
    assert len(set(done)) == 3


@pytest.mark.slow
def test_two_thousand_extreme_calls_of_all_shapes_give_what_they_should(optimized):
    done = route_extremes(**COMPLETE)
    assert len(done) >= 2000
    assert len(set(done)) == 36
