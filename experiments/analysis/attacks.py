"""Adversarial attacks on any objective: pure functions, to be jitted by their callers.

An attack changes images by at most epsilon in any pixel (the L-infinity norm) so that an objective
becomes larger. Pixels are in [0, 1], as they are stored: what a network does to them first, such as
normalization, is part of the objective.

An objective is a function from images `[B, H, W, C]` to one number for each, `[B]`, which depends
on that image alone: the loss of the true label, for an attack that only wants another answer, or
minus the loss of the class that is wanted (a targeted attack).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emcaps.checks import check_positive_int, check_range, check_shapes

Objective = Callable[[jax.Array], jax.Array]
Scalar = jax.Array | float


def fgsm(objective: Objective, images: jax.Array, epsilon: Scalar) -> jax.Array:
    """One step of size epsilon along the sign of the gradient: the fast gradient sign method
    (Goodfellow et al. 2015).

    Args:
        objective: to be made larger.
        images: `[B, H, W, C]`, floating, in [0, 1].
        epsilon: scalar, >= 0, by how much a pixel may change; it can be traced, and then no other
            value compiles again.

    Returns:
        As `images`: within epsilon of them (up to rounding) and in [0, 1]. With an epsilon of 0
            they are the images, bit for bit.

    Raises:
        TypeError: images or the objective are not floating point.
        ValueError: a shape is wrong, or a known value out of its range.
    """
    check_arguments(images, epsilon)
    return ascend(objective, images, images, epsilon, epsilon, 1).last


def bim(
    objective: Objective,
    images: jax.Array,
    epsilon: Scalar,
    *,
    num_steps: int,
    step_size: Scalar | None = None,
) -> jax.Array:
    """Smaller steps of that kind, from the image itself: the basic iterative method (Kurakin et al.
    2016). The last image counts.

    Args and errors as for `fgsm`, and:
        num_steps: >= 1, static.
        step_size: scalar, >= 0, how far a pixel moves in a step; None is `default_step_size`.

    Returns:
        As `fgsm` does.
    """
    check_arguments(images, epsilon, num_steps, step_size)
    step_size = default_step_size(epsilon, num_steps) if step_size is None else step_size
    return ascend(objective, images, images, epsilon, step_size, num_steps).last


def pgd(
    objective: Objective,
    images: jax.Array,
    epsilon: Scalar,
    keys: jax.Array,
    *,
    num_steps: int,
    num_restarts: int,
    step_size: Scalar | None = None,
) -> jax.Array:
    """The same steps from several places: projected gradient descent (Madry et al. 2018). The best
    image found counts.

    For each example that is the one with the highest objective of all steps of all restarts, of the
    image itself, and of what `fgsm` makes of it. The first restart is at the image itself, so it
    includes what `bim` visits; the others are uniform within epsilon of it.

    Args and errors as for `bim`, and:
        keys: one for each image, `[B]`: where it is restarted does not depend on the other images.
        num_restarts: >= 1, static.

    Returns:
        As `fgsm` does.
    """
    check_positive_int("num_restarts", num_restarts)
    check_arguments(images, epsilon, num_steps, step_size)
    step_size = default_step_size(epsilon, num_steps) if step_size is None else step_size
    if jnp.shape(keys) != images.shape[:1]:
        raise ValueError(
            f"keys must have shape {list(images.shape[:1])}; got shape {list(jnp.shape(keys))}"
        )

    def draw(key: jax.Array, attempt: jax.Array) -> jax.Array:
        return jax.random.uniform(
            jax.random.fold_in(key, attempt), images.shape[1:], images.dtype, -1, 1
        )

    def try_again(attempt: jax.Array, so_far: Ascent) -> Ascent:
        noise = jax.vmap(draw, (0, None))(keys, attempt)
        start = project(images + jnp.where(attempt < 2, 0, epsilon) * noise, images, epsilon)
        size, steps = (
            jnp.where(attempt == 0, epsilon, step_size),
            jnp.where(attempt == 0, 1, num_steps),
        )
        found = ascend(objective, images, start, epsilon, size, steps)
        return Ascent(found.last, *better(so_far.best, so_far.value, found.best, found.value))

    # Attempt 0 is FGSM. It is one of the loop so that the gradient is compiled once.
    lowest = jnp.full(images.shape[:1], -jnp.inf, images.dtype)
    return jax.lax.fori_loop(0, 1 + num_restarts, try_again, Ascent(images, images, lowest)).best


class Ascent(NamedTuple):
    """Where a walk from images has led.

    Attributes:
        last: the images after the last step, `[B, H, W, C]`.
        best: of all that were visited, the start and the last among them, those with the highest
            objective.
        value: the objective of `best`, `[B]`.
    """

    last: jax.Array
    best: jax.Array
    value: jax.Array


def ascend(
    objective: Objective,
    images: jax.Array,
    start: jax.Array,
    epsilon: Scalar,
    step_size: Scalar,
    num_steps: jax.Array | int,
) -> Ascent:
    """Walk from `start` along the sign of the gradient, each step projected to where the images may
    be.
    """

    def step(_: jax.Array, walk: Ascent) -> Ascent:
        value, gradient = value_and_gradient(objective, walk.last)
        last = project(
            walk.last + jnp.asarray(step_size, images.dtype) * jnp.sign(gradient), images, epsilon
        )
        return Ascent(last, *better(walk.best, walk.value, walk.last, value))

    lowest = jnp.full(images.shape[:1], -jnp.inf, images.dtype)
    walk = jax.lax.fori_loop(0, num_steps, step, Ascent(start, start, lowest))
    return Ascent(walk.last, *better(walk.best, walk.value, walk.last, objective(walk.last)))


def better(
    images: jax.Array, value: jax.Array, others: jax.Array, other_value: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of two images for each example the one with the higher value, and that value; the first where
    they are equal.
    """
    chosen = other_value > value
    return jnp.where(chosen[:, None, None, None], others, images), jnp.where(
        chosen, other_value.astype(value.dtype), value
    )


def project(changed: jax.Array, images: jax.Array, epsilon: Scalar) -> jax.Array:
    """The nearest to `changed` that is within epsilon of the images and in [0, 1]."""
    epsilon = jnp.asarray(epsilon, images.dtype)
    return jnp.clip(changed, jnp.maximum(images - epsilon, 0), jnp.minimum(images + epsilon, 1))


def default_step_size(epsilon: Scalar, num_steps: int) -> Scalar:
    """`2.5 epsilon / num_steps`, as Madry et al. have it: from anywhere within epsilon of an image
    all of that can be reached.
    """
    return 2.5 * epsilon / num_steps


def value_and_gradient(objective: Objective, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The objective of each image `[B]`, and its gradient, as `images`.

    Raises ValueError if it is not one number for each.
    """
    values, pull_back = jax.vjp(objective, images)
    check_shapes({"images": (images, "B H W C"), "objective(images)": (values, "B")})
    (gradient,) = pull_back(jnp.ones_like(values))
    return values, gradient


class GradientStatistics(NamedTuple):
    """What tells whether an attack has a gradient to follow, scalars: where there is none, a
    network only looks robust.

    Attributes:
        zero_share: of all entries of the gradients, the share that is exactly zero.
        blind_share: the share of images whose whole gradient is zero.
        mean_size: of an entry of a gradient, the mean absolute value.
    """

    zero_share: jax.Array
    blind_share: jax.Array
    mean_size: jax.Array


def gradient_statistics(gradients: jax.Array | np.ndarray) -> GradientStatistics:
    """The statistics of gradients `[B, H, W, C]`, one of each image; see `value_and_gradient`."""
    check_shapes({"gradients": (gradients, "B H W C")})
    zero = jnp.asarray(gradients) == 0
    return GradientStatistics(zero.mean(), zero.all((1, 2, 3)).mean(), jnp.abs(gradients).mean())


def check_arguments(
    images: jax.Array, epsilon: Scalar, num_steps: int = 1, step_size: Scalar | None = None
) -> None:
    """Raise unless images are floating `[B, H, W, C]`, in [0, 1], and sizes are scalars that are
    not negative, where known.
    """
    check_shapes({"images": (images, "B H W C")})
    check_range("images", images, 0, 1)
    check_positive_int("num_steps", num_steps)
    for name, size in {
        "epsilon": epsilon,
        "step_size": 0 if step_size is None else step_size,
    }.items():
        if jnp.shape(size) != ():
            raise ValueError(f"{name} must be a scalar; got shape {list(jnp.shape(size))}")
        check_range(name, size, 0)
