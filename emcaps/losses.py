"""Losses on class activations, one value per example: averaging is the caller's, who knows about
masks and devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emcaps.checks import check_labels, check_number, check_positive_int, check_range, check_shapes


def spread_loss(activations: jax.Array, labels: jax.Array, margin: jax.Array | float) -> jax.Array:
    """Spread loss (section 3 of the paper):
    `sum over classes i != t of max(0, margin - (a_t - a_i)) ** 2`.

    Of targets p it is `sum over t and i != t of min(p_t, 1 - p_i) * max(0, margin - (a_t - a_i)) **
    2`, in which the factor is how probable it is, at most, that class t is there and class i is
    not. So it is

    - for one-hot p the loss of that label;
    - for p that sum to 1, as of smoothed or mixed labels, the mean of the losses of all labels t,
      weighted by p_t;
    - for p of 0 and 1, several labels of an image, the sum over all pairs of a class that is there
      and one that is not.

    Args:
        activations: a, `[B, J]`, floating; probabilities as the paper has it, any real numbers will
            do.
        labels: t, `[B]`, integers in [0, J); or targets p, `[B, J]`, floating, in [0, 1]: how
            probable it is that each class is there (takes memory for `[B, J, J]`). Checked where
            they are known; where they are traced, an example with a label out of range gets a loss
            of NaN.
        margin: scalar, by how much the target should win; see `margin_schedule`.

    Returns:
        `[B]`, in the dtype of `activations`.

    Raises:
        TypeError: activations are not floating point, labels neither integers nor floating point
            targets, or the margin no number.
        ValueError: shapes do not match, or a known label is out of range; the margin is not one
            finite number.
    """
    check_number("margin", margin)
    if _are_targets(labels):
        activations, targets, right = _check_targets(activations, labels)
        spread = _spread(activations[:, :, None] - activations[:, None, :], margin)  # [B, t, i]
        probability = jnp.minimum(targets[:, :, None], 1 - targets[:, None, :])
        different = ~jnp.eye(activations.shape[1], dtype=bool)[None]
        loss = jnp.where(different, probability * spread, 0).sum(-1).sum(-1)
        return jnp.where(right, loss, jnp.nan)
    is_target = _check_classes(activations, labels)
    target = jnp.where(is_target, activations, 0).sum(-1, keepdims=True)
    loss = jnp.where(is_target, 0, _spread(target - activations, margin)).sum(-1)
    return jnp.where(is_target.any(-1), loss, jnp.nan)


def _spread(lead: jax.Array, margin: jax.Array | float) -> jax.Array:
    """What it costs that one activation leads another by so much."""
    return jnp.maximum(0, jnp.asarray(margin, lead.dtype) - lead) ** 2


def margin_loss(activations: jax.Array, labels: jax.Array) -> jax.Array:
    """Margin loss (Sabour, Frosst, Hinton 2017, equation 4): `max(0, 0.9 - a_t)^2 + 0.5 sum over i
    != t of max(0, a_i - 0.1)^2`.

    Of targets p it is their `sum over i of p_i max(0, 0.9 - a_i)^2 + 0.5 (1 - p_i) max(0, a_i -
    0.1)^2`. For one-hot p that is the loss of the label, and for p that sum to 1 the mean of the
    losses of all labels.

    Args, result `[B]` and errors as for `spread_loss`, without a margin.
    """
    if _are_targets(labels):
        activations, targets, right = _check_targets(activations, labels)
        present, absent = _present_and_absent(activations)
        return jnp.where(right, (targets * present + (1 - targets) * absent).sum(-1), jnp.nan)
    is_target = _check_classes(activations, labels)
    loss = jnp.where(is_target, *_present_and_absent(activations)).sum(-1)
    return jnp.where(is_target.any(-1), loss, jnp.nan)


def _present_and_absent(activations: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What each activation costs if its class is there, and if it is not."""
    return jnp.maximum(0, 0.9 - activations) ** 2, 0.5 * jnp.maximum(0, activations - 0.1) ** 2


def _are_targets(labels: Any) -> bool:
    """Whether labels are floating point `[B, J]`, not integers `[B]`.

    Raises ValueError for integers `[B, J]`.
    """
    if not isinstance(labels, jax.Array | np.ndarray) or labels.ndim != 2:
        return False  # what else they should not be is said where they are checked
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        raise ValueError(
            f"labels must be integers [B], or floating point [B, J]; got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    return True


def _check_targets(
    activations: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Check the arguments that losses share; return both as JAX's arrays in the activations' dtype,
    and where targets are in range, bool `[B]`.
    """
    check_shapes({"activations": (activations, "B J"), "labels": (targets, "B J")})
    check_range("labels", targets, 0, 1)
    right = (targets >= 0) & (targets <= 1)
    activations = jnp.asarray(activations)
    return activations, jnp.asarray(targets, activations.dtype), jnp.asarray(right).all(-1)


def _check_classes(activations: jax.Array, labels: jax.Array) -> jax.Array:
    """Check the arguments that losses share; return where each example's target is,
    bool `[B, J]`.
    """
    num_classes = check_shapes({"activations": (activations, "B J")})["J"]
    labels = check_labels("labels", labels, activations.shape[:1], num_classes)
    return jax.nn.one_hot(labels, num_classes, dtype=bool)


def margin_schedule(
    step: jax.Array | int, transition_steps: int, start: float = 0.2, end: float = 0.9
) -> jax.Array:
    """The margin of the spread loss at `step`: from `start` linearly to `end` over
    `transition_steps`, then constant.

    The paper raises it from 0.2 to 0.9 so that few capsules die early; it does not say how fast.

    Args:
        step: scalar, at least 0; may be traced.
        transition_steps: at least 1.
        start: scalar, the margin at step 0.
        end: scalar, the margin from `transition_steps` on.

    Returns:
        A floating point scalar.

    Raises:
        TypeError, ValueError: `step`, `start` or `end` is not one finite number, or `step` is
            negative; `transition_steps` is not an int of at least 1.
    """
    check_number("step", step, 0)
    check_positive_int("transition_steps", transition_steps)
    check_number("start", start)
    check_number("end", end)
    progress = jnp.clip(jnp.asarray(step, float) / float(transition_steps), 0, 1)
    return start + (end - start) * progress
