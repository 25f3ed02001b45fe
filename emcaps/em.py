"""Procedure 1 of "Matrix capsules with EM routing" (Hinton, Sabour, Frosst, ICLR 2018), in the
inner layout of `votes.py`; `types.py` says what the letters of shapes are.

A parent capsule is a Gaussian over the votes of the children that it sees; its mean is its pose. T
iterations are T M-steps (fit the Gaussians, price them, decide which parents are active) with T - 1
E-steps between them (each child divides itself among all the parents that it reaches, of all types
and at all positions).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from emcaps.competition import compete, initial_assignments
from emcaps.procedure import Constants, Parents, Procedure, Routing, Sums, Votes
from emcaps.types import POSE_ENTRIES
from emcaps.votes import Moments

# Moments are taken again where the mean square of votes about the center is more than this many
# times their variance: by this factor rounding errors grow in the variance.
MOST_CANCELLATION = 100.0


def route(routing: Routing[Votes]) -> tuple[Parents, jax.Array]:
    """Procedure 1. Returns the parents and the last assignments, `[N, J, M]`."""
    shares, parents = start(routing)

    def step(iteration, state):
        parents, _ = state
        parents, sums = iterate(routing, shares, parents, iteration)
        return parents, sums.assignments

    nothing = jnp.zeros_like(shares, shape=(shares.shape[0], *parents.logits.shape))
    return lax.fori_loop(0, routing.procedure.num_iterations, step, (parents, nothing))


def start(routing: Routing[Votes]) -> tuple[jax.Array, Parents]:
    """The assignments of each child before any routing, `[N, M]`, and parents that the first M-step
    starts from: the means that these assignments give, about which it takes moments. Their other
    fields are placeholders.
    """
    votes, activations, constants, procedure = routing
    devices = 1 if procedure.parent_axis is None else lax.axis_size(procedure.parent_axis)
    shares = initial_assignments(activations, procedure, constants.beta_u.shape[0] * devices)
    # They are the same for all types, so that the means are one matrix product.
    data = shares * activations
    means = votes.weighted_sum(data) / (data.sum(0) + constants.mass_epsilon)[None, None, None]
    return shares, Parents(means, jnp.ones_like(means), jnp.zeros_like(means[0, 0]))


def iterate(
    routing: Routing[Votes], shares: jax.Array, parents: Parents, iteration: jax.Array | int
) -> tuple[Parents, Sums]:
    """An M-step, after an E-step or, in the first iteration, with the `shares` of `start`."""
    center = lax.stop_gradient(parents.means)
    sums = unless_first(
        iteration,
        lambda: _sums_by_agreement(routing, parents, center),
        instead=lambda: _sums_of_shares(routing, shares, parents, center),
    )
    old_means = previous_means(parents, routing.procedure, iteration)
    return fit_gaussians(
        sums.moments, sums.center, old_means, routing.constants, routing.procedure, iteration
    ), sums


def unless_first(
    iteration: jax.Array | int, step: Callable[[], Any], instead: Callable[[], Any]
) -> Any:
    """`step()`, or in iteration 0 `instead()`. Where the iterations are turns of one loop, which is
    compiled once, that is decided when it runs.
    """
    if isinstance(iteration, int):
        return step() if iteration else instead()
    return lax.cond(iteration > 0, step, instead)


def previous_means(
    parents: Parents, procedure: Procedure, iteration: jax.Array | int
) -> jax.Array | None:
    """The means of which damping keeps a part, zeros at first; None without damping."""
    return jnp.where(iteration > 0, parents.means, 0) if procedure.damping else None


def _sums_of_shares(
    routing: Routing[Votes], shares: jax.Array, parents: Parents, center: jax.Array
) -> Sums:
    """What the first M-step sums: assignments are the same for all types."""
    mass, *others = routing.votes.moments(shares[:, None], center, routing.activations)
    assignments = jnp.broadcast_to(shares[:, None], (shares.shape[0], *parents.logits.shape))
    return Sums(assignments, center, Moments(jnp.broadcast_to(mass, parents.logits.shape), *others))


def _sums_by_agreement(routing: Routing[Votes], parents: Parents, center: jax.Array) -> Sums:
    """What every other M-step sums, after its E-step, about the means of before.

    Where parents have moved so far that their variances lose digits, moments are taken again, about
    the means that they gave.
    """
    assignments = e_step(routing, parents)
    moments = routing.votes.moments(assignments, center, routing.activations)
    lost, means = lax.stop_gradient(_lost_digits(moments, center, routing.constants))
    return Sums(
        assignments,
        *routing.votes.retake(lost, assignments, means, routing.activations, (center, moments)),
    )


def _lost_digits(
    moments: Moments, center: jax.Array, constants: Constants
) -> tuple[jax.Array, jax.Array]:
    """Where variances have lost digits, bool `[J, M]`, because means are far from the center; and
    the means, `[4, 4, J, M]`.
    """
    total = (moments.mass + constants.mass_epsilon)[None, None]
    shift, mean_squares = moments.first / total, moments.second / total
    variances = mean_squares - shift**2 + constants.min_variance
    return (mean_squares > MOST_CANCELLATION * variances).any((0, 1)), center + shift


def e_step(routing: Routing[Votes], parents: Parents) -> jax.Array:
    """Divide each child among the parents that compete for it, by p_ij of `log_densities`.

    Returns assignments `[N, J, M]`.
    """
    constant, quadratic = log_densities(parents, routing.constants)
    assignments = compete(
        routing.votes.scores(constant, quadratic, parents.means), routing.procedure
    )
    return assignments if routing.procedure.assignment_gradient else lax.stop_gradient(assignments)


@jax.jit
def log_densities(parents: Parents, constants: Constants) -> tuple[jax.Array, jax.Array]:
    """Log p_ij / assignment_temperature, where p_ij = a_j prod_h Normal(V_ijh; mean_jh,
    variance_jh), as a quadratic form.

    Returns:
        The part that does not depend on the child, `[J, M]`, and the coefficients `[4, 4, J, M]` of
        (V_ijh - mean_jh)^2.
    """
    quadratic = -0.5 / (parents.variances * constants.assignment_temperature)
    norm = 0.5 * jnp.log(2 * jnp.pi * parents.variances).sum((0, 1))
    return (jax.nn.log_sigmoid(parents.logits) - norm) / constants.assignment_temperature, quadratic


# Jitted so that it is traced once for all of its uses, as `log_densities` is.
@functools.partial(jax.jit, static_argnames="procedure")
def fit_gaussians(
    moments: Moments,
    center: jax.Array,
    old_means: jax.Array | None,
    constants: Constants,
    procedure: Procedure,
    iteration: jax.Array | int,
) -> Parents:
    """The M-step after its sums. With g_i = r_ij a_i and m = sum_i g_i, for parent j and pose entry
    h:

        mean_h = (1 - damping) sum_i g_i V_ijh / (m + mass_epsilon) + damping old_mean_h
        variance_h = sum_i g_i (V_ijh - mean_h)^2 / (m + mass_epsilon) + min_variance
        cost = sum_h (beta_u + log(variance_h) / 2) * m * mass_scale
        logit = lambda (beta_a - cost)

    With `normalize_costs`, cost becomes (cost - its mean) / (its standard deviation + 1) over the
    parent types at a position.

    Args:
        moments: of the data.
        center: what the moments are about. The result does not depend on it but for rounding.
        old_means: of the previous iteration, `[4, 4, J, M]`; None without damping.
        constants: beta_u is the cost of describing one unit of data for one pose entry, beta_a what
            an active parent is worth.
        procedure: see `Procedure`.
        iteration: t, which chooses lambda.
    """
    first, second, mass = moments.first, moments.second, moments.mass[None, None]
    total = mass + constants.mass_epsilon
    # From the center to the means: `first` sums the votes' distances from it.
    shift = (first - constants.mass_epsilon * center) / total
    if old_means is not None:
        shift += procedure.damping * (old_means - (center + shift))
    # Rounding can leave a small negative sum of squares where all votes agree.
    squares = jnp.maximum(second - 2 * shift * first + mass * shift**2, 0)
    variances = squares / total + constants.min_variance
    information = POSE_ENTRIES * constants.beta_u + 0.5 * jnp.log(variances).sum((0, 1))
    cost = information * moments.mass * constants.mass_scale
    if procedure.normalize_costs:
        cost = _standardize_over_types(cost, procedure)
    logits = constants.inverse_temperature[iteration] * (constants.beta_a - cost)
    return Parents(center + shift, variances, logits)


def _standardize_over_types(cost: jax.Array, procedure: Procedure) -> jax.Array:
    """(cost - mean) / (standard deviation + 1) over the types, axis 0; the 1 is a cost too small to
    be told apart.
    """

    def mean_over_types(values: jax.Array) -> jax.Array:
        mean = values.mean(0, keepdims=True)
        return mean if procedure.parent_axis is None else lax.pmean(mean, procedure.parent_axis)

    offsets = cost - mean_over_types(cost)
    variance = mean_over_types(offsets**2)
    # The square root's slope at 0, where all types cost the same, would be infinite.
    positive = variance > 0
    deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
    return offsets / (deviation + 1)
