"""Procedure 1 of "Matrix capsules with EM routing" (Hinton, Sabour, Frosst, ICLR 2018), in the inner layout of `votes.py`.

A parent capsule is a Gaussian over the votes of the children that it sees; its mean is its pose. T iterations are T M-steps
(fit the Gaussians, price them, decide which parents are active) with T - 1 E-steps between them (each child divides itself
among all the parents that it reaches, of all types and at all positions).
"""

import functools
import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from emcaps.receptive_field import ReceptiveField
from emcaps.types import POSE_ENTRIES


class Votes(Protocol):
    """The two operators of `votes.py`, and the weighted sum to start from."""

    def weighted_sum(self, weights: jax.Array, /) -> jax.Array: ...
    def moments(self, weights: jax.Array, centre: jax.Array, /) -> tuple[jax.Array, jax.Array, jax.Array]: ...
    def scores(self, quadratic: jax.Array, centre: jax.Array, /) -> jax.Array: ...


class Parents(NamedTuple):
    """The parents after an M-step.

    Attributes:
        means: `[4, J, 4, M]`.
        variances: `[4, J, 4, M]`, at least `min_variance`.
        logits: `[J, M]`; the activations are their sigmoid.
    """

    means: jax.Array
    variances: jax.Array
    logits: jax.Array


class Moments(NamedTuple):
    """The M-step's sums over children with g_i = r_ij a_i, about a centre c.

    Attributes:
        mass: sum_i g_i, `[J, M]`.
        first: sum_i g_i (V_ijh - c_h), `[4, J, 4, M]`.
        second: sum_i g_i (V_ijh - c_h)^2, `[4, J, 4, M]`.
    """

    mass: jax.Array
    first: jax.Array
    second: jax.Array


class Iteration(NamedTuple):
    """What one iteration leaves behind.

    Attributes:
        assignments: that its M-step used, `[N, J, M]`.
        centre: that its moments are about, `[4, J, 4, M]`.
        moments: of its data.
        parents: that it fitted.
    """

    assignments: jax.Array
    centre: jax.Array
    moments: Moments
    parents: Parents


class Constants(NamedTuple):
    """What Procedure 1 is given besides the data: the two learned vectors `[J]`, lambda `[T]`, and scalars."""

    beta_u: jax.Array
    beta_a: jax.Array
    inverse_temperature: jax.Array
    min_variance: jax.Array
    mass_epsilon: jax.Array
    mass_scale: jax.Array
    assignment_temperature: jax.Array


class Geometry(NamedTuple):
    """What shapes the compiled program; static.

    Attributes:
        field: which children a parent sees.
        num_iterations: T.
        normalize_costs: see `fit_gaussians`.
    """

    field: ReceptiveField
    num_iterations: int
    normalize_costs: bool


def fit_gaussians(
    moments: Moments,
    centre: jax.Array,
    constants: Constants,
    iteration: jax.Array | int,
    normalize_costs: bool,
) -> Parents:
    """The M-step after its sums. With g_i = r_ij a_i and m = sum_i g_i, for parent j and pose entry h:

        mean_h = sum_i g_i V_ijh / (m + mass_epsilon)
        variance_h = sum_i g_i (V_ijh - mean_h)^2 / (m + mass_epsilon) + min_variance
        cost = sum_h (beta_u + log(variance_h) / 2) * m * mass_scale
        logit = lambda (beta_a - cost)

    With `normalize_costs`, cost becomes (cost - its mean) / (its standard deviation + 1) over the parent types at a position.

    Args:
        moments: of the data.
        centre: what the moments are about. The result does not depend on it but for rounding.
        constants: beta_u is the cost of describing one unit of data for one pose entry, beta_a what an active parent is worth.
        iteration: t, which chooses lambda.
        normalize_costs: static.
    """
    mass, first, second = moments
    total = (mass + constants.mass_epsilon)[None, :, None]
    shift = (first - constants.mass_epsilon * centre) / total
    # Rounding can leave a small negative sum of squares where all votes agree.
    squares = jnp.maximum(second - 2 * shift * first + mass[None, :, None] * shift**2, 0)
    variances = squares / total + constants.min_variance
    information = POSE_ENTRIES * constants.beta_u[:, None] + 0.5 * jnp.log(variances).sum((0, 2))
    cost = information * mass * constants.mass_scale
    if normalize_costs:
        cost = _standardize_over_types(cost)
    logits = constants.inverse_temperature[iteration] * (constants.beta_a[:, None] - cost)
    return Parents(centre + shift, variances, logits)


def _standardize_over_types(cost: jax.Array) -> jax.Array:
    """(cost - mean) / (standard deviation + 1) over the types, axis 0; the 1 is a cost too small to be told apart."""
    offsets = cost - cost.mean(0, keepdims=True)
    variance = (offsets**2).mean(0, keepdims=True)
    # The square root's slope at 0, where all types cost the same, would be infinite.
    positive = variance > 0
    deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
    return offsets / (deviation + 1)


def log_densities(parents: Parents, constants: Constants) -> tuple[jax.Array, jax.Array]:
    """log p_ij / assignment_temperature, where p_ij = a_j prod_h Normal(V_ijh; mean_jh, variance_jh), as a quadratic form.

    Returns:
        The coefficients `[4, J, 4, M]` of (V_ijh - mean_jh)^2, and the part that does not depend on the child, `[J, M]`.
    """
    quadratic = -0.5 / (parents.variances * constants.assignment_temperature)
    norm = 0.5 * jnp.log(2 * jnp.pi * parents.variances).sum((0, 2))
    return quadratic, (jax.nn.log_sigmoid(parents.logits) - norm) / constants.assignment_temperature


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def compete(scores: jax.Array, field: ReceptiveField) -> jax.Array:
    """Softmax of `[N, J, M]` over every parent that a child reaches: types within a patch, and the patches that overlap at it."""
    seen = _unfold(scores, field)
    peak = field.gather(field.scatter_max(seen.max(3)))
    shares = jnp.exp(seen - peak[:, :, :, None])
    total = field.gather(field.scatter_sum(shares.sum(3)))
    return (shares / total[:, :, :, None]).reshape(scores.shape)


def compete_derivative(assignments: jax.Array, direction: jax.Array, field: ReceptiveField) -> jax.Array:
    """The derivative of `compete` along `direction` `[N, J, M]`. It is symmetric: also the gradient that comes back."""
    weighted = assignments * direction
    mean = field.gather(field.scatter_sum(_unfold(weighted, field).sum(3)))
    mean = jnp.broadcast_to(mean[:, :, :, None], _unfold(weighted, field).shape).reshape(assignments.shape)
    return weighted - assignments * mean


@compete.defjvp
def _compete_jvp(field, primals, tangents):
    assignments = compete(*primals, field)
    return assignments, compete_derivative(assignments, *tangents, field)


def _unfold(array: jax.Array, field: ReceptiveField) -> jax.Array:
    """`[N, J, M]` to `[KH, KW, I, J, OH, OW, B]`."""
    types = array.shape[0] // math.prod(field.kernel_size)
    return array.reshape(*field.kernel_size, types, array.shape[1], *field.output_size, -1)


def first_shares(activations: jax.Array, field: ReceptiveField, num_types: int) -> jax.Array:
    """Before any routing each child divides itself evenly among the parents that it reaches. Same for all types: `[N, M]`."""
    reached = np.maximum(field.num_parent_positions(), 1) * num_types
    shares = field.gather(jnp.asarray(1 / reached, activations.dtype)[None, :, :, None])
    types = activations.shape[0] // math.prod(field.kernel_size)
    batch = activations.shape[1] // math.prod(field.output_size)
    shape = (*field.kernel_size, types, *field.output_size, batch)
    return jnp.broadcast_to(shares, shape).reshape(activations.shape)


def first_centre(votes: Votes, data: jax.Array, constants: Constants) -> jax.Array:
    """The means of the first M-step, where data `[N, M]` is the same for all types. A constant of the differentiation."""
    total = data.sum(0) + constants.mass_epsilon
    return lax.stop_gradient(votes.weighted_sum(data) / total[None, None, None])


def m_step(
    votes: Votes,
    activations: jax.Array,
    assignments: jax.Array,
    centre: jax.Array,
    constants: Constants,
    geometry: Geometry,
    iteration: jax.Array | int,
) -> Iteration:
    """Fit each parent's Gaussian to the data assigned to it and decide how active it is: `fit_gaussians`.

    Args:
        votes: of the children.
        activations: a, `[N, M]`.
        assignments: r, `[N, J, M]`.
        centre: about where the means will be, `[4, J, 4, M]`; a constant of the differentiation.
        constants: see `Constants`.
        geometry: see `Geometry`.
        iteration: t.
    """
    centre = lax.stop_gradient(centre)
    moments = Moments(*votes.moments(assignments * activations[:, None], centre))
    parents = fit_gaussians(moments, centre, constants, iteration, geometry.normalize_costs)
    return Iteration(assignments, centre, moments, parents)


def e_step(votes: Votes, parents: Parents, constants: Constants, field: ReceptiveField) -> jax.Array:
    """Divide each child among all the parents that it reaches, by p_ij of `log_densities`. Returns assignments `[N, J, M]`."""
    quadratic, constant = log_densities(parents, constants)
    return compete(votes.scores(quadratic, parents.means) + constant[None], field)


def first_iteration(votes: Votes, activations: jax.Array, constants: Constants, geometry: Geometry) -> Iteration:
    """An M-step in which each child divides itself evenly among the parents that it reaches."""
    field, (num_types,) = geometry.field, constants.beta_u.shape
    reached = np.maximum(field.num_parent_positions(), 1) * num_types
    shares = field.gather(jnp.asarray(1 / reached, activations.dtype)[None, :, :, None])
    types = activations.shape[0] // math.prod(field.kernel_size)
    batch = activations.shape[1] // math.prod(field.output_size)
    shares = jnp.broadcast_to(shares, (*field.kernel_size, types, *field.output_size, batch)).reshape(activations.shape)
    # These assignments are the same for all types, so that the means cost one matrix product.
    data = shares * activations
    centre = votes.weighted_sum(data) / (data.sum(0) + constants.mass_epsilon)[None, None, None]
    assignments = jnp.broadcast_to(shares[:, None], (shares.shape[0], num_types, shares.shape[1]))
    return m_step(votes, activations, assignments, centre, constants, geometry, 0)


def next_iteration(
    votes: Votes,
    activations: jax.Array,
    constants: Constants,
    geometry: Geometry,
    iteration: jax.Array,
    previous: Iteration,
) -> Iteration:
    """An E-step and an M-step."""
    assignments = e_step(votes, previous.parents, constants, geometry.field)
    return m_step(votes, activations, assignments, previous.parents.means, constants, geometry, iteration)


def route(votes: Votes, activations: jax.Array, constants: Constants, geometry: Geometry) -> tuple[Parents, jax.Array]:
    """Procedure 1 for children with `activations` `[N, M]`. Returns the parents and the last assignments `[N, J, M]`."""
    given = votes, activations, constants, geometry
    last = lax.fori_loop(1, geometry.num_iterations, functools.partial(next_iteration, *given), first_iteration(*given))
    return last.parents, last.assignments
