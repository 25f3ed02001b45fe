"""The capsule layers by themselves: the scale of their costs, and what they refuse.

Networks of them are in test_capsnet.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcaps import (
    Capsules,
    ClassCaps,
    ConvCaps,
    NearIdentity,
    ReceptiveField,
    RoutingOptions,
)

MAP = ReceptiveField((5, 7), (3, 3), 2)  # of 35 positions, seen by 2x3 parents of 9 each


@pytest.mark.parametrize(
    "masses, expected",
    [
        # Parents on the map per child on the map.
        (dict(parent_mass=16.0), 16 * (6 * 8) / (35 * 4)),
        # Parent types per child that one of them sees.
        (dict(parent_mass=None, field_mass=100.0), 100 * 8 / (9 * 4)),
        (dict(parent_mass=None), 1.0),
    ],
    ids=["parent_mass", "field_mass", "paper"],
)
def test_a_mass_is_that_of_a_parent(masses, expected):
    assert RoutingOptions(**masses).layer_mass_scale(
        MAP, child_types=4, parent_types=8
    ) == pytest.approx(expected, rel=1e-12)


def test_a_mass_of_few_bits_is_no_less():
    large = ReceptiveField((14, 14), (1, 1), 1)
    for mass in (jnp.float16(16), jnp.int8(16)):
        scale = RoutingOptions(parent_mass=mass).layer_mass_scale(large, 32, 32)
        assert float(scale) == 16


def test_class_capsules_promote_activations_too(x64):
    poses = jax.ShapeDtypeStruct((1, 4, 4, 2, 4, 4), np.float32)
    children = Capsules(poses, jax.ShapeDtypeStruct((1, 4, 4, 2), np.float64))
    result, _ = jax.eval_shape(ClassCaps(3).init_with_output, jax.random.key(0), children)
    assert result.poses.dtype == np.float64


def test_transforms_start_in_the_dtype_that_is_asked_for():
    near = NearIdentity(stddev=np.float64(0.1))
    assert near(jax.random.key(0), (2, 4, 4), jnp.bfloat16).dtype == jnp.bfloat16


def test_centers_are_checked_where_they_are_not_added():
    children = Capsules(jnp.zeros((1, 4, 4, 2, 4, 4)), jnp.zeros((1, 4, 4, 2)))
    layer = ClassCaps(3, add_coordinates=False)
    with pytest.raises(TypeError, match="centers must be a pair of arrays"):
        layer.init(jax.random.key(0), children, "junk")


def test_two_masses_are_refused():
    with pytest.raises(
        ValueError,
        match=(
            r"give one of mass_scale, parent_mass and field_mass; got parent_mass 16\.0 and "
            r"field_mass 100\.0"
        ),
    ):
        RoutingOptions(field_mass=100.0)


def test_what_is_not_capsules_is_refused():
    poses = jnp.zeros((1, 4, 4, 2, 4, 4))
    with pytest.raises(
        TypeError, match=r"children must be Capsules\(poses, activations\); got tuple"
    ):
        ConvCaps(3).init(jax.random.key(0), (poses, poses[..., 0, 0]))


@pytest.mark.parametrize(
    "centers, error, message",
    [
        (
            np.zeros((2, 4)),
            TypeError,
            "centers must be a pair of arrays, of rows and of columns; got ndarray",
        ),
        (
            (np.zeros(4),) * 3,
            TypeError,
            "centers must be a pair of arrays, of rows and of columns; got tuple",
        ),
        (
            (np.zeros(4), [0.5] * 3),
            TypeError,
            "centers of columns must be a NumPy array of floating point numbers; got list",
        ),
        (
            (np.zeros(4, int), np.zeros(3)),
            TypeError,
            "centers of rows must be a NumPy array of floating point numbers; got",
        ),
        (
            (np.zeros(4), np.zeros(4)),
            ValueError,
            r"centers of columns must have shape \[3\]; got shape \[4\]",
        ),
        (
            (np.zeros(4), np.full(3, 1.5)),
            ValueError,
            r"centers of columns must lie in \[0, 1\]; got 1\.5",
        ),
    ],
)
def test_centers_that_are_none_of_the_map_are_refused(centers, error, message):
    children = Capsules(jnp.zeros((1, 4, 3, 2, 4, 4)), jnp.zeros((1, 4, 3, 2)))
    with pytest.raises(error, match=message):
        ClassCaps(2).init(jax.random.key(0), children, centers)
