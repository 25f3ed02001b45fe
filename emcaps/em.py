"""Procedure 1 of "Matrix capsules with EM routing" (Hinton, Sabour, Frosst, ICLR 2018), in the inner layout of `votes.py`.

A parent capsule is a Gaussian over the votes of the children that it sees; its mean is its pose. T iterations are T M-steps
(fit the Gaussians, price them, decide which parents are active) with T - 1 E-steps between them (each child divides itself
among all the parents that it reaches, of all types and at all positions).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from emcaps.receptive_field import ReceptiveField
from emcaps.sharding import vary_alike
from emcaps.types import POSE_ENTRIES
from emcaps.votes import Moments, VoteTerms

COMPETITIONS = ("all", "types", "positions")
INITIAL_ASSIGNMENTS = ("reachable", "types")

# The mean square of votes about a centre, over their variance: the factor by which rounding errors grow in the variance.
MOST_CANCELLATION = 100.0


class Votes(Protocol):
    """The two operators of `votes.py`, the weighted sum to start from, and moments taken again (`votes.retake_if_lost`)."""

    def weighted_sum(self, weights: jax.Array, /) -> jax.Array: ...
    def moments(self, weights: jax.Array, centre: jax.Array, scale: jax.Array, /) -> Moments: ...
    def retake(
        self, lost: jax.Array, weights: jax.Array, centre: jax.Array, scale: jax.Array, taken: tuple[jax.Array, Moments], /
    ) -> tuple[jax.Array, Moments]: ...
    def scores(self, constant: jax.Array, quadratic: jax.Array, centre: jax.Array, /) -> jax.Array: ...


class RecomputedVotes(Votes, Protocol):
    """Votes that are formed where they are used: a tree of their poses and transforms, which can tell the gradient for these.

    Attributes:
        UNROLL: whether iterations shall follow one another in the program, rather than be the turns of a loop.
    """

    UNROLL: bool

    def moments(self, weights: jax.Array, centre: jax.Array, scale: jax.Array | None = None, /) -> Moments: ...
    def scores(
        self, constant: jax.Array, quadratic: jax.Array, centre: jax.Array, linear: jax.Array | None = None, /
    ) -> jax.Array: ...
    def gradient(self, groups: Sequence[VoteTerms], centre: jax.Array, /) -> tuple[jax.Array, jax.Array]: ...


class Parents(NamedTuple):
    """The parents after an M-step.

    Attributes:
        means: `[4, 4, J, M]`.
        variances: `[4, 4, J, M]`, at least `min_variance`.
        logits: `[J, M]`; the activations are their sigmoid.
    """

    means: jax.Array
    variances: jax.Array
    logits: jax.Array


class Sums(NamedTuple):
    """What an M-step has summed over the children.

    Attributes:
        assignments: that it used, `[N, J, M]`.
        centre: that the moments are about, `[4, 4, J, M]`.
        moments: of the data.
    """

    assignments: jax.Array
    centre: jax.Array
    moments: Moments


class Constants(NamedTuple):
    """What Procedure 1 is given besides the data: the two learned vectors `[J, 1]` or `[J, M]`, lambda `[T]`, and scalars."""

    beta_u: jax.Array
    beta_a: jax.Array
    inverse_temperature: jax.Array
    min_variance: jax.Array
    mass_epsilon: jax.Array
    mass_scale: jax.Array
    assignment_temperature: jax.Array


class Procedure(NamedTuple):
    """What shapes the compiled program; static.

    Attributes:
        field: which children a parent sees.
        num_iterations: T.
        normalize_costs: see `fit_gaussians`.
        competition: among which parents a child divides itself, one of `COMPETITIONS`: all that it reaches, the types at each
            position, or the positions of each type.
        initial_assignments: one of `INITIAL_ASSIGNMENTS`: 1 / (parents that the child reaches), or 1 / (parent types).
        damping: how much of the previous means stays in the means, in [0, 1).
        assignment_gradient: whether derivatives go through the assignments; otherwise they are constants.
        parent_axis: the mapped axis over whose devices the parent types are divided; None: all of them are here.
    """

    field: ReceptiveField
    num_iterations: int
    normalize_costs: bool
    competition: str
    initial_assignments: str
    damping: float
    assignment_gradient: bool
    parent_axis: str | None = None


@functools.partial(jax.jit, static_argnames="procedure")  # so that it is traced once for all of its uses
def fit_gaussians(
    moments: Moments,
    centre: jax.Array,
    old_means: jax.Array | None,
    constants: Constants,
    procedure: Procedure,
    iteration: jax.Array,
) -> Parents:
    """The M-step after its sums. With g_i = r_ij a_i and m = sum_i g_i, for parent j and pose entry h:

        mean_h = (1 - damping) sum_i g_i V_ijh / (m + mass_epsilon) + damping old_mean_h
        variance_h = sum_i g_i (V_ijh - mean_h)^2 / (m + mass_epsilon) + min_variance
        cost = sum_h (beta_u + log(variance_h) / 2) * m * mass_scale
        logit = lambda (beta_a - cost)

    With `normalize_costs`, cost becomes (cost - its mean) / (its standard deviation + 1) over the parent types at a position.

    Args:
        moments: of the data.
        centre: what the moments are about. The result does not depend on it but for rounding.
        old_means: of the previous iteration, `[4, 4, J, M]`; None without damping.
        constants: beta_u is the cost of describing one unit of data for one pose entry, beta_a what an active parent is worth.
        procedure: see `Procedure`.
        iteration: t, which chooses lambda.
    """
    first, second, mass = moments.first, moments.second, moments.mass[None, None]
    total = mass + constants.mass_epsilon
    shift = (first - constants.mass_epsilon * centre) / total
    if old_means is not None:
        shift += procedure.damping * (old_means - (centre + shift))
    # Rounding can leave a small negative sum of squares where all votes agree.
    squares = jnp.maximum(second - 2 * shift * first + mass * shift**2, 0)
    variances = squares / total + constants.min_variance
    information = POSE_ENTRIES * constants.beta_u + 0.5 * jnp.log(variances).sum((0, 1))
    cost = information * moments.mass * constants.mass_scale
    if procedure.normalize_costs:
        cost = _standardize_over_types(cost, procedure)
    logits = constants.inverse_temperature[iteration] * (constants.beta_a - cost)
    return Parents(centre + shift, variances, logits)


def _standardize_over_types(cost: jax.Array, procedure: Procedure) -> jax.Array:
    """(cost - mean) / (standard deviation + 1) over the types, axis 0; the 1 is a cost too small to be told apart."""

    def mean_over_types(values: jax.Array) -> jax.Array:
        mean = values.mean(0, keepdims=True)
        return mean if procedure.parent_axis is None else lax.pmean(mean, procedure.parent_axis)

    offsets = cost - mean_over_types(cost)
    variance = mean_over_types(offsets**2)
    # The square root's slope at 0, where all types cost the same, would be infinite.
    positive = variance > 0
    deviation = jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
    return offsets / (deviation + 1)


@jax.jit
def log_densities(parents: Parents, constants: Constants) -> tuple[jax.Array, jax.Array]:
    """Log p_ij / assignment_temperature, where p_ij = a_j prod_h Normal(V_ijh; mean_jh, variance_jh), as a quadratic form.

    Returns:
        The part that does not depend on the child, `[J, M]`, and the coefficients `[4, 4, J, M]` of (V_ijh - mean_jh)^2.
    """
    quadratic = -0.5 / (parents.variances * constants.assignment_temperature)
    norm = 0.5 * jnp.log(2 * jnp.pi * parents.variances).sum((0, 1))
    return (jax.nn.log_sigmoid(parents.logits) - norm) / constants.assignment_temperature, quadratic


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def compete(scores: jax.Array, procedure: Procedure) -> jax.Array:
    """Softmax of `[N, J, M]` over the parents that compete for a child."""
    field = procedure.field
    # First over the types at a position; then, in arrays without an axis for them, over the patches that see a child.
    type_peak = _over_types(scores, procedure, jnp.max, lax.pmax)
    type_shares = jnp.exp(scores - type_peak)
    patch_weight = jnp.exp(type_peak - _over_patches(type_peak, procedure, field.scatter_max))
    types_total = _over_types(type_shares, procedure, jnp.sum, lax.psum)
    total = _over_patches(types_total * patch_weight, procedure, field.scatter_sum)
    return type_shares * (patch_weight / total)


@functools.partial(jax.jit, static_argnames="procedure")
def compete_derivative(assignments: jax.Array, direction: jax.Array, procedure: Procedure) -> jax.Array:
    """The derivative of `compete` along `direction` `[N, J, M]`. It is symmetric: also the gradient that comes back."""
    weighted = assignments * direction
    total = _over_patches(_over_types(weighted, procedure, jnp.sum, lax.psum), procedure, procedure.field.scatter_sum)
    return weighted - assignments * total


@compete.defjvp
def _compete_jvp(procedure, primals, tangents):
    (scores,), (direction,) = primals, tangents
    assignments = compete(scores, procedure)
    return assignments, compete_derivative(assignments, direction, procedure)


def _over_types(values: jax.Array, procedure: Procedure, combine: Callable, combine_devices: Callable) -> jax.Array:
    """Combine `[N, J, M]` over the types to `[N, 1, M]`, if types compete: first those that are here."""
    if procedure.competition == "positions":
        return values
    combined = combine(values, axis=1, keepdims=True)
    return combined if procedure.parent_axis is None else combine_devices(combined, procedure.parent_axis)


def _over_patches(values: jax.Array, procedure: Procedure, scatter: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Combine what the patches say of each child, and tell each patch the result: `[N, J or 1, M]`, if positions compete."""
    if procedure.competition == "types":
        return values
    field = procedure.field
    seen = values.reshape(*field.kernel_size, -1, *field.output_size, values.shape[-1] // math.prod(field.output_size))
    return field.gather(scatter(seen)).reshape(values.shape)


def first_shares(activations: jax.Array, procedure: Procedure, num_types: int) -> jax.Array:
    """How each child divides itself before any routing. The same for all types: `[N, M]`."""
    if procedure.initial_assignments == "types":
        return jnp.full_like(activations, 1 / num_types)
    field = procedure.field
    reached = np.maximum(field.num_parent_positions(), 1) * num_types
    shares = field.gather(jnp.asarray(1 / reached, activations.dtype)[None, :, :, None])
    shares, _ = vary_alike((shares, activations))
    types = activations.shape[0] // math.prod(field.kernel_size)
    batch = activations.shape[1] // math.prod(field.output_size)
    shape = (*field.kernel_size, types, *field.output_size, batch)
    return jnp.broadcast_to(shares, shape).reshape(activations.shape)


def e_step(votes: Votes, parents: Parents, constants: Constants, procedure: Procedure) -> jax.Array:
    """Divide each child among the parents that compete for it, by p_ij of `log_densities`. Returns assignments `[N, J, M]`."""
    constant, quadratic = log_densities(parents, constants)
    assignments = compete(votes.scores(constant, quadratic, parents.means), procedure)
    return assignments if procedure.assignment_gradient else lax.stop_gradient(assignments)


def start(votes: Votes, activations: jax.Array, constants: Constants, procedure: Procedure) -> tuple[jax.Array, Parents]:
    """The `first_shares` of each child, `[N, M]`, and parents that have the means that these give, and nothing else yet."""
    devices = 1 if procedure.parent_axis is None else lax.axis_size(procedure.parent_axis)
    shares = first_shares(activations, procedure, constants.beta_u.shape[0] * devices)
    # They are the same for all types, so that the means are one matrix product.
    data = shares * activations
    means = votes.weighted_sum(data) / (data.sum(0) + constants.mass_epsilon)[None, None, None]
    return shares, Parents(means, jnp.ones_like(means), jnp.zeros_like(means[0, 0]))


def iterate(
    votes: Votes,
    activations: jax.Array,
    constants: Constants,
    procedure: Procedure,
    shares: jax.Array,
    iteration: jax.Array,
    parents: Parents,
) -> tuple[Parents, Sums]:
    """An E-step, in place of which the first iteration has its `shares`, and an M-step about the previous means of the parents.

    Where parents have moved so far that their variances lose digits, moments are taken again, about the means that they gave.
    """
    centre = lax.stop_gradient(parents.means)

    def divide_evenly():
        mass, *others = votes.moments(shares[:, None], centre, activations)
        everywhere = jnp.broadcast_to(shares[:, None], (shares.shape[0], *parents.logits.shape))
        return everywhere, centre, Moments(jnp.broadcast_to(mass, parents.logits.shape), *others)

    def divide_by_agreement():
        assignments = e_step(votes, parents, constants, procedure)
        moments = votes.moments(assignments, centre, activations)
        lost, means = lax.stop_gradient(_lost_digits(moments, centre, constants))
        return assignments, *votes.retake(lost, assignments, means, activations, (centre, moments))

    sums = Sums(*unless_first(iteration, divide_by_agreement, divide_evenly))
    old_means = previous_means(parents, procedure, iteration)
    return fit_gaussians(sums.moments, sums.centre, old_means, constants, procedure, iteration), sums


def unless_first(iteration: jax.Array, step: Callable[[], Any], instead: Callable[[], Any]) -> Any:
    """`step()`, or in iteration 0 `instead()`: all iterations are then turns of one loop, compiled once."""
    return lax.cond(iteration > 0, step, instead)


def previous_means(parents: Parents, procedure: Procedure, iteration: jax.Array) -> jax.Array | None:
    """The means of which damping keeps a part, zeros at first; None without damping."""
    return jnp.where(iteration > 0, parents.means, 0) if procedure.damping else None


def _lost_digits(moments: Moments, centre: jax.Array, constants: Constants) -> tuple[jax.Array, jax.Array]:
    """Where variances have lost digits, bool `[J, M]`, because means are far from the centre; and the means, `[4, 4, J, M]`."""
    total = (moments.mass + constants.mass_epsilon)[None, None]
    shift, mean_squares = moments.first / total, moments.second / total
    variances = mean_squares - shift**2 + constants.min_variance
    return (mean_squares > MOST_CANCELLATION * variances).any((0, 1)), centre + shift


def route(votes: Votes, activations: jax.Array, constants: Constants, procedure: Procedure) -> tuple[Parents, jax.Array]:
    """Procedure 1 for children with `activations` `[N, M]`. Returns the parents and the last assignments `[N, J, M]`."""
    shares, parents = start(votes, activations, constants, procedure)

    def step(iteration, state):
        parents, _ = state
        parents, sums = iterate(votes, activations, constants, procedure, shares, iteration, parents)
        return parents, sums.assignments

    nothing = jnp.zeros_like(shares, shape=(shares.shape[0], *parents.logits.shape))
    return lax.fori_loop(0, procedure.num_iterations, step, (parents, nothing))
