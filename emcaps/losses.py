"""Losses on class activations, one value per example: averaging is the caller's, who knows about masks and devices."""

import jax
import jax.numpy as jnp

from emcaps.checks import check_labels, check_number, check_positive_int, check_shapes


def spread_loss(activations: jax.Array, labels: jax.Array, margin: jax.Array | float) -> jax.Array:
    """Spread loss (section 3 of the paper): `sum over classes i != t of max(0, margin - (a_t - a_i)) ** 2`.

    Args:
        activations: a, `[B, J]`, floating; probabilities as the paper has it, any real numbers will do.
        labels: t, `[B]`, integers in [0, J). Checked where they are known; where they are traced, an example whose label is out
            of range gets a loss of NaN.
        margin: scalar, by how much the target should win; see `margin_schedule`.

    Returns:
        `[B]`, in the dtype of `activations`.

    Raises:
        TypeError: activations are not floating point, or labels not integers.
        ValueError: shapes do not match, or a known label is out of range; the margin is not one finite number.
    """
    is_target = _check_classes(activations, labels)
    check_number("margin", margin)
    target = jnp.where(is_target, activations, 0).sum(-1, keepdims=True)
    spread = jnp.maximum(0, jnp.asarray(margin, activations.dtype) - (target - activations)) ** 2
    loss = jnp.where(is_target, 0, spread).sum(-1)
    return jnp.where(is_target.any(-1), loss, jnp.nan)


def margin_loss(activations: jax.Array, labels: jax.Array) -> jax.Array:
    """Margin loss (Sabour, Frosst, Hinton 2017, equation 4): `max(0, 0.9 - a_t)^2 + 0.5 sum over i != t of max(0, a_i - 0.1)^2`.

    Args and errors as for `spread_loss`, without a margin.
    """
    is_target = _check_classes(activations, labels)
    present = jnp.maximum(0, 0.9 - activations) ** 2
    absent = 0.5 * jnp.maximum(0, activations - 0.1) ** 2
    loss = jnp.where(is_target, present, absent).sum(-1)
    return jnp.where(is_target.any(-1), loss, jnp.nan)


def _check_classes(activations: jax.Array, labels: jax.Array) -> jax.Array:
    """Check the arguments that losses share; return where each example's target is, bool `[B, J]`."""
    num_classes = check_shapes({"activations": (activations, "B J")})["J"]
    labels = check_labels("labels", labels, activations.shape[:1], num_classes)
    return jax.nn.one_hot(labels, num_classes, dtype=bool)


def margin_schedule(step: jax.Array | int, transition_steps: int, start: float = 0.2, end: float = 0.9) -> jax.Array:
    """The margin of the spread loss at `step`: from `start` linearly to `end` over `transition_steps`, then constant.

    The paper raises it from 0.2 to 0.9 so that few capsules die early; it does not say how fast.

    Raises:
        TypeError, ValueError: `step`, `start` or `end` is not one finite number, or `step` is negative; `transition_steps` is not
            an int of at least 1.
    """
    check_number("step", step, 0)
    check_positive_int("transition_steps", transition_steps)
    check_number("start", start)
    check_number("end", end)
    progress = jnp.clip(jnp.asarray(step) / transition_steps, 0, 1)
    return start + (end - start) * progress
