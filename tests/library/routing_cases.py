"""Inputs for the routing functions: random for the oracle, fixed and small for the laws.

A random case is `(arrays, keywords)`: the array arguments in order, NumPy float64, and the keyword
arguments. What decides the compiled program (sizes, iterations) comes from `seed // 6`, so that
six cases share a compilation; the rest from `seed`.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from emcaps import class_em_routing, conv_em_routing, em_routing

# "kernels" is "streamed" where there is no NVIDIA GPU; tests/library/test_kernels.py has its
# operators, interpreted.
IMPLEMENTATIONS = ("dense", "streamed", "fused")


def em_case(seed):
    """Arguments of `em_routing`: votes, activations, beta_u, beta_a."""
    sizes, rng = generators(seed)
    batch = [(), (2,), (2, 1)][sizes.integers(3)]
    N, J = few(sizes, 9), few(sizes, 6)
    votes = scale(rng) * (rng.normal(size=(J, 16)) + rng.normal(size=(*batch, N, J, 16)))
    return (votes, unit(rng, (*batch, N)), *betas(rng, J)), constants(sizes, rng)


def conv_case(seed):
    """Arguments of `conv_em_routing`: poses, activations, transforms, beta_u, beta_a."""
    sizes, rng = generators(seed)
    KH, stride = 1 + seed // 6 % 5, 1 + seed // 6 % 3
    KW = KH if sizes.random() < 0.6 else sizes.integers(1, 6)
    H, W = KH + sizes.integers(5), KW + sizes.integers(5)
    B, child_types, J = sizes.integers(1, 3), few(sizes, 2 if KH * KW > 9 else 3), few(sizes, 4)
    poses = scale(rng) * rng.normal(size=(B, H, W, child_types, 4, 4))
    activations = unit(rng, (B, H, W, child_types))
    return (
        (poses, activations, transforms(rng, (KH, KW, child_types, J)), *betas(rng, J)),
        {"stride": stride, **constants(sizes, rng)},
    )


def class_case(seed):
    """Arguments of `class_em_routing`: poses, activations, transforms, beta_u, beta_a."""
    sizes, rng = generators(seed)
    B, H, W = sizes.integers(1, 3), few(sizes, 4), few(sizes, 4)
    child_types, J = few(sizes, 3), few(sizes, 5)
    keywords = {"coordinates": rng.uniform(size=(H, W, 2))} if sizes.random() < 0.7 else {}
    poses = scale(rng) * rng.normal(size=(B, H, W, child_types, 4, 4))
    activations = unit(rng, (B, H, W, child_types))
    return (
        (poses, activations, transforms(rng, (child_types, J)), *betas(rng, J)),
        {**keywords, **constants(sizes, rng)},
    )


def generators(seed):
    return np.random.default_rng(seed // 6), np.random.default_rng([seed, 1])


def few(rng, high):
    """A size from 1 to `high`, in which 1 is not rare."""
    return 1 if rng.random() < 0.2 else int(rng.integers(1, high + 1))


def scale(rng):
    return 10 ** rng.uniform(-3, 3)


def unit(rng, shape):
    """Activations in [0, 1], about one in four of them exactly 0 or 1."""
    activations = rng.uniform(size=shape)
    activations[rng.random(shape) < 0.12] = 0
    activations[rng.random(shape) < 0.12] = 1
    return activations


def transforms(rng, shape):
    return rng.choice([0, 1]) * np.eye(4) + rng.choice([0.1, 1]) * rng.normal(size=(*shape, 4, 4))


def betas(rng, J):
    return rng.normal(size=J), rng.normal(size=J)


def constants(sizes, rng):
    T = int(sizes.integers(1, 6))
    keywords = {
        "num_iterations": T,
        "normalize_costs": bool(sizes.random() < 0.4),
        "min_variance": 10 ** rng.uniform(-4, -1),
        "mass_epsilon": 10 ** rng.uniform(-9, -4),
        "mass_scale": 10 ** rng.uniform(-1, 2),
    }
    if rng.random() < 0.5:
        keywords["inverse_temperature"] = 10 ** rng.uniform(-3, 0, size=T)
    if rng.random() < 0.4:
        keywords["assignment_temperature"] = 10 ** rng.uniform(-0.5, 1.5)
    return keywords


def cast(tree, dtype):
    """Arrays to `dtype`; other arguments as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if isinstance(x, np.ndarray) else x, tree)


def error(result, expected, name):
    """How far off a field is, relative to its largest expected magnitude.

    Activations and assignments are shares of 1, and that is their magnitude however small.
    """
    a, b = (np.asarray(getattr(r, name), np.float64) for r in (result, expected))
    assert a.shape == b.shape, f"{name}: shape {a.shape}, expected {b.shape}"
    magnitude = 1 if name in ("activations", "assignments") else np.abs(b).max() or 1
    return np.abs(a - b).max() / magnitude


def assert_results_close(result, expected, tolerance):
    """Compare field by field; `tolerance` is relative in the sense of `error`."""
    assert result._fields == expected._fields
    for name in expected._fields:
        off = error(result, expected, name)
        assert off <= tolerance, f"{name}: off by {off:.1e}, more than {tolerance:.1e}"


class Route(NamedTuple):
    """One routing function with small arguments, for the laws that all of them obey.

    Attributes:
        function: takes the arrays by name or in order.
        shapes: of the arrays, by name.
        child_axes: the axis of the child types in each array, None where there is none.
        parent_axes: the axis of the parent types in each array.
        result_parent_axes: the axis of the parent types in each field of the result.
        child_axis: the axis of the child types in the assignments.
    """

    function: Any
    shapes: dict[str, tuple[int, ...]]
    child_axes: tuple[int | None, ...]
    parent_axes: tuple[int | None, ...]
    result_parent_axes: tuple[int, ...]
    child_axis: int

    def arrays(self, seed=0, dtype=np.float32):
        """Values of the size of 1, activations strictly between 0 and 1."""
        rng = np.random.default_rng(seed)
        draw = {
            "activations": lambda shape: rng.uniform(0.1, 0.9, size=shape),
            "transforms": lambda shape: np.eye(4) + 0.5 * rng.normal(size=shape),
        }
        return tuple(
            draw.get(name, lambda shape: rng.normal(size=shape))(shape).astype(dtype)
            for name, shape in self.shapes.items()
        )


EM_ROUTE = Route(
    em_routing,
    {"votes": (2, 5, 3, 16), "activations": (2, 5), "beta_u": (3,), "beta_a": (3,)},
    child_axes=(1, 1, None, None),
    parent_axes=(2, None, 0, 0),
    result_parent_axes=(1, 1, 1, 1, 2),
    child_axis=1,
)
CONV_ROUTE = Route(
    conv_em_routing,
    {
        "poses": (2, 5, 4, 2, 4, 4),
        "activations": (2, 5, 4, 2),
        "transforms": (3, 2, 2, 3, 4, 4),
        "beta_u": (3,),
        "beta_a": (3,),
    },
    child_axes=(3, 3, 2, None, None),
    parent_axes=(None, None, 3, 0, 0),
    result_parent_axes=(3, 3, 3, 3, 6),
    child_axis=5,
)
COORDINATES = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 3, 2)
CLASS_ROUTE = Route(
    functools.partial(class_em_routing, coordinates=COORDINATES),
    {
        "poses": (2, 2, 3, 2, 4, 4),
        "activations": (2, 2, 3, 2),
        "transforms": (2, 3, 4, 4),
        "beta_u": (3,),
        "beta_a": (3,),
    },
    child_axes=(3, 3, 0, None, None),
    parent_axes=(None, None, 1, 0, 0),
    result_parent_axes=(3, 3, 3, 3, 6),
    child_axis=5,
)


def with_implementation(route, implementation):
    return route._replace(function=functools.partial(route.function, implementation=implementation))


ROUTES = {
    "em": EM_ROUTE,
    **{f"conv-{name}": with_implementation(CONV_ROUTE, name) for name in IMPLEMENTATIONS},
    "class": CLASS_ROUTE,
}


def quick(routes, *names):
    """Of these routes those of some names; the others take part when slow tests are asked for."""
    return pytest.mark.parametrize(
        "route",
        [
            pytest.param(route, marks=[] if name in names else pytest.mark.slow)
            for name, route in routes.items()
        ],
        ids=routes,
    )


def settings(num_iterations=3, dtype=np.float32):
    """Keywords under which all parts count: activations not 0 or 1, assignments not uniform."""
    return {
        "num_iterations": num_iterations,
        "inverse_temperature": np.linspace(0.5, 1, num_iterations, dtype=dtype),
        "min_variance": 0.1,
        "mass_epsilon": 1e-6,
        "mass_scale": 0.1,
    }
