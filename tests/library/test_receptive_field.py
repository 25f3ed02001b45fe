"""The geometry between children and parents, against loops over positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emcaps import ReceptiveField, receptive_field_centers

FIELDS = [
    ReceptiveField((5, 7), (3, 3), 1),
    ReceptiveField((8, 5), (3, 2), 2),
    ReceptiveField((9, 9), (2, 1), 3),
    ReceptiveField((4, 6), (4, 6), 1),
    ReceptiveField((6, 6), (5, 4), 3),
]


def each_sight(field):
    """Every (offset, parent position, child position) at which a parent sees a child."""
    for kernel_row, kernel_column in np.ndindex(field.kernel_size):
        for row, column in np.ndindex(field.output_size):
            child = row * field.stride + kernel_row, column * field.stride + kernel_column
            yield (kernel_row, kernel_column), (row, column), child


@pytest.mark.parametrize("field", FIELDS)
def test_gather_is_what_each_parent_sees(field):
    children = np.random.default_rng(0).normal(size=(2, *field.map_size, 3)).astype(np.float32)
    seen = np.asarray(jax.jit(field.gather)(children))
    assert seen.shape == (*field.kernel_size, 2, *field.output_size, 3)
    for offset, parent, child in each_sight(field):
        np.testing.assert_array_equal(
            seen[(*offset, slice(None), *parent)], children[(slice(None), *child)]
        )


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("method", "combine", "identity"),
    [("scatter_sum", np.add, 0), ("scatter_max", np.maximum, -np.inf)],
)
def test_scatter_combines_what_parents_say_of_a_child(field, method, combine, identity):
    seen = (
        np.random.default_rng(1)
        .normal(size=(*field.kernel_size, 2, *field.output_size, 3))
        .astype(np.float32)
    )
    expected = np.full((2, *field.map_size, 3), identity, np.float32)
    for offset, parent, child in each_sight(field):
        place = (slice(None), *child)
        expected[place] = combine(expected[place], seen[(*offset, slice(None), *parent)])
    np.testing.assert_allclose(
        jax.jit(getattr(field, method))(seen), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("field", FIELDS)
def test_scatter_sum_is_the_transpose_of_gather(field):
    children = jax.ShapeDtypeStruct((2, *field.map_size, 3), jnp.float32)
    seen = jnp.asarray(
        np.random.default_rng(2).normal(size=(*field.kernel_size, 2, *field.output_size, 3)),
        jnp.float32,
    )
    (transposed,) = jax.jit(jax.linear_transpose(field.gather, children))(seen)
    np.testing.assert_allclose(jax.jit(field.scatter_sum)(seen), transposed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("field", FIELDS)
def test_num_parent_positions_counts_the_sights_of_a_child(field):
    expected = np.zeros(field.map_size, int)
    for _, _, child in each_sight(field):
        expected[child] += 1
    np.testing.assert_array_equal(field.num_parent_positions(), expected)


@pytest.mark.parametrize(
    ("size", "layers"),
    [(32, [(5, 2), (1, 1), (3, 2), (3, 1)]), (28, [(3, 1)]), (17, [(5, 2), (3, 3)])],
)
def test_centers_are_the_middle_of_what_a_position_sees(size, layers):
    seen = [[pixel] for pixel in range(size)]
    for kernel, stride in layers:
        starts = range(0, len(seen) - kernel + 1, stride)
        seen = [[pixel for pixels in seen[i : i + kernel] for pixel in pixels] for i in starts]
    expected = [(min(pixels) + max(pixels) + 1) / 2 / size for pixels in seen]
    np.testing.assert_allclose(receptive_field_centers(size, layers), expected, rtol=1e-12)
