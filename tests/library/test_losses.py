"""The spread loss and its margin, and the margin loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from finite_differences import dot, slope_along

from emcaps import margin_loss, margin_schedule, spread_loss

ACTIVATIONS = np.array([[0.9, 0.1, 0.3], [0.2, 0.6, 0.5], [0.0, 1.0, 0.0]], np.float32)
LABELS = np.array([0, 2, 1])


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (5, 10)])
def test_spread_loss_is_the_papers(shape, margin, dtype):
    rng = np.random.default_rng(0)
    activations = rng.uniform(size=shape).astype(dtype)
    labels = rng.integers(shape[1], size=shape[0])
    loss = jax.jit(spread_loss)(activations, labels, margin)
    assert loss.dtype == dtype
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype.name]
    expected = oracle.spread_loss(activations, labels, margin)
    np.testing.assert_allclose(loss, expected, rtol=tolerance, atol=tolerance)


def test_spread_loss_by_hand():
    loss = jax.jit(spread_loss)(ACTIVATIONS, LABELS, 0.5)
    np.testing.assert_allclose(loss, [0.0, 0.2**2 + 0.6**2, 0.0], rtol=1e-5, atol=1e-7)


def test_a_margin_that_is_met_costs_nothing_and_has_no_slope():
    def loss(activations):
        return spread_loss(activations, LABELS, 1.0).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(ACTIVATIONS)[2], [0.0, 0.0, 0.0])


def test_the_targets_own_activation_is_not_a_wrong_class():
    """A common slip adds margin ** 2 to every loss."""
    loss = jax.jit(spread_loss)(ACTIVATIONS[2:], LABELS[2:], 0.9)
    np.testing.assert_array_equal(loss, [0.0])


@pytest.mark.parametrize("integer", ["uint8", "int8", "int32"])
def test_labels_of_any_integer_dtype(integer):
    expected = spread_loss(ACTIVATIONS, LABELS, 0.9)
    np.testing.assert_array_equal(spread_loss(ACTIVATIONS, LABELS.astype(integer), 0.9), expected)


@pytest.mark.parametrize("integer", ["uint8", "int8"])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("loss", [functools.partial(spread_loss, margin=0.9), margin_loss])
def test_more_classes_than_a_dtype_can_count(loss, array, integer):
    activations = np.random.default_rng(0).uniform(size=(3, 300)).astype(np.float32)
    labels, jitted = array(np.array([0, 20, 127], integer)), jax.jit(loss)
    expected = jitted(activations, np.array([0, 20, 127], np.int32))
    np.testing.assert_allclose(loss(activations, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(jitted(activations, labels), expected, rtol=1e-6)


def test_jit_and_vmap_change_nothing():
    expected = spread_loss(ACTIVATIONS, LABELS, 0.9)
    np.testing.assert_allclose(jax.jit(spread_loss)(ACTIVATIONS, LABELS, 0.9), expected, rtol=1e-6)
    one = lambda a, t: spread_loss(a[None], t[None], 0.9)[0]  # noqa: E731
    mapped = jax.jit(jax.vmap(one))(ACTIVATIONS, LABELS)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)


def assert_derivatives(loss, *cases):
    """First and second derivatives in a random direction are those of finite differences; the first
    by forward mode, too.

    Args:
        loss: of what a case has.
        *cases: of arrays, all of the same shapes.
    """

    @jax.jit
    def derivatives(case, weights, direction):
        value = lambda case: (weights * loss(*case)).sum()  # noqa: E731
        by_forward = lambda case: jax.jvp(value, (case,), (direction,))[1]  # noqa: E731
        by_reverse = lambda case: dot(jax.grad(value)(case), direction)  # noqa: E731
        second = dot(jax.grad(by_reverse)(case), direction)
        return value(case), by_forward(case), by_reverse(case), second

    rng = np.random.default_rng(6)
    for case in cases:
        weights = rng.normal(size=len(case[0]))
        direction = tuple(rng.normal(size=np.shape(array)) for array in case)
        along = functools.partial(derivatives, weights=weights, direction=direction)
        first, _, second, _ = slope_along(along, case, direction)
        np.testing.assert_allclose(along(case)[1:], (first, first, second), rtol=1e-6, atol=1e-6)


def test_spread_loss_gradients(x64):
    """Away from the kink, where a wrong class is exactly the margin below the target."""
    rng = np.random.default_rng(0)
    activations, labels = rng.uniform(size=(4, 5)), rng.integers(5, size=4)

    def loss(activations, margin):
        return spread_loss(activations, labels, margin)

    assert_derivatives(loss, (activations, np.array(0.45)))


@pytest.mark.parametrize("wrong", [-1, 3, 255])
def test_known_labels_out_of_range_are_refused(wrong):
    for labels in (np.array([0, wrong, 1]), jnp.array([0, wrong, 1])):
        with pytest.raises(ValueError, match="labels"):
            spread_loss(ACTIVATIONS, labels, 0.9)


@pytest.mark.parametrize("integer", ["uint8", "int8", "int32"])
@pytest.mark.parametrize("loss", [functools.partial(spread_loss, margin=0.9), margin_loss])
def test_known_labels_stay_known_while_something_else_is_traced(loss, integer):
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\]; got 3"):
        jax.jit(functools.partial(loss, labels=jnp.array([0, 3, 1], integer)))(ACTIVATIONS)


@pytest.mark.parametrize("wrong", [-1, 3, 255])
def test_traced_labels_out_of_range_give_nan_in_their_row_only(wrong):
    loss = np.asarray(jax.jit(spread_loss)(ACTIVATIONS, np.array([0, wrong, 1]), 0.9))
    expected = np.asarray(spread_loss(ACTIVATIONS, LABELS, 0.9))
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    np.testing.assert_allclose(loss[[0, 2]], expected[[0, 2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("labels", LABELS.astype(np.float32), TypeError),
        ("labels", LABELS[:2], ValueError),
        ("labels", LABELS[:, None], ValueError),
        ("labels", np.eye(3, dtype=np.int32), ValueError),
        ("activations", ACTIVATIONS.astype(np.int32), TypeError),
        ("activations", ACTIVATIONS[0], ValueError),
        ("activations", ACTIVATIONS[None], ValueError),
    ],
)
def test_wrong_arguments_are_refused(name, value, error):
    arguments = {"activations": ACTIVATIONS, "labels": LABELS, "margin": 0.9}
    with pytest.raises(error, match=name):
        spread_loss(**{**arguments, name: value})


def test_margin_loss_is_that_of_dynamic_routing(dtype):
    rng = np.random.default_rng(1)
    activations, labels = rng.uniform(size=(6, 4)).astype(dtype), rng.integers(4, size=6)
    expected = [
        sum(
            max(0, 0.9 - a) ** 2 if j == label else 0.5 * max(0, a - 0.1) ** 2
            for j, a in enumerate(row)
        )
        for row, label in zip(activations.astype(np.float64), labels, strict=True)
    ]
    loss = jax.jit(margin_loss)(activations, labels)
    assert loss.dtype == dtype
    np.testing.assert_allclose(loss, expected, rtol={"float32": 1e-5, "float64": 1e-12}[dtype.name])


def test_margin_loss_refuses_labels_or_marks_them():
    with pytest.raises(ValueError, match="labels"):
        margin_loss(ACTIVATIONS, np.array([0, 3, 1]))
    np.testing.assert_array_equal(
        np.isnan(jax.jit(margin_loss)(ACTIVATIONS, np.array([0, 3, 1]))), [False, True, False]
    )


LOSSES = {"spread": functools.partial(spread_loss, margin=0.6), "margin": margin_loss}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 1), "float64"),
        ((5, 10), "float64"),
        ((5, 10), "float32"),
        pytest.param((1, 1), "float32", marks=pytest.mark.slow),
        *(pytest.param((1, 2), dtype, marks=pytest.mark.slow) for dtype in ("float32", "float64")),
    ],
    indirect=["dtype"],
)
def test_one_hot_targets_are_labels(name, shape, dtype):
    """Exactly: values, and gradients."""
    rng, loss = np.random.default_rng(2), LOSSES[name]
    activations, labels = (
        rng.uniform(size=shape).astype(dtype),
        rng.integers(shape[1], size=shape[0]),
    )
    targets = np.eye(shape[1], dtype=np.float32)[labels]

    @jax.jit
    def losses_and_slopes(activations, *given):
        def total(activations, given):
            losses = loss(activations, given)
            return losses.sum(), losses

        return [jax.grad(total, has_aux=True)(activations, one) for one in given]

    (slope, found), (expected_slope, expected) = losses_and_slopes(activations, targets, labels)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_targets_that_sum_to_1_give_the_mean_over_labels(name, x64):
    rng, loss = np.random.default_rng(3), LOSSES[name]
    activations, targets = rng.uniform(size=(6, 4)), rng.dirichlet(np.ones(4), 6)
    loss = jax.jit(loss)
    each = np.stack([loss(activations, np.full(6, label)) for label in range(4)], axis=1)
    np.testing.assert_allclose(loss(activations, targets), (targets * each).sum(1), rtol=1e-12)


def test_of_several_labels_each_leads_those_that_are_not_there():
    activations, targets = (
        np.array([[0.9, 0.2, 0.3, 0.4]], np.float32),
        np.array([[1, 1, 0, 0]], np.float32),
    )
    spread, margin = jax.jit(spread_loss), jax.jit(margin_loss)
    pairs = 0.0 + 0.1**2 + 0.7**2 + 0.8**2  # 0.9 and 0.2 ahead of 0.3 and 0.4 by 0.6
    np.testing.assert_allclose(spread(activations, targets, 0.6), [pairs], rtol=1e-5)
    np.testing.assert_allclose(
        margin(activations, targets), [0.7**2 + 0.5 * (0.2**2 + 0.3**2)], rtol=1e-5
    )
    nothing = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(spread(activations, nothing, 0.6), [0])
    np.testing.assert_array_equal(spread(activations, 1 - nothing, 0.6), [0])


def test_spread_loss_of_targets_is_its_equation(x64):
    rng = np.random.default_rng(4)
    activations, targets = rng.uniform(size=(3, 4)), rng.uniform(size=(3, 4))
    expected = [
        sum(
            min(p[t], 1 - p[i]) * max(0, 0.5 - (a[t] - a[i])) ** 2
            for t in range(4)
            for i in range(4)
            if i != t
        )
        for a, p in zip(activations, targets, strict=True)
    ]
    loss = functools.partial(spread_loss, margin=0.5)
    np.testing.assert_allclose(jax.jit(loss)(activations, targets), expected, rtol=1e-12)
    mapped = jax.jit(jax.vmap(lambda a, p: loss(a[None], p[None])[0]))(activations, targets)
    np.testing.assert_allclose(mapped, expected, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_targets(name, x64):
    """By activations and by targets, away from the kinks."""
    rng = np.random.default_rng(5)
    activations, targets = rng.uniform(size=(4, 5)), rng.uniform(0.05, 0.95, size=(4, 5))
    assert_derivatives(
        LOSSES[name], (activations, targets), (activations, rng.dirichlet(np.ones(5), 4))
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wrong", [-0.01, 1.01, np.nan])
def test_targets_out_of_range_are_refused_or_marked(name, wrong):
    targets = np.eye(3, dtype=np.float32)
    targets[1, 2] = wrong
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 1\]; got"):
        LOSSES[name](ACTIVATIONS, targets)
    np.testing.assert_array_equal(
        np.isnan(jax.jit(LOSSES[name])(ACTIVATIONS, targets)), [False, True, False]
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.eye(3, dtype=np.int32),
            r"labels must be integers \[B\], or floating point \[B, J\]; got int32 \[3, 3\]",
        ),
        (np.eye(3, dtype=bool), "labels must be integers .* got bool"),
        (np.ones((3, 4), np.float32), r"labels must have shape \[B=3, J=3\].*; got shape \[3, 4\]"),
        (np.ones((2, 3), np.float32), "labels must have shape"),
    ],
)
def test_targets_of_another_shape_or_type_are_refused(name, labels, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name](ACTIVATIONS, labels)


def test_margin_grows_linearly_and_stays():
    margins = [float(margin_schedule(step, 100)) for step in (0, 25, 50, 100, 101, 10_000)]
    np.testing.assert_allclose(margins, [0.2, 0.375, 0.55, 0.9, 0.9, 0.9], rtol=1e-6)
    assert float(margin_schedule(5, 10, start=0.0, end=1.0)) == pytest.approx(0.5)


def test_margin_of_numbers_beyond_32_bits():
    assert float(margin_schedule(0, 3 * 10**9)) == pytest.approx(0.2)
    assert float(margin_schedule(3 * 10**9, 10)) == pytest.approx(0.9)


@pytest.mark.parametrize("name", LOSSES)
def test_targets_of_activations_in_float64_are_taken_without_a_warning(name):
    activations, targets = np.float64([[0.2, 0.7]]), np.float64([[0.0, 1.0]])
    assert LOSSES[name](activations, targets).dtype == np.float32


def test_margin_of_a_traced_step():
    steps = np.array([0, 50, 100, 200])
    margins = jax.jit(jax.vmap(lambda step: margin_schedule(step, 100)))(steps)
    np.testing.assert_allclose(margins, [0.2, 0.55, 0.9, 0.9], rtol=1e-6)
